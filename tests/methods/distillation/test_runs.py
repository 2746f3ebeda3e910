"""Distillation through the runner: plan, teacher and student end to end, the ratio, AutoDistiller, its sweep."""

from __future__ import annotations

import copy
import hashlib
import json
import operator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.types import RunMode

from tests.methods.distillation.models import bert
from transfer_run.data.scores.direction import Better
from transfer_run.errors import Preempted, UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import Composer, compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.planning.plan import parameter_counts, plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.sources.resolve import source_tree
from transfer_run.experiment.training.checkpoints import Checkpoints
from transfer_run.files import read_yaml
from transfer_run.methods.distillation.advice.experience import candidates, experiences, pipeline, untried
from transfer_run.methods.distillation.advice.predictor import Predictor, held_out
from transfer_run.methods.distillation.advice.record import chance, distillation_ratio
from transfer_run.run_folder import finished_runs
from transfer_run.sweeps.asked import with_axes
from transfer_run.tables.spec import read

QUIET = ["hardware=cpu", "trainer.progress=none", "profiler=none"]
TEACHER = "method=full backbone=bert_tiny dataset=python_docs backbone.weights=random:1"
STUDENT = ["backbone=bert_tiny", "dataset=python_docs", "backbone.architecture.num_hidden_layers=2"]


def test_the_distillation_ratio() -> None:
    def ratio(*scores: float, examples: int = 10_000, better: Better = operator.gt) -> float | None:
        return distillation_ratio(*scores, examples, better)

    assert ratio(0.9, 0.9, 0.8) == 1
    assert ratio(0.8, 0.9, 0.8) == 0
    assert ratio(0.90298, 0.91726, 0.89401) == pytest.approx(0.39, abs=0.005)
    assert ratio(0.9, 0.8, 0.8) is None


def test_there_is_no_ratio_under_a_teacher_that_is_not_better() -> None:
    """It turned over: a student worse than both had +1.86 of a teacher that was worse than its baseline."""
    assert distillation_ratio(0.521, 0.642, 0.783, 360, operator.gt) is None
    assert distillation_ratio(0.80, 0.805, 0.800, 360, operator.gt) is None  # by less than chance on 360 examples
    assert distillation_ratio(0.80, 0.805, 0.800, 100_000, operator.gt) == pytest.approx(0)
    assert distillation_ratio(1.1, 1.0, 2.0, 400, operator.lt) == pytest.approx(0.9)  # an error: the smaller one
    assert distillation_ratio(1.1, 2.0, 1.0, 400, operator.lt) is None
    assert distillation_ratio(30.0, 40.0, 39.0, 400, operator.gt) is None  # 5 % of the size is chance
    assert chance(0.5, 0.5, 200) == pytest.approx(0.05)


# ---- the plan
def test_a_plan_knows_the_teacher_without_its_run() -> None:
    words = ["method=distiller", *STUDENT, "method.inter.loss=mse", *QUIET]
    plan = plan_run(compose([*words, f"sources.teacher={TEACHER}"]))
    alone = plan_run(compose(["method=full", *STUDENT, *QUIET]))
    teacher = parameter_counts(compose([*TEACHER.split(), *QUIET]))
    extra = plan.parameters["total"] - alone.parameters["total"]
    assert extra == teacher["total"]  # equal widths: nothing is projected
    assert plan.parameters["trainable"] == alone.parameters["trainable"]
    kinds, before = plan.memory["by_kind"], alone.memory["by_kind"]
    assert kinds["parameters"] - before["parameters"] == pytest.approx(4 * extra, rel=0.02)
    assert kinds["optimizer"] == pytest.approx(before["optimizer"], rel=0.02)  # none for the frozen teacher
    narrow = parameter_counts(compose([*words, f"sources.teacher={TEACHER}", "backbone.architecture.hidden_size=64"]))
    assert narrow["trainable"] == narrow["total"] - teacher["total"]
    alone_and_narrow = parameter_counts(
        compose(["method=full", *STUDENT, *QUIET, "backbone.architecture.hidden_size=64"])
    )
    assert narrow["trainable"] - alone_and_narrow["total"] == 3 * (64 * 128 + 128)  # the projections


