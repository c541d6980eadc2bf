"""Several processes under torchrun: who is who, and what they have to agree on. One process is rank 0 of 1."""

from __future__ import annotations

import contextlib
import datetime
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Made = TypeVar("Made")

# Ranks wait for the slowest, which may have hours more to do; torchrun ends them all where one dies.
_PATIENCE = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """This process among `count` of them."""

    rank: int = 0
    count: int = 1
    local: int = 0  # its number on this machine

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self, name: str | None) -> str | None:
        """`name`, or by default this process' own GPU where there is one for each."""
        own_gpu = name in (None, "cuda") and self.count > 1 and torch.cuda.is_available()
        return f"cuda:{self.local % torch.cuda.device_count()}" if own_gpu else name

    def made_by_first(self, make: Callable[[], Made]) -> Made:
        """What `make` returns in rank 0, in every rank. Its ValueError or OSError is raised there; the others exit."""
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box[0] = make()
            except (ValueError, OSError) as error:
                box[1] = error
        distributed.broadcast_object_list(box)
        if box[1] is not None:
            if self.is_first:
                raise box[1]
            sys.exit(1)
        return box[0]

    def gathered(self, value: Made) -> list[Made]:
        """What each rank has, in their order, in every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of the ranks' tensors, in every rank and on its device; without a gradient."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone() if tensor.is_floating_point() else tensor.detach().float()
        distributed.all_reduce(total)
        return total / self.count

    def wait_for_all(self) -> None:
        if self.count > 1:
            distributed.all_reduce(torch.zeros(1))  # on the processor: ranks may share a GPU


ALONE = Ranks()


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """This process among those that torchrun started, connected for the block (a block inside another one is part of
    it); one alone without torchrun."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield ALONE
        return
    begun = not distributed.is_initialized()
    if begun:
        # What they agree on goes from processor to processor, tensors from device to device.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), distributed.get_node_local_rank())
    finally:
        if begun:
            distributed.destroy_process_group()
