"""`method=tmi` through the runner: from words to the run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out


def test_a_ranking_from_words_to_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["method=tmi", "dataset=digits", "backbone=vit_tiny", "backbone.weights=random", "hardware=cpu"]
    words += ["method.pool=[cnn_tiny]", "method.max_samples=90", "trainer.progress=none", f"output_dir={tmp_path}"]
    words += ["method.reference={vit_tiny: 0.9, cnn_tiny: 0.8}", "method.reference_method=null"]
    folder = carry_out(compose(words))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "finished"
    assert result["parameters"]["trainable"] == 0
    assert result["time"]["steps"] == 0
    assert result["metrics"] == {}
    memory = result["memory"]
    assert (memory["source"], memory["peak_phase"]) == ("tracker", "prepare")
    assert 0 < memory["predicted_peak"] <= memory["peak"]  # the features of all samples come on top
    extra = result["extra"]
    assert {name: seen["samples"] for name, seen in extra["extraction"].items()} == {"vit_tiny": 90, "cnn_tiny": 90}
    assert set(extra["ranking"]["tmi"]) == {"vit_tiny", "cnn_tiny"}
    assert extra["agreement"]["lfc"]["candidates"] == 2
    assert (folder / extra["picture"]).is_file()
    assert not (folder / "checkpoints" / "model").exists()  # there is no model to ship
    capsys.readouterr()
    carry_out(compose(words))
    shown = capsys.readouterr().out
    assert "finished already" in shown
    for line in extra["table"]:
        assert line in shown
