"""Small cases whose answers were worked out by hand; the comment beside each shows the calculation.

The oracle must give these answers, and so must every backend. A module is found by being here; its CASES count.
"""

import importlib
import pkgutil

from .table import EdgeCase

_MODULES = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
EDGE_CASES: tuple[EdgeCase, ...] = tuple(case for module in _MODULES for case in getattr(module, "CASES", ()))

__all__ = ["EDGE_CASES", "EdgeCase"]
