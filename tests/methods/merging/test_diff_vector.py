"""Diff vectors: the checks of the paper's sheet on toys, and what the files hold."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.merging.toy import LONG, Tensors, equal, random_models, write
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.merging.diff_vector import DiffVector, DiffVectorRule
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, StateDict, open_checkpoint
from transfer_run.methods.merging.engine.stream import Job, merge_in_memory, merge_to_folder
from transfer_run.run_folder import MODEL

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
EXTREME = torch.tensor([1e-30, -0.0, 0.0, 1.0, -3e4, 1e-7, 0.1, -1e-20])


def three(dtype: torch.dtype = torch.float32, shapes: Any = None, change: float = 0.1) -> tuple[Tensors, ...]:
    """Tuned, its base and a target, random, with values far apart in one tensor."""
    base, models = random_models(2, shapes, seed=int(torch.randint(1000, ())), change=change)
    found = [{name: tensor.to(dtype) for name, tensor in each.items()} for each in (models[0], base, models[1])]
    for number, tensors in enumerate(found):
        tensors["extreme"] = EXTREME.roll(number).to(dtype)
    return tuple(found)


def added(tuned: Tensors, start: Tensors, target: Tensors, scale: float = 1.0, **settings: Any) -> Tensors:
    """The rule in memory, in float64 if nothing else is said."""
    models = [StateDict(tuned, "tuned"), StateDict(start, "start")]
    job = Job(models, StateDict(target, "target"), **{"dtype": torch.float64, **settings})
    return merge_in_memory(job, DiffVectorRule(scale))


def same_bits(one: Tensors, other: Tensors) -> bool:
    """Equal as bytes: the sign of zero counts."""
    return equal(one, other) and all(
        bool((torch.signbit(one[name]) == torch.signbit(other[name])).all()) for name in one
    )


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_on_its_own_base_the_vector_gives_the_tuned_model(dtype: torch.dtype) -> None:
    """Check 1: to the bit, of whatever type the tensors are."""
    tuned, start, _ = three(dtype)
    assert same_bits(added(tuned, start, {name: t.clone() for name, t in start.items()}), tuned)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_no_change_and_no_weight_leave_the_target(dtype: torch.dtype) -> None:
    """Check 2: to the bit."""
    tuned, start, target = three(dtype)
    assert same_bits(added(tuned, start, target, 0.0), target)
    assert same_bits(added(start, start, target), target)


def test_vectors_add_up_and_cancel() -> None:
    """Checks 3 and 4, in float64."""
    tuned, start, target = three(torch.float64)
    at_once = added(tuned, start, target, 0.75)
    in_turn = added(tuned, start, added(tuned, start, target, 0.5), 0.25)
    back = added(start, tuned, added(tuned, start, target))
    for name in target:
        torch.testing.assert_close(in_turn[name], at_once[name], rtol=1e-13, atol=1e-10)
        torch.testing.assert_close(back[name], target[name], rtol=1e-13, atol=1e-10)


def test_there_and_back_in_bf16_is_off_by_a_rounding_a_step() -> None:
    """Check 4, second half."""
    tuned, start, target = three(torch.bfloat16)
    there = added(tuned, start, target)
    back = added(start, tuned, there)
    for name in target:
        largest = torch.maximum(there[name].float().abs(), target[name].float().abs())
        assert bool(((back[name].float() - target[name].float()).abs() <= 2 * 2.0**-8 * largest).all())


def test_the_sum_is_rounded_once() -> None:
    """Check 5."""
    values = [{"x": torch.tensor([v], dtype=torch.bfloat16)} for v in (1.0078125, 1.0, 256.0)]
    assert added(*values)["x"].item() == 256.0
    tuned, start, target = three(torch.bfloat16, change=1.0)
    out = added(tuned, start, target)
    for name in ("a.weight", "block.10.weight"):
        exact = target[name].double() + (tuned[name].double() - start[name].double())
        assert torch.equal(out[name], exact.to(torch.bfloat16))
        twice = target[name] + (tuned[name] - start[name])
        assert not torch.equal(out[name], twice)


def test_a_flat_direction_carries_the_tuned_loss() -> None:
    """Check 7: x has no component along the shift of the bases, so y = W x is what the tuned model computes."""
    inputs = torch.randn(6, 20, dtype=torch.float64)
    inputs[0] = 0
    wanted = torch.randn(3, 20, dtype=torch.float64)
    start = torch.randn(3, 6, dtype=torch.float64)
    tuned = start.clone().requires_grad_()
    for _ in range(50):
        (gradient,) = torch.autograd.grad((tuned @ inputs - wanted).square().mean(), tuned)
        tuned = (tuned - 0.5 * gradient).detach().requires_grad_()
    shift = torch.zeros(3, 6, dtype=torch.float64)
    shift[:, 0] = 7.0
    new = added({"w": tuned.detach()}, {"w": start}, {"w": start + shift})["w"]

    def loss(weights: Tensor) -> float:
        return float((weights @ inputs - wanted).square().mean())

    assert loss(new) == pytest.approx(loss(tuned.detach()), rel=1e-12)
    assert loss(new) < 0.9 * loss(start + shift)


def test_halfway_between_the_bases() -> None:
    tuned, start, target = three(torch.float64)
    job = Job([StateDict(tuned), StateDict(start)], StateDict(target), dtype=torch.float64)
    end = merge_in_memory(job, DiffVectorRule(1.0, along=1.0))
    assert all(torch.allclose(end[name], tuned[name], rtol=1e-12, atol=1e-10) for name in end)
    half = merge_in_memory(job, DiffVectorRule(0.0, along=0.5))
    assert torch.allclose(half["conv"], (start["conv"] + target["conv"]) / 2, rtol=1e-12)


class Counted(Checkpoint):
    """Counts the elements that are read of each tensor."""

    def __init__(self, inner: Checkpoint) -> None:
        self.where, self.entries, self.inner, self.read_of = inner.where, inner.entries, inner, Counter[str]()

    def read(self, name: str, start: int, stop: int) -> Tensor:
        self.read_of[name] += stop - start
        return self.inner.read(name, start, stop)


def test_files_are_read_once_and_give_the_bits_of_memory(tmp_path: Path) -> None:
    """Check 9: whatever the piece size, in shards."""
    found = three(torch.bfloat16, LONG)
    opened = [Counted(open_checkpoint(write(t, tmp_path / str(i)))) for i, t in enumerate(found)]
    job = Job(opened[:2], opened[2], dtype=torch.float64, chunk_bytes=1)
    for each in opened:
        each.read_of.clear()  # looking for tied matrices reads the beginnings
    merge_to_folder(job, DiffVectorRule(), tmp_path / "out", max_shard_bytes=3e5)
    out = open_checkpoint(tmp_path / "out")
    whole = {name: out.read(name, 0, entry.numel).view(entry.shape) for name, entry in out.entries.items()}
    assert same_bits(whole, added(*found, chunk_bytes=1e9))
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) == 3
    for each in opened:
        assert each.read_of == {name: entry.numel for name, entry in each.entries.items()}


# ---- folders
def folders(place: Path, *tensors: Tensors) -> dict[str, Path]:
    names = ("source_tuned", "source_base", "target_base")
    return {name: write(each, place / name) for name, each in zip(names, tensors, strict=True)}


def merged_folder(place: Path, *tensors: Tensors, **settings: Any) -> tuple[Tensors, list[str]]:
    """What the method writes for three folders, and what it says."""
    said: list[str] = []
    method = DiffVector(None, None, **settings)
    sources = folders(place, *tensors)
    method.prepare(Context(0, place / "run", lambda *_: iter(()), sources, said.append))
    out = open_checkpoint(place / "run" / MODEL)
    return {n: out.read(n, 0, entry.numel).view(entry.shape) for n, entry in out.entries.items()}, said


@pytest.mark.parametrize(("of_start", "of_target"), [(7, 7), (7, 10), (10, 7), (8, 7), (12, 11)])
def test_new_rows_of_the_vocabulary_are_the_tuned_models(of_start: int, of_target: int, tmp_path: Path) -> None:
    """Check 6: rows that a base lacks are m'_s's own, the others get the difference; rows it lost are gone."""
    tuned, start, target = three(torch.bfloat16, {"model.embed_tokens.weight": (12, 4), "b": (3,)})
    name = "model.embed_tokens.weight"
    tuned[name] = tuned[name][:10]
    start[name], target[name] = start[name][:of_start], target[name][:of_target]
    out, said = merged_folder(tmp_path, tuned, start, target)
    both = min(of_start, of_target, 10)
    assert out[name].shape == (10, 4)
    assert torch.equal(out[name][both:], tuned[name][both:])
    exact = target[name][:both].double() + tuned[name][:both].double() - start[name][:both].double()
    assert torch.equal(out[name][:both], exact.to(torch.bfloat16))
    if {of_start, of_target} != {10}:
        assert any(f"{name} has {of_target} rows in the target, {of_start} in the source, 10" in line for line in said)


def test_another_length_can_be_refused(tmp_path: Path) -> None:
    tuned, start, target = three(shapes={"wte.weight": (8, 4), "b": (3,)})
    start["wte.weight"] = start["wte.weight"][:6]
    with pytest.raises(UserError, match=r"several lengths: wte\.weight has 8 rows in the target, 6 in the source, 8"):
        merged_folder(tmp_path, tuned, start, target, pad_vocab=False)
    with pytest.raises(UserError, match="several lengths") as caught:
        merged_folder(tmp_path, tuned, start, target, exclude=["wte.*"])
    assert "wte.weight stays the target's" in str(caught.value.where)
    assert not (tmp_path / "run" / MODEL).exists()


def test_what_takes_no_part_stays_the_targets(tmp_path: Path) -> None:
    """Check 8."""
    tuned, start, target = three()
    out, _ = merged_folder(tmp_path / "a", tuned, start, target, exclude=["block.*"])
    for name in target:
        assert torch.equal(out[name], target[name]) == name.startswith("block")
    out, _ = merged_folder(tmp_path / "b", tuned, start, target, include=["block.*", "conv"])
    for name in target:
        assert torch.equal(out[name], target[name]) != name.startswith(("block", "conv"))


def test_every_misfit_is_named_before_anything_is_written(tmp_path: Path) -> None:
    """Check 8, second half: the names of all that miss or differ, together."""
    tuned, start, target = three()
    del tuned["block.2.bias"]
    target["conv"] = torch.zeros(4, 3, 3)
    start["extra"] = torch.zeros(2)
    with pytest.raises(UserError, match="3 tensors") as caught:
        merged_folder(tmp_path, tuned, start, target)
    for name in ("block.2.bias: missing in", "conv: [4, 3, 3] in", "extra: missing in"):
        assert name in caught.value.message()
    assert not (tmp_path / "run" / MODEL).exists()


def test_buffers_of_old_versions_and_running_statistics_are_no_weights(tmp_path: Path) -> None:
    tuned, start, target = three()
    start["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    target["h.0.attn.bias"] = torch.ones(1, 1, 5, 5).tril()
    for number, tensors in enumerate((tuned, start, target)):
        tensors["bn.running_var"] = torch.full((3,), float(number))
    out, _ = merged_folder(tmp_path, tuned, start, target)
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" not in out
    assert torch.equal(out["h.0.attn.bias"], target["h.0.attn.bias"])
    assert torch.equal(out["bn.running_var"], torch.full((3,), 2.0))


def test_the_target_is_asked_for(tmp_path: Path) -> None:
    sources = folders(tmp_path, *three())
    del sources["target_base"]
    method = DiffVector(None, None)
    with pytest.raises(UserError, match="the version that the vector is added to") as caught:
        method.prepare(Context(0, tmp_path / "run", lambda *_: iter(()), sources))
    assert caught.value.where == "sources.target_base"


# ---- what stands beside the weights
def with_settings(place: Path, **of: dict[str, Any]) -> None:
    for name, settings in of.items():
        (place / name).mkdir(parents=True, exist_ok=True)
        (place / name / "config.json").write_text(json.dumps(settings), encoding="utf-8")


LLAMA = {"model_type": "llama", "hidden_size": 32, "vocab_size": 10, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("settings", ["tuned", "target"])
def test_settings_and_tokenizer_of_the_result(settings: str, tmp_path: Path) -> None:
    far = {"rope_type": "default", "rope_theta": 500000.0}
    here = LLAMA | {"vocab_size": 12, "eos_token_id": 9, "rope_parameters": far}
    with_settings(tmp_path, source_tuned=here, source_base=here | {"vocab_size": 10}, target_base=LLAMA)
    (tmp_path / "source_tuned" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "target_base" / "generation_config.json").write_text('{"of": "target"}')
    (tmp_path / "source_tuned" / "generation_config.json").write_text('{"of": "tuned"}')
    _, said = merged_folder(tmp_path, *three(), settings=settings)
    out = tmp_path / "run" / MODEL
    written = json.loads((out / "config.json").read_text())
    assert (written["vocab_size"], written["eos_token_id"]) == (12, 9)
    assert (written.get("rope_parameters") == far) == (settings == "tuned")
    assert json.loads((out / "generation_config.json").read_text()) == {"of": "tuned"}
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert any("target and source compute different things: rope_parameters" in line for line in said)
    assert any("holds no tokenizer" in line for line in said)


def test_a_lora_folder_is_its_base_changed_by_it(tmp_path: Path) -> None:
    """Delta = scaling * B A on its layers, zero elsewhere; the result is a whole model with its base's settings."""
    _, start, target = three(shapes={"q.weight": (6, 6), "other": (4,)})
    generator = torch.Generator().manual_seed(1)
    factors = {
        "base_model.model.q.lora_A.weight": torch.randn(2, 6, generator=generator),
        "base_model.model.q.lora_B.weight": torch.randn(6, 2, generator=generator),
    }
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    with_settings(tmp_path, source_base={"model_type": "unknown"})
    sources = folders(tmp_path, {}, start, target)
    (sources["source_tuned"] / "model.safetensors").unlink()
    (write(factors, tmp_path / "written") / "model.safetensors").rename(
        sources["source_tuned"] / "adapter_model.safetensors"
    )
    (sources["source_tuned"] / "adapter_config.json").write_text(json.dumps(adapter))
    method = DiffVector(None, None)
    method.prepare(Context(0, tmp_path / "run", lambda *_: iter(()), sources))
    out = open_checkpoint(tmp_path / "run" / MODEL)
    change = 2.0 * factors["base_model.model.q.lora_B.weight"] @ factors["base_model.model.q.lora_A.weight"]
    torch.testing.assert_close(out.read("q.weight", 0, 36).view(6, 6), target["q.weight"] + change)
    assert torch.equal(out.read("other", 0, 4), target["other"])
    written = sorted(path.name for path in (tmp_path / "run" / MODEL).iterdir())
    assert written == ["config.json", "model.safetensors"]


def test_the_arithmetic_is_float64_unless_it_is_said(tmp_path: Path) -> None:
    values = [{"x": torch.tensor([v])} for v in (16777218.0, 1.0, 5.0)]
    assert merged_folder(tmp_path / "a", *values)[0]["x"].item() == 16777222
    assert merged_folder(tmp_path / "b", *values, arithmetic="float32")[0]["x"].item() == 16777220
