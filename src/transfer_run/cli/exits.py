"""How every command leaves: one message on stderr and the exit code of the contract."""

from __future__ import annotations

import signal
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


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command; what stops it becomes a message and a code, a bug in the command keeps its traceback.

    Args:
        command: returns its own exit code, or None for 0.
    """
    try:
        return command() or DONE
    except UserError as error:
        return _leave(str(error), USER_ERROR)
    except RunFailed as error:
        return _leave(f"The run failed: {error}", FAILED)
    except Preempted as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # clusters send it again while the process leaves
        return _leave(str(error) or "Stopped by the cluster; the same command goes on from here.", PREEMPTED)
    except KeyboardInterrupt:
        return _leave("Interrupted; the same command goes on from the last checkpoint.", INTERRUPTED)


def _leave(message: str, code: int) -> int:
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    return code
