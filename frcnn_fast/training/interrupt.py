"""Ctrl-C and SIGTERM that let the iteration in progress finish."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """While active, the first Ctrl-C or SIGTERM is only noted in `received`; the second one ends the process at once.

    An interrupt between two statements of an optimiser step would leave half of the weights updated, so the loop
    looks at `received` between iterations. Outside the main thread signals cannot be caught: there it does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> StopOnSignal:
        main = threading.current_thread() is threading.main_thread()
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS} if main else {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(exit_status(signal.Signals(number)))
        self.received = signal.Signals(number)


def exit_status(number: signal.Signals) -> int:
    """What a shell reports of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def ignore_signals(worker: int) -> None:
    """For DataLoader workers: a signal often reaches the whole process group, but only the training loop answers it.

    A worker that dies makes torch raise an exception in the middle of whatever the loop is doing. But one that nobody
    has shut down is sent SIGTERM when Python exits, which then waits for it: it lingers for a minute at most, and a
    second SIGTERM ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _linger)


def _linger(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 60.0)  # SIGALRM, whose default ends the process
