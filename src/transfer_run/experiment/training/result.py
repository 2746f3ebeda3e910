"""The record of a finished run: result.json, with the plan beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from transfer_run.backbones.weights.checkpoints import not_finite
from transfer_run.data.base import DataModule
from transfer_run.data.scores.by_class import confusion
from transfer_run.errors import UserError
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.digests import refuse_changed
from transfer_run.experiment.models.model_files import save_model
from transfer_run.experiment.planning.plan import Plan, Target, plan_run
from transfer_run.experiment.record.confusion import draw
from transfer_run.experiment.record.log import LOG, environment
from transfer_run.experiment.record.parameters import count_parameters
from transfer_run.experiment.training.divergence import diverged
from transfer_run.experiment.training.module import TransferModule
from transfer_run.files import write_json
from transfer_run.hardware.devices import device_of
from transfer_run.memory.callback import MemoryCallback
from transfer_run.methods.base import Context, Method
from transfer_run.run_folder import CONFUSION, LOG_FILE, RESULT, model_folder


def _record(
    run: Run,
    config: Mapping[str, Any],
    folder: Path,
    module: TransferModule,
    trainer: pl.Trainer,
    context: Context,
    seconds: dict[str, float],
    memory: MemoryCallback | None,
) -> None:
    """Save the model, plan the run beside its measurement, and write `result.json` last."""
    method = module.method
    refuse_changed(run.config, run.backbones)
    if broken := not_finite(method.shipped()):
        raise diverged(f"The trained weights are not finite ({', '.join(broken[:3])}).", folder / LOG_FILE)
    context.scores = dict(module.reported)
    extra = dict(method.conclude(context))
    if method.tests and module.tested:
        method.eval().form.picture(method, module.data, folder)
    scores = module.reported | extra.pop("metrics", {})
    lost = [name for name, value in scores.items() if not math.isfinite(float(value))]
    notes = [*module.data.notes, *(f"{name} is no finite number and left out" for name in lost)]
    extra |= {"notes": notes} if notes else {}
    scores = {name: value for name, value in scores.items() if name not in lost}
    if counts := confusion(scores, module.data.task.label_names):
        draw(folder / CONFUSION, module.data.task.label_names, counts)
    if method.tests:
        save_model(method, model_folder(folder), config, module.data.transform_description)
    target: Target = "cuda" if device_of(config["hardware"]).type == "cuda" else "cpu"
    plan = _planned(_with_found_labels(run, module.data), target) if memory is not None else None
    result = {**_result(run, method, trainer, scores, seconds, memory, plan), **_headline(module)}
    write_json(folder / RESULT, {**result, "extra": extra} if extra else result)
    if memory is not None and plan is not None:
        LOG.info("%s", memory.compare(plan))


def _headline(module: TransferModule) -> dict[str, Any]:
    """The name of the first score of the test, and which value of it is the better one; empty without a test."""
    first = next((name for name in module.reported if name.startswith("test/")), None)
    if first is None:
        return {}
    large = module.method.form.scores(module.data, "test").better(1.0, 0.0)
    return {"headline": {"metric": first, "better": "large" if large else "small"}}


def _planned(run: Run, target: Target) -> Plan | None:
    """The plan beside the measurement; a finished run is not lost because its shapes could not be foreseen.

    Of what was run: the paper's setting, and devices beside the run's own, are of plans alone.
    """
    try:
        return plan_run(run.changed(plan={"profile": "modern", "devices": 1, "strategy": None}), target)
    except (NotImplementedError, RuntimeError, UserError) as error:
        LOG.warning("no plan beside this measurement: %s", error)
        return None


def _with_found_labels(run: Run, data: DataModule) -> Run:
    """The run with the class names, and the room for numbers, that only the data could tell: a plan reads no data."""
    dataset = run.config["dataset"]
    if dataset.get("max_target_length") is None and data.described.written:
        run = run.changed(dataset={"max_target_length": data.described.max_target_length})
    if dataset.get("num_labels") or dataset.get("label_names") or not data.label_names:
        return run
    return run.changed(dataset={"label_names": list(data.label_names)})


def _result(
    run: Run,
    method: Method,
    trainer: pl.Trainer,
    scores: dict[str, float],
    seconds: dict[str, float],
    memory: MemoryCallback | None,
    plan: Plan | None,
) -> dict[str, Any]:
    """`result.json` of the contract."""
    measured = memory.result() if memory is not None else {}
    if plan is not None:  # a run that measures nothing: its plan stands there, and says so
        left_out = {key: plan.memory[key] for key in ("not_planned",) if key in plan.memory}
        phases = {
            name: {key: phase[key] for key in ("peak", "by_kind")} for name, phase in plan.memory["phases"].items()
        }
        beside = {"predicted_phases": phases} if measured else {}
        measured = {**(measured or plan.memory), "predicted_peak": plan.memory["peak"], **beside, **left_out}
    elif measured:
        measured["predicted_peak"] = None
    return {
        "schema": 1,
        "status": "finished",
        "identity": run.identity,
        **{group: run.chosen(group) for group in ("method", "backbone", "dataset")},
        "seed": run.config["seed"],
        "metrics": {name: round(float(value), 6) for name, value in sorted(scores.items())},
        "parameters": count_parameters(method),
        "memory": measured,
        "time": {**seconds, "steps": trainer.global_step, "epochs": trainer.current_epoch},
        "environment": environment(),
    }
