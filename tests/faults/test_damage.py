"""Flipped bits in what is read back are named and never trained on; so are data that change while a run waits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.faults.disks import mounted
from transfer_run.backbones.taps.store import open_store
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out

FULL = ("method=full", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu",
        "trainer.progress=none", "trainer.max_steps=2", "profiler=none")  # fmt: skip

BIN = Path(sys.executable).parent / "transfer-run"


def flip(file: Path, share: float) -> None:
    """Turn one bit of a file over, at this share of its length."""
    content = bytearray(file.read_bytes())
    content[int(share * (len(content) - 1))] ^= 4
    file.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = (*FULL, f"output_dir={tmp_path_factory.mktemp('runs')}", "trainer.checkpoint_minutes=1e-9")
    return carry_out(compose(list(words)))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.4, 0.6, 0.8, 0.999])
def test_a_bit_of_a_checkpoint(share: float, finished: Path, tmp_path: Path) -> None:
    run = compose([*FULL, f"output_dir={tmp_path}", "trainer.checkpoint_minutes=1e-9"])
    shutil.copytree(finished, run.folder)
    (run.folder / "result.json").unlink()
    flip(run.folder / "checkpoints" / "last.ckpt", share)
    with pytest.raises(UserError, match="is damaged") as caught:
        carry_out(run)
    assert "last.ckpt" in caught.value.where


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_bit_of_a_sources_weights(share: float, finished: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(finished, source)
    flip(source / "checkpoints" / "model" / "model.safetensors", share)
    run = compose(
        [f"backbone.weights=run:{source}", *(w for w in FULL if "weights" not in w), f"output_dir={tmp_path}"]
    )
    with pytest.raises(UserError, match="damaged: they are not what the run wrote"):
        carry_out(run)
    assert not (run.folder / "checkpoints").exists()


def test_stored_taps_that_are_zeroed(tmp_path: Path) -> None:
    taps = {("image", 0): ((3, 4), torch.float32), ("image", 1): ((3, 4), torch.float32)}
    rows, value = torch.arange(5), torch.randn(5, 3, 4)
    store = open_store("disk", tmp_path, {"of": "a test"}, 5, taps)
    for tap in taps:
        store.write(tap, rows, value)
    store.mark("image", rows)
    again = open_store("disk", tmp_path, {"of": "a test"}, 5, taps)
    assert again.has("image", rows)
    assert torch.equal(again.read(("image", 1), rows, value), value)
    file = next(tmp_path.glob("*/image.1.taps"))
    content = bytearray(file.read_bytes())
    content[2 * 48 : 3 * 48] = bytes(48)
    file.write_bytes(content)
    damaged = open_store("disk", tmp_path, {"of": "a test"}, 5, taps)
    assert damaged.has("image", rows[:2])
    with pytest.raises(UserError, match="stored taps are damaged"):
        damaged.has("image", rows)


def on_a_table(folder: Path) -> tuple[list[str], Path]:
    """The words of a run on a table in this folder, and the table."""
    table = folder / "train.csv"
    table.write_text("\n".join(["text,label", *(f"number {n},{n % 2}" for n in range(60))]), encoding="utf-8")
    words = ["method=linear_probe", "backbone=bert_tiny", "dataset=text_files", f"dataset.path={folder}",
             "trainer.max_steps=1", "trainer.progress=none", f"output_dir={folder / 'out'}"]  # fmt: skip
    return words, table


def one_row_more(table: Path) -> None:
    table.write_text(table.read_text(encoding="utf-8") + "\none more,1", encoding="utf-8")


def test_data_that_change_after_they_were_composed(tmp_path: Path) -> None:
    words, table = on_a_table(tmp_path)
    run = compose(words)
    one_row_more(table)
    with pytest.raises(UserError, match=r"dataset\.path names has changed since"):
        carry_out(run)
    assert not (run.folder / "result.json").exists()
    assert carry_out(compose(words)) != run.folder


@pytest.mark.parametrize("kilobytes", [4, 12, 60, 1024])
def test_a_full_disk_is_said_in_one_line(kilobytes: int, tmp_path: Path) -> None:
    """Refused while the folder is made, the log, the checkpoint, the model."""
    with mounted(tmp_path / "disk", f"size={kilobytes}k") as disk:
        done = subprocess.run([str(BIN), *FULL, f"output_dir={disk}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "No space left on device" in done.stderr


def test_taps_take_their_room_before_they_are_written(tmp_path: Path) -> None:
    """Writing to mapped memory on a full disk would end the process without a word."""
    taps = {("image", 0): ((64, 64), torch.float32)}
    open_store("disk", tmp_path, {"of": "a test"}, 100, taps)
    (file,) = tmp_path.glob("*/image.0.taps")
    assert file.stat().st_blocks * 512 >= 100 * 64 * 64 * 4
