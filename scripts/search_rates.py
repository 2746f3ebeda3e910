"""The learning rate of each method on a backbone and a data set: the best of a few on validation data, recorded.

Three rates apart by about three are tried; where the best one lies at the edge, the next one beyond it as well. Every
run is an ordinary run of `transfer-run`: what is finished is not repeated, and a search that was stopped goes on. What
the runs say of test data is not read.

python scripts/search_rates.py NAME [FOLDER [METHOD ...]] [dataset.path=PATH]      writes tests/recorded/rates/NAME.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.record.log import environment
from transfer_run.experiment.run import carry_out
from transfer_run.files import write_json

RECORDED = Path(__file__).resolve().parents[1] / "tests" / "recorded" / "rates"
LADDER = ("1e-5", "3e-5", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1", "3e-1", "1")
"""All rates there are; a method begins at three of them."""

STILL = "method.backbone_dropout=false"
TAPPED = ("linear_probe", "lst", "unipt", "sherl")
"""Methods on a frozen backbone, here without dropout: what its blocks make of a row is always the same, and kept."""

QUIET = ("trainer.progress=none", "profiler=none", "trainer.tracked_steps=0")
"""Memory is not asked for here: these runs stand in a folder of their own, for none of them says what it needed."""


@dataclass(frozen=True)
class Search:
    """What one search tries.

    Attributes:
        words: of all its runs.
        methods: the middle rate of each, with the method's own words.
        metric: of validation data; the largest value wins.
    """

    words: tuple[str, ...]
    methods: dict[str, tuple[str, ...]]
    metric: str = "validation/accuracy"


SEARCHES = {
    "python_docs": Search(
        (
            "backbone=sentence-transformers/all-MiniLM-L6-v2", "dataset=python_docs", "dataset.max_source_length=48",
            "trainer.max_epochs=2",
        ),
        {
            "full": ("1e-4",),
            "linear_probe": ("1e-2",),
            "bitfit": ("3e-3",),
            "adapter": ("3e-3",),
            "lora": ("3e-3",),
            "lst": ("1e-2", STILL, "method.init_samples=256"),
            "unipt": ("3e-3", STILL),
            "sherl": ("3e-3", STILL),
            "vqt": ("3e-2",),
        },
    ),
    "mqp": Search(
        (
            "backbone=sentence-transformers/all-MiniLM-L6-v2", "dataset=mqp", "dataset.batch_size=16",
            "dataset.max_source_length=64", "trainer.max_steps=300", "optimizer.warmup=30", "hardware=cpu",
        ),
        {
            "full": ("1e-4",),
            "linear_probe": ("1e-1",),
            "bitfit": ("3e-3",),
            "adapter": ("1e-3",),
            "prompt_tuning": ("3e-2",),
            "prefix_tuning": ("1e-3",),
            "lora": ("1e-3",),
            "lst": ("3e-3", STILL, "method.init_samples=256"),
            "unipt": ("3e-3", STILL),
            "sherl": ("3e-3", STILL),
            "vqt": ("3e-2",),
        },
    ),
    "digits": Search(
        ("backbone=vit_tiny", "dataset=digits", "hardware=cpu"),
        {
            "linear_probe": ("1e-2",),
            "bitfit": ("3e-3",),
            "adapter": ("3e-3",),
            "lora": ("3e-3",),
        },
    ),
}  # fmt: skip


def score(search: Search, method: str, rate: str, where: Sequence[str]) -> float:
    """The validation score of one run; `where` is words for folders, which are not recorded."""
    more = search.methods[method][1:] + (("cache.taps=disk",) if method in TAPPED else ())
    words = [f"method={method}", *search.words, *more, f"optimizer.lr={rate}", *where]
    folder = carry_out(compose([*words, *QUIET]))
    return float(json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"][search.metric])


def best_rate(search: Search, method: str, where: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The rate with the best score and all scores, by rate; of equal ones the smaller rate."""
    middle = LADDER.index(search.methods[method][0])
    scores = {i: score(search, method, LADDER[i], where) for i in (middle - 1, middle, middle + 1)}
    while (best := max(sorted(scores), key=lambda i: scores[i])) in (min(scores), max(scores)):
        beyond = best - 1 if best == min(scores) else best + 1
        if not 0 <= beyond < len(LADDER):
            break
        scores[beyond] = score(search, method, LADDER[beyond], where)
    return LADDER[best], {LADDER[i]: scores[i] for i in sorted(scores)}


def main(name: str, *arguments: str) -> None:
    """Search, and record after each method."""
    search, file = SEARCHES[name], RECORDED / f"{name}.json"
    paths = [word for word in arguments if word.startswith("dataset.path=")]
    output, *methods = [word for word in arguments if word not in paths] or ["outputs/rates"]
    where = [f"output_dir={output}", *paths]
    found = json.loads(file.read_text(encoding="utf-8"))["methods"] if file.is_file() else {}
    for method in methods or search.methods:
        rate, scores = best_rate(search, method, where)
        print(f"{method}: {rate} of {scores}", flush=True)
        found[method] = {"words": list(search.methods[method][1:]), "rate": rate, "scores": scores}
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"words": list(search.words), "seed": 0, "metric": search.metric, "methods": found}
        write_json(file, {**content, "environment": environment()})


if __name__ == "__main__":
    main(*sys.argv[1:])
