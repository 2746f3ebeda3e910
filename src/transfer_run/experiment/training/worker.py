"""One worker of a run on several devices: `python -m transfer_run.experiment.training.worker FOLDER SOURCES`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from transfer_run.errors import FAILED, INTERRUPTED, PREEMPTED, USER_ERROR, Preempted, RunFailed, UserError
from transfer_run.signals import ignore_signals, stop_at_signals


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stop_at_signals()
    folder, sources = Path(sys.argv[1]), {name: Path(path) for name, path in json.loads(sys.argv[2]).items()}
    code = _work(folder, sources)
    ignore_signals()
    sys.exit(code)


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGKILL)


def _work(folder: Path, sources: dict[str, Path]) -> int:
    """Train; the exit code. How the first one failed is left in the folder."""
    rank = int(os.environ["RANK"])
    try:
        from transfer_run.experiment.config.compose import saved
        from transfer_run.experiment.record.log import run_log
        from transfer_run.experiment.training.processes import rank_log
        from transfer_run.experiment.training.train import train

        with run_log(folder, console=rank == 0, file=None if rank == 0 else rank_log(folder, rank)):
            train(saved(folder), folder, sources)
        return 0
    except UserError as error:
        fields = {name: getattr(error, name) for name in ("what", "where", "nearest", "remedy")}
        return _left(folder, error, USER_ERROR, str(error), fields)
    except Preempted as error:
        return _left(folder, error, PREEMPTED, str(error))
    except KeyboardInterrupt as error:
        return _left(folder, error, INTERRUPTED, "")
    except RunFailed as error:
        return _left(folder, error, FAILED, error.reason)
    except BaseException as error:
        from transfer_run.run_folder import LOG_FILE

        with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(f"process {rank}:\n{traceback.format_exc()}")
        return _left(folder, error, FAILED, f"{type(error).__name__}: {error}")


def _left(folder: Path, error: BaseException, code: int, message: str, fields: dict[str, object] | None = None) -> int:
    """Tell how this process ended, unless another one has."""
    from transfer_run.experiment.training.processes import OUTCOME
    from transfer_run.files import write_json

    if not (folder / OUTCOME).exists():
        write_json(folder / OUTCOME, {"kind": type(error).__name__, "message": message, "error": fields or {}})
    return code


if __name__ == "__main__":
    main()
