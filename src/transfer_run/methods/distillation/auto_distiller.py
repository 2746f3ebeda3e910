"""AutoDistiller: which distillation pipeline suits this data set? Recommended from those that were run on others.

    finished method=distiller runs ──> (pipeline, data, models) -> distillation ratio ──> regressor
    all pipelines of the space, on this data set and these models ──> regressor ──> the best few, as words

He et al., arXiv 2109.11105, section 5. The search itself is a sweep (`transfer-run -m experiment=distill_search`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.distillation.advice.experience import Experience, candidates, experiences, untried
from transfer_run.methods.distillation.advice.predictor import Predictor, held_out
from transfer_run.methods.distillation.advice.record import data_facts, facts_of, source_scores
from transfer_run.methods.distillation.distiller import INTER, KD, MI
from transfer_run.methods.judging import Judging
from transfer_run.task import Task

SPACE: dict[str, Any] = {
    "augment": ["none", "mixup"],
    "inter": {"mapping": ["skip", "last", "none"], "loss": ["mse", "cos", "pkd", "mi"], "alpha": [0.1, 0.5, 0.9]},
    "kd": {"soft": ["ce", "mse"]},
}
DEFAULTS = {"kd": KD, "inter": INTER, "mi": MI, "augment": "none"}
MORE = "transfer-run -m experiment=distill_search, or method=distiller runs with sources.baseline"
FEWEST = 4
"""Runs from which on a regressor is worth its name."""


class AutoDistiller(Judging):
    """Reads finished runs, recommends pipelines for the run's data set, student (backbone) and teacher (source).

    Args:
        space: values to choose from, nested as the keys of method=distiller.
        top: pipelines that are recommended.
        runs: the folder below which finished runs are looked for; null: where this run's folder stands.
        trees: of the random forest.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        space: Mapping[str, Any] = SPACE,
        top: int = 3,
        runs: str | None = None,
        trees: int = 300,
    ) -> None:
        super().__init__(backbone, task)
        self.space, self.top, self.runs, self.trees = dict(space), top, runs, trees

    def prepare(self, context: Context) -> None:
        """Fit the regressor, rank the space, say the words of the best.

        Raises:
            UserError: a source is missing; too few runs have been carried out, or all came to the same; or none of
                the space's pipelines is made of what they tried.
        """
        facts = self._facts(context)
        known = self._known(context)
        predictor = Predictor(self.trees, context.seed).fit(known)
        options = candidates(self.space, DEFAULTS)
        expected = predictor.predict([{**row, **facts} for _, row in options])
        order = sorted(range(len(options)), key=lambda i: -expected[i])
        ranked: list[dict[str, Any]] = [
            {
                "settings": options[i][0],
                "expected_ratio": round(float(expected[i]), 4),
                "untried": untried(options[i][1], known),
            }
            for i in order
        ]
        tried = _tried(ranked)
        self.results = {
            "runs": len(known),
            "data_sets": sorted({run.dataset for run in known}),
            "held_out": held_out(known, self.trees, context.seed),
            "importance": {name: round(value, 4) for name, value in predictor.importance().items()},
            "ranking": ranked,
            "recommended": [_words(each["settings"]) for each in tried[: self.top]],
        }
        self._show(context, tried)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """Nothing runs through a model: the teacher is loaded to be counted, the regressor reads a table."""
        return [
            "the teacher's weights, loaded once to be counted, and the regressor, in CPU memory",
            "the distillations that it recommends from, and the one it recommends: their runs have plans of their own",
        ]

    def _known(self, context: Context) -> list[Experience]:
        """The finished runs that there is something to learn from."""
        root = self.runs or next(p for p in context.folder.resolve().parents if p.name == "runs")
        known = experiences(context.found.get("tried", []))
        if len(known) < FEWEST:
            raise UserError(
                f"{len(known)} distillations with a ratio have been carried out, and a recommendation needs {FEWEST}.",
                where=f"method.runs: {root}",
                remedy=MORE,
            )
        if len({run.ratio for run in known}) == 1:
            raise UserError(
                f"All {len(known)} distillations have the ratio {known[0].ratio:.4g}: that says nothing.",
                where=f"method.runs: {root}",
                remedy=f"{MORE}, long enough for the pipelines to differ",
            )
        return known

    def _facts(self, context: Context) -> dict[str, float | str]:
        for name in ("teacher", "baseline"):
            if name not in context.sources:
                raise UserError(
                    f"A recommendation is for a teacher and beats a baseline; sources.{name} is not given.",
                    where=f"sources.{name}",
                    remedy=f"sources.{name}='method=full backbone=... dataset=...'",
                )
        sizes = facts_of(self.backbone, context.load_source("teacher").backbone, self.task)
        scores = {f"{name}_score": value for name, value in source_scores(self.task, context).items()}
        facts = {**sizes, **data_facts(context), **scores}
        return {k: v if isinstance(v, str) else float(v) for k, v in facts.items()}

    def _show(self, context: Context, tried: list[dict[str, Any]]) -> None:
        found, trust = self.results, self.results["held_out"]
        rho = "not defined" if trust["spearman"] is None else f"{trust['spearman']:.2f}"
        self.results["table"] = [
            f"from {found['runs']} runs on {', '.join(found['data_sets'])}; by {trust['left_out']} left out: rank "
            f"correlation {rho}, mean error of the ratio {trust['mean_error']:.2f}",
            "what matters: "
            + ", ".join(f"{name} {value:.2f}" for name, value in list(found["importance"].items())[:6]),
            *(
                f"{each['expected_ratio']:+.2f}  {words}"
                for each, words in zip(tried, found["recommended"], strict=False)
            ),
            *(
                [f"left out, for no run has tried it: {', '.join(never)}"]
                if (never := _never(found["ranking"]))
                else []
            ),
            "to carry one out: this run's command with these words in the place of method=auto_distiller",
        ]
        context.log(f"{len(tried)} of {len(found['ranking'])} pipelines are made of what {found['runs']} runs tried")


def _tried(ranked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pipelines made of what the runs have tried, best first."""
    tried = [each for each in ranked if not each["untried"]]
    if not tried:
        raise UserError(
            f"Each of the {len(ranked)} pipelines has something that no run has tried.",
            where=f"method.space: {', '.join(_never(ranked)[:6])}",
            remedy=f"put the values of the finished runs into method.space; or {MORE}",
        )
    return tried


def _never(ranked: list[dict[str, Any]]) -> list[str]:
    """What keeps pipelines from being recommended, each once."""
    return sorted({value for each in ranked for value in each["untried"]})


def _words(settings: Mapping[str, Any]) -> str:
    return " ".join(["method=distiller", *(f"method.{key}={value}" for key, value in settings.items())])
