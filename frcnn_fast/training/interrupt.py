"""Ctrl-C that lets the iteration in progress finish."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class StopOnInterrupt:
    """While active, the first Ctrl-C only sets `requested`; the second one interrupts at once.

    An interrupt between two statements of an optimiser step would leave half of the weights updated, so the loop
    asks `requested` between iterations. Outside the main thread signals cannot be caught: there it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopOnInterrupt:
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def ignore_interrupts(worker: int) -> None:
    """For DataLoader workers: Ctrl-C reaches the whole process group, but only the training loop answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
