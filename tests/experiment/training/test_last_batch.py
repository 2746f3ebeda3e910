"""The last batch of an epoch: left out when asked, refused in time where a batch norm cannot take its one row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out

WORDS = (
    "method=full", "backbone=cnn_tiny", "backbone.weights=random:0", "hardware=cpu", "trainer.progress=none",
    "profiler=none", "trainer.max_epochs=1", "dataset=image_folder", "dataset.split_shares={validation: 0, test: 0}",
)  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, grey in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            image = np.full((8, 8, 3), grey + number, dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def steps(pictures: Path, *words: str) -> int:
    run = compose([*WORDS, f"dataset.path={pictures}", f"output_dir={pictures.parent / 'out'}", *words])
    record = json.loads((carry_out(run) / "result.json").read_text(encoding="utf-8"))
    taken: int = record["time"]["steps"]
    return taken


def test_one_row_is_refused_before_training_or_left_out(pictures: Path) -> None:
    """Ten rows in batches of nine; the batch norm of the last stage sees one place a channel."""
    nine = "dataset.batch_size=9"
    with pytest.raises(UserError, match="holds one row") as caught:
        steps(pictures, nine)
    assert "drop_last=true" in caught.value.remedy
    assert steps(pictures, nine, "trainer.drop_last=true") == 1
    assert steps(pictures, nine, "trainer.max_steps=1") == 1  # it ends before that batch
    assert steps(pictures, "dataset.batch_size=8") == 2
    assert steps(pictures, "dataset.batch_size=8", "trainer.drop_last=true") == 1


def test_no_full_batch_to_train_on(pictures: Path) -> None:
    with pytest.raises(UserError, match="fill no batch"):
        steps(pictures, "dataset.batch_size=11", "trainer.drop_last=true")


def test_without_the_key_runs_are_those_of_before(pictures: Path) -> None:
    said = compose([*WORDS, f"dataset.path={pictures}"]).identity
    assert compose([*WORDS, f"dataset.path={pictures}", "trainer.drop_last=null"]).identity == said
    assert compose([*WORDS, f"dataset.path={pictures}", "trainer.drop_last=true"]).identity != said
