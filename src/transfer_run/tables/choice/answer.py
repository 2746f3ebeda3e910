"""What is told of each run that might be chosen: its plan, its work, the least change that makes it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import make_importable
from transfer_run.experiment.config.composed import Run
from transfer_run.tables import plans
from transfer_run.tables.choice.asked import Candidate, LeftOut
from transfer_run.tables.choice.known import known_score

KIND = "choice"


def make(kind: str, run: Run) -> Mapping[str, Any]:
    """The answer of one run as plain data; also in a process of its own.

    Returns:
        method, backbone, dataset; memory: peak in bytes, its phase, by kind; parameters; batch_size, the one asked for;
        flops, floating-point operations of a training step, None where they cannot be counted; with a card or a budget
        also fits, largest_batch, and least {words, peak, fits} of what does not fit.

    Raises:
        UserError: the run cannot be planned.
    """
    assert kind == KIND
    from transfer_run.experiment.planning.plan import plan_run

    make_importable(run)
    plan = plan_run(run)
    memory = {name: plan.memory[name] for name in ("peak", "peak_phase", "by_kind")}
    content: dict[str, Any] = {group: run.chosen(group) for group in ("method", "backbone", "dataset")}
    content |= {"batch_size": plan.batch_size, "memory": memory, "parameters": dict(plan.parameters)}
    content["flops"] = _flops(run)
    if plan.budget is not None and plan.room is not None:
        least = plan.least() if run.config["plan"]["advice"] else None
        content |= {
            "fits": plan.memory["peak"] <= plan.room.usable,
            "largest_batch": plan.budget.batch_size,
            "least": None if least is None else asdict(least),
        }
    return content


def _flops(run: Run) -> float | None:
    from transfer_run.tables.counts import operations

    if not run.has_data:
        return None
    try:
        return float(operations(run)["training"]) * run.config["dataset"]["batch_size"]
    except (UserError, NotImplementedError, RuntimeError):  # no single loss (scores, own steps): it is told as unknown
        return None


def answers(candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Mapping[str, Any] | LeftOut]]:
    """Each candidate with what is told of it, or why it cannot be planned, as they get done.

    Plans are kept on disk for the next time; several are made at once.
    """
    missing = {}
    for number, each in enumerate(candidates):
        content = plans.recall((KIND, each.run))
        if content is None:
            missing[str(number)] = each
        else:
            yield each, _with_score(each, content)
    made = plans.made_at_once({key: (KIND, each.run) for key, each in missing.items()}, make)
    for key, content in made if len(missing) >= plans.POOL_FROM else ():
        if content is not None:
            each = missing.pop(key)
            plans.remember((KIND, each.run), content)
            yield each, _with_score(each, content)
    for each in missing.values():
        try:
            content = make(KIND, each.run)
        except UserError as error:
            yield each, LeftOut(each.name, error.what)
            continue
        except Exception as error:  # one that breaks is told in its place, the others go on
            yield (
                each,
                LeftOut(each.name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"),
            )
            continue
        plans.remember((KIND, each.run), content)
        yield each, _with_score(each, content)


def _with_score(each: Candidate, content: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**content, "score": known_score(each.run)}
