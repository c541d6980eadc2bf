"""The parts of training: options, batches, the loop. `frcnn_fast.train` puts them together."""

from frcnn_fast.training.loop import fit, make_optimizer, train_step
from frcnn_fast.training.options import TrainOptions, recipe

__all__ = ["TrainOptions", "fit", "make_optimizer", "recipe", "train_step"]
