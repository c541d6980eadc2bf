"""The states of the random generators: saved, put back, and drawn anew for every item."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """The states of Python's, NumPy's and torch's generators (the one of `device` too), as tensors by name."""
    kind, numpy_keys, *numpy_rest = np.random.get_state(legacy=True)
    states = {
        "python": _text(json.dumps(random.getstate())),
        "numpy": torch.from_numpy(np.array(numpy_keys, dtype=np.int64)),
        "numpy_rest": _text(json.dumps([kind, *numpy_rest])),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def load_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put `random_tensors` back. A GPU's state is passed over on another device."""
    version, keys, gauss = json.loads(bytes(states["python"].tolist()))
    random.setstate((version, tuple(keys), gauss))
    kind, *rest = json.loads(bytes(states["numpy_rest"].tolist()))
    np.random.set_state((kind, states["numpy"].numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _text(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@contextlib.contextmanager
def drawn_anew(*seeds: int) -> Iterator[None]:
    """All generators of the processor begin from `seeds`, and go on where they were afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    digest = hashlib.blake2b(repr(seeds).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest[:7], "little")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
