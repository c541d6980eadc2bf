"""Optional packages, imported where they are used: `import frcnn_fast` itself needs torch and numpy only."""

from __future__ import annotations

import importlib
from typing import Any

_PACKAGE_OF = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "cv2": "opencv-contrib-python-headless",
}


def require(module: str, extra: str) -> Any:
    """Import `module`, or say which extra of this package brings it.

    Args:
        module: dotted module name, for example "PIL.Image".
        extra: the extra whose requirements contain it, for example "train".

    Returns:
        The imported module.

    Raises:
        ImportError: the module is not installed; the message names the command that installs it.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but lacks a part of its own is another trouble: let it speak for itself.
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        package = _PACKAGE_OF.get(top, top)
        raise ImportError(
            f"{package} is needed here and is not installed: pip install 'frcnn_fast[{extra}]'"
        ) from error
