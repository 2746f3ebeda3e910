"""Whole runs: the classifier of the weights goes on, pools are compared, and stopped runs go on bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.matrix.smallest import carried_out_in_two
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.sources.resolve import source_tree
from transfer_run.methods.distillation.transfer.knowledge import Answers

TEACHER = "method=full backbone=vit_tiny backbone.architecture.depth=2 backbone.weights=random:{} dataset=digits"
QUICK = ["hardware=cpu", "trainer.progress=none", "trainer.log_every=1", "dataset.batch_size=64"]


def words(output: Path, *more: str, teachers: int = 1) -> list[str]:
    names = ["teacher", "second"][:teachers]
    trained = [f"sources.{name}={TEACHER.format(i)} trainer.max_steps={8 * (i + 1)}" for i, name in enumerate(names)]
    return [
        "method=knowledge_transfer", "backbone=vit_tiny", "backbone.architecture.depth=2", "dataset=digits",
        f"backbone.weights=run:{TEACHER.format(5)} trainer.max_steps=8", f"method.teachers=[{','.join(names)}]",
        f"output_dir={output}", *trained, *QUICK, *more,
    ]  # fmt: skip


def model(run: Path) -> bytes:
    return (run / "checkpoints" / "model" / "model.safetensors").read_bytes()


def test_a_step_of_no_length_changes_nothing_and_all_is_told(shared_runs: Path) -> None:
    """The head that goes on is the classifier: what is tested afterwards is what the student's run had tested."""
    cfg = compose(words(shared_runs, "trainer.max_steps=2", "optimizer.lr=0", "optimizer.weight_decay=0"))
    run = carry_out(cfg)
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    metrics, told = result["metrics"], result["extra"]["complementary"]
    assert metrics["before/accuracy"] == pytest.approx(metrics["test/accuracy"])
    assert (metrics["delta_transf"], metrics["knowledge_gain"], metrics["knowledge_loss"]) == (0, 0, 0)
    gap = metrics["teacher/accuracy"] - metrics["before/accuracy"]
    assert metrics["teacher/positive_flips"] - metrics["teacher/negative_flips"] == pytest.approx(gap)
    assert told["pool"] == ["student", "teacher", "student after"]
    assert (run / result["extra"]["picture"]).stat().st_size > 5_000
    pool = Answers.read(run / "answers.npz")
    assert sum(told["teachers"][0]["by_class"].values()) == int((pool.right[1] & ~pool.right[0]).sum())
    own = {folder for folder in (tree.folder for _, tree in source_tree(cfg).walk()) if folder != run}
    before = next(f for f in own if "random:5" in (f / "config.yaml").read_text(encoding="utf-8"))
    accuracy = json.loads((before / "result.json").read_text(encoding="utf-8"))["metrics"]["test/accuracy"]
    assert metrics["before/accuracy"] == pytest.approx(accuracy)
    memory = result["memory"]
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.02)


@pytest.mark.parametrize(
    ("more", "teachers"),
    [
        (("method.approach=crd", "method.crd.width=8", "method.crd.negatives=16", "trainer.max_steps=4"), 1),
        (("method.approach=xekl_mcl", "method.mcl.tau=0.5", "trainer.max_steps=4"), 1),
        (("method.multi=soup", "method.teacher_epochs=1", "trainer.max_epochs=2", "dataset.batch_size=512"), 2),
        (("method.teacher_epochs=1", "trainer.max_epochs=2", "dataset.batch_size=512", "method.teacher_order=desc"), 2),
    ],
    ids=["crd", "xekl_mcl", "soup", "sequential"],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    more: tuple[str, ...], teachers: int, shared_runs: Path, tmp_path: Path
) -> None:
    words_of = [
        word for word in words(shared_runs, *more, "optimizer.lr=0.05", teachers=teachers) if "output_dir" not in word
    ]
    whole = carry_out(compose([*words_of, f"output_dir={shared_runs}"]))
    for folder in shared_runs.rglob("full-vit_tiny-*"):  # the sources are there already
        target = tmp_path / folder.relative_to(shared_runs)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(folder)
    parted = carried_out_in_two(compose([*words_of, f"output_dir={tmp_path}"]), step=3 if teachers == 1 else 2)
    assert model(whole) == model(parted)
    results = [json.loads((run / "result.json").read_text(encoding="utf-8")) for run in (whole, parted)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert all(
        np.isfinite(tensor).all() for tensor in load_file(whole / "checkpoints/model/model.safetensors").values()
    )
