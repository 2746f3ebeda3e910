"""What fine-tuning reached: accuracies given by the user, or those of finished runs from the very same weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.data.scores.direction import Better, first_best
from transfer_run.errors import UserError
from transfer_run.run_folder import has_model, model_folder, read_config, read_description, read_result

READING = ("about", "batch_size", "max_source_length", "max_target_length", "keep_in_memory", "augment",
           "class_weights", "label_smoothing", "balanced_softmax", "oversample", "tests")  # fmt: skip


def given_accuracies(reference: Mapping[str, Any] | str | None) -> dict[str, float]:
    """Accuracies by candidate from `method.reference`: a mapping, or the path of a JSON file that holds one.

    Raises:
        UserError: no such file, or something else than a number for a name.
    """
    if reference is None:
        return {}
    found = _read(Path(reference).expanduser()) if isinstance(reference, str) else reference
    wrong = [k for k, v in found.items() if isinstance(v, bool) or not isinstance(v, int | float)]
    if wrong:
        raise UserError(
            f"The reference accuracy of {wrong[0]!r} is no number: {found[wrong[0]]!r}.",
            where="method.reference",
            remedy="write it as {vit_tiny: 0.97, cnn_tiny: 0.95}",
        )
    return {str(name): float(value) for name, value in found.items()}


def _read(path: Path) -> Mapping[str, Any]:
    remedy = 'name a JSON file of accuracies by backbone, {"vit_tiny": 0.97}, or write them in place'
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}.", where="method.reference", remedy=remedy)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON: {error}.", where="method.reference", remedy=remedy) from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds no mapping.", where="method.reference", remedy=remedy)
    return found


def accuracies_of_runs(
    own: Path,
    folders: Iterable[Path],
    checksums: Mapping[str, str],
    headline: str,
    better: Better,
    method: str | None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Test accuracies by candidate from finished runs (validation's where none was tested).

    Where several started from the same weights, the one that is best on validation data counts; by its test accuracy
    only where not all of them know one on validation data, and that is said.

    Args:
        own: the folder of the run that asks; only runs on the very same data set count.
        folders: of runs, finished or not.
        checksums: of the candidates' weights. A run counts for the candidate whose weights it started from.
        headline: the metric's name.
        better: is its first value better than its second?
        method: only runs of this method; None: of any.
        say: told how a run was chosen among several.
    """
    found: dict[str, list[_Reached]] = {}
    data = _data_set(own)
    for folder in folders:
        if _data_set(folder) != data:
            continue
        result, model = read_result(folder), model_folder(folder)
        if result is None or (method is not None and result.get("method") != method):
            continue
        metrics = result.get("metrics", {})
        reached = _Reached(metrics.get(f"validation/{headline}"), metrics.get(f"test/{headline}"))
        about = read_description(model) if has_model(model) else {}
        started_from = about.get("provenance", {}).get("checksum")
        for name, checksum in checksums.items():
            if reached.accuracy is not None and checksum == started_from:
                found.setdefault(name, []).append(reached)
    return {name: _best(name, runs, better, say) for name, runs in found.items()}


@dataclass(frozen=True)
class _Reached:
    """A run's accuracies, as far as they are recorded."""

    validation: float | None
    test: float | None

    @property
    def accuracy(self) -> float | None:
        return self.validation if self.test is None else self.test


def _best(name: str, runs: Sequence[_Reached], better: Better, say: Callable[[str], None]) -> float:
    by_validation = all(run.validation is not None for run in runs)
    reached = [float((run.validation if by_validation else run.accuracy) or 0.0) for run in runs]
    best = runs[first_best(reached, better)]
    if len(runs) > 1:
        split = "validation" if by_validation else "test"
        why = "" if by_validation else ", for not all know a validation accuracy: the reference is optimistic"
        say(f"accuracy of {name}: of {len(runs)} runs the best by its {split} accuracy{why}")
    if best.test is None:
        say(f"accuracy of {name}: on validation data, no run was tested")
    return float(best.accuracy or 0.0)


def _data_set(run: Path) -> dict[str, Any]:
    """What a run's config says of its data set, without what changes how it is read but not what it holds."""
    return {key: value for key, value in read_config(run).get("dataset", {}).items() if key not in READING}
