"""The errors that a user can cause, each with what to do about it. Imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

DONE, FAILED, USER_ERROR, PREEMPTED, INTERRUPTED = 0, 1, 2, 75, 130
"""The exit codes of every command, and of every run of a sweep."""


class UserError(Exception):
    """The user's words are wrong, or something the user must provide is missing: one message, exit code 2.

    Args:
        what: what is wrong, one sentence.
        where: the key, file, row or column it stands in.
        nearest: valid names close to the wrong one, best first.
        remedy: what to do.
    """

    def __init__(self, what: str, *, where: str = "", nearest: Iterable[str] = (), remedy: str = "") -> None:
        self.what, self.where, self.nearest, self.remedy = what, where, list(nearest), remedy
        super().__init__(self.message())

    def message(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:   {self.where}")
        if self.nearest:
            lines.append(f"  nearest: {', '.join(self.nearest)}")
        if self.remedy:
            lines.append(f"  do:      {self.remedy}")
        return "\n".join(_shortened(line) for line in "\n".join(lines).split("\n"))


def _shortened(line: str, most: int = 2000) -> str:
    """A line that a terminal can show: a value of a whole page is cut in its middle."""
    if len(line) <= most:
        return line
    return f"{line[: most - 500]} ... ({len(line)} characters) ... {line[-400:]}"


class Preempted(BaseException):
    """The cluster asked the run to stop; its state is saved and the same command goes on from it (exit code 75).

    Like KeyboardInterrupt no Exception: a library's `except Exception` must not swallow it.
    """


class Pruned(Preempted):
    """A search ended the run early: its validations lag behind those of others. Its words alone go on with it."""


class RunFailed(Exception):
    """A run broke for a reason that is not the user's; the traceback stands in the log (exit code 1)."""

    def __init__(self, log: Path, reason: str) -> None:
        self.log, self.reason = log, reason
        super().__init__(f"{reason}\n  log: {log}")


def code_of(error: BaseException) -> int:
    """The exit code that an error ends a process with; 0 of a plain `SystemExit`."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED if error.code else DONE
    kinds = ((UserError, USER_ERROR), (Preempted, PREEMPTED), (KeyboardInterrupt, INTERRUPTED))
    return next((code for kind, code in kinds if isinstance(error, kind)), FAILED)


def reason_of(error: BaseException) -> str:
    """What ended a run, in words."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, UserError | RunFailed | Preempted) else f"{type(error).__name__}: {error}"


def nearest_names(wrong: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """The `count` valid names closest to `wrong`, best first; a name that only lacks its prefix counts as close."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(wrong, names, n=count, cutoff=0.5)
    close += [n for n in names if n not in close and n.rsplit(".", 1)[-1] == wrong.rsplit(".", 1)[-1]]
    return close[:count]
