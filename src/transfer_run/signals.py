"""The signals that ask a process to leave and to be started again, from its first instant to its last.

    SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 ──> Preempted, raised where the process is: it imports, composes, waits, builds
                                     └──> remembered instead, while something is under way that can be saved

What was ignored when the process began (`nohup`) stays ignored. Ctrl-C is Python's own KeyboardInterrupt.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transfer_run.errors import Preempted

STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
Handler = Callable[[int, FrameType | None], None]
_stopping = False


def _stop(number: int, frame: FrameType | None) -> None:
    """Raised once: clusters send several in a row, and what ends because of the first one must end undisturbed."""
    global _stopping
    if _stopping:
        return
    _stopping = True
    raise Preempted(f"stopped by {signal.Signals(number).name}; the same command goes on from the last checkpoint")


def stop_at_signals() -> None:
    """From here on each of them raises `Preempted`; a process of ours calls it before it imports anything heavy."""
    if threading.current_thread() is threading.main_thread():
        _begin()
        if sys.unraisablehook is not _asked_again:
            sys.unraisablehook = _asked_again


def _begin() -> dict[int, Any]:
    global _stopping
    _stopping = False
    return answered(_stop)


def answered(handler: Handler, *more: signal.Signals) -> dict[int, Any]:
    """Let `handler` answer the signals, and `more` of them, but for those that are ignored; returns who did before."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (*STOPS, *more)}
    heard = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, handler)
    return heard


def give_back(before: dict[int, Any]) -> None:
    """Undo `answered`."""
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def preemptible() -> Iterator[None]:
    """`stop_at_signals` within a block, whoever called."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _begin()
    try:
        yield
    finally:
        give_back(before)


def ignore_signals() -> None:
    """The process leaves, and clusters send a signal again while it does."""
    if threading.current_thread() is threading.main_thread():
        answered(_leaving, signal.SIGINT)


def _leaving(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which whatever is started now would inherit."""


def _asked_again(unraisable: Any) -> None:
    """A signal that came while an object was being collected is lost to Python: it comes once more, a moment later."""
    global _stopping
    if isinstance(unraisable.exc_value, Preempted | KeyboardInterrupt):
        _stopping = False
        number = signal.SIGINT if isinstance(unraisable.exc_value, KeyboardInterrupt) else signal.SIGTERM
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    sys.__unraisablehook__(unraisable)
