"""Signals while something can be saved: they are remembered until it is."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from transfer_run.errors import Preempted
from transfer_run.signals import answered, give_back


class Signals:
    """The signals between `take` and `give_back`, Ctrl-C among them.

    Attributes:
        asked: the last one that came; None: the run may go on.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def take(self) -> None:
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = answered(self._remember, signal.SIGINT)

    def give_back(self) -> None:
        give_back(self._before)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.asked == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.asked = number

    def error(self, saved: Path) -> Preempted | KeyboardInterrupt:
        """What ends the run, now that it is saved."""
        if self.asked == signal.SIGINT:
            return KeyboardInterrupt()
        name = signal.Signals(self.asked or signal.SIGTERM).name
        return Preempted(f"stopped by {name}; it goes on from {saved}")
