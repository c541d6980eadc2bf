"""Optimisers of a stage, and their state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frcnn_fast.training.options import TrainOptions


def make_optimizer(detector: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser of the parameters that are not frozen.

    With options.cuda_graph its learning rates are tensors, which a graph reads anew at every replay.
    """
    moving = [(name, parameter) for name, parameter in detector.named_parameters() if parameter.requires_grad]
    backbone = [parameter for name, parameter in moving if name.startswith("backbone.")]
    others = [parameter for name, parameter in moving if not name.startswith("backbone.")]
    groups: list[dict[str, Any]] = [
        {"params": parameters, "factor": factor}
        for parameters, factor in ((backbone, options.backbone_lr), (others, 1.0))
        if parameters
    ]
    if options.cuda_graph:
        for group in groups:
            group["lr"] = torch.tensor(options.lr, device=group["params"][0].device)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(
            groups, lr=options.lr, weight_decay=options.weight_decay, fused=True, capturable=options.cuda_graph
        )
    return torch.optim.SGD(
        groups, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=True
    )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next update, before each group's factor."""
    for group in optimizer.param_groups:
        rate = lr * group.get("factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser remembers, such as momenta: tensors named PLACE.WHAT, PLACE counting the parameters."""
    state: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{place}.{what}": torch.as_tensor(value)
        for place, entries in state.items()
        for what, value in entries.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put `optimizer_tensors` back into an optimiser of the same parameters.

    Each gets its parameter's memory layout again: a fused update runs over both in the order of their memory.

    Raises:
        ValueError: there is a tensor for a parameter that the optimiser does not have, or of another shape.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, what = name.partition(".")
        place = int(number)
        if place >= len(parameters) or (tensor.dim() and tensor.shape != parameters[place].shape):
            raise ValueError(f"optimizer: {name} has no place or another shape; the checkpoint is of another training")
        whole = torch.empty_like(parameters[place], dtype=tensor.dtype) if tensor.dim() else None
        state.setdefault(place, {})[what] = tensor if whole is None else whole.copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
