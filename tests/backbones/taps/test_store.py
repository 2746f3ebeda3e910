"""The store of taps: what was written is read; a second process reads the same files; what does not fit is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from transfer_run.backbones.taps.store import Medium, Taps, TapStore, open_store, sizes
from transfer_run.errors import UserError

TAPS: Taps = {("encoder", 0): ((5, 3), torch.float32), ("encoder", 1): ((5, 3), torch.float32)}
ABOUT = {"backbone": "sha256:1"}


def open_(place: Medium, folder: Path, **changes: Any) -> TapStore:
    return open_store(place, folder, ABOUT | changes, 7, TAPS)


@pytest.mark.parametrize("place", ["disk", "ram"])
def test_shorter_batches_and_scattered_rows_come_back(place: Medium, tmp_path: Path) -> None:
    store, rows = open_(place, tmp_path), torch.tensor([6, 0, 3])
    values = {tap: torch.randn(3, 4, 3) for tap in TAPS}
    assert not store.has("encoder", rows)
    for tap, value in values.items():
        store.write(tap, rows, value)
    store.mark("encoder", rows)
    assert store.has("encoder", rows.flip(0))
    assert not store.has("encoder", torch.tensor([0, 1]))
    for tap, value in values.items():
        assert torch.equal(store.read(tap, rows, torch.empty(3, 4, 3)), value)
        assert torch.equal(store.read(tap, rows.flip(0), torch.empty(3, 2, 3)), value.flip(0)[:, :2])


def test_the_next_process_finds_what_this_one_wrote(tmp_path: Path) -> None:
    first, rows = open_("disk", tmp_path), torch.tensor([2, 4])
    first.write(("encoder", 1), rows, torch.ones(2, 5, 3))
    first.mark("encoder", rows)
    second = open_("disk", tmp_path)
    assert second.has("encoder", rows)
    assert torch.equal(second.read(("encoder", 1), rows, torch.empty(2, 5, 3)), torch.ones(2, 5, 3))
    assert not open_("disk", tmp_path, backbone="sha256:2").has("encoder", rows)


def test_a_narrower_type_takes_half_the_room_and_comes_back_wide(tmp_path: Path) -> None:
    store = open_store("disk", tmp_path, ABOUT, 7, TAPS, torch.bfloat16)
    value = torch.randn(1, 5, 3)
    store.write(("encoder", 0), torch.tensor([1]), value)
    found = store.read(("encoder", 0), torch.tensor([1]), value)
    assert found.dtype == torch.float32
    assert torch.equal(found, value.bfloat16().float())
    assert 2 * sum(sizes(7, TAPS, torch.bfloat16).values()) == sum(sizes(7, TAPS).values()) == 7 * 2 * 15 * 4


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1000, 200, 800))
    with pytest.raises(UserError, match="more than the free room") as caught:
        open_("disk", tmp_path)
    assert caught.value.where == "cache.taps=disk"
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    open_("disk", tmp_path)
    file = next(tmp_path.glob("*/encoder.1.taps"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged") as caught:
        open_("disk", tmp_path)
    assert caught.value.where == str(file)
