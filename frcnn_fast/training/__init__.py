"""The parts of training: options, batches, the loop. `frcnn_fast.train` puts them together."""

from frcnn_fast.training.loop import Training, fit, train_step
from frcnn_fast.training.optim import make_optimizer
from frcnn_fast.training.options import TrainOptions, recipe

__all__ = ["TrainOptions", "Training", "fit", "make_optimizer", "recipe", "train_step"]
