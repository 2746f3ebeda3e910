"""Another content of a file that a config names is another run; the same content is the same run, and is known fast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transfer_run.errors import UserError
from transfer_run.experiment.config import digests as contents
from transfer_run.experiment.config.compose import compose, saved
from transfer_run.experiment.config.composed import Run, write_config
from transfer_run.experiment.run import carry_out

MERGE = ("method=task_arithmetic", "dataset=none")
TEXT = ("method=full", "backbone=bert_tiny", "backbone.tokenizer=bytes")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "transfer-run" / "digests.json"


def checkpoint(folder: Path, value: float) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"w": torch.full((4, 4), value)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [checkpoint(tmp_path / name, value) for name, value in (("base", 0.0), ("a", 1.0), ("b", 2.0))]


def merge(models: list[Path], *words: str) -> Run:
    base, *others = models
    return compose([*MERGE, f"method.base={base}", f"method.models=[{','.join(map(str, others))}]", *words])


def test_an_edited_checkpoint_is_merged_anew(models: list[Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    words = (f"output_dir={tmp_path / 'out'}", "method.lambda=1.0", f"export={tmp_path / 'merged'}")
    first = carry_out(merge(models, *words))
    assert load_file(tmp_path / "merged" / "model.safetensors")["w"][0, 0] == 3
    assert carry_out(merge(models, *words)) == first
    checkpoint(models[1], 5.0)
    second = carry_out(merge(models, *words))
    assert second != first
    assert load_file(tmp_path / "merged" / "model.safetensors")["w"][0, 0] == 7
    checkpoint(models[1], 1.0)
    assert carry_out(merge(models, *words)) == first


def test_what_no_reader_looks_at_changes_nothing(models: list[Path]) -> None:
    before = merge(models).identity
    for name in ("README.md", ".lock", "training_args.bin"):
        (models[0] / name).write_text("other", encoding="utf-8")
    (models[0] / "checkpoint-5").mkdir()
    os.utime(models[0] / "model.safetensors", (1, 1))
    assert merge(models).identity == before
    (models[0] / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert merge(models).identity != before


def test_every_member_of_a_merge_is_in_its_identity(models: list[Path], tmp_path: Path) -> None:
    """Also those that are no files on this machine: models of the hub, at their revisions."""
    alone = merge(models[:2]).identity
    with_hub = [merge([*models[:2], Path(name)]).identity for name in ("me/one", "me/two", "me/two@v2")]
    assert len({alone, *with_hub}) == 4
    only_hub = [merge([models[0], Path(name)]).identity for name in ("me/one", "me/two")]
    assert len({alone, *only_hub, *with_hub}) == 6


@pytest.mark.parametrize("key", ["method.base", "method.models"])
def test_a_model_that_does_not_exist_is_refused(models: list[Path], tmp_path: Path, key: str) -> None:
    """A name below a folder that is there is a path, whatever its form."""
    wrong = tmp_path / "basee"
    base, first = (wrong, models[1]) if key == "method.base" else (models[0], wrong)
    with pytest.raises(UserError, match="does not exist") as error:
        merge([base, first])
    assert str(error.value.where).startswith(key)
    assert str(models[0]) in error.value.nearest
    (tmp_path / "w").mkdir()
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(UserError, match=r"w/nope does not exist"):
            merge([models[0], Path("w/nope")])
    finally:
        os.chdir(before)
    assert merge([Path("ones"), *models[1:]]).identity != merge(models).identity


def test_a_config_that_was_written_keeps_its_identity(models: list[Path], tmp_path: Path) -> None:
    cfg = merge(models)
    write_config(tmp_path, cfg.config)
    checkpoint(models[1], 9.0)
    shutil.rmtree(models[0])
    assert saved(tmp_path).identity == cfg.identity


@pytest.mark.parametrize("key", ["backbone.weights", "sources.teacher"])
def test_a_checkpoint_of_any_key(key: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "bert", 1.0)
    words = [*TEXT, "dataset=python_docs", f"{key}={folder}"]
    before = compose(words)
    assert list(before.config["contents"]) == [key]
    checkpoint(folder, 2.0)
    assert compose(words).identity != before.identity


def test_the_weights_of_a_member_of_the_pool(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "vit", 1.0)
    words = ["method=tmi", "backbone=vit_tiny", "backbone.weights=random", "dataset=digits",
             f'method.pool=["vit_tiny:{folder}"]']  # fmt: skip
    before = compose(words).identity
    assert compose(words).identity == before
    checkpoint(folder, 2.0)
    assert compose(words).identity != before


def test_words_of_a_source_are_looked_at_again(tmp_path: Path) -> None:
    """Their composition is kept in the process, what their files hold is not."""
    folder = checkpoint(tmp_path / "bert", 1.0)
    words = [*TEXT, "dataset=python_docs", f"sources.teacher='{' '.join(TEXT)} backbone.weights={folder}'"]
    before = compose(words).identity
    checkpoint(folder, 2.0)
    assert compose(words).identity != before


class TestData:
    def test_tables_and_pictures_are_told_by_their_bytes(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        data.mkdir()
        (data / "train.csv").write_text("text,label\na,0\n", encoding="utf-8")
        (data / "a.png").write_bytes(b"123")
        words = [*TEXT, "dataset=text_files", f"dataset.path={data}", "dataset.num_labels=2"]
        one = compose(words).identity
        (data / "a.png").write_bytes(b"321")
        edited = compose(words).identity
        assert edited != one
        (data / ".hidden.png").write_bytes(b"321")
        assert compose(words).identity == edited
        (data / "train.csv").write_text("text,label\na,1\n", encoding="utf-8")
        two = compose(words).identity
        (data / "a.png").write_bytes(b"1234")
        assert len({one, edited, two, compose(words).identity}) == 4

    def test_a_picture_is_read_again_only_when_it_was_touched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        data, read = tmp_path / "data", []
        data.mkdir()
        for name in ("a.png", "b.png"):
            (data / name).write_bytes(b"123")
        monkeypatch.setattr(contents.time, "time", lambda: 1e12)  # all of it was written long ago
        own = contents._read
        monkeypatch.setattr(contents, "_read", lambda path: read.append(path.name) or own(path))
        first = contents._tree(data)
        assert contents._tree(data) == first
        assert read == ["a.png", "b.png"]
        (data / "b.png").write_bytes(b"321")
        assert contents._tree(data) != first

    def test_folders_behind_links_are_told_by_what_is_in_them(self, tmp_path: Path) -> None:
        """Two data sets behind links of one name are two; a circle of links ends."""
        for name in ("one", "two"):
            (tmp_path / name / "real").mkdir(parents=True)
            (tmp_path / name / "real" / "train.csv").write_text(f"text,label\n{name},0\n", encoding="utf-8")
            (tmp_path / name / "data").mkdir()
            (tmp_path / name / "data" / "data").symlink_to(tmp_path / name / "real")
        found = {name: contents._tree(tmp_path / name / "data") for name in ("one", "two")}
        assert found["one"] != found["two"]
        (tmp_path / "one" / "real" / "again").symlink_to(tmp_path / "one" / "data")
        assert contents._tree(tmp_path / "one" / "data") != found["one"]

    def test_a_file_and_files_of_a_pattern(self, tmp_path: Path) -> None:
        for place in (tmp_path / "a.csv", tmp_path / "*.csv"):
            (tmp_path / "a.csv").write_text("text,label\na,0\n", encoding="utf-8")
            words = [*TEXT, "dataset=text_files", f"dataset.path='{place}'", "dataset.num_labels=2"]
            before = compose(words).identity
            (tmp_path / "a.csv").write_text("text,label\na,1\n", encoding="utf-8")
            assert compose(words).identity != before

    def test_the_same_table_elsewhere_is_the_same_run(self, tmp_path: Path) -> None:
        """As DESIGN section 3 says of paths. A file's ending counts (it is how a table is read)."""

        def run_on(place: Path) -> str:
            return compose([*TEXT, "dataset=text_files", f"dataset.path={place}", "dataset.num_labels=2"]).identity

        (tmp_path / "a.csv").write_text("text,label\na,0\n", encoding="utf-8")
        for name in ("b.csv", "c.tsv"):
            shutil.copy(tmp_path / "a.csv", tmp_path / name)
        one, copy, otherwise = (run_on(tmp_path / name) for name in ("a.csv", "b.csv", "c.tsv"))
        assert one == copy
        assert one != otherwise
        for name in ("x", "y"):
            (tmp_path / name).mkdir()
            shutil.copy(tmp_path / "a.csv", tmp_path / name / "train.csv")
        assert run_on(tmp_path / "x") == run_on(tmp_path / "y")
        for name in ("x", "y"):
            (tmp_path / name / "cat.png").write_bytes(b"123")
        assert run_on(tmp_path / "x") == run_on(tmp_path / "y")

    def test_the_pictures_that_a_table_names_are_told_by_their_bytes(self, tmp_path: Path) -> None:
        """Beside the table, in a folder that a key names, behind an absolute path; moved, the run is the same."""
        for place in ("one", "two"):
            (tmp_path / place / "img").mkdir(parents=True)
            (tmp_path / place / "t.jsonl").write_text(
                '{"image": "img/1.png", "caption": ["a"]}\n{"image": "img/2.png", "caption": ["b", "c"]}\n',
                encoding="utf-8",
            )
            for name in ("1.png", "2.png", "3.png"):
                (tmp_path / place / "img" / name).write_bytes(name.encode())

        def run_on(place: str, *words: str) -> Run:
            clip = ("method=full", "backbone=clip_tiny", "backbone.tower=both", "dataset=image_captions")
            return compose([*clip, f"dataset.path={tmp_path / place}", *words])

        before = run_on("one/t.jsonl").identity
        assert run_on("two/t.jsonl").identity == before
        (tmp_path / "one/img/3.png").write_bytes(b"nobody reads it")
        assert run_on("one/t.jsonl").identity == before
        (tmp_path / "one/img/2.png").write_bytes(b"2.gnp")  # of the same size
        edited = run_on("one/t.jsonl").identity
        (tmp_path / "one/img/2.png").unlink()
        missing = run_on("one/t.jsonl")
        assert len({before, edited, missing.identity}) == 3
        assert missing.config["contents"]["dataset.path"].endswith(contents.PARTLY)
        named = f"dataset.image_folder={tmp_path / 'two'}"
        in_folder = run_on("one/t.jsonl", named).identity
        (tmp_path / "two/img/1.png").write_bytes(b"other")
        assert run_on("one/t.jsonl", named).identity != in_folder

    def test_the_pictures_of_a_table_of_images_and_of_a_test_set(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "train.csv").write_text(f"image,label\n{tmp_path}/a.png,x\n", encoding="utf-8")
        (tmp_path / "a.png").write_bytes(b"123")
        images = ("method=full", "backbone=cnn_tiny", "dataset.num_labels=2")
        for words in (
            ("dataset=image_folder", f"dataset.path={tmp_path / 'data'}"),
            ("dataset=image_folder", f"dataset.path={tmp_path / 'data' / 'train.csv'}"),
            ("dataset=digits", f'dataset.tests.mine="image_folder path={tmp_path / "data" / "train.csv"}"'),
        ):
            numbers = () if "dataset=digits" in words else images[2:]
            before = compose([*images[:2], *numbers, *words]).identity
            (tmp_path / "a.png").write_bytes(b"321")
            assert compose([*images[:2], *numbers, *words]).identity != before
            (tmp_path / "a.png").write_bytes(b"123")

    def test_a_table_of_parquet_names_its_pictures_too(self, tmp_path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        from transfer_run.data.reading.named_files import named_files

        rows = [{"bytes": b"1", "path": "x.png"}, {"bytes": None, "path": "a.png"}]
        parquet.write_table(pa.table({"photo": rows, "label": [0, 1]}), tmp_path / "train.parquet")
        node = {"about": {"elsewhere": {"column": "image_column"}}, "image_column": None}
        assert named_files(node, tmp_path) == [("a.png", tmp_path / "a.png")]  # bytes name nothing

    def test_of_many_files_each_one_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contents, "MANY", 3)
        for number in range(6):
            (tmp_path / f"{number}.png").write_bytes(b"123")
        found = {contents._tree(tmp_path)}
        (tmp_path / "5.png").write_bytes(b"4567")
        found.add(contents._tree(tmp_path))
        os.utime(tmp_path / "5.png", (1, 1))
        found.add(contents._tree(tmp_path))
        (tmp_path / "6.png").write_bytes(b"")
        found.add(contents._tree(tmp_path))
        assert len(found) == 4
        assert all(digest.endswith(contents.PARTLY) for digest in found)

    def test_rows_and_the_members_of_a_sequence(self, tmp_path: Path) -> None:
        rows = tmp_path / "rows.json"
        rows.write_text('{"rows": {"train": [0]}}', encoding="utf-8")
        assert list(compose([*TEXT, "dataset=python_docs", f"dataset.rows={rows}"]).config["contents"]) == [
            "dataset.rows"
        ]
        (tmp_path / "pictures" / "cat").mkdir(parents=True)
        tasks = f'dataset.tasks=["image_folder name=mine path={tmp_path / "pictures"}","digits name=d"]'
        cfg = compose(["experiment=zscl_digits", tasks])
        assert list(cfg.config["contents"]) == ["dataset.nodes.mine.path"]


