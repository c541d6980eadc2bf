"""The device that a command or a function runs on."""

from __future__ import annotations

import torch


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; by default the GPU that torch sees, else the processor. ValueError without it."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: got {name!r}, expected for example 'cpu' or 'cuda:0' ({error})") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {name!r}, but torch finds no usable GPU here; use 'cpu'")
    return found
