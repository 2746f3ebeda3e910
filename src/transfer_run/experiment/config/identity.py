"""A run's identity: the same for every way of asking for the same result, another one for any other result.

config ── without what cannot change the result ──> canonical JSON ──> SHA-256

What stands in files outside of our runs is in it too, as the digests that `compose` wrote under `contents`: the
identity of a run that was composed earlier needs none of its files.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.digests import digests, told_by_contents
from transfer_run.experiment.config.pool import candidate_configs
from transfer_run.experiment.config.schema import ABOUT, flatten
from transfer_run.experiment.config.stages import STAGE
from transfer_run.run_folder import CONFIG, is_run

NEUTRAL = (
    "hydra", "search_path", "backbone.offload", "stages", "output_dir", "force", "dry_run", "export", "plan", "sweep",
    "logger", "profiler",
    "trainer.progress", "trainer.log_every", "trainer.tracked_steps", "trainer.stop_on_nan",
    "cache.taps", "cache.folder", "trainer.checkpoint_every", "trainer.checkpoint_minutes",
    "hardware.name", "hardware.accelerator", "hardware.devices", "hardware.nodes", "hardware.strategy",
    "hardware.num_workers", "hardware.slurm",
)  # fmt: skip
"""Keys that cannot change a result. The batch size is the total over devices, so their number is among them."""

SILENT = (("backbone", "load"), ("trainer", "patience"), ("trainer", "validate_steps"), ("dataset", "augment"),
          ("dataset", "class_weights"), ("dataset", "label_smoothing"), ("dataset", "tests"))  # fmt: skip
"""Keys whose null, or empty list, says what was so before there were such keys; it is left out, so that earlier
identities stay."""

RUN = "run:"
STARTS = (RUN, STAGE)
"""What weights begin with that name a run: its backbone alone, or all that a next stage goes on from."""

__all__ = ["NEUTRAL", "RUN", "STARTS", "canonical", "flatten", "identity", "run_folder"]


def identity(cfg: DictConfig | Mapping[str, Any]) -> str:
    """SHA-256 of the run's canonical config, 64 hexadecimal digits.

    Args:
        cfg: a composed config, from `compose` or read from a run's `config.yaml`.

    Raises:
        UserError: the words of a source run are wrong, or a run is its own source.
    """
    return _identity(_plain(cfg), ())


def run_folder(cfg: DictConfig) -> Path:
    """`OUTPUT_DIR/runs/<dataset>/<method>-<backbone>-<8 hex>`; a `/` in method or backbone becomes `_`."""
    name = "-".join(str(part).replace("/", "_") for part in (cfg.method.name, cfg.backbone.name, identity(cfg)[:8]))
    return Path(str(cfg.output_dir)) / "runs" / str(cfg.dataset.name) / name


def canonical(values: Any) -> str:
    """JSON that two configs share exactly when they say the same: keys sorted, 1.0 as 1, 1e-3 as 0.001.

    Raises:
        TypeError: a value that YAML cannot hold.
    """
    return json.dumps(_numbers(values), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _plain(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    values = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def _identity(values: dict[str, Any], chain: tuple[str, ...]) -> str:
    folders = tuple(values.get("search_path") or ())
    kept = _kept(values, "")
    for name, words in (kept.get("sources") or {}).items():
        kept["sources"][name] = _source(f"sources.{name}", str(words), folders, chain)
    dataset = kept.get("dataset") or {}
    if rows := dataset.pop("rows", None):  # null says nothing: the whole data set
        dataset["rows"] = _source("dataset.rows", str(rows).removeprefix(RUN), folders, chain)
    for node, key in SILENT:
        if (kept.get(node) or {}).get(key) in (None, [], {}):
            (kept.get(node) or {}).pop(key, None)
    for place in told_by_contents(kept.get("contents") or {}):
        _take_out(kept, place.split("."))
    if not kept.get("contents"):  # no files are named
        kept.pop("contents", None)
    pool = candidate_configs(values, [Path(folder) for folder in folders])
    candidates = {name: _kept(backbone, "") for name, backbone in pool.items()}
    if candidates:
        kept["candidates"] = candidates
    for key, backbone in {"backbone": kept.get("backbone") or {}, **candidates}.items():
        start, _, words = str(backbone.get("weights")).partition(":")
        if f"{start}:" in STARTS:
            backbone["weights"] = f"{start}:{_source(f'{key}.weights', words, folders, chain)}"
    return hashlib.sha256(canonical(kept).encode()).hexdigest()


def _take_out(node: dict[str, Any], keys: list[str]) -> None:
    """Without the path of files that their digest tells: the same files elsewhere make the same run.

    A path within a word (a member of `method.pool`, of `dataset.tasks`) stays.
    """
    here: Any = node
    for key in keys[:-1]:
        here = here.get(key) if isinstance(here, dict) else None
    if isinstance(here, dict):
        here.pop(keys[-1], None)


def _kept(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A copy without neutral keys and without the nodes that only describe."""
    return {
        key: _kept(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key != ABOUT and f"{prefix}{key}" not in NEUTRAL
    }


def _source(key: str, words: str, folders: tuple[str, ...], chain: tuple[str, ...]) -> str:
    """A source in the form that all ways of naming it share: the first 8 digits of its identity, or its folder."""
    if "=" in words:
        if words in chain:
            raise UserError(
                "A run needs itself as a source: a circle.",
                where=f"{key}: {words}",
                remedy="name another source, or set backbone.weights in its words",
            )
        return _run_of(words, folders, (*chain, words), key)[:8]
    folder = Path(words).expanduser()
    if is_run(folder):
        return identity(OmegaConf.load(folder / CONFIG))[:8]  # type: ignore[arg-type]
    if folder.exists():
        return str(folder.resolve())
    return words[:8] if re.fullmatch(r"[0-9a-f]{6,64}", words) else words


def _run_of(words: str, folders: tuple[str, ...], chain: tuple[str, ...], key: str) -> str:
    try:
        values = _composed(words, folders)  # once; what its files hold is looked at every time
        now = digests(values, [Path(folder) for folder in values["search_path"]])
        return _identity({**values, "contents": now}, chain)
    except (UserError, ValueError) as error:
        what = error if isinstance(error, UserError) else UserError(f"{error}.", remedy="close the quotes")
        where = f"{key}: {what.where or words}"
        raise UserError(what.what, where=where, nearest=what.nearest, remedy=what.remedy) from error


@cache
def _composed(words: str, folders: tuple[str, ...]) -> dict[str, Any]:
    return _plain(compose(shlex.split(words), search_path=folders))


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