def test_no_files_no_contents_and_the_identity_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded before contents were part of identities; words such as `hub` are no folders, even where there is one."""
    for name in ("hub", "random", "random:0", "bytes"):
        checkpoint(tmp_path / name, 1.0)
    monkeypatch.chdir(tmp_path)
    cfg = compose(["backbone=t5_tiny"])
    assert cfg.config["contents"] == {}
    assert cfg.identity == DEFAULT
    assert compose(["backbone=bert-base-uncased", "dataset=glue/rte"]).config["contents"] == {}


DEFAULT = "4b2d347ca2321776602fb47a01a76aece7b676df6c14b375615404fde9c23c02"


class TestSpeed:
    def test_a_large_file_is_read_once(self, models: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contents, "LARGE", 16)
        file = models[0] / "model.safetensors"
        past = time.time() - 10
        first = merge(models).identity
        assert not cache.is_file(), "files that were just written may still change within a tick of the clock"
        monkeypatch.setattr(contents.time, "time", lambda: past + 20)
        assert merge(models).identity == first
        read, really = [], contents._read

        def watched(path: Path) -> str:
            read.append(path)
            return really(path)

        monkeypatch.setattr(contents, "_read", watched)
        assert merge(models).identity == first
        assert read == []
        checkpoint(models[0], 5.0)
        os.utime(file, (past, past))
        assert merge(models).identity != first
        assert read[0] == file
        cache.write_text("half a fi", encoding="utf-8")
        checkpoint(models[0], 0.0)
        assert merge(models).identity == first

    def test_a_cache_that_cannot_be_written_is_done_without(
        self, models: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(contents, "LARGE", 16)
        monkeypatch.setattr(contents.time, "time", lambda: time.monotonic() + 1e10)
        (cache.parents[1]).write_text("a file", encoding="utf-8")
        assert merge(models).identity == merge(models).identity

    def test_nothing_heavy_is_imported(self) -> None:
        code = "import sys, transfer_run.experiment.config.digests; sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)