def test_without_a_teacher_there_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="needs a source 'teacher'"):
        plan_run(compose(["method=distiller", *STUDENT, *QUIET]))


def test_a_recommendation_is_no_evaluation_and_its_plan_says_what_is_in_no_number() -> None:
    """Its peak was that of a prediction that it never makes, beside trainings that are in no number."""
    sources = [f"sources.teacher={TEACHER}", f"sources.baseline={TEACHER}"]
    plan = plan_run(compose(["method=auto_distiller", *STUDENT, *sources, *QUIET]))
    assert "evaluation" not in plan.memory["phases"]
    assert plan.memory["by_kind"]["activations"] == 0
    assert any("runs have plans of their own" in line for line in plan.left_out)


@pytest.mark.parametrize(("mapping", "augment"), [("emd", "random"), ("skip", "mixup")])
def test_plans_of_pipelines_whose_shapes_depend_on_chance(mapping: str, augment: str) -> None:
    words = [f"method.inter.mapping={mapping}", f"method.augment={augment}", "method.inter.first_share=0.5"]
    cfg = compose(["method=distiller", *STUDENT, f"sources.teacher={TEACHER}", *words, *QUIET])
    assert plan_run(cfg).memory["peak"] > 0


# ---- whole runs
def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


@pytest.mark.long
def test_a_student_learns_from_a_teacher_that_is_carried_out_first(tmp_path: Path) -> None:
    """Real images: a ViT of two blocks under one of six, beside the same student without a teacher."""
    base = "dataset=digits backbone=vit_tiny trainer.max_epochs=6 optimizer.lr=2e-3"
    words = ["method=distiller", *base.split(), "backbone.weights=random:0", "backbone.architecture.depth=2", *QUIET,
             f"sources.teacher=method=full {base} backbone.weights=random:1",
             f"sources.baseline=method=full {base} backbone.weights=random:0 backbone.architecture.depth=2",
             f"output_dir={tmp_path}"]  # fmt: skip
    folder = carry_out(compose(words))
    result = result_of(folder)
    assert len(list((tmp_path / "runs" / "digits").iterdir())) == 3
    metrics, facts = result["metrics"], result["extra"]["distillation"]
    teacher, baseline = metrics["teacher/accuracy"], metrics["baseline/accuracy"]
    beyond = teacher - baseline > ((teacher * (1 - teacher) + baseline * (1 - baseline)) / 361) ** 0.5
    ratio = (metrics["test/accuracy"] - baseline) / (teacher - baseline) if beyond else None
    assert facts["ratio"] == (None if ratio is None else pytest.approx(ratio, abs=1e-3))
    assert facts["student_depth"] == 2
    assert facts["teacher_depth"] == 6
    assert facts["examples"] > 100
    student = load_model(folder / "checkpoints" / "model")
    assert result["parameters"]["total"] == sum(p.numel() for p in student.parameters())
    assert {name.split(".")[0] for name, _ in student.named_parameters()} == {"backbone"}
    tree = source_tree(compose([*words, "method.inter.loss=cos"]))
    assert [(each.name, each.finished) for _, each in tree.walk()] == [
        ("", False), ("teacher", True), ("baseline", True),
    ]  # fmt: skip


