"""Several runs at a time on this machine, each a process of its own.

The process of the sweep imports what training needs and forks one process a run: no import is paid twice, no run's
memory stays, and what ends one of them (a crash, kill -9) is that run's alone. The sweep's process computes nothing and
touches no GPU, so that its children may.

Signals that it is sent are handed on to every run; it waits until they have saved. The runs are process groups of their
own, so that Ctrl-C in a terminal reaches each of them once. Where the sweep's process is killed, the system sends its
runs SIGTERM: they save and end.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from transfer_run.errors import DONE, FAILED, Preempted, RunFailed, UserError, code_of, reason_of
from transfer_run.sweeps.asked import Member
from transfer_run.sweeps.places import Place, Places

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
TICK = 1.0
"""Seconds after which a run is looked for whose pipe outlives it (a data loader's process that still has it open)."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ending:
    """How a run's process ended.

    Attributes:
        code: its exit code; of one that a signal killed, minus the signal's number.
        reason: what it said; empty of a finished or killed one.
    """

    code: int
    reason: str


@dataclass
class Process:
    member: Member
    pid: int
    pipe: int
    place: Place
    said: bytes = b""
    ended: Ending | None = None


class Pool:
    """Carries out runs, `at_once` at a time.

    Args:
        carry: carries out one run; called in its own process.
        places: where runs fit, by memory and devices.
        logs: a folder for what runs print when several go at a time; None: they print where the sweep prints.

    Attributes:
        asked: the signal that ends the sweep; None: it may go on.
    """

    def __init__(self, carry: Callable[[Member], Any], at_once: int, places: Places, logs: Path | None = None) -> None:
        self.carry, self.at_once, self.places, self.logs = carry, at_once, places, logs
        self.asked: int | None = None
        self.running: list[Process] = []

    def run(
        self,
        members: Sequence[Member],
        begun: Callable[[Member], str],
        ended: Callable[[Member, Ending], None],
    ) -> None:
        """Carry out all of them, in order as far as they fit; returns when every process has ended.

        Args:
            begun: told of a run before it begins; what it answers is why the run must not begin.
            ended: told of every process that ended.
        """
        waiting = list(members)
        with self._signals():
            while (waiting and self.asked is None) or self.running:
                while self.asked is None and (place := self._next(waiting)) is not None:
                    member, where = place
                    waiting.remove(member)
                    if reason := begun(member):
                        ended(member, Ending(FAILED, reason))
                        self.places.leave(where)
                    else:
                        self._start(member, where)
                for process in self._ended():
                    self.places.leave(process.place)
                    assert process.ended is not None
                    ended(process.member, process.ended)

    def _next(self, waiting: Sequence[Member]) -> tuple[Member, Place] | None:
        """The first run that fits beside those that run, and where."""
        if len(self.running) >= self.at_once:
            return None
        for member in waiting:
            if (place := self.places.take(member, alone=not self.running)) is not None:
                return member, place
        return None

    def _start(self, member: Member, place: Place) -> None:
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent, mask = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)  # none is lost in between
        try:
            pid = os.fork()
            if pid == 0:
                os.close(read)
                self._child(member, place, write, parent)
            os.close(write)
            self.running.append(Process(member, pid, read, place))
            member.run = None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _child(self, member: Member, place: Place, pipe: int, parent: int) -> NoReturn:
        """The run's own process; never returns."""
        ending = Ending(FAILED, "ended without a word")
        try:
            atexit._clear()  # what the sweep's process registered is its own
            for process in self.running:
                os.close(process.pipe)
            os.setpgid(0, 0)
            _end_with(parent)
            _default_signals()
            if self.logs is not None:
                _print_into(self.logs / f"{member.number}.log")
            place.enter()
            self.carry(member)
            ending = Ending(DONE, "")
        except BaseException as error:
            ending = Ending(code_of(error), reason_of(error))
            if not isinstance(error, UserError | RunFailed | Preempted | KeyboardInterrupt | SystemExit):
                traceback.print_exc()
        finally:
            for number in NUMBERS:
                signal.signal(number, signal.SIG_IGN)
            with suppress(Exception):
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
            with suppress(OSError):
                os.write(pipe, json.dumps([ending.code, ending.reason[-4000:]]).encode())
            os._exit(ending.code)

    def _ended(self) -> list[Process]:
        """Wait for a moment, and return the processes that have ended."""
        ready, _, _ = select.select([process.pipe for process in self.running], [], [], TICK)
        for process in self.running:
            if process.pipe in ready:
                process.said += os.read(process.pipe, 65536)
            found, status = os.waitpid(process.pid, os.WNOHANG)
            if found:
                process.ended = self._ending(process, os.waitstatus_to_exitcode(status))
        ended = [process for process in self.running if process.ended is not None]
        self.running = [process for process in self.running if process.ended is None]
        return ended

    def _ending(self, process: Process, code: int) -> Ending:
        while select.select([process.pipe], [], [], 0)[0] and (more := os.read(process.pipe, 65536)):
            process.said += more
        os.close(process.pipe)
        with suppress(ValueError):  # killed before it said anything
            return Ending(code, str(json.loads(process.said)[1]))
        return Ending(code, f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Hand signals on to every run; the runs that wait do not begin."""

        def hand_on(number: int, frame: FrameType | None) -> None:
            self.asked = number
            for process in self.running:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

        before = {number: signal.signal(number, hand_on) for number in NUMBERS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_with(parent: int) -> None:
    """Have the system send this process SIGTERM where its parent dies (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(FAILED)


def _default_signals() -> None:
    """As a process of its own would meet them; those that came since the fork come now."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted(f"stopped by {signal.Signals(number).name} before the first checkpoint")

    for number in NUMBERS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)


def _print_into(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout = os.fdopen(1, "w", 1, "utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", closefd=False)
