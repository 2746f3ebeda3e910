"""OPTIN on small BERTs and ViTs: what a mask takes away, how far that moves the network, what is cut out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import transfer_run
from tests.memory import small
from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.methods.base import Context, Method
from transfer_run.methods.compression.optin import Optin
from transfer_run.methods.compression.units.masking import Chunk, Kind, Masking
from transfer_run.run_folder import read_result

KINDS: tuple[Kind, ...] = ("head", "neuron")


def batch_of(kind: str, size: int = 6) -> Batch:
    found = dict(small.batch(kind, size))
    if "attention_mask" in found:
        found["attention_mask"][: size // 2, 10:] = 0
    return found


def made(kind: str, **settings: Any) -> Optin:
    method = Optin(lively(kind), small.task(kind), **settings)
    method.eval()
    return method


def lively(kind: str) -> Backbone:
    """Weights so large that every unit moves what follows."""
    backbone = small.backbone(kind)
    for parameter in backbone.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def masking(method: Optin, batch: Batch, **how: Any) -> Masking:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    settings: dict[str, Any] = {"rows": None, "tau": 4.0, "aggregation": "sum", **how}
    return Masking(method.backbone, inputs, method._logits, **settings)


def context(folder: Path, source: Method, batch: Batch, **more: Any) -> Context:
    return Context(seed=0, folder=folder, batches=lambda split, size: iter([batch]),
                   load_source=lambda name: source, **more)  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_cached_prefixes_and_stacked_variants_are_the_plain_passes(kind: str) -> None:
    method, batch = made(kind), batch_of(kind)
    fast, slow = masking(method, batch), masking(method, batch, cached=False)
    for unit in KINDS:
        for layer in range(3):
            together = fast.measure(Chunk(unit, layer, 0, 3))
            alone = [slow.measure(Chunk(unit, layer, number, number + 1)) for number in range(3)]
            for term in (0, 1):
                wanted = torch.cat([each[term] for each in alone])
                torch.testing.assert_close(together[term], wanted, rtol=1e-3, atol=1e-4)
                assert (wanted > 0).all()


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_nothing_masked_moves_nothing(kind: str) -> None:
    method, batch = made(kind), batch_of(kind)
    found = masking(method, batch)
    for unit in KINDS:
        for layer in (0, 2):
            md, kd = found.moved(unit, layer, torch.ones(2, found.units(unit)))
            torch.testing.assert_close(md, torch.zeros(2), atol=1e-6, rtol=0)
            torch.testing.assert_close(kd, torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_unit_that_writes_nothing_is_worth_nothing(kind: str) -> None:
    method, batch = made(kind), batch_of(kind)
    stack = method.backbone.stacks[0]
    with torch.no_grad():
        method.backbone.part(stack, 1, "out").weight[:, 16:32] = 0  # type: ignore[index]
        method.backbone.part(stack, 1, "mlp_out").weight[:, 5] = 0  # type: ignore[index]
    found = masking(method, batch)
    for unit, number in (("head", 1), ("neuron", 5)):
        md, kd = found.measure(Chunk(unit, 1, number - 1, number + 1))  # type: ignore[arg-type]
        assert float(md[1]) == pytest.approx(0, abs=1e-6)
        assert float(kd[1]) == pytest.approx(0, abs=1e-5)
        assert md[0] > 1e-6


def test_the_last_head_of_earlier_blocks_stays_masked_as_released() -> None:
    method, batch = made("bert"), batch_of("bert")
    kept = masking(method, batch, reset=False).measure(Chunk("head", 2, 0, 1))[0]
    fresh = masking(method, batch).measure(Chunk("head", 2, 0, 1))[0]
    by_hand = copy.deepcopy(method)
    reference = masking(method, batch)
    with torch.no_grad():
        for layer in (0, 1):
            by_hand.backbone.part("encoder", layer, "out").weight[:, 48:] = 0  # type: ignore[index]
    masked = masking(by_hand, batch)
    masked.dense_grams, masked.dense_logits = reference.dense_grams, reference.dense_logits
    torch.testing.assert_close(kept, masked.measure(Chunk("head", 2, 0, 1))[0], rtol=1e-3, atol=1e-4)
    assert kept > fresh


@pytest.mark.parametrize("criterion", ["trajectory", "wanda", "magnitude", "random"])
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_the_cut_network_is_the_masked_one(tmp_path: Path, kind: str, criterion: str) -> None:
    """Checks 8 and 9: equal logits, exactly the removed rows and columns fewer parameters, no hook left."""
    batch, source = batch_of(kind), Method(lively(kind), small.task(kind)).eval()
    settings: dict[str, Any] = {"budget": 0.5, "batch_size": 6, "criterion": criterion}
    cut, zeros = made(kind, **settings), made(kind, physical=False, **settings)
    for method in (cut, zeros):
        method.prepare(context(tmp_path, source, batch))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in method.backbone.modules())
        assert not any(p.requires_grad for p in method.parameters())
    torch.testing.assert_close(cut(batch), zeros(batch), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cut(batch), source(batch), atol=1e-3)
    heads, neurons = cut.results["heads_kept"], cut.results["neurons_kept"]
    removed = sum((4 - max(1, kept)) * (4 * 16 * 64 + 3 * 16) for kept in heads)
    of_all = cut.neuron_scores.shape[1]
    removed += sum((of_all - max(1, kept)) * (2 * 64 + 1) for kept in neurons)
    before, after = cut.results["parameters"].values()
    assert before - after == removed > 0
    assert zeros.results["parameters"]["after"] == before
    assert 0.3 < cut.results["macs_share"] <= 0.5


def test_a_layer_may_lose_everything() -> None:
    method, batch = made("vit"), batch_of("vit")
    heads, neurons = torch.full((3, 4), 100.0), torch.ones_like(method.neuron_scores)
    heads[1] = neurons[1] = 0
    method.head_scores.copy_(heads)
    method.neuron_scores.copy_(neurons)
    zeros = made("vit", physical=False)
    zeros.load_state_dict(method.state_dict())
    for each in (method, zeros):
        each.budget = 0.6
        each._prune(each._costs_at(17.0))
    assert method.results["heads_kept"][1] == method.results["neurons_kept"][1] == 0
    torch.testing.assert_close(method(batch), zeros(batch), rtol=1e-4, atol=1e-5)


def test_scores_of_another_run_serve_again(tmp_path: Path) -> None:
    batch, source = batch_of("bert"), Method(lively("bert"), small.task("bert")).eval()
    first, second, whole = (made("bert", budget=budget, batch_size=6) for budget in (0.6, 0.4, 0.4))
    first.prepare(context(tmp_path, source, batch))
    sources = {"model": source, "scores": first}
    known = context(tmp_path, source, batch, sources={"scores": tmp_path})
    known.load_source = lambda name: sources[name]
    second.prepare(known)
    whole.prepare(context(tmp_path, source, batch))
    assert second.results == whole.results
    assert torch.equal(second.head_scores, first.head_scores)


def test_the_index_factor_is_the_released_one() -> None:
    plain, code = made("bert"), made("bert", index_factor="code")
    md, kd = torch.rand(3, 4), torch.rand(3, 4)
    ratio = code._joined("head", md, kd) / plain._joined("head", md, kd)
    torch.testing.assert_close(ratio[0], torch.logspace(1, 0, 4))
    torch.testing.assert_close(plain._joined("head", md, kd)[2], 0.25 * (md + 0.1 * kd)[2])
    torch.testing.assert_close(plain._joined("neuron", md, kd)[0], (md + 0.1 * kd)[0])


@pytest.mark.parametrize(
    ("kind", "settings", "what"),
    [("bert", {"terms": {"md": False, "kd": False}}, "No term"), ("t5", {}, "not what can be scored")],
)
def test_what_cannot_be_pruned(kind: str, settings: dict[str, Any], what: str) -> None:
    if kind == "t5":
        with pytest.raises(UserError, match="not defined on"):
            compose(["method=optin", "backbone=t5_tiny", "dataset=python_docs", "sources.model=method=full"])
        return
    with pytest.raises(UserError, match=what):
        made(kind, **settings)


def test_another_network_is_refused(tmp_path: Path) -> None:
    method = made("bert", batch_size=6)
    with pytest.raises(UserError, match="not this one's"):
        method.prepare(context(tmp_path, Method(small.backbone("vit"), small.task("vit")), batch_of("bert")))


VIT = ["dataset=digits", "backbone=vit_tiny", "hardware=cpu", "trainer.progress=none"]
SOURCE = (
    "sources.model=method=full dataset=digits backbone=vit_tiny backbone.weights=random:0 optimizer.lr=1e-3 "
    "trainer.max_epochs=3"
)


def optin(shared: Path, *words: str) -> Path:
    return carry_out(compose(["method=optin", *VIT, SOURCE, "method.batch_size=16", "method.at_once=64", *words,
                              f"output_dir={shared}"]))  # fmt: skip


def test_a_run_is_loaded_with_its_own_sizes_and_scores_serve_another_budget(shared_runs: Path) -> None:
    folder = optin(shared_runs, "method.budget=0.7")
    result = read_result(folder)
    assert result is not None
    extra = result["extra"]
    loaded = transfer_run.load(folder)
    assert sum(p.numel() for p in loaded.backbone.parameters()) == extra["parameters"]["after"]
    assert extra["parameters"]["after"] < extra["parameters"]["before"]
    images: dict[str, Tensor] = {"pixel_values": torch.rand(2, 1, 8, 8), "labels": torch.zeros(2, dtype=torch.int64)}
    assert loaded(images).shape == (2, 5)
    again = read_result(optin(shared_runs, "method.budget=0.5", f"sources.scores={folder}"))
    alone = read_result(optin(shared_runs, "method.budget=0.5"))
    assert again is not None
    assert alone is not None
    assert again["extra"] == alone["extra"]
    assert again["metrics"] == alone["metrics"]
    assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.02)
    assert result["memory"]["peak_phase"] == "prepare"


def test_an_export_of_the_cut_network_says_why_not(shared_runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different numbers of heads"):
        optin(shared_runs, "method.budget=0.7", f"export={tmp_path / 'out'}")
    optin(shared_runs, "method.budget=0.7", "method.physical=false", f"export={tmp_path / 'whole'}")
    assert (tmp_path / "whole" / "model.safetensors").is_file()
