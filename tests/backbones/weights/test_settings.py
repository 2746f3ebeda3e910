"""What models of the hub say in their config.json is what our configs of them say: none of their keys is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from transfer_run.backbones.weights.settings import computing, differences, folder_computing
from transfer_run.errors import UserError
from transfer_run.files import read_yaml

CONFIGS = Path(__file__).parents[3] / "configs" / "backbone"
REAL: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "hub_settings.json").read_text(encoding="utf-8"))
"""Written from memory in the form that the library had before its fifth version: no copies of the hub's files."""


@pytest.mark.parametrize("name", REAL)
def test_a_models_own_settings_are_ours(name: str) -> None:
    stored, ours = REAL[name], read_yaml(CONFIGS / f"{name}.yaml")["architecture"]
    known = CONFIG_MAPPING[stored["model_type"]]
    own = computing(known(**{key: value for key, value in ours.items() if key != "model_type"}))
    here = known.from_dict(json.loads(json.dumps(stored)))
    again = known.from_dict(json.loads(json.dumps(here.to_dict())))  # as the library writes it today
    for each in (here, again):
        assert differences(computing(each), own) == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("hidden_size", "wide", "hidden_size"), ("num_attention_heads", [1], "num_attention_heads"),
     ("rope_scaling", 5, "iterable"), ("id2label", [1], "items")],
)  # fmt: skip
def test_settings_that_the_library_refuses_are_one_message(tmp_path: Path, key: str, value: Any, told: str) -> None:
    content = {**REAL["bert-base-uncased"], key: value}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=f"transformers refuses the folder's settings: .*{told}") as caught:
        folder_computing(tmp_path)
    assert caught.value.where == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert-base-uncased", "num_attention_heads", 6),
        ("meta-llama/Llama-3.2-1B", "rope_theta", 10000.0),
        ("t5-base", "relative_attention_num_buckets", 16),
        ("gpt2", "activation_function", "relu"),
    ],
)
def test_one_that_computes_something_else_is_told(name: str, key: str, value: Any) -> None:
    stored = REAL[name]
    known = CONFIG_MAPPING[stored["model_type"]]
    one, other = (known.from_dict(json.loads(json.dumps(each))) for each in (stored, {**stored, key: value}))
    assert differences(computing(one), computing(other))