@pytest.mark.long
def test_the_shipped_student_beats_the_same_one_without_a_teacher(tmp_path: Path) -> None:
    """experiment=distill_digits as it ships (students of 0.866, 0.888 and 0.883), means over three seeds."""
    students, alone = [], []
    common = [*QUIET, f"output_dir={tmp_path}"]
    plain = ["method=full", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random", "optimizer.lr=1.0e-3",
             "backbone.architecture.depth=2"]  # fmt: skip
    for seed in range(3):
        words = ["experiment=distill_digits", "~sources.baseline", f"seed={seed}"]
        students.append(result_of(carry_out(compose([*words, *common])))["metrics"]["test/accuracy"])
        alone.append(result_of(carry_out(compose([*plain, *common, f"seed={seed}"])))["metrics"]["test/accuracy"])
    assert sum(students) - sum(alone) > 3 * 0.03, (students, alone)


@pytest.mark.slow
def test_an_interrupted_pipeline_goes_on_with_its_layer_weights_and_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is neither trained nor shipped comes back too: weights of the transport plan, steps of the first stage."""
    words = ["method=distiller", *STUDENT, *QUIET, "trainer.max_steps=4", "method.augment=random",
             "method.inter.mapping=emd", "method.inter.loss=mse", "method.inter.first_share=0.7",
             f"sources.teacher={TEACHER} trainer.max_steps=2"]  # fmt: skip
    whole = carry_out(compose([*words, f"output_dir={tmp_path / 'whole'}"]))
    assert result_of(whole)["extra"]["distillation"]["mean_length"] > 5
    ordinary = Checkpoints.on_train_batch_end

    def stop_at_two(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 2 and trainer.lightning_module.method.held:
            self.signals.asked = 15
        ordinary(self, trainer, *rest)

    cfg = compose([*words, f"output_dir={tmp_path / 'broken'}"])
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", stop_at_two)
        with pytest.raises(Preempted):
            carry_out(cfg)
    saved = torch.load(next((tmp_path / "broken").rglob("distiller-*/checkpoints/last.ckpt")), weights_only=True)
    assert float(saved["state_dict"]["method.steps_done"]) == 2
    assert not any(".teacher." in name for name in saved["state_dict"])
    files = [folder / "checkpoints" / "model" / "model.safetensors" for folder in (whole, carry_out(cfg))]
    assert files[0].read_bytes() == files[1].read_bytes()


# ---- AutoDistiller
@cache
def defaults() -> dict[str, Any]:
    content: dict[str, Any] = dict(compose(["method=distiller", *STUDENT]).config["method"])
    return content


def node(**changes: Any) -> dict[str, Any]:
    """The `method` node with some keys of its groups changed."""
    plain = copy.deepcopy(defaults())
    for group, value in changes.items():
        plain[group] = plain[group] | value if isinstance(value, dict) else value
    return plain


def test_a_pipeline_is_what_has_an_effect() -> None:
    mse, mi = pipeline(node(inter={"loss": "mse"})), pipeline(node(inter={"loss": "mi"}))
    assert "inter.alpha" not in mse
    assert "mi.critic" not in mse
    assert mi["inter.alpha"] == 0.9
    none = pipeline(node(inter={"mapping": "none", "loss": "mse"}))
    assert none == pipeline(node(inter={"weight": 0.0}))
    assert not any(key.startswith(("inter.", "mi.")) for key in none if key != "inter.mapping")
    space = {"inter": {"mapping": ["skip", "none"], "loss": ["mse", "mi"], "alpha": [0.1, 0.9]}}
    rows = [row for _, row in candidates(space, node())]
    none_at_all = [settings for settings, row in candidates(space, node()) if row["inter.mapping"] == "none"]
    assert none_at_all == [{"inter.mapping": "none"}]
    assert len(rows) == 4  # skip with mse, skip with mi at two alphas, none


def write_run(root: Path, number: int, dataset: str, ratio: float | None, **changes: Any) -> None:
    folder = root / dataset / f"distiller-{number}"
    folder.mkdir(parents=True)
    facts = {"task": "classification", "labels": 3, "examples": 100.0 + number, "ratio": ratio}
    result = {"method": "distiller", "status": "finished", "dataset": dataset, "extra": {"distillation": facts}}
    result["identity"] = hashlib.sha256(str(number).encode()).hexdigest()
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump({"method": node(**changes)}), encoding="utf-8")


def write_history(root: Path) -> None:
    """Three data sets on which mi is worth 0.6 more than mse, and augmentation a little."""
    number = 0
    for base, dataset in enumerate(("a", "b", "c")):
        for loss in ("mse", "cos", "mi"):
            for augment in ("none", "mixup"):
                ratio = 0.1 + 0.05 * base + 0.6 * (loss == "mi") + 0.1 * (augment == "mixup")
                write_run(root, number, dataset, ratio, inter={"loss": loss}, augment=augment)
                number += 1
    write_run(root, number, "a", None)


def test_the_regressor_finds_what_matters(tmp_path: Path) -> None:
    write_history(tmp_path)
    runs = experiences(list(finished_runs(tmp_path)))
    assert len(runs) == 18  # the one without a ratio is left out
    predictor = Predictor(100, 0).fit(runs)
    assert next(iter(predictor.importance())) in ("inter.loss", "inter.alpha", "mi.critic")
    assert sum(predictor.importance().values()) == pytest.approx(1)
    trust = held_out(runs, 100, 0)
    assert trust["left_out"] == "data set"
    assert trust["spearman"] > 0.7
    assert trust["mean_error"] < 0.15
    assert held_out([run for run in runs if run.dataset == "a"], 20, 0)["left_out"] == "run"
    facts = {key: value for key, value in runs[0].row.items() if key in ("task", "labels", "examples")}
    rows = [{**facts, **pipeline(node(inter={"loss": loss}))} for loss in ("mi", "mse")]
    best, worst = predictor.predict(rows)
    assert best > worst + 0.3


@pytest.mark.long
def test_a_recommendation_from_words_to_record(tmp_path: Path) -> None:
    write_history(tmp_path / "history")
    teacher = f"{TEACHER} trainer.max_steps=2"
    words = ["method=auto_distiller", *STUDENT, *QUIET, f"output_dir={tmp_path / 'out'}", "method.trees=50",
             f"method.runs={tmp_path / 'history'}", f"sources.teacher={teacher}"]  # fmt: skip
    with pytest.raises(UserError, match=r"sources\.baseline"):
        carry_out(compose(words))
    words.append(f"sources.baseline={teacher} backbone.architecture.num_hidden_layers=2")
    extra = result_of(carry_out(compose(words)))["extra"]
    assert extra["runs"] == 18
    assert extra["data_sets"] == ["a", "b", "c"]
    assert extra["ranking"][0]["settings"]["inter.loss"] == "mi"
    assert [each["expected_ratio"] for each in extra["ranking"]] == sorted(
        (each["expected_ratio"] for each in extra["ranking"]), reverse=True
    )
    recommended = extra["recommended"]
    assert len(recommended) == 3
    for number, each in enumerate(recommended):
        cfg = compose([*each.split(), *words[1:5], f"sources.teacher={teacher}"])
        assert cfg.config["method"]["name"] == "distiller"
        assert (cfg.config["method"]["inter"]["loss"] == "mi") == (number < 2)
        assert (cfg.config["method"]["inter"]["mapping"], cfg.config["method"]["inter"]["alpha"]) == (
            "skip",
            0.9,
        )  # no run has tried another
    assert any(each["untried"] for each in extra["ranking"])
    assert any("left out" in line and "inter.mapping=last" in line for line in extra["table"])
    (log,) = (path.read_text(encoding="utf-8") for path in tmp_path.rglob("auto_distiller-*/run.log"))
    assert extra["table"][1] not in log  # the summary prints it
    with pytest.raises(UserError, match="needs 4"):
        carry_out(compose([*words, f"method.runs={tmp_path / 'out'}"]))


def test_what_no_run_has_tried_is_told(tmp_path: Path) -> None:
    write_history(tmp_path)
    runs = experiences(list(finished_runs(tmp_path)))
    assert untried(pipeline(node(inter={"loss": "cos"})), runs) == []
    assert untried(pipeline(node(inter={"loss": "pkd", "mapping": "last"})), runs) == [
        "inter.mapping=last", "inter.loss=pkd"
    ]  # fmt: skip
    assert untried(pipeline(node(inter={"loss": "mi", "alpha": 0.5})), runs) == ["inter.alpha=0.5"]


@pytest.mark.long
def test_nothing_is_recommended_from_runs_that_say_nothing(tmp_path: Path) -> None:
    for number, loss in enumerate(("mse", "cos", "mi", "pkd")):
        write_run(tmp_path / "history", number, "a", 0.5, inter={"loss": loss})
    teacher = f"{TEACHER} trainer.max_steps=2"
    words = ["method=auto_distiller", *STUDENT, *QUIET, f"output_dir={tmp_path / 'out'}", "method.trees=50",
             f"method.runs={tmp_path / 'history'}", f"sources.teacher={teacher}",
             f"sources.baseline={teacher} backbone.architecture.num_hidden_layers=2"]  # fmt: skip
    with pytest.raises(UserError, match=r"ratio 0\.5: that says nothing"):
        carry_out(compose(words))
    write_run(tmp_path / "history", 9, "a", 0.7, inter={"loss": "mi"}, augment="mixup")
    with pytest.raises(UserError, match="no run has tried"):
        carry_out(compose([*words, "method.space={inter:{loss:[ce]}}"]))


def test_the_search_is_a_sweep() -> None:
    composer = Composer()
    content = read_yaml(registry.find("experiment", "distill_search")[0])
    params = content["hydra"]["sweeper"]["params"]
    jobs = composer.jobs(["experiment=distill_search", *(f"{key}={value}" for key, value in params.items())])
    assert len(jobs) == 2 * 4 * 2
    first, last = composer.compose(jobs[0]), composer.compose(jobs[-1])
    one, other = first.config["method"], last.config["method"]
    assert (one["inter"]["loss"], one["augment"]) == ("mse", "none")
    assert (other["inter"]["mapping"], other["inter"]["loss"], other["augment"]) == ("last", "mi", "mixup")
    assert set(first.config["sources"]) == {"teacher", "baseline"}
    own = composer.normalise(["experiment=distill_search", "method.inter.loss=mse,ce,nst", "method.augment=none"])
    master = composer.load(own, RunMode.MULTIRUN)
    jobs = composer.jobs(with_axes(composer, own, master))
    assert len(jobs) == 2 * 3  # words of the command line replace the experiment's


# ---- tables
@pytest.mark.parametrize("name", ["distiller/autogluon_qnli", "distiller/objectives"])
def test_the_words_of_every_cell_compose(name: str) -> None:
    spec = read(name)
    cells = [(row, "paper") for row in spec.rows] + [(spec.rows[-1], "smoke")]
    for row, scale in cells:
        cfg = compose(spec.cell_words(row, spec.columns[-1], scale))
        assert cfg.config["method"]["name"] == "distiller"
        assert set(cfg.config["sources"]) == {"teacher", "baseline"}
        if row is spec.rows[-1]:  # all rows have the same
            for words in cfg.config["sources"].values():
                compose(words.split())


@pytest.mark.long
def test_the_tables_memory_can_be_planned() -> None:
    spec = read("distiller/objectives")
    row = next(row for row in spec.rows if row.name == "mi, alpha 0.9")
    plan = plan_run(compose(spec.cell_words(row, spec.columns[-1], "paper")))
    teacher = sum(p.numel() for p in bert(0, layers=1).parameters())  # far smaller than the one that is planned
    assert plan.parameters["total"] - plan.parameters["trainable"] > 100e6 > teacher
    assert plan.memory["peak"] > 2**30
