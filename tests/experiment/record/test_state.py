"""How far a run is, told from its folder by a process that has nothing to do with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from transfer_run.errors import Preempted, RunFailed, UserError
from transfer_run.experiment.record.state import State, held, state_of
from transfer_run.files import write_json

HOLDING = """
import sys, time
from pathlib import Path
from transfer_run.experiment.record.state import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def broken() -> RunFailed:
    return RunFailed(Path("run.log"), "it broke")


@pytest.mark.parametrize(
    ("error", "status", "code", "goes_on"),
    [
        (broken, "failed", 1, False),
        (lambda: ArithmeticError("it broke"), "failed", 1, False),
        (lambda: UserError("no network"), "refused", 2, True),
        (lambda: Preempted("saved"), "preempted", 75, True),
        (KeyboardInterrupt, "interrupted", 130, True),
    ],
)
def test_how_a_start_ended(
    error: Callable[[], BaseException], status: str, code: int, goes_on: bool, tmp_path: Path
) -> None:
    assert state_of(tmp_path / "run") == State("waiting")
    with pytest.raises(type(error())), held(tmp_path / "run"):  # noqa: PT012
        assert state_of(tmp_path / "run").status == "running"
        raise error()
    state = state_of(tmp_path / "run")
    assert (state.status, state.code, state.goes_on) == (status, code, goes_on)
    assert {"failed": "it broke", "refused": "no network"}.get(status, "") in state.reason
    with held(tmp_path / "run"):
        write_json(tmp_path / "run" / "result.json", {"status": "finished"})
    assert state_of(tmp_path / "run") == State("finished")
    assert not {".ended.json", ".owner"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_a_run_is_told_while_another_process_is_at_it_and_after_its_kill(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    state = state_of(tmp_path)
    assert state.status == "running"
    assert f"process {other.pid} on " in state.reason
    other.kill()
    other.communicate()
    state = state_of(tmp_path)
    assert (state.status, state.goes_on, state.code) == ("killed", True, 1)
    assert f"process {other.pid} on " in state.reason


def test_a_record_that_is_half_written_is_told_by_what_else_is_there(tmp_path: Path) -> None:
    (tmp_path / ".ended.json").write_text('{"code"')
    assert state_of(tmp_path) == State("waiting")
    (tmp_path / "result.json").write_text('{"status"')
    state = state_of(tmp_path)
    assert state.status == "refused"
    assert "damaged" in state.reason
    assert "result.json" in state.reason
