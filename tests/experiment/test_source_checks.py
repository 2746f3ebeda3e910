"""What is wrong with a source is said before the first one is carried out, and says which source it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfer_run.errors import RunFailed, UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.artifacts import makes
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.reads import Read, reads
from transfer_run.experiment.run import carry_out

SHORT = ("trainer.max_steps=2", "dataset.batch_size=16", "profiler=none")
BERT = ("backbone=bert_tiny", "backbone.weights=random:0", "dataset=python_docs", *SHORT)
MINE = (*BERT, "hardware=cpu", "trainer.progress=none")
TEACHER = " ".join(["method=full", *BERT])


def config(folder: Path, *words: str) -> Run:
    return compose([*MINE, f"output_dir={folder}", *words])


def refused(folder: Path, *words: str) -> UserError:
    """The same answer by `dry_run` and by the run itself, which has carried out nothing."""
    said = []
    for more in (["dry_run=true"], []):
        with pytest.raises(UserError) as error:
            carry_out(config(folder, *words, *more))
        said.append(error.value)
    assert said[0].message() == said[1].message()
    assert not list(folder.glob("runs/**/checkpoints")), "a source was carried out first"
    return said[0]


class TestNames:
    def test_a_misspelt_source(self, tmp_path: Path) -> None:
        error = refused(tmp_path, "method=distiller", f"sources.techer='{TEACHER}'")
        assert error.what == "method=distiller reads no source 'techer': it reads teacher, baseline."
        assert error.where.startswith("sources.techer: method=full")
        assert error.nearest == ["sources.teacher"]

    def test_a_source_that_is_missing(self, tmp_path: Path) -> None:
        error = refused(tmp_path, "method=distiller", f"sources.baseline='{TEACHER}'")
        assert error.what == "method=distiller needs a source 'teacher', and the run names none."
        assert error.where == "sources.teacher"

    def test_a_source_that_nobody_reads(self, tmp_path: Path) -> None:
        error = refused(tmp_path, "method=full", f"sources.foo='{TEACHER} seed=1'")
        assert error.what == "method=full reads no source 'foo': it reads none."
        assert "about.reads" in error.remedy

    def test_a_source_that_depends_on_a_setting(self, tmp_path: Path) -> None:
        vqt = ("method=vqt", "backbone=vit_tiny", "dataset=digits")
        error = refused(tmp_path, *vqt, f"sources.trained='{TEACHER}'")
        assert "reads sources.trained only with method.stage=compress or featselect or finetune" in error.what
        error = refused(tmp_path, *vqt, "method.stage=compress")
        assert "needs a source 'trained' with method.stage=compress" in error.what

    def test_of_a_source_of_a_source(self, tmp_path: Path) -> None:
        inner = f'method=distiller {" ".join(BERT)} sources.techer="{TEACHER}"'
        error = refused(tmp_path, "method=distiller", f"sources.teacher='{inner}'")
        assert error.where.startswith("sources.teacher: sources.techer: method=full")


class TestKinds:
    def test_a_ranking_is_no_teacher(self, tmp_path: Path) -> None:
        error = refused(tmp_path, "method=distiller", f"sources.teacher='{TEACHER.replace('full', 'tmi')}'")
        assert error.what == (
            "The source 'teacher' is a run of method=tmi, which makes a ranking; method=distiller reads a model there."
        )
        assert error.where.startswith("sources.teacher: method=tmi")

    def test_nor_are_its_weights_a_backbones(self, tmp_path: Path) -> None:
        error = refused(tmp_path, "method=full", f"backbone.weights='run:{TEACHER.replace('full', 'tmi')}'")
        assert error.where.startswith("backbone.weights: method=tmi")

    def test_rows_come_from_a_run_that_chooses_rows(self, tmp_path: Path) -> None:
        error = refused(tmp_path, "method=full", f"dataset.rows='run:{TEACHER}'")
        assert "reads a part of a data set there" in error.what
        assert error.where.startswith("dataset.rows: method=full")

    def test_a_folder_is_known_by_its_config(self, tmp_path: Path) -> None:
        ranking = carry_out(config(tmp_path / "other", "method=tmi", "method.scores=[tmi]"))
        error = refused(tmp_path / "mine", "method=distiller", f"sources.teacher={ranking}")
        assert "method=tmi, which makes a ranking" in error.what

    def test_merged_files_are_no_model(self) -> None:
        assert makes(compose(["method=average", "dataset=none"]).config) == "files"
        assert makes(compose(["method=average", "dataset=none", f"sources.a='{TEACHER}'"]).config) == "model"
        assert makes(compose(["method=dp4tl", "backbone=vit_tiny", "dataset=digits"]).config) == "rows"
        assert makes({"seed": 0}) == "model"


def test_a_teacher_of_other_labels_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    """As the method itself says it, of shapes and tasks alone."""
    mine = ("method=distiller", "backbone=vit_tiny", "dataset=digits", "dataset.classes=[5,6]")
    teacher = "method=full backbone=vit_tiny backbone.weights=random:0 dataset=digits trainer.max_steps=2"
    error = refused(tmp_path, *mine, f"sources.teacher='{teacher}'")
    assert "trained for classification with 5 labels, the student's task is classification with 2" in error.what
    assert error.where == "sources.teacher"


class TestWhichSource:
    def test_the_users_error_in_a_source(self, tmp_path: Path) -> None:
        table = tmp_path / "train.csv"
        table.write_text("other,label\na,0\n", encoding="utf-8")
        words = f"{TEACHER.replace('python_docs', 'text_files')} dataset.path={table} dataset.num_labels=2"
        with pytest.raises(UserError) as error:
            carry_out(config(tmp_path, "method=linear_probe", f"backbone.weights='run:{words}'"))
        assert error.value.where.startswith("backbone.weights: ")
        assert "train.csv" in error.value.where

    def test_wrong_words_of_a_source(self, tmp_path: Path) -> None:
        error = refused(tmp_path, "method=distiller", f"sources.teacher='{TEACHER} optimizer.lrr=1'")
        assert error.where == "sources.teacher: optimizer.lrr=1"
        assert "optimizer.lr" in error.nearest

    def test_a_source_that_breaks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from transfer_run.experiment.training import train

        def breaks(*_: object) -> None:
            raise ArithmeticError("it broke")

        monkeypatch.setattr(train, "_build", breaks)
        with pytest.raises(
            RunFailed, match=r"the source 'teacher' \(method=full .*\) failed: ArithmeticError"
        ) as error:
            carry_out(config(tmp_path, "method=distiller", f"sources.teacher='{TEACHER}'"))
        assert "ArithmeticError: it broke" in error.value.log.read_text(encoding="utf-8")
        assert "full-bert_tiny" in str(error.value.log)

    def test_a_circle(self, tmp_path: Path) -> None:
        """A config of the user's that needs itself."""
        (tmp_path / "experiment").mkdir()
        words = f"experiment=round hydra.searchpath=[{tmp_path}]"
        (tmp_path / "experiment" / "round.yaml").write_text(
            "# @package _global_\ndefaults:\n  - override /method: distiller\n  - override /backbone: bert_tiny\n"
            f"  - override /dataset: python_docs\nsources:\n  teacher: '{words}'\n",
            encoding="utf-8",
        )
        with pytest.raises(UserError, match="a circle") as error:
            carry_out(compose([*words.split(), f"output_dir={tmp_path / 'out'}"]))
        assert error.value.where.startswith("sources.teacher: experiment=round")


class TestDeclarations:
    def test_all_that_are_shipped_can_be_read(self) -> None:
        found = {entry.name: reads(entry.content["method"]) for entry in registry.entries("method")}
        assert found["zscl"] == [Read("teacher", ("model",), key="distill.teacher", values=("source",))]
        assert found["full"] == []
        assert found["ties"][0] == Read("*", ("model",), other="models")
        assert found["tmi"][2] == Read("tuned", method="{reference_method}", here=True)
        assert found["vqt"][0].stage

    def test_one_that_cannot_be_read(self) -> None:
        for words in ("model if", "model or rows", "finished full on"):
            with pytest.raises(UserError, match="cannot be read") as error:
                reads({"name": "mine", "about": {"reads": {"teacher": words}}})
            assert "model?" in error.value.remedy
