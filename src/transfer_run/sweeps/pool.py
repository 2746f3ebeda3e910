"""Several runs at a time on this machine, each a process of its own.

The process of the sweep imports what training needs and forks one process a run: no import is paid twice, no run's
memory stays, and what ends one of them (a crash, kill -9) is that run's alone. The sweep's process computes nothing and
touches no GPU, so that its children may.

What a run says to the sweep's process goes through a pipe, a line of JSON each: how it ended, and of a search the
validations, to which it is answered whether to go on.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from transfer_run.errors import DONE, FAILED, Preempted, RunFailed, UserError, code_of, reason_of
from transfer_run.signals import answered, give_back, ignore_signals, stop_at_signals
from transfer_run.sweeps.asked import Member
from transfer_run.sweeps.places import Place, Places

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
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
    """Attributes:
    pipe: what it says.
    answers: what it is answered.
    """

    member: Member
    pid: int
    pipe: int
    answers: int
    place: Place
    said: bytes = b""
    ended: Ending | None = None


class Pool:
    """Carries out runs, `at_once` at a time.

    Args:
        carry: carries out one run; called in its own process, with a function that tells the sweep's process of a
            step and a value, and returns whether the run must end.
        places: where runs fit, by memory and devices.
        logs: a folder for what runs print when several go at a time; None: they print where the sweep prints.

    Attributes:
        asked: the signal that ends the sweep; None: it may go on.
    """

    def __init__(
        self, carry: Callable[[Member, Report], Any], at_once: int, places: Places, logs: Path | None = None
    ) -> None:
        self.carry, self.at_once, self.places, self.logs = carry, at_once, places, logs
        self.asked: int | None = None
        self.running: list[Process] = []
        self.reported: Callable[[Member, int, float], bool] = lambda member, step, value: False

    def run(
        self,
        members: Iterable[Member],
        begun: Callable[[Member], str],
        ended: Callable[[Member, Ending], None],
    ) -> None:
        """Carry out all of them, in order as far as they fit; returns when every process has ended.

        Args:
            members: of those that are no sequence the next one is asked for when it can begin.
            begun: told of a run before it begins; what it answers is why the run must not begin.
            ended: told of every process that ended.
        """
        waiting = list(members) if isinstance(members, Sequence) else []
        coming = iter(()) if isinstance(members, Sequence) else iter(members)
        with self._signals():
            while True:
                while self.asked is None and (place := self._next(waiting, coming)) is not None:
                    member, where = place
                    waiting.remove(member)
                    if reason := begun(member):
                        ended(member, Ending(FAILED, reason))
                        self.places.leave(where)
                    else:
                        self._start(member, where)
                if not self.running:
                    return
                for process in self._ended():
                    self.places.leave(process.place)
                    assert process.ended is not None
                    ended(process.member, process.ended)

    def _next(self, waiting: list[Member], coming: Iterator[Member]) -> tuple[Member, Place] | None:
        """The first run that fits beside those that run, and where."""
        if len(self.running) >= self.at_once:
            return None
        if not waiting:
            waiting.extend(islice(coming, 1))
        for member in waiting:
            if (place := self.places.take(member, alone=not self.running)) is not None:
                return member, place
        return None

    def _start(self, member: Member, place: Place) -> None:
        (read, write), (asked, answer) = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent, mask = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)  # none is lost in between
        try:
            pid = os.fork()
            if pid == 0:
                os.close(read)
                os.close(answer)
                self._child(member, place, Report(write, asked), parent)
            os.close(write)
            os.close(asked)
            self.running.append(Process(member, pid, read, answer, place))
            member.run = None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _child(self, member: Member, place: Place, report: Report, parent: int) -> NoReturn:
        """The run's own process; never returns."""
        ending = Ending(FAILED, "ended without a word")
        try:
            atexit._clear()  # what the sweep's process registered is its own
            for process in self.running:
                os.close(process.pipe)
                os.close(process.answers)
            os.setpgid(0, 0)
            _end_with(parent)
            _default_signals()
            if self.logs is not None:
                _print_into(self.logs / f"{member.number}.log")
            place.enter()
            self.carry(member, report)
            ending = Ending(DONE, "")
        except BaseException as error:
            ending = Ending(code_of(error), reason_of(error))
            if not isinstance(error, UserError | RunFailed | Preempted | KeyboardInterrupt | SystemExit):
                traceback.print_exc()
        finally:
            ignore_signals()
            with suppress(Exception):
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
            with suppress(OSError):
                report.say({"reason": ending.reason[-4000:]})
            os._exit(ending.code)

    def _ended(self) -> list[Process]:
        """Wait for a moment, and return the processes that have ended."""
        ready, _, _ = select.select([process.pipe for process in self.running], [], [], TICK)
        for process in self.running:
            closed = False
            if process.pipe in ready:
                said = os.read(process.pipe, 65536)
                process.said, closed = process.said + said, not said
                self._answer(process)
            found, status = os.waitpid(process.pid, 0 if closed else os.WNOHANG)  # closed: it is leaving
            if found:
                process.ended = self._ending(process, os.waitstatus_to_exitcode(status))
        ended = [process for process in self.running if process.ended is not None]
        self.running = [process for process in self.running if process.ended is None]
        return ended

    def _ending(self, process: Process, code: int) -> Ending:
        while select.select([process.pipe], [], [], 0)[0] and (more := os.read(process.pipe, 65536)):
            process.said += more
        os.close(process.pipe)
        os.close(process.answers)
        with suppress(ValueError, KeyError):  # killed before it said anything
            return Ending(code, str(json.loads(process.said.splitlines()[-1] if process.said else b"")["reason"]))
        return Ending(code, f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}")

    def _answer(self, process: Process) -> None:
        """Answer what a run has said of a validation."""
        if process.said.endswith(b"\n") and "step" in (said := json.loads(process.said)):
            process.said = b""
            end = self.reported(process.member, int(said["step"]), float(said["value"]))
            with suppress(OSError):  # killed meanwhile
                os.write(process.answers, b"1" if end else b"0")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Hand signals on to every run; the runs that wait do not begin."""

        def hand_on(number: int, frame: FrameType | None) -> None:
            self.asked = number
            for process in self.running:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

        before = answered(hand_on, signal.SIGINT)
        try:
            yield
        finally:
            give_back(before)


@dataclass(frozen=True)
class Report:
    """A run's line to the sweep's process.

    Attributes:
        pipe: where it says something.
        answers: where it is answered.
    """

    pipe: int
    answers: int

    def __call__(self, step: int, value: float) -> bool:
        """Tell of a validation; must the run end?"""
        with suppress(OSError):  # the sweep's process is gone: what ends this run is on its way
            self.say({"step": step, "value": value})
            return os.read(self.answers, 1) == b"1"
        return False

    def say(self, content: dict[str, Any]) -> None:
        os.write(self.pipe, json.dumps(content).encode() + b"\n")


def _end_with(parent: int) -> None:
    """Have the system send this process SIGTERM where its parent dies (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(FAILED)


def _default_signals() -> None:
    """As a process of its own would meet them; those that came since the fork come now."""

    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop_at_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)


def _print_into(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout = os.fdopen(1, "w", 1, "utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", closefd=False)
