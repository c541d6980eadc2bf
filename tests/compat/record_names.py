"""Records names and shapes of other libraries' checkpoints, for the tests that run without these libraries.

python -m tests.compat.record_names [NAME ...]

NAME: of `tests.compat.libraries.MODELS`; default: all whose library is installed (of detectron2 a checkout on the path
is enough).
"""

from __future__ import annotations

import json
import sys

from tests.compat.libraries import MODELS, frozen_as_published, is_there
from tests.test_checkpoints import RECORDED


def main(names: list[str]) -> None:
    for name in names or [name for name in MODELS if is_there(name)]:
        model = MODELS[name]()
        if name.startswith("torchvision") and not name.endswith("_v2"):
            frozen_as_published(model)
        lines = [f"{json.dumps(key)}: {list(tensor.shape)}" for key, tensor in model.state_dict().items()]
        (RECORDED / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{name}: {len(lines)} names")


if __name__ == "__main__":
    main(sys.argv[1:])
