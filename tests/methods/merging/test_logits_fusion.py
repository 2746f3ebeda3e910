"""Logits fusion as a method: what it answers, writes and counts, what it refuses; one run through the runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.merging.test_runs import carried_out
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.methods.base import Method
from transfer_run.methods.merging.fusion.search import fuse
from transfer_run.methods.merging.logits_fusion import LogitsFusion
from transfer_run.task import Task

TASK = Task("language_modeling", 0, metrics=("perplexity",))


def speaker(seed: int, layers: int = 1, **architecture: Any) -> Method:
    """A random byte-level Llama that speaks."""
    node: dict[str, Any] = dict(registry.entry("backbone", "llama_tiny").content["backbone"])
    shape = node["architecture"] | {"num_hidden_layers": layers, "initializer_range": 0.3} | architecture
    torch.manual_seed(seed)
    return Method(build_backbone({**node, "weights": f"random:{seed}", "architecture": shape}), TASK).eval()


def fusion(count: int = 1, layers: int = 2, **settings: Any) -> tuple[LogitsFusion, dict[str, Method]]:
    """The method on a random large model, and its small ones by name."""
    names = [f"expert{number}" for number in range(count)]
    models = {"small": speaker(1), **{name: speaker(2 + number) for number, name in enumerate(names)}}
    method = LogitsFusion(speaker(0, layers).backbone, TASK, experts=names, **settings)
    method.take_sources(models.__getitem__)
    return method.eval(), models


def batch(rows: int = 3, length: int = 7) -> dict[str, Tensor]:
    ids = torch.randint(3, 259, (rows, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@pytest.mark.parametrize("count", [1, 2])
def test_every_token_is_fused_by_itself(count: int) -> None:
    method, models = fusion(count)
    given = batch()
    logits = method(given)
    large = Method(method.backbone, TASK)(given)
    small, *experts = (model(given) for model in models.values())
    for row in range(3):
        for place in range(7):
            wanted, _ = fuse(
                large[row, place][None], small[row, place][None],
                torch.stack([each[row, place][None] for each in experts]), method.alpha,
            )  # fmt: skip
            torch.testing.assert_close(logits[row, place], wanted[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, large)


def test_padding_changes_nothing() -> None:
    """Check 9, second half."""
    method, _ = fusion()
    short = batch(1, 5)
    padded = {name: torch.nn.functional.pad(tensor, (0, 3)) for name, tensor in short.items()}
    torch.testing.assert_close(method(padded)[:, :5], method(short), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_without_weight_it_writes_what_the_large_model_writes(use_cache: bool) -> None:
    """Check 10; and with one it writes otherwise, the same with and without caches."""
    method, _ = fusion(alpha=0.0)
    given = batch()
    large = Method(method.backbone, TASK).eval()
    assert torch.equal(method.generate(given, 6, use_cache), large.generate(given, 6))
    dynamic, _ = fusion()
    written = dynamic.generate(given, 6, use_cache)
    assert torch.equal(written, dynamic.generate(given, 6, not use_cache))
    assert not torch.equal(written, large.generate(given, 6))


def test_a_token_is_one_large_pass_and_one_of_every_small_model() -> None:
    """Check 10, second half."""
    method, models = fusion(2)
    passes: dict[str, int] = {}

    def counted(name: str) -> Any:
        def count(*_: Any) -> None:
            passes[name] = passes.get(name, 0) + 1

        return count

    for name, owner in [("large", method), *models.items()]:
        owner.backbone.blocks("decoder")[0].register_forward_pre_hook(counted(name))
    method.generate(batch(), 5)
    steps = passes["large"]
    assert 1 <= steps <= 5
    assert passes == {"large": steps, "small": steps, "expert0": steps, "expert1": steps}


def test_nothing_is_trained_and_no_graph_is_built() -> None:
    """Check 11."""
    method, _ = fusion()
    assert not [name for name, parameter in method.named_parameters() if parameter.requires_grad]
    assert not method(batch()).requires_grad
    assert method.shipped() == {}


def test_weights_are_counted_over_tokens_that_are_no_padding() -> None:
    method, _ = fusion(alpha=[0.75])
    given = batch(2, 6)
    given["attention_mask"][1, 3:] = 0
    method(given)
    assert method.used.tolist() == pytest.approx([0.75 * 9, 9])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha": "much"}, "neither `dynamic` nor a number for each of 2 experts"),
        ({"alpha": [1.0]}, "neither `dynamic` nor a number for each of 2 experts"),
        ({"alpha": True}, "neither `dynamic` nor a number"),
        ({"grid": {"step": 0.0}}, "there is no weight"),
        ({"grid": {"step": 0.001}, "multi": "joint"}, "combinations"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LogitsFusion(speaker(0).backbone, TASK, experts=["a", "b"], **settings)


def test_experts_are_named_once() -> None:
    for names in ([], ["a", "a"]):
        with pytest.raises(UserError, match="does not name the experts once each"):
            LogitsFusion(speaker(0).backbone, TASK, experts=names)


DOCS = "backbone=llama_tiny dataset=python_docs dataset.task=language_modeling dataset.max_source_length=32"
SMALL = f"method=full {DOCS} backbone.weights=random:0 backbone.architecture.num_hidden_layers=1 trainer.max_steps=2"
LORA = (
    f"method=lora {DOCS} backbone.architecture.num_hidden_layers=1 trainer.max_steps=2 'backbone.weights=run:{SMALL}'"
)


def test_a_run_scores_the_fused_model_and_is_planned(shared_runs: Path) -> None:
    words = ["method=logits_fusion", *DOCS.split(), "backbone.weights=random:1"]
    words += [f"sources.small={SMALL}", f"sources.expert={LORA}"]
    _, result = carried_out(shared_runs, *words)
    assert 1 < result["metrics"]["test/perplexity"] < 1000  # 384 where nothing is known
    assert 0 <= result["extra"]["alpha"]["expert"] <= 2
    assert result["extra"]["forward_passes_a_token"] == {"large": 1, "small": 2}
    memory = result["memory"]
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.02)


def test_what_a_run_refuses(shared_runs: Path) -> None:
    words = ["method=logits_fusion", *DOCS.split(), "backbone.weights=random:1"]
    with pytest.raises(UserError, match="needs a source 'small'"):
        carried_out(shared_runs, *words, f"sources.expert={SMALL}")
    with pytest.raises(UserError, match="reads no source 'teacher'"):
        carried_out(shared_runs, *words, f"sources.small={SMALL}", f"sources.teacher={SMALL}")
    with pytest.raises(UserError, match="needs a source 'expert'"):
        carried_out(shared_runs, *words, f"sources.small={SMALL}")
