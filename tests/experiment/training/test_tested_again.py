"""A finished model tested again, and the table of its answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from transfer_run.cli.run import run as command
from transfer_run.data.rows.sampling import Draw
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.record.predictions import Predictions
from transfer_run.experiment.run import carry_out
from transfer_run.methods.answers import Answer

HEADER = "row,id,label,prediction,probability"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe trained for two steps on good and bad words, with a test file of its own."""
    folder = tmp_path_factory.mktemp("again")
    (folder / "data").mkdir()
    for split, count in (("train", 24), ("test", 6)):
        lines = [f"words {n},{'good' if n % 2 else 'bad'}" for n in range(count)]
        (folder / "data" / f"{split}.csv").write_text("\n".join(["text,label", *lines, ""]), encoding="utf-8")
    words = ("method=linear_probe", "backbone=bert_tiny", "backbone.weights=random:0", "hardware=cpu")
    settings = ("trainer.max_steps=2", "trainer.progress=none", "profiler=none", "dataset.batch_size=4")
    tail = ("dataset.class_weights=balanced", "dataset.long_tail={factor: 2, kind: exp, many: 10, few: 7}")
    run = compose(
        [
            *words,
            *settings,
            *tail,
            "dataset=text_files",
            f"dataset.path={folder / 'data'}",
            f"output_dir={folder / 'out'}",
        ]
    )
    return carry_out(run)


def test_every_run_writes_its_answers(finished: Path) -> None:
    found = rows(finished / "predictions.csv")
    assert [row["row"] for row in found] == [str(n) for n in range(1, 7)]
    assert [row["label"] for row in found] == ["bad", "good"] * 3
    assert {row["prediction"] for row in found} <= {"bad", "good"}
    assert all(0.5 <= float(row["probability"]) <= 1 for row in found)
    right = sum(row["label"] == row["prediction"] for row in found) / 6
    metrics = json.loads((finished / "result.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["test/accuracy"] == pytest.approx(right, abs=1e-6)


def test_a_model_is_tested_again_beside_its_record(finished: Path, tmp_path: Path) -> None:
    record = (finished / "result.json").read_bytes()
    assert command([f"run={finished}", "test=own"]) == 0
    own = json.loads((finished / "tests" / "own.json").read_text(encoding="utf-8"))
    assert own["metrics"] == json.loads(record)["metrics"]
    assert {"test/accuracy_many", "test/accuracy_few"} < set(own["metrics"])
    assert rows(finished / "tests" / "predictions-own.csv") == rows(finished / "predictions.csv")
    other = tmp_path / "more.csv"
    other.write_text("text,label\nwords 1,good\nwords 2,good\nwords 3,\n", encoding="utf-8")
    for name in ("more", "more-2"):
        assert command([f"run={finished}", f"test={other}"]) == 0
        found = rows(finished / "tests" / f"predictions-{name}.csv")
        assert [row["label"] for row in found] == ["good", "good", ""]  # one class alone keeps its number
        assert found[0]["prediction"] == rows(finished / "predictions.csv")[1]["prediction"]
        told = json.loads((finished / "tests" / f"{name}.json").read_text(encoding="utf-8"))
        assert told["rows"] == 3
        assert told["metrics"]["test/accuracy"] == sum(row["prediction"] == "good" for row in found[:2]) / 2
        assert any("have no label" in note for note in told["notes"])
        assert "test/accuracy_few" not in told["metrics"]
        assert any("few training rows are left out" in note for note in told["notes"])
    assert (finished / "result.json").read_bytes() == record


def test_files_of_a_pattern_are_tested(finished: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("text,label\nwords 1,good\n", encoding="utf-8")
    assert command([f"run={finished}", f"test={tmp_path / '*.csv'}"]) == 0
    assert len(rows(finished / "tests" / "predictions-test.csv")) == 2
    with pytest.raises(UserError):
        command([f"run={finished}", f"test={tmp_path / '*.tsv'}"])


def test_no_key_is_advised_that_a_finished_run_does_not_take(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "semi.csv").write_text("text;label\nwords;good\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        command([f"run={finished}", f"test={tmp_path / 'semi.csv'}"])
    assert "as the run's own are written" in caught.value.remedy


def test_rows_without_any_label_are_answered(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("text\nwords 1\nwords 2\n", encoding="utf-8")
    assert command([f"run={finished}", f"test={tmp_path / 'new.csv'}"]) == 0
    assert len(rows(finished / "tests" / "predictions-new.csv")) == 2
    assert json.loads((finished / "tests" / "new.json").read_text(encoding="utf-8"))["metrics"] == {}


@pytest.mark.parametrize(
    ("text", "says"), [("text,label\nwords,neither\n", "none of the 2 labels"), ("words,label\na,good\n", "no column")]
)
def test_other_data_are_refused(finished: Path, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "odd.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        command([f"run={finished}", f"test={tmp_path / 'odd.csv'}"])
    assert not (finished / "tests" / "odd.json").exists()


@pytest.mark.parametrize(
    "words",
    [("test=nowhere",), ("test=own", "seed=1"), ("test=own", "export=x"), ()],
    ids=lambda words: " ".join(words),
)
def test_wrong_words(finished: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError):
        command([f"run={finished}", *words])


def test_rows_that_were_only_repeated_are_left_out(tmp_path: Path) -> None:
    class Data:
        subset: ClassVar[dict[str, list[int]]] = {}

        def row_id(self, split: str, row: int) -> str:
            return f"{row}.png"

    class Form:
        def answers(self, data: object, predictions: torch.Tensor, *rest: object) -> list[Answer]:
            return [Answer("", str(n)) for n in predictions.tolist()]

    method = torch.nn.Identity()
    method.form = Form()  # type: ignore[assignment]
    draws = [[Draw(2), Draw(0)], [Draw(1), Draw(0, scored=False)]]
    found = Predictions(method, Data(), "test", draws)  # type: ignore[arg-type]
    for numbers in (torch.tensor([7, 5]), torch.tensor([6, 5])):
        with found.watching() as take:
            take(numbers, {})
    found.write(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines() == [
        HEADER, "1,0.png,,5,", "2,1.png,,6,", "3,2.png,,7,",
    ]  # fmt: skip
