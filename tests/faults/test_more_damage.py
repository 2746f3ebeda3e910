"""Damage to what sweeps and finished runs read back, folders that take no writing, data that change meanwhile."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.faults.disks import mounted
from tests.faults.test_damage import BIN, FULL, flip, on_a_table, one_row_more
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.run_folder import read_result

BEST = ["trainer.select=best", "trainer.validate_steps=1", "trainer.max_steps=4", "optimizer.lr=0",
        "trainer.checkpoint_minutes=1e-9"]  # fmt: skip
"""Nothing is learned, so the first validation stays the best one."""
SMALL = [word for word in FULL if not word.startswith("method=")]


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN), *words, f"output_dir={folder}"], capture_output=True, text=True, check=False, cwd=folder.parent
    )


def one_message(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit 2, the file named, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept the best weights, stopped before its result."""
    words = [*FULL, f"output_dir={tmp_path_factory.mktemp('best')}", *BEST]
    return carry_out(compose(words))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_bit_of_the_best_weights(share: float, best: Path, tmp_path: Path) -> None:
    words = [*FULL, *BEST]
    folder = compose([*words, f"output_dir={tmp_path / 'out'}"]).folder
    shutil.copytree(best, folder)
    (folder / "result.json").unlink()
    assert {path.name for path in (folder / "checkpoints").glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    flip(folder / "checkpoints" / "best.ckpt", share)
    one_message(command(*words, folder=tmp_path / "out"), "best.ckpt", "damaged")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept") / "out"
    done = command("-m", "method=full", *SMALL, "seed=0,1", "sweep.name=both", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(swept: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    shutil.copytree(swept, folder, symlinks=True)
    return folder


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_sweep_is_named_and_the_same_command_goes_on(damage: str, copied: Path) -> None:
    file = copied / "sweeps" / "both" / "sweep.json"
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "bit": b"\x7f" + content[1:], "empty": b""}[damage])
    one_message(command("sweep.status=both", folder=copied), "sweep.json")
    again = command("-m", "method=full", *SMALL, "seed=0,1", "sweep.name=both", folder=copied)
    assert again.returncode == 0, again.stderr
    assert "2 of them need none" in again.stdout
    assert command("sweep.status=both", folder=copied).returncode == 0


@pytest.mark.parametrize("content", [b"", b"a: [", b"\xff\xfe\x00"])
def test_a_damaged_config_of_a_finished_run(content: bytes, copied: Path) -> None:
    run = next(copied.glob("runs/digits/*"))
    (run / "config.yaml").write_bytes(content)
    done = subprocess.run([str(BIN), f"run={run}", "test=own"], capture_output=True, text=True, check=False)
    one_message(done, "config.yaml")


def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    words = ["method=full", *SMALL, "optimizer.lr=interval(1e-4,1e-2)", "sweep.trials=1", "sweep.name=rates"]
    assert command("-m", *words, folder=tmp_path / "out").returncode == 0
    study = tmp_path / "out" / "sweeps" / "rates" / "study.db"
    study.write_bytes(b"no database" * 100)
    words[-2] = "sweep.trials=2"
    one_message(command("-m", *words, folder=tmp_path / "out"), "study.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: a mounted folder stands in below")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    one_message(command(*FULL, folder=tmp_path / "out"), "output_dir")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "ro") as disk:
        yield disk


def test_a_read_only_disk_is_said_before_anything_is_built(read_only: Path) -> None:
    one_message(command(*FULL, folder=read_only), str(read_only))
    one_message(command("-m", *FULL, "seed=0,1", folder=read_only), str(read_only))


def test_an_export_to_a_read_only_disk_loses_no_run(read_only: Path, tmp_path: Path) -> None:
    done = command(*FULL, f"export={read_only / 'model'}", folder=tmp_path / "out")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert str(read_only) in done.stderr


@pytest.mark.parametrize("kilobytes", [16, 200])
def test_an_export_to_a_full_disk_is_one_message_and_the_run_stays(kilobytes: int, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", f"size={kilobytes}k") as disk:
        done = command(*FULL, f"export={disk / 'model'}", folder=tmp_path / "out")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert read_result(next((tmp_path / "out" / "runs" / "digits").iterdir())) is not None


def test_data_that_change_while_a_run_waits_for_another(tmp_path: Path) -> None:
    """It was composed and waits for the process that is at the run; when its turn comes the table is another one."""
    words, table = on_a_table(tmp_path)
    run = compose(words)
    run.folder.mkdir(parents=True)
    with (run.folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            [sys.executable, "-m", "transfer_run.cli.run", *words],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert waiting.stdout is not None
        line = ""
        while "wait" not in line:
            line = waiting.stdout.readline()
            assert line or waiting.poll() is None, "it never waited"
        one_row_more(table)
        time.sleep(0.1)
    _, told = waiting.communicate(timeout=300)
    assert waiting.returncode == 2, told
    assert "has changed since" in told
    assert not (run.folder / "result.json").exists()


@pytest.mark.parametrize("damage", ["older", "none"])
def test_a_checkpoint_of_another_version(damage: str, best: Path, tmp_path: Path) -> None:
    words = [*FULL, *BEST]
    folder = compose([*words, f"output_dir={tmp_path / 'out'}"]).folder
    shutil.copytree(best, folder)
    (folder / "result.json").unlink()
    file = folder / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    if damage == "older":
        del content["ledger"]["version"]
    else:
        del content["ledger"]
    torch.save(content, file)
    one_message(command(*words, folder=tmp_path / "out"), "written by another version", "last.ckpt")
