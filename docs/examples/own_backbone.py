"""A backbone of one's own, trained on the embedded digits: any module with `out_channels`, `strides` and a forward.

python docs/examples/own_backbone.py
"""

from torch import Tensor, nn

from frcnn_fast import Detector
from frcnn_fast.data import DigitsDetection
from frcnn_fast.model import preset
from frcnn_fast.train import train
from frcnn_fast.training.options import TrainOptions


class Backbone(nn.Module):
    """Maps of 96 channels, one at 4 and one at 8 pixels a cell."""

    out_channels, strides = 96, (4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 32, stride=2), block(32, 64, stride=2))
        self.fine, self.coarse = block(64, 96, stride=1), block(96, 96, stride=2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(self.stem(images))
        return fine, self.coarse(fine)


def block(channels: int, out: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def main(out: str = "runs/own-backbone", iterations: int = 400) -> Detector:
    config = preset("small")  # settings for small images; left out, they are what suits the backbone's strides
    options = TrainOptions(iterations=iterations, batch_size=4, lr=0.02)
    result = train(DigitsDetection("train"), out=out, backbone=Backbone(), config=config, options=options)
    # A checkpoint holds weights and settings; the module that they belong to is given again.
    detector = Detector(result.out, backbone=Backbone())
    print(detector, detector(DigitsDetection("test")[0][0], score_threshold=0.3))
    return detector


if __name__ == "__main__":
    main()
