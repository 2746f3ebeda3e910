"""Who is at a run and how its last start ended, told from its folder alone by any process that sees it: a sweep, its
status from another terminal, a job of a cluster.

result.json   it has finished
.lock         held by the process that carries the run out; the system frees it, however that process ends
.owner        who that is; a killed process leaves it behind
.ended.json   how the last start ended without a result: {"code": 1, "reason": "..."}; gone while somebody is at it
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from transfer_run.errors import FAILED, INTERRUPTED, PREEMPTED, USER_ERROR, Pruned, UserError, code_of, reason_of
from transfer_run.files import make_folder, read_json, write_json
from transfer_run.run_folder import RESULT, read_result

LOCK, OWNER, ENDED = ".lock", ".owner", ".ended.json"
MOMENT = 0.3
"""Seconds in which a lock is free again that `state_of` looked at."""

FINISHED, RUNNING, WAITING, KILLED, PRUNED = "finished", "running", "waiting", "killed", "pruned"
PLANNED = "planned"
"""Of a run that was only to be planned (`dry_run`); no folder says so."""
STATUS = {FAILED: "failed", USER_ERROR: "refused", PREEMPTED: "preempted", INTERRUPTED: "interrupted"}
"""What the exit codes of runs without a result are called."""


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        status: finished, running, failed, refused (the user must provide something), preempted, interrupted, killed,
            pruned (a search ended it early), or waiting: nobody has begun it.
        reason: who is at it, or why it has no result.
    """

    status: str
    reason: str = ""

    @property
    def code(self) -> int:
        """The exit code that it stands for; of what was killed, is running or has not begun, that of a failure."""
        if self.status in (FINISHED, PRUNED, PLANNED):
            return 0
        return next((code for code, status in STATUS.items() if status == self.status), FAILED)

    @property
    def goes_on(self) -> bool:
        """Does the same command take it up, without being asked to repeat what failed?"""
        return self.status not in (FINISHED, PRUNED, STATUS[FAILED])


def state_of(folder: Path) -> State:
    """The state of the run whose folder this is, there or not; nothing is changed and nobody is waited for."""
    try:
        if read_result(folder) is not None:
            return State(FINISHED)
    except UserError as error:
        return State(STATUS[USER_ERROR], str(error))
    owner = _text(folder / OWNER)
    if is_held(folder):
        return State(RUNNING, owner or "another process")
    with suppress(UserError):  # half a record, of a full disk: then it is told by what else is there
        if (folder / ENDED).is_file():
            ended = read_json(folder / ENDED, f"delete {folder / ENDED}")
            status = PRUNED if ended.get("pruned") else STATUS.get(int(ended.get("code", FAILED)), STATUS[FAILED])
            return State(status, str(ended.get("reason", "")))
    if owner:
        return State(KILLED, f"{owner} was killed; the same command goes on from the last checkpoint")
    return State(WAITING)


def is_held(folder: Path) -> bool:
    """Is a process at the run?"""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who only look do not see each other
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Hold the run against other processes, and leave how it ended; wait, and say so, while another one is at it.

    Yields:
        The open file of the lock: a process that inherits it holds the run, too, until it ends.
    """
    make_folder(folder, f"output_dir: {folder}")
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=MOMENT)
    except Timeout:
        print(f"{folder} is being carried out by {_text(folder / OWNER) or 'another process'}; waiting", flush=True)
        lock.acquire()
    try:
        (folder / ENDED).unlink(missing_ok=True)
        (folder / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        file = lock._context.lock_file_fd
        assert file is not None, "just acquired"
        yield file
    except BaseException as error:
        ended = {"code": code_of(error), "reason": reason_of(error)} | (
            {"pruned": True} if isinstance(error, Pruned) else {}
        )
        if ended["code"] and not (folder / RESULT).is_file():
            with suppress(OSError):  # a full disk: the process itself says what ended it
                write_json(folder / ENDED, ended)
        raise
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
