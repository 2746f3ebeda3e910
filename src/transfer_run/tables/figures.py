"""What a cell can ask of the run that stands behind it; each plan, count and run is made once.

memory.*        a plan's (`--source plan`) or a measurement's (`--source run`) memory node
metrics.*       a finished run's scores; `score` is the first of its dataset's metrics
inference.*     the plan of one prediction alone, batch 1, weights included
per_example.*   how much an example of the batch adds: `kept`, activations that forward keeps for backward
parameters.*    total, trainable, counted (the task's fresh head left out), backbone (before the method), and
                shares in per cent: trainable_pct, trainable_of_backbone, counted_of_backbone
operations.*    forward, training, fisher: floating-point operations of one example
rows.*          rows of the data (all, train, test, learned, of.CLASS, distinct.COLUMN) and classes; reads them
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from functools import cache
from typing import Any

from transfer_run.experiment.config.compose import compose, make_importable
from transfer_run.experiment.config.composed import Run
from transfer_run.tables import counts, plans

PLANNED = ("inference", "per_example", "parameters", "operations", "rows")
"""First words of values that are planned even where a run was carried out."""


class NoFigure(Exception):
    """The run behind a cell has no such value."""


def ask(words: tuple[str, ...], value: str, source: str) -> tuple[float, str, str]:
    """The value that these words lead to: figure, identity of the run, and where it comes from, `plan` or `run`.

    Args:
        words: overrides, as on the command line.
        value: dotted path, see above.
        source: `plan` or `run`.

    Raises:
        NoFigure: the plan or the result has no such value.
        UserError, RunFailed: the words are wrong, or their run failed.
    """
    run = _composed(words)
    value = f"metrics.test/{run.config['dataset']['metrics'][0]}" if value == "score" else value
    first, _, rest = value.partition(".")
    if source == "run" and first not in PLANNED:
        result = _once("run", run, _carried_out)
        return _at(result, value), result["identity"], "run"
    if first not in makers():
        raise NoFigure(f"a plan has no {value}")
    return _at(_once(first, run, makers()[first]), rest), run.identity, "plan"


def makers() -> dict[str, Callable[[Run], Mapping[str, Any]]]:
    """What makes each kind of planned figure."""
    return {"memory": _planned, "inference": _inference, "per_example": _per_example, "parameters": _counted,
            "operations": counts.operations, "rows": counts.rows}  # fmt: skip


def make(kind: str, run: Run) -> Mapping[str, Any]:
    """One planned figure of a config; in a process of its own the user's modules are found anew."""
    make_importable(run)
    return makers()[kind](run)


def prepare(asked: Iterable[tuple[tuple[str, ...], str]], say: Callable[[str], None]) -> None:
    """Make the plans that these words and values will ask for, several at once where that is worth it.

    Plans that fail are left to `ask`, which tells the reason.
    """
    jobs: dict[str, plans.Job] = {}
    for words, value in asked:
        try:
            run = _composed(words)
        except Exception:  # told in its cell
            continue
        for job in _jobs(value.partition(".")[0], run):
            jobs[_key(*job)] = job
    missing = {key: job for key, job in jobs.items() if key not in _made and plans.recall(job) is None}
    if len(missing) < plans.POOL_FROM:
        return
    for count, (key, content) in enumerate(plans.made_at_once(missing, make), 1):
        say(f"planned {count} of {len(missing)}")
        if content is not None:
            plans.remember(missing[key], content)


def _jobs(kind: str, run: Run) -> list[plans.Job]:
    if kind == "per_example":
        return [("memory", run), ("memory", _twice(run))]
    return [(kind, run)] if kind in makers() else []


@cache
def _composed(words: tuple[str, ...]) -> Run:
    run = compose(list(words))
    make_importable(run)
    return run


_made: dict[str, Mapping[str, Any]] = {}
_failed: dict[str, Exception] = {}


def _key(kind: str, run: Run) -> str:
    return f"{kind}\n{plans.text_of(run)}"


def _once(kind: str, run: Run, make: Callable[[Run], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What `make` makes of a config, or how it failed, remembered: tables repeat each other's runs."""
    key = _key(kind, run)
    if key in _failed:
        raise _failed[key]
    if key not in _made:
        try:
            _made[key] = _found_or_made(kind, run, make)
        except Exception as error:
            _failed[key] = error
            raise
    return _made[key]


def _found_or_made(kind: str, run: Run, make: Callable[[Run], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Runs have folders of their own, `per_example` is made of plans, and data may change; the others are kept."""
    if kind in ("run", "per_example", "rows"):
        return make(run)
    content = plans.recall((kind, run))
    if content is None:
        content = make(run)
        plans.remember((kind, run), content)
    return content


def _at(content: Any, path: str) -> float:
    """The number at a dotted path; a key may itself hold dots or slashes (`metrics.test/accuracy`)."""
    value = content
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise NoFigure(f"the result has no {path}")
        value = value[key]
    if value is None:
        raise NoFigure(f"the result has no {path}")
    return float(value)


def _planned(run: Run) -> Mapping[str, Any]:
    from transfer_run.experiment.planning.plan import plan_run

    return plan_run(run).memory


def _inference(run: Run) -> Mapping[str, Any]:
    from transfer_run.experiment.planning.plan import inference_memory

    return inference_memory(run, 1)


def _counted(run: Run) -> Mapping[str, Any]:
    from transfer_run.experiment.planning.plan import parameter_counts

    return parameter_counts(run)


def _per_example(run: Run) -> Mapping[str, Any]:
    """From the plans of the config's batch and of twice that."""
    one, two = (_once("memory", c, _planned)["kept"] for c in (run, _twice(run)))
    return {"kept": (two - one) / run.config["dataset"]["batch_size"]}


def _twice(run: Run) -> Run:
    return run.changed(dataset={"batch_size": 2 * run.config["dataset"]["batch_size"]})


def _carried_out(run: Run) -> Mapping[str, Any]:
    from transfer_run.experiment.run import carry_out
    from transfer_run.run_folder import read_result

    with redirect_stdout(sys.stderr):  # standard output is the table's
        result = read_result(carry_out(run, chain=("table",)))
    assert result is not None
    return result
