"""The parts of training: options, batches, the loop. `frcnn_fast.train` puts them together."""

from frcnn_fast.training.loop import fit
from frcnn_fast.training.optim import make_optimizer
from frcnn_fast.training.options import TrainOptions, recipe
from frcnn_fast.training.state import Training
from frcnn_fast.training.step import train_step

__all__ = ["TrainOptions", "Training", "fit", "make_optimizer", "recipe", "train_step"]
