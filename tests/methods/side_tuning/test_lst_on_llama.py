"""LST on a real decoder language model, as a whole run: words in, trained side network out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.run import carry_out

LLAMA = Path(__file__).parents[3].parent / "shared" / "data" / "weights" / "llama-stories260k"


@pytest.mark.long
@pytest.mark.skipif(not LLAMA.is_dir(), reason=f"no real weights in {LLAMA}")
def test_a_real_llama_trains_end_to_end(tmp_path: Path) -> None:
    words = [
        "method=lst", "backbone=llama-stories260k", f"backbone.weights={LLAMA}", "dataset=python_docs",
        "method.reduction_factor=4", "method.init=magnitude", "dataset.batch_size=4", "dataset.max_source_length=48",
        "trainer.max_steps=3", "trainer.log_every=1", "trainer.progress=none", "hardware=cpu", f"output_dir={tmp_path}",
    ]  # fmt: skip
    folder = carry_out(compose(words))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["time"]["steps"] == 3
    assert result["memory"]["predicted_peak"] >= result["memory"]["peak"]  # the plan's texts have the full length
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 3
    assert losses[-1] > 0
    method = load_model(folder / "checkpoints" / "model")
    side = [name for name, p in method.named_parameters() if p.requires_grad]
    assert side
    assert not any(name.startswith("backbone.model") for name in side)
    answer = method.predict({"input_ids": torch.ones(1, 4, dtype=torch.int64)})
    assert answer.shape[0] == 1
