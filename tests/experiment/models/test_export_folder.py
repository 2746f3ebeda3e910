"""An export never costs its user a file: not one of his own, not a run's, not half of an earlier export."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.models import export
from transfer_run.experiment.models.export import export_run
from transfer_run.experiment.models.export_folder import MANIFEST
from transfer_run.experiment.run import carry_out

WORDS = ("backbone=bert_tiny", "dataset=python_docs", "backbone.weights=random:0", "hardware=cpu", "profiler=none",
         "trainer.max_steps=1", "trainer.progress=none", "dataset.batch_size=4")  # fmt: skip


def config(folder: Path, *words: str) -> Run:
    return compose([*WORDS, f"output_dir={folder}", *words])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carry_out(config(tmp_path_factory.mktemp("trained"), "method=lora"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run that a test may break."""
    return Path(shutil.copytree(trained, tmp_path / "outputs" / "runs" / "python_docs" / trained.name))


@pytest.fixture
def merge(tmp_path: Path) -> Path:
    """A finished run that merged files."""
    folder = tmp_path / "outputs" / "runs" / "none" / "ties-none-01234567"
    (folder / "checkpoints" / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    save_file({"w": torch.ones(2)}, folder / "checkpoints" / "model" / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["run", "merge"])
@pytest.mark.parametrize("place", [".", "checkpoints/model", "checkpoints/new", "..", "../.."])
def test_a_place_where_a_run_lives_is_refused(kind: str, place: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    before = files(folder)
    with pytest.raises(UserError, match="where an export would mix"):
        export_run(folder, folder / place)
    assert files(folder) == before


def test_another_runs_folder_is_refused(run: Path, merge: Path) -> None:
    before = files(merge)
    for one, other in ((run, merge), (merge, run)):
        with pytest.raises(UserError, match="is a run's folder"):
            export_run(one, other)
        with pytest.raises(UserError, match="lies in the run"):
            export_run(one, other / "checkpoints" / "model")
    assert files(merge) == before


def test_a_wrong_place_is_refused_before_the_run_is_carried_out(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.json").write_text("{}", encoding="utf-8")
    for place in (tmp_path / "mine", tmp_path / "mine" / "model.json", tmp_path):
        cfg = config(tmp_path / "outputs", "method=lora", f"export={place}")
        with pytest.raises(UserError, match=r"not empty|is a file|holds the run"):
            carry_out(cfg)
        assert not cfg.folder.exists()


@pytest.mark.parametrize("kind", ["run", "merge"])
def test_the_users_files_stay(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A model.json alone does not make a folder an export of ours."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model.json", "thesis.tex"):
        (out / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="not empty"):
        export_run(request.getfixturevalue(kind), out)
    assert files(out) == {"model.json": b"mine", "thesis.tex": b"mine"}


def test_a_later_export_replaces_what_an_earlier_one_wrote_and_nothing_else(
    run: Path, merge: Path, tmp_path: Path
) -> None:
    out = export_run(run, tmp_path / "out")
    first = files(out)
    assert {"adapter_config.json", "base/config.json", "README.md", MANIFEST} <= first.keys()
    assert sorted(json.loads(first[MANIFEST])["files"]) == sorted(first.keys() - {MANIFEST})
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    (out / "base" / "notes.txt").write_text("mine", encoding="utf-8")
    assert files(export_run(run, out)).keys() == {*first, "notes.txt", "base/notes.txt"}
    export_run(merge, out)
    assert files(out).keys() == {"model.safetensors", MANIFEST, "notes.txt", "base/notes.txt"}
    assert files(out)["notes.txt"] == b"mine"
    (out / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"overwrite README\.md"):
        export_run(run, out)
    assert files(out).keys() == {"model.safetensors", MANIFEST, "notes.txt", "base/notes.txt", "README.md"}
    assert not list(tmp_path.glob(".*"))


def test_a_list_that_leads_elsewhere_deletes_nothing_there(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    listed = ["../thesis.tex", str(tmp_path / "thesis.tex")]
    (out / MANIFEST).write_text(json.dumps({"schema": 1, "files": listed}), encoding="utf-8")
    export_run(run, out)
    assert (tmp_path / "thesis.tex").is_file()


@pytest.mark.parametrize("step", ["load_model", "_written"])
def test_an_export_that_breaks_leaves_the_earlier_one(
    step: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export_run(run, tmp_path / "out")
    before = files(out)

    def full_disk(*_: object, **settings: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(export, step, full_disk)
    with pytest.raises(OSError, match="No space"):
        export_run(run, out)
    assert files(out) == before
    assert not list(tmp_path.glob(".*"))


def code(page: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))


@pytest.mark.parametrize("words", ["method=lora", "method=full", "method=adapter", "backbone=cnn_tiny dataset=digits"])
def test_the_page_of_an_export_works_where_the_export_is_moved_to(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = carry_out(config(tmp_path / "outputs", "method=full", *words.split()))
    out = export_run(run, tmp_path / "out").rename(tmp_path / "moved")
    page = (out / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in page
    monkeypatch.chdir(out)
    ids = torch.randint(3, 250, (2, 9))
    batch = {"pixel_values": torch.randn(2, 1, 8, 8), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    known = {"batch": batch}
    exec(code(page), known)
    assert len(known["logits"]) == 2


@pytest.mark.parametrize("commit", ["0123456789" * 4, None])
def test_an_adapter_names_the_hubs_model_that_it_goes_onto(
    commit: str | None, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftConfig

    about = json.loads((run / "checkpoints" / "model" / "model.json").read_text(encoding="utf-8"))
    about["provenance"] |= {"source": "hub", "weights": "someone/tiny", "revision": None, "commit": commit}
    monkeypatch.setattr(export, "read_description", lambda folder: about)
    out = export_run(run, tmp_path / "out")
    config = PeftConfig.from_pretrained(str(out))
    assert (config.base_model_name_or_path, config.revision) == ("someone/tiny", commit)
    named = f'from_pretrained("someone/tiny", revision="{commit}")' if commit else 'from_pretrained("someone/tiny")'
    assert named in (out / "README.md").read_text(encoding="utf-8")
    assert not (out / "base").exists()


def test_a_folder_on_another_name_is_followed(run: Path, tmp_path: Path) -> None:
    """A link into the run is the run."""
    os.symlink(run / "checkpoints" / "model", tmp_path / "link")
    with pytest.raises(UserError, match="lies in the run"):
        export_run(run, tmp_path / "link")
