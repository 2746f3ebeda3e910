"""Several labels a row: read, learned, scored, written out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.data.test_odd_tables import table, texts
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.methods.form import find_form

SEVERAL = ("dataset.form=multi_label", "dataset.metrics=[micro_f1,mean_average_precision]")
LABELS: tuple[Any, ...] = (["sport"], ["news", "sport"], [], ["art"], None, ["news"])


def rows(folder: Path, ending: str, count: int = 36) -> Path:
    lines = []
    for n in range(count):
        labels = LABELS[n % 6]
        if ending == "csv":
            lines.append(f"words {n},{'|'.join(labels or [])}")
        else:
            lines.append(json.dumps({"text": f"words {n}", "label": labels}))
    return table(folder, f"data.{ending}", "\n".join([*(["text,label"] if ending == "csv" else []), *lines]) + "\n")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_rows_are_read(tmp_path: Path, ending: str) -> None:
    """An empty list is a row without any of the labels, an empty field one of which nothing is known."""
    data = texts(rows(tmp_path, ending), *SEVERAL, "dataset.split_shares={validation: 0, test: 0}")
    assert data.label_names == ("art", "news", "sport")
    batch = next(iter(data.loader("train", batch_size=6, shuffle=False)))
    unknown = [-100.0] * 3
    empty = unknown if ending == "csv" else [0.0] * 3
    assert batch["labels"].tolist() == [[0, 0, 1], [0, 1, 1], empty, [1, 0, 0], unknown, [0, 1, 0]]
    unlabelled = 12 if ending == "csv" else 6
    assert f"train: {unlabelled} of 36 rows have no label; not learned from" in data.notes


@pytest.mark.parametrize(
    ("value", "says"),
    [('[["a"]]', "words or whole numbers"), ("[1.5]", "words or whole numbers"), ('["z"]', "none of")],
)
def test_odd_labels_are_refused_with_their_row(tmp_path: Path, value: str, says: str) -> None:
    text = f'{{"text": "a", "label": ["x"]}}\n{{"text": "b", "label": {value}}}\n'
    if value != '["z"]':
        text = text.replace('["x"]', value if "[[" in value else "[2.5]")
    with pytest.raises(UserError, match=says) as caught:
        texts(table(tmp_path, "t.jsonl", text), *SEVERAL, "dataset.label_names=[x,y]")
    assert "row" in caught.value.where


def test_the_loss_is_the_mean_over_what_is_known() -> None:
    form, logits = find_form("multi_label"), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [-100, -100, -100, -100]])
    expected = F.binary_cross_entropy_with_logits(logits[:2], labels[:2])
    assert form.loss(None, logits, labels).item() == pytest.approx(expected.item())  # type: ignore[arg-type]
    assert form.loss(None, logits[2:], labels[2:]).item() == 0  # type: ignore[arg-type]


def test_a_run_from_words_to_answers(tmp_path: Path) -> None:
    words = ("method=full", "backbone=bert_tiny", "backbone.weights=random:0", "hardware=cpu", "trainer.progress=none")
    run = compose(
        [*words, *SEVERAL, "dataset=text_files", f"dataset.path={rows(tmp_path, 'jsonl', 90)}", "trainer.max_steps=3",
         f"output_dir={tmp_path / 'out'}", "dataset.batch_size=8", "profiler=none"]
    )  # fmt: skip
    folder = carry_out(run)
    metrics = json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"]
    assert {"test/micro_f1", "test/mean_average_precision"} <= set(metrics)
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        answers = list(csv.DictReader(file))
    assert {part for row in answers for part in row["label"].split("|")} <= {"", "art", "news", "sport"}
    assert all(row["prediction"].count("|") == row["probability"].count("|") for row in answers)
    planned = plan_run(run.changed(dataset={"label_names": ["art", "news", "sport"]}), "cpu")
    assert planned.memory["peak"] > 0


def test_a_model_that_writes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="asks for multi_label, which"):
        compose(
            ["backbone=t5_tiny", "method=full", "dataset=text_files", f"dataset.path={rows(tmp_path, 'csv')}", *SEVERAL]
        )
