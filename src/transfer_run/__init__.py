"""Run, measure and compare ways to transfer a pretrained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transfer_run.methods.base import Method

__version__ = "0.1.0"


def load(folder: str | Path, *, backbone_weights: str | None = None, task: str | None = None) -> Method:
    """The model of a finished run or of an exported folder, complete and in eval mode: `logits = model(batch)`.

    Args:
        folder: a run's folder, its checkpoints/model, or what `export=DIR` wrote.
        task: of a model merged from several runs, the source whose task and head it gets; None: the run's own.
        backbone_weights: where a frozen backbone's weights are, when not where the run found them.

    Raises:
        UserError: the folder holds no model, it has no such task, or the backbone's weights are not those that it was
            trained on.
    """
    from transfer_run.experiment.models.model_files import load_model, on_task
    from transfer_run.run_folder import model_folder

    place = model_folder(Path(folder).expanduser())
    method = load_model(place, backbone_weights=backbone_weights)
    return method if task is None else on_task(method, place, task)
