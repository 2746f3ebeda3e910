"""One tensor under several names, and tensors of equal shapes that mean different things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

from transfer_run.errors import UserError
from transfer_run.methods.merging.average import Average, AverageRule
from transfer_run.methods.merging.engine.names import same_names
from transfer_run.methods.merging.engine.opening import open_models
from transfer_run.methods.merging.engine.stream import Job, merge_in_memory

BERT: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                        "intermediate_size": 24, "max_position_embeddings": 12}  # fmt: skip
LLAMA: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                         "num_key_value_heads": 2, "intermediate_size": 24}  # fmt: skip


def test_names_are_matched_by_what_stands_before_them() -> None:
    known = {"embeddings.w", "encoder.0.w", "encoder.1.w"}
    theirs = ["bert.embeddings.w", "bert.encoder.0.w", "bert.encoder.1.w", "classifier.w"]
    assert list(same_names(theirs, known).values()) == [*sorted(known), "classifier.w"]
    assert set(same_names(known, {*theirs}).values()) == set(theirs[:3])
    assert same_names(["module._orig_mod.embeddings.w"], known) == {"module._orig_mod.embeddings.w": "embeddings.w"}
    assert same_names(["model.encoder.0.w"], known) == {"model.encoder.0.w": "encoder.0.w"}
    assert same_names(["decoder.0.w"], known) == {"decoder.0.w": "decoder.0.w"}


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("first", ["plain", "headed"])
def test_a_body_and_a_classifier_merge(tmp_path: Path, wrapper: str, first: str) -> None:
    config = BertConfig(**BERT)
    plain, headed = BertModel(config, add_pooling_layer=False), BertForSequenceClassification(config)
    plain.save_pretrained(tmp_path / "plain")
    headed.bert.pooler = None  # type: ignore[assignment]
    headed.save_pretrained(tmp_path / "headed")
    file = tmp_path / "headed" / "model.safetensors"
    save_file({f"{wrapper}{name}": tensor for name, tensor in load_file(file).items()}, file)
    second = "headed" if first == "plain" else "plain"
    models, base = open_models([tmp_path / first, tmp_path / second], None)
    with pytest.raises(UserError, match="2 tensors are missing somewhere") as error:
        Job(models, base)
    assert "classifier" in error.value.where
    out = merge_in_memory(Job(models, base, exclude=[r".*classifier.*"]), AverageRule())
    wanted: dict[str, Tensor] = {n: (t + headed.bert.state_dict()[n]) / 2 for n, t in plain.state_dict().items()}
    prefix = "" if first == "plain" else f"{wrapper}bert."
    assert all(torch.allclose(out[f"{prefix}{name}"], tensor, atol=1e-6) for name, tensor in wanted.items())


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 4, "num_key_value_heads": 4}, {"rms_norm_eps": 1e-3},
               {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"hidden_act": "relu"}]
)  # fmt: skip
def test_models_of_equal_shapes_that_compute_other_things(tmp_path: Path, change: dict[str, Any]) -> None:
    for name, words in (("one", {}), ("two", change), ("three", {"attention_dropout": 0.3})):
        LlamaForCausalLM(LlamaConfig(**{**LLAMA, **words})).save_pretrained(tmp_path / name)
    for base in (None, str(tmp_path / "one")):
        with pytest.raises(UserError, match="compute different things") as error:
            open_models([tmp_path / "one", tmp_path / "two"], base)
        assert next(iter(change)) in error.value.what
        assert len(open_models([tmp_path / "one", tmp_path / "three"], base)[0]) == 2


def test_what_is_no_expression() -> None:
    with pytest.raises(UserError, match="no regular expression"):
        Average(None, None, exclude=["["])
