"""The ops: torchvision's names and arguments where those exist, fixed shapes with counts everywhere else."""

from frcnn_fast.ops._operator import use_backend
from frcnn_fast.ops.top_n import top_n

__all__ = ["top_n", "use_backend"]
