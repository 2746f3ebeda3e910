"""A run's identity: the same for every way of asking for the same result, another one for any other result.

config ── without what cannot change the result ──> canonical JSON ──> SHA-256

What stands in files outside of our runs is in it too, as the digests that `compose` wrote under `contents`: the
identity of a run that was composed earlier needs none of its files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transfer_run.experiment.config.digests import told_by_contents
from transfer_run.experiment.config.references import Backbones, Reference
from transfer_run.experiment.config.schema import ABOUT, flatten

NEUTRAL = (
    "hydra", "search_path", "backbone.offload", "stages", "output_dir", "force", "dry_run", "export", "report", "plan",
    "sweep", "logger", "profiler",
    "trainer.progress", "trainer.log_every", "trainer.tracked_steps", "trainer.predictions",
    "trainer.stop_on_nan", "trainer.oom",
    "cache.taps", "cache.folder", "trainer.checkpoint_every", "trainer.checkpoint_minutes",
    "hardware.name", "hardware.accelerator", "hardware.devices", "hardware.nodes", "hardware.strategy",
    "hardware.num_workers", "hardware.slurm",
)  # fmt: skip
"""Keys that cannot change a result. The batch size is the total over devices, so their number is among them."""

SILENT = (("dataset", "rows"), ("backbone", "load"), ("trainer", "patience"), ("trainer", "validate_steps"),
          ("trainer", "drop_last"), ("trainer", "skip_nan"), ("dataset", "augment"), ("dataset", "delimiter"),
          ("dataset", "value_step"), ("dataset", "class_weights"), ("dataset", "label_smoothing"), ("dataset", "tests"),
          ("dataset", "beside"), ("hardware", "loss_chunk"))  # fmt: skip
"""Keys whose null, or empty list or group, says what was so before there were such keys; it is left out, so that
earlier identities stay."""
SILENT_IN_MEMBERS = ("classes",)
"""Such keys of data sets, of those too that the run's own is made of, is tested on or has beside it."""
AS_BEFORE: dict[tuple[str, str], Any] = {
    ("dataset", "balanced_softmax"): False,
    ("dataset", "oversample"): {"to": None, "vary": "all", "weights": "effective"},
    ("dataset", "long_tail"): {"factor": None, "kind": "exp", "many": 100, "few": 20},
}
"""Keys that say it by these values."""

LEARNT = ("batch_size", "max_source_length", "max_target_length", "pad_to_multiple_of", "keep_in_memory", "metrics",
          "augment", "class_weights", "label_smoothing", "beside", "tests", "prompt", "answers")  # fmt: skip
"""Keys of a data set that say how its rows are learnt from or told to a model: they choose no rows and no labels."""

HOLDS = " holds"
"""Behind a key, in `data_read`: the digest of what it names."""


def identity(config: Mapping[str, Any], told: Mapping[Reference, str], backbones: Backbones) -> str:
    """SHA-256 of a run's canonical config, 64 hexadecimal digits.

    Args:
        config: composed, as plain containers.
        told: its references, each in the form that all ways of naming it share.
        backbones: those that the method's keys name, by key and words.
    """
    significant = _significant(config, "")
    for node, key in SILENT:
        if _below(significant, [node]).get(key) in (None, [], {}):
            _below(significant, [node]).pop(key, None)
    _without_silent(significant.get("dataset"))
    for (node, key), value in AS_BEFORE.items():
        if _below(significant, [node]).get(key) == value:
            _below(significant, [node]).pop(key)
    if backbones:
        significant["candidates"] = {
            words: _significant(node, "") for nodes in backbones.values() for words, node in nodes.items()
        }
    for reference, form in told.items():
        *parents, leaf = reference.key_path
        _below(significant, parents)[leaf] = form
    for key in told_by_contents(significant.get("contents") or {}):  # the same files elsewhere make the same run
        *parents, leaf = key.split(".")
        _below(significant, parents).pop(leaf, None)
    if not significant.get("contents"):  # no files are named
        significant.pop("contents", None)
    return hashlib.sha256(canonical(significant).encode()).hexdigest()


def _without_silent(node: Any) -> None:
    """Leave `SILENT_IN_MEMBERS` that are null out of a data set's node and of all nodes in it."""
    if isinstance(node, dict):
        for key in SILENT_IN_MEMBERS:
            if key in node and node[key] is None:
                del node[key]
        for below in node.values():
            _without_silent(below)


def data_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run reads and is scored on, by dotted key: runs whose answers here differ were asked different things.

    Files stand in it by their contents, as in the identity; keys of `LEARNT` and those that are off are left out.

    Args:
        config: a run's recorded config; one that lacks nodes has nothing of them in it.
    """
    contents = {key: said for key, said in (config.get("contents") or {}).items() if key.startswith("dataset.")}
    dataset = {key: value for key, value in (config.get("dataset") or {}).items() if key not in LEARNT}
    said = {
        f"dataset.{key}": value
        for key, value in flatten(_significant(dataset, "dataset.")).items()
        if value not in (None, [], {})
    }
    for key in told_by_contents(contents):
        said.pop(key, None)
    learnt = tuple(f"dataset.{key}" for key in LEARNT)
    return said | {f"{key}{HOLDS}": digest for key, digest in contents.items() if not key.startswith(learnt)}


def differ_in_nothing(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Are two configs, or parts of them, the same but for what cannot change a result?"""
    return _significant(one, "") == _significant(other, "")


def _below(node: Any, keys: list[str]) -> dict[str, Any]:
    """The node below these keys; an empty one where there is none: a path within a word (a member of a pool)."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def canonical(values: Any) -> str:
    """JSON that two configs share exactly when they say the same: keys sorted, 1.0 as 1, 1e-3 as 0.001.

    Raises:
        TypeError: a value that YAML cannot hold.
    """
    return json.dumps(_numbers(values), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _significant(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A copy without neutral keys, without the nodes that only describe, and without what came later and is off."""
    later = (values.get(ABOUT) or {}).get("later") or {}
    return {
        key: _significant(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key != ABOUT and f"{prefix}{key}" not in NEUTRAL and not (key in later and later[key] == value)
    }


def _numbers(value: Any) -> Any:
    """Whole floats as integers, infinities and not-a-number as text; everything else as it is."""
    if isinstance(value, Mapping):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return str(value)
        return int(value) if value.is_integer() else value
    return value
