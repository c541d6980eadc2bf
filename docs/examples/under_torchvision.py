"""torchvision's own detector, unchanged, with our ops under it: the same boxes, sooner.

pip install 'frcnn_fast[torchvision]' ; python docs/examples/under_torchvision.py
"""

import time

import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import frcnn_fast


def main() -> None:
    torch.manual_seed(0)
    # Published weights would be loaded here; without a network the detector's are random.
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, box_score_thresh=0.01).eval()
    images = [torch.rand(3, 240, 320)]
    with torch.no_grad():
        before = timed(model, images)
        with frcnn_fast.patch_torchvision():
            after = timed(model, images)
    assert torch.equal(before["labels"], after["labels"])
    assert torch.allclose(before["boxes"], after["boxes"], atol=1e-2)
    print(f"{len(after['boxes'])} detections, the same")


def timed(model: torch.nn.Module, images: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    model(images)  # the first call allocates
    start = time.perf_counter()
    (found,) = model(images)
    print(f"{1e3 * (time.perf_counter() - start):.1f} ms")
    return found


if __name__ == "__main__":
    main()
