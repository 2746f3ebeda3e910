"""Adapter folders that peft itself wrote: their changes are those of peft's own merged model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from tests.methods.merging.toy import equal, flat
from transfer_run.errors import UserError
from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.engine.checkpoint import open_checkpoint
from transfer_run.methods.merging.engine.opening import open_models
from transfer_run.methods.merging.engine.stream import Job, merge_in_memory
from transfer_run.methods.merging.task_arithmetic import TaskArithmeticRule
from transfer_run.methods.merging.ties import TiesRule

BERT: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 300,
    "max_position_embeddings": 12,
}  # fmt: skip


def bert() -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**BERT))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False))


def adapted(build: Callable[[], nn.Module], folder: Path, seed: int, **settings: Any) -> dict[str, Tensor]:
    """Save an adapter with random values; the tensors of the model that peft loads it into and merges."""
    start, model = build(), build()
    torch.manual_seed(seed)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
                assert "lora" in name or "modules_to_save" in name or "bias" in name
    wrapped.save_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(start, folder)  # in the file the patterns are sorted
    return {k: v.contiguous() for k, v in loaded.merge_and_unload().state_dict().items()}


QKV: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "key", "value"]}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (bert, {"r": 4, "lora_alpha": 6, "target_modules": ["query", "dense"]}),
    "rslora": (bert, {"r": 4, "lora_alpha": 6, "target_modules": ["value"], "use_rslora": True}),
    "patterns": (
        bert,
        {
            "r": 4, "lora_alpha": 6, "target_modules": ["query", "key"], "rank_pattern": {"key": 2},
            "alpha_pattern": {"query": 12},
        },
    ),
    "alternatives": (bert, {**QKV, "alpha_pattern": {"layer.0.attention.self.(query|value)": 12}}),
    "ranks": (bert, {**QKV, "rank_pattern": {r"layer\.1\..*(query|key)": 2}}),
    "anchored": (bert, {**QKV, "rank_pattern": {r"^bert\.encoder.*key": 2}, "alpha_pattern": {r"^bert\..*key$": 5}}),
    "first_pattern_wins": (bert, {**QKV, "alpha_pattern": {"self.query": 12, "0.attention.self.query": 3}}),
    "no_half_names": (bert, {**QKV, "alpha_pattern": {"uery": 12, "attention.self": 20}}),
    "rslora_patterns": (
        bert,
        {
            **QKV, "use_rslora": True, "rank_pattern": {r"layer\.\d+\..*value": 2},
            "alpha_pattern": {r"layer\.[01]\..*(value|key)": 9},
        },
    ),
    "whole_pattern": (bert, {"r": 4, "target_modules": r".*layer\.0.*(query|dense)", "alpha_pattern": {".*dense": 3}}),
    "embedding": (bert, {"r": 3, "target_modules": ["word_embeddings", "query"]}),
    "whole_modules": (bert, {"r": 2, "target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "biases": (bert, {"r": 2, "target_modules": ["query"], "bias": "lora_only"}),
    "conv1d": (gpt2, {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "conv1d_said_wrongly": (gpt2, {"r": 4, "target_modules": ["c_attn", "c_fc", "c_proj"]}),
    "conv1d_square": (gpt2, {"r": 4, "target_modules": ["attn.c_proj"], "fan_in_fan_out": True}),
    "conv1d_beside_linear": (gpt2, {"r": 4, "target_modules": ["c_proj", "lm_head"], "fan_in_fan_out": True}),
    "linear_said_wrongly": (bert, {"r": 4, "target_modules": ["query", "dense"], "fan_in_fan_out": True}),
    "embedding_and_head": (gpt2, {"r": 3, "lora_alpha": 6, "target_modules": ["wte", "lm_head", "c_attn"]}),
    "whole_body_of_a_classifier": (bert, {"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_lora_on_a_full_base(case: str, tmp_path: Path) -> None:
    build, settings = CASES[case]
    start = build()
    start.save_pretrained(tmp_path / "base")
    wanted = adapted(build, tmp_path / "lora", 1, **settings)
    (model,), base = open_models([tmp_path / "lora"], str(tmp_path / "base"))
    assert model.changed
    assert base is not None
    out = merge_in_memory(Job([model], base, chunk_bytes=1), TaskArithmeticRule(1.0))
    assert out.keys() == base.entries.keys()
    assert all(torch.allclose(out[name], wanted[name], atol=1e-5) for name in out)
    for name, entry in base.entries.items():
        piece = model.read(name, 0, entry.numel)
        assert torch.allclose(piece, wanted[name].flatten(), atol=1e-5)
        if name not in model.changed:
            assert torch.equal(piece, base.read(name, 0, entry.numel))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_on_changed_weights_is_refused_until_it_is_plain(start: str, tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(bert(), peft.LoraConfig(**QKV, init_lora_weights=start))
    wrapped.peft_config["default"].init_lora_weights = True  # what peft asks of the saved beginning
    wrapped.save_pretrained(tmp_path / "begin")
    wrapped.peft_config["default"].init_lora_weights = start
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    wrapped.save_pretrained(tmp_path / "raw")
    with pytest.raises(UserError, match=start):
        open_models([tmp_path / "raw"], str(tmp_path / "base"))
    wrapped.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "begin"))
    wanted = wrapped.merge_and_unload().state_dict()
    (model,), _ = open_models([tmp_path / "plain"], str(tmp_path / "base"))
    for name, entry in model.entries.items():
        assert torch.allclose(model.read(name, 0, entry.numel), wanted[name].flatten(), atol=1e-5)


def test_two_loras_with_other_targets_merge_where_either_changed(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "base")
    one = adapted(bert, tmp_path / "one", 1, r=4, target_modules=["query", "dense"])
    two = adapted(bert, tmp_path / "two", 2, r=2, target_modules=["query", "value"])
    models, base = open_models([tmp_path / "one", tmp_path / "two"], str(tmp_path / "base"))
    work = Job(models, base)
    assert {name.split(".")[-2] for name in work.layout.merged} == {"query", "value", "dense"}
    plain = {name: tensor for name, tensor in bert().state_dict().items() if name in work.layout.entries()}
    out = merge_in_memory(work, TaskArithmeticRule(0.5))
    wanted = {name: plain[name] + 0.5 * (one[name] - plain[name] + two[name] - plain[name]) for name in out}
    assert torch.allclose(flat(out), flat(wanted), atol=1e-5)
    assert equal(
        merge_in_memory(work, TiesRule(keep=0.3)), merge_in_memory(Job(models, base, chunk_bytes=1), TiesRule(keep=0.3))
    )


def test_pieces_of_a_change_do_not_depend_on_where_they_begin(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "base")
    adapted(bert, tmp_path / "lora", 1, r=4, target_modules=["dense"])
    (model,), base = open_models([tmp_path / "lora"], str(tmp_path / "base"))
    name = "bert.encoder.layer.0.intermediate.dense.weight"  # 300 rows: more than one block
    whole = model.difference(name, 0, 4800, torch.zeros(4800))
    for start in (0, 5, 2048, 4096, 4790):
        assert torch.equal(model.difference(name, start, 4800, torch.zeros(4800 - start)), whole[start:])
    assert base is not None


def test_ia3_starts_at_ones(tmp_path: Path) -> None:
    tensors = [{"base_model.model.k.ia3_l": torch.tensor([[1.0], [2.0], [0.5]]) * scale} for scale in (1.0, 2.0)]
    for i, each in enumerate(tensors):
        folder = tmp_path / f"ia3_{i}"
        folder.mkdir()
        save_file(each, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    models, base = open_models([tmp_path / "ia3_0", tmp_path / "ia3_1"], "ones")
    out = merge_in_memory(Job(models, base), TiesRule(keep=1.0, merge="dis-sum"))
    # changes (0, 1, -0.5) and (1, 3, 0): the signs +, +, - win
    assert out["base_model.model.k.ia3_l"].flatten().tolist() == [2.0, 5.0, 0.5]
    with pytest.raises(UserError, match="where they started"):
        open_models([tmp_path / "ia3_0"], None)
    bert().save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="IA3 does not add"):
        open_models([tmp_path / "ia3_0"], str(tmp_path / "base"))


def test_factors_beside_their_saved_start(tmp_path: Path) -> None:
    model = peft.get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query"]))
    model.save_pretrained(tmp_path / "start")
    start = load_file(tmp_path / "start" / "adapter_model.safetensors")
    (tmp_path / "one").mkdir()
    changed = {name: tensor + 0.25 for name, tensor in start.items()}
    save_file(changed, tmp_path / "one" / "adapter_model.safetensors")
    (tmp_path / "one" / "adapter_config.json").write_text((tmp_path / "start" / "adapter_config.json").read_text())
    models, base = open_models([tmp_path / "one", tmp_path / "one"], str(tmp_path / "start"))
    out = merge_in_memory(Job(models, base), TaskArithmeticRule(0.5))
    assert torch.allclose(flat(out), flat(changed), atol=1e-6)


@pytest.mark.parametrize("gone", ["lora_A", "lora_B"])
def test_an_adapter_that_lacks_a_factor_is_refused(tmp_path: Path, gone: str) -> None:
    bert().save_pretrained(tmp_path / "base")
    adapted(bert, tmp_path / "lora", 1, r=2, target_modules=["query"])
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if "layer.1" not in n or gone not in n}, file)
    with pytest.raises(UserError, match=r"lacks a factor .* of 1 of its 2 changes") as error:
        open_models([tmp_path / "lora"], str(tmp_path / "base"))
    assert "layer.1.attention.self.query" in error.value.where


@pytest.mark.parametrize("change", [{"hidden_size": 24}, {"hidden_size": 8}, {"intermediate_size": 200}])
def test_an_adapter_of_another_width_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    """Wider, narrower, or only in one of its layers: nothing is broadcast or cut."""
    bert().save_pretrained(tmp_path / "base")

    def other() -> nn.Module:
        return BertForSequenceClassification(BertConfig(**{**BERT, **change}))

    adapted(other, tmp_path / "lora", 1, r=2, target_modules=["query", "dense"])
    with pytest.raises(UserError, match=r"does not fit its base: .* is \[\d+, \d+\] there"):
        open_models([tmp_path / "lora"], str(tmp_path / "base"))


def test_biases_of_a_lora_are_refused_with_what_to_do(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "base")
    adapted(bert, tmp_path / "lora", 1, r=2, target_modules=["query"], lora_bias=True)
    with pytest.raises(UserError, match="LoRA with lora_bias") as error:
        open_models([tmp_path / "lora"], str(tmp_path / "base"))
    assert error.value.remedy.startswith("make the whole model with peft")


def test_a_classifiers_adapter_on_the_plain_body(tmp_path: Path) -> None:
    """The body has neither the head nor the prefix of the classifier's names; the head must be left out by words."""
    bert().bert.save_pretrained(tmp_path / "base")
    wanted = adapted(bert, tmp_path / "lora", 1, r=2, target_modules=["query"], task_type="SEQ_CLS")
    with pytest.raises(UserError, match="2 tensors that the base does not have") as error:
        open_models([tmp_path / "lora"], str(tmp_path / "base"))
    assert "method.exclude" in error.value.remedy
    (model,), base = open_models([tmp_path / "lora"], str(tmp_path / "base"), ["classifier.*"])
    assert model.changed == {f"encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)}
    assert base is not None
    for name, entry in base.entries.items():
        whole = wanted[f"bert.{name}"].flatten()
        assert torch.allclose(model.read(name, 0, entry.numel), whole, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [{"lora_alpha": 12}, {"r": 4}, {"use_rslora": True}, {"alpha_pattern": {"layer.0.attention.self.query": 3}}],
)
def test_factors_that_make_other_changes_are_not_averaged(tmp_path: Path, other: dict[str, Any]) -> None:
    bert().save_pretrained(tmp_path / "base")
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 6, "target_modules": ["query"]}
    one = adapted(bert, tmp_path / "one", 1, **settings)
    two = adapted(bert, tmp_path / "two", 2, **{**settings, **other})
    with pytest.raises(UserError, match=next(iter(other))) as error:
        open_models([tmp_path / "one", tmp_path / "two"], str(tmp_path / "one"))
    assert "method.base=FOLDER" in error.value.remedy
    out = merge_in_memory(
        Job(*open_models([tmp_path / "one", tmp_path / "two"], str(tmp_path / "base"))), AverageRule()
    )
    assert out
    assert all(torch.allclose(tensor, (one[name] + two[name]) / 2, atol=1e-5) for name, tensor in out.items())
    with pytest.raises(UserError, match="Only the vectors"):
        open_models([tmp_path / "one"], "ones")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "base")
    adapted(bert, tmp_path / "lora", 1, r=2, target_modules=["query"])
    with pytest.raises(UserError, match="does not have"):
        open_models([tmp_path / "lora"], str(tmp_path / "base"))
    assert open_checkpoint(tmp_path / "lora").entries
