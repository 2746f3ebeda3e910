"""How every command leaves: one message on stderr and the exit code of the contract."""

from __future__ import annotations

import sys
from collections.abc import Callable

from transfer_run.errors import (
    DONE,
    FAILED,
    INTERRUPTED,
    PREEMPTED,
    USER_ERROR,
    Preempted,
    RunFailed,
    UserError,
)
from transfer_run.signals import ignore_signals, stop_at_signals


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command; what stops it becomes a message and a code, a bug in the command keeps its traceback.

    Args:
        command: returns its own exit code, or None for 0.
    """
    stop_at_signals()
    try:
        code = command() or DONE
        ignore_signals()
        return code
    except UserError as error:
        return _leave(str(error), USER_ERROR)
    except RunFailed as error:
        return _leave(f"The run failed: {error}", FAILED)
    except Preempted as error:
        return _leave(str(error) or "Stopped by the cluster; the same command goes on from here.", PREEMPTED)
    except KeyboardInterrupt as stopped:
        return _leave(f"Interrupted; {stopped or 'the same command does what is missing.'}", INTERRUPTED)


def _leave(message: str, code: int) -> int:
    ignore_signals()
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    return code
