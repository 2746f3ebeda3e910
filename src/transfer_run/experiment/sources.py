"""Earlier runs that a run needs: found by their identity, carried out when missing, never twice."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import UserError
from transfer_run.experiment.compose import compose
from transfer_run.experiment.identity import identity, run_folder

INHERITED = ("output_dir", "hardware", "search_path", "trainer.progress")
"""What a source run takes from the run that asks for it: where and on what it runs, never what it computes."""

RUN = "run:"


def source_words(cfg: DictConfig) -> dict[str, str]:
    """Overrides of every source run by name; the backbone's weights count as the source `backbone`."""
    words = {name: str(value) for name, value in cfg.sources.items()}
    if str(cfg.backbone.weights).startswith(RUN):
        words["backbone"] = str(cfg.backbone.weights)[len(RUN) :]
    return words


def compose_source(words: str, cfg: DictConfig) -> DictConfig:
    """The source's own config: its words over the defaults, on the asking run's hardware and output folder."""
    source = compose(shlex.split(words))
    for key in INHERITED:
        OmegaConf.update(source, key, OmegaConf.select(cfg, key), force_add=True)
    return source


def model_folder(run: Path) -> Path:
    """Where a finished run keeps its model."""
    return run / "checkpoints" / "model"


def ensure_sources(cfg: DictConfig, chain: tuple[str, ...]) -> dict[str, Path]:
    """Run folders of all sources, each carried out first when it is missing.

    Args:
        chain: identities of the runs that wait for this one, outermost first.

    Raises:
        UserError: a run needs itself.
    """
    from transfer_run.experiment.run import carry_out

    folders = {}
    for name, words in source_words(cfg).items():
        source = compose_source(words, cfg)
        if identity(source) in chain:
            raise UserError(
                f"The source {name!r} needs the run that asks for it.",
                where=f"sources.{name}: {words}",
                remedy="name another source",
            )
        folders[name] = carry_out(source, chain=chain)
    return folders


def resolved_backbone(cfg: DictConfig, sources: dict[str, Path]) -> dict[str, Any]:
    """The backbone's config as plain containers, weights of a source run replaced by its folder."""
    backbone: dict[str, Any] = OmegaConf.to_container(cfg.backbone, resolve=True)  # type: ignore[assignment]
    if "backbone" in sources and str(backbone["weights"]).startswith(RUN):
        backbone["weights"] = str(model_folder(sources["backbone"]))
    return backbone


__all__ = ["compose_source", "ensure_sources", "model_folder", "resolved_backbone", "run_folder", "source_words"]
