"""What a stage does on SIGTERM and Ctrl-C: it ends after the current update, in good order."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

SAME_SECONDS = 2.0  # within which a signal that comes again is the same one


class Stopped(Exception):
    """Training ended early, in good order. Says where, and from where it will go on."""


class StopRequest:
    """Notes SIGTERM and Ctrl-C, for the trainer to stop after the current update. The second one ends the process at once.

    One that comes right after the first is the same one: SLURM signals all processes of a job, and torchrun among them its ranks again.
    """

    def __init__(self) -> None:
        self.wanted, self.asked = False, 0.0

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        if not self.wanted:
            self.wanted, self.asked = True, time.monotonic()
        elif time.monotonic() - self.asked > SAME_SECONDS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
