"""Reading and writing safetensors in pieces, against the safetensors library itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.checkpoint import DTYPES, Entry, open_checkpoint
from transfer_run.methods.merging.engine.writer import CheckpointWriter, copy_companions


def every_dtype() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    bytes_ = {code: torch.randint(0, 2, (48,), generator=generator).to(torch.uint8) for code in DTYPES}
    tensors = {f"t.{code}": bytes_[code].view(dtype) for code, dtype in DTYPES.items() if code != "BOOL"}
    tensors = {name: t.view(2, -1) for name, t in tensors.items()}
    return {**tensors, "t.BOOL": bytes_["BOOL"].bool(), "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4)}


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    tensors = every_dtype()
    save_file(tensors, tmp_path / "any_name.safetensors", metadata={"note": "x"})
    opened = open_checkpoint(tmp_path)
    assert opened.entries == {name: Entry(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    assert opened.metadata["note"] == "x"
    for name, tensor in tensors.items():
        flat = tensor.reshape(-1)
        for start, stop in ((0, flat.numel()), (1, max(1, flat.numel() - 1)), (flat.numel() // 2, flat.numel())):
            piece = opened.read(name, start, max(start, stop))
            assert torch.equal(piece.view(torch.uint8), flat[start:stop].view(torch.uint8)), name


@pytest.mark.parametrize("limit", [5e9, 100, 1])
def test_safetensors_reads_what_is_written(tmp_path: Path, limit: float) -> None:
    tensors = every_dtype()
    entries = {name: Entry(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with CheckpointWriter(tmp_path, entries, max_shard_bytes=limit) as writer:
        for name in sorted(tensors, reverse=True):
            flat = tensors[name].reshape(-1)
            for start in reversed(range(0, flat.numel(), 5)):  # any order
                writer.write(name, start, flat[start : start + 5])
        assert not list(tmp_path.glob("model*"))  # nothing under its final name before all is there
    files = sorted(tmp_path.glob("model*.safetensors"))
    assert (len(files) == 1) == (limit == 5e9)
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    if limit == 100:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == tensors.keys()
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        sizes = {file: sum(t.nbytes for t in load_file(file).values()) for file in files}
        assert all(size <= 100 or len(load_file(file)) == 1 for file, size in sizes.items())
    assert open_checkpoint(tmp_path).entries == entries


def test_which_file_of_a_folder(tmp_path: Path) -> None:
    for name, value in (("b", 1.0), ("a", 2.0)):
        save_file({"x": torch.tensor([value])}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="no safetensors checkpoint"):
        open_checkpoint(tmp_path)  # which of the two?
    for name, value in (("adapter_model", 3.0), ("model", 4.0)):
        save_file({"x": torch.tensor([value])}, tmp_path / f"{name}.safetensors")
        assert float(open_checkpoint(tmp_path).read("x", 0, 1)) == value
    assert float(open_checkpoint(tmp_path / "a.safetensors").read("x", 0, 1)) == 2.0


def test_a_failed_write_leaves_the_old_model(tmp_path: Path) -> None:
    save_file({"x": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(KeyError), CheckpointWriter(tmp_path, {"y": Entry(torch.float32, (3,))}) as writer:
        writer.write("unknown", 0, torch.ones(1))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == {"x"}


def test_new_shards_replace_old_ones(tmp_path: Path) -> None:
    entries = {name: Entry(torch.float32, (4,)) for name in "abc"}
    for limit in (1, 5e9, 32):
        with CheckpointWriter(tmp_path, entries, max_shard_bytes=limit) as writer:
            for name in entries:
                writer.write(name, 0, torch.full((4,), limit))
        assert open_checkpoint(tmp_path).read("b", 0, 1) == limit
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 16, b"\x04\0\0\0\0\0\0\0nope", b"\x02\0\0\0\0\0\0\0[]"])
def test_broken_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="safetensors"):
        open_checkpoint(tmp_path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.randn(100)}, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="cannot be read") as raised:
        open_checkpoint(path)
    assert "'x'" in raised.value.where


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="no safetensors") as raised:
        open_checkpoint(tmp_path)
    assert "pytorch_model.bin" in raised.value.where
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "m-1.safetensors"}}))
    with pytest.raises(UserError, match=r"m-1\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_runs_model_is_read_under_its_librarys_names(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    tensors = {"backbone.model.layer.weight": torch.ones(2), "backbone.head.weight": torch.zeros(3)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "model.json").write_text('{"complete": true}')
    for place in (tmp_path, folder):
        assert open_checkpoint(place).entries.keys() == {"layer.weight"}


def test_companions_of_a_librarys_folder_only(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("tokenizer.json", "model.safetensors", "pytorch_model.bin", ".hidden", "model.safetensors.index.json"):
        (source / name).write_text("{}")
    assert copy_companions(source, target) == []
    (source / "config.json").write_text("{}")
    assert copy_companions(source, target) == ["config.json", "tokenizer.json"]
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "tokenizer.json"]
