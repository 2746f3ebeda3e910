"""From one valid config to the whole tree of runs below it: references are followed, files are read.

config ── tokenizer of the weights' run ──> digests of files ──> runs that are named, the same way ──> identity
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transfer_run.backbones.declared import PAIRS, TEXT, family_of
from transfer_run.backbones.weights.names import BYTES, Weights, tokenizer_words
from transfer_run.errors import UserError
from transfer_run.experiment.config.compatibility import without_data
from transfer_run.experiment.config.composed import Run, naming
from transfer_run.experiment.config.digests import digests
from transfer_run.experiment.config.references import BACKBONE, Backbones, Reference, named_backbones, references
from transfer_run.run_folder import is_run, read_config

Composed = tuple[dict[str, Any], Backbones]
"""A valid config, and the nodes of the backbones that its method's keys name."""


class Sources:
    """The runs of one tree: each is composed, digested and hashed once, wherever it is named.

    Args:
        composed: words and config folders -> a valid config.
    """

    def __init__(self, composed: Callable[[str, tuple[str, ...]], Composed]) -> None:
        self.composed = composed
        self.runs: dict[tuple[str, tuple[str, ...], str], Run] = {}
        self.waiting: list[str] = []

    def followed(self, values: Mapping[str, Any], backbones: Backbones) -> Run:
        """The run of a valid config: its files read, its references followed."""
        if not without_data(values):
            values = {**values, "backbone": _with_tokenizer(values["backbone"], self._weights(values, backbones))}
        return self._followed({**values, "contents": digests(values, backbones)}, backbones)

    def _weights(self, values: Mapping[str, Any], backbones: Backbones) -> Run | None:
        """The run that made the backbone's weights, where it can be known before it is carried out."""
        for each in references(values, backbones, _folders(values)):
            if each.name == BACKBONE:
                found = each.finished(values["output_dir"])
                return self.saved(found[0]) if found else self._run(each, values)
        return None

    def _followed(self, values: Mapping[str, Any], backbones: Backbones) -> Run:
        named = references(values, backbones, _folders(values))
        runs = {each.name: self._run(each, values) for each in named}
        backbones = {
            key: {words: _with_tokenizer(node, runs.get(f"{key}.{words}")) for words, node in nodes.items()}
            for key, nodes in backbones.items()
        }
        return Run.of(values, named, {name: run for name, run in runs.items() if run is not None}, backbones)

    def _run(self, reference: Reference, asking: Mapping[str, Any]) -> Run | None:
        """The run behind a reference; None where it is a folder of something else, an identity or of the hub."""
        if reference.is_words:
            with naming(reference):
                return self._of_words(reference, asking)
        folder = reference.folder
        return self.saved(folder) if folder is not None and is_run(folder) else None

    def saved(self, folder: Path) -> Run:
        """The run whose folder this is."""
        values = read_config(folder)
        return self._followed(values, named_backbones(values, _folders(values)))

    def _of_words(self, reference: Reference, asking: Mapping[str, Any]) -> Run:
        words, output = reference.words, str(asking.get("output_dir"))
        search_path = tuple(asking.get("search_path") or ())
        if words in self.waiting:
            raise UserError(
                "A run needs itself as a source: a circle.",
                where=f"{reference.key}: {words}",
                remedy="name another source, or set backbone.weights in its words",
            )
        if (words, search_path, output) not in self.runs:
            self.waiting.append(words)
            try:
                values, backbones = self.composed(
                    words, search_path
                )  # finished runs are looked for where it will stand
                if values["dry_run"]:
                    raise UserError(
                        "dry_run is of the run that is asked for, not of one below it.",
                        where=f"{reference.key}: {words}",
                        remedy="set it beside",
                    )
                self.runs[words, search_path, output] = self.followed({**values, "output_dir": output}, backbones)
            finally:
                self.waiting.pop()
        return self.runs[words, search_path, output]


def _with_tokenizer(backbone: Mapping[str, Any], run: Run | None) -> Mapping[str, Any]:
    """A backbone on weights that a run made reads what the run has read: its tokenizer, where the config names none.

    Args:
        run: what made the weights, where they name one.

    Raises:
        UserError: it merged files, and nobody says what their tokenizer is; or one reads bytes, the other tokens.
    """
    weights, told, named = Weights.of(backbone), None, backbone.get("tokenizer")
    if not {TEXT, PAIRS} & set(family_of(backbone).reads):
        return backbone
    if run is not None and without_data(run.config):
        if named:
            return backbone
        raise UserError(
            "Weights that are merged from files name no tokenizer.",
            where=f"backbone.tokenizer=null, backbone.weights={weights}",
            remedy="backbone.tokenizer=FOLDER of one of the models that were merged, a hub name, or bytes",
        )
    place = Weights("path", weights.words) if weights.of_run else weights  # `run:` and the folder of an export
    if run is not None:
        told = tokenizer_words(run.config["backbone"])
    elif place.saved is not None:
        told = tokenizer_words({**backbone, "weights": str(place), "tokenizer": None})
    bytes_there = told in (None, BYTES)
    if named:
        if (run is not None or place.saved is not None) and bytes_there != (named == BYTES):
            raise UserError(
                f"The run reads text by {_said(named)}, its weights have learned {_said(told)}: the same numbers mean "
                "other tokens.",
                where=f"backbone.tokenizer={named}",
                remedy=f"backbone.tokenizer={BYTES if bytes_there else told}",
            )
        return backbone
    return backbone if bytes_there else {**backbone, "tokenizer": told}


def _said(tokenizer: str | None) -> str:
    return BYTES if tokenizer in (None, BYTES) else "tokens"


def _folders(values: Mapping[str, Any]) -> list[Path]:
    return [Path(folder) for folder in values.get("search_path") or ()]
