"""What a cell can ask of the run that stands behind it; each plan, count and run is made once in a process.

memory.*        a plan's (`--source plan`) or a measurement's (`--source run`) memory node
metrics.*       a finished run's scores; `score` is the first of its dataset's metrics
inference.*     the plan of one prediction alone, batch 1, weights included
per_example.*   how much an example of the batch adds to what is alive at the peak of forward, by kind
parameters.*    total, trainable, counted (the task's fresh head left out), backbone (before the method), and
                shares in per cent: trainable_pct, trainable_of_backbone, counted_of_backbone
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transfer_run.experiment.compose import compose
from transfer_run.experiment.identity import identity

PLANNED = ("inference", "per_example", "parameters")
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
    cfg = compose(list(words))
    value = f"metrics.test/{cfg.dataset.metrics[0]}" if value == "score" else value
    first, _, rest = value.partition(".")
    if source == "run" and first not in PLANNED:
        result = _once("run", cfg, _carried_out)
        return _at(result, value), result["identity"], "run"
    makers: dict[str, Callable[[DictConfig], Mapping[str, Any]]] = {
        "memory": _planned, "inference": _inference, "per_example": _per_example, "parameters": _counted,
    }  # fmt: skip
    if first not in makers:
        raise NoFigure(f"a plan has no {value}")
    return _at(_once(first, cfg, makers[first]), rest), identity(cfg), "plan"


_made: dict[tuple[str, str], Mapping[str, Any]] = {}
_failed: dict[tuple[str, str], Exception] = {}


def _once(kind: str, cfg: DictConfig, make: Callable[[DictConfig], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What `make` makes of a config, or how it failed, remembered: tables repeat each other's runs."""
    key = (kind, OmegaConf.to_yaml(cfg, sort_keys=True))
    if key in _failed:
        raise _failed[key]
    if key not in _made:
        try:
            _made[key] = make(cfg)
        except Exception as error:
            _failed[key] = error
            raise
    return _made[key]


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


def _planned(cfg: DictConfig) -> Mapping[str, Any]:
    from transfer_run.experiment.plan import plan_run

    return plan_run(cfg).memory


def _inference(cfg: DictConfig) -> Mapping[str, Any]:
    from transfer_run.experiment.plan import inference_memory

    return inference_memory(cfg, 1)


def _counted(cfg: DictConfig) -> Mapping[str, Any]:
    from transfer_run.experiment.plan import parameter_counts

    return parameter_counts(cfg)


def _per_example(cfg: DictConfig) -> Mapping[str, Any]:
    """From the plans of the config's batch and of twice that: the rise of forward's peak, by kind."""
    twice = cfg.copy()
    twice.dataset.batch_size = 2 * cfg.dataset.batch_size
    one, two = (_once("memory", c, _planned)["phases"]["forward"]["by_kind"] for c in (cfg, twice))
    return {kind: (two[kind] - one[kind]) / cfg.dataset.batch_size for kind in one}


def _carried_out(cfg: DictConfig) -> Mapping[str, Any]:
    from transfer_run.experiment.record import read_result
    from transfer_run.experiment.run import carry_out

    with redirect_stdout(sys.stderr):  # standard output is the table's
        result = read_result(carry_out(cfg, chain=("table",)))
    assert result is not None
    return result
