"""The ops: torchvision's names and arguments where those exist, fixed shapes with counts everywhere else."""

from frcnn_fast.ops._operator import use_backend

__all__ = ["use_backend"]
