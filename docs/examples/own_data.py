"""A data set of one's own: anything with a length, class names, and items (image, target).

python docs/examples/own_data.py
"""

import torch
from torch import Tensor

from frcnn_fast import Detector
from frcnn_fast.data import check_dataset
from frcnn_fast.model import preset
from frcnn_fast.train import train
from frcnn_fast.training.options import TrainOptions


class Shapes:
    """Coloured squares and discs on grey noise. Yours would read files here."""

    def __init__(self, length: int, seed: int) -> None:
        self.class_names = ["square", "disc"]
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, object]]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        image = torch.randint(90, 150, (3, 128, 160), dtype=torch.uint8, generator=draw)
        rows, columns = torch.arange(128)[:, None], torch.arange(160)[None, :]
        boxes, labels = [], []
        for left in (8, 84):  # side by side: nothing hides anything
            ranges = (24, 60), (0, 60), (0, 8), (1, 3)
            size, down, right, label = (int(torch.randint(low, high, (), generator=draw)) for low, high in ranges)
            x, y = left + right, down + 4
            inside = (rows >= y) & (rows < y + size) & (columns >= x) & (columns < x + size)
            if label == 2:
                inside &= (rows + 0.5 - y - size / 2) ** 2 + (columns + 0.5 - x - size / 2) ** 2 <= size**2 / 4
            colour = torch.randint(0, 256, (3, 1), dtype=torch.uint8, generator=draw)
            image[:, inside] = colour
            boxes.append([x, y, x + size, y + size])  # half-open, in pixels
            labels.append(label)  # 1, 2, ...: 0 is the background
        return image, {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "image_id": f"shapes-{index}"}


def main(out: str = "runs/shapes", iterations: int = 300) -> Detector:
    training, test = Shapes(2000, seed=0), Shapes(20, seed=1)
    check_dataset(training)  # says at once what is wrong with an item; train() does this too
    options = TrainOptions(iterations=iterations, batch_size=4, lr=0.02)
    result = train(training, out=out, config=preset("small"), options=options, test=test)
    assert result.evaluation is not None  # there is one where `test` is given
    print(result.evaluation.table())
    return Detector(result.out)


if __name__ == "__main__":
    main()
