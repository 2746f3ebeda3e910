"""A backbone's own tensors under its library's names: of the live model, and of what a source run made of it."""

from __future__ import annotations

from collections.abc import Mapping

from safetensors.torch import save_file
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, SafetensorsCheckpoint
from transfer_run.methods.merging.runs.source_task import SourceTask
from transfer_run.run_folder import BODY_PREFIX, CHECKPOINTS, WEIGHTS

BODIES = "bodies"


def body_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Parameters (tied ones once) and persistent buffers of the library's model."""
    state = backbone.model.state_dict()
    names = [name for name, _ in (*backbone.model.named_parameters(), *backbone.model.named_buffers()) if name in state]
    return {name: state[name] for name in names}


def plain_model(task: SourceTask, context: Context) -> Method:
    """The source's finished model, with adapters folded into the weights where its method can do that."""
    method = context.load_source(task.name)
    method.fold()
    return method


def body_of(task: SourceTask, known: Mapping[str, Tensor], context: Context) -> Checkpoint:
    """The source's body as a checkpoint on disk.

    A run that trained all of it has one; of any other (LoRA, partial, BitFit, ...) it is put together once, with what
    it trained folded into the weights, in the folder of the merging run.

    Args:
        known: names and shapes of the plain body.

    Raises:
        UserError: the source's model is not a plain backbone with other weights.
    """
    if task.complete:
        return SafetensorsCheckpoint([task.model_folder / WEIGHTS], prefix=BODY_PREFIX, only=True)
    body = body_tensors(plain_model(task, context).backbone)
    if body.keys() != known.keys():
        raise UserError(
            f"The source {task.name!r} ({task.about['method']['name']}) has modules that a plain backbone has not.",
            where=f"sources.{task.name}: {', '.join(sorted(body.keys() ^ known.keys())[:4])}",
            remedy="merge runs of methods that change the backbone's own weights: full, partial, bitfit, lora",
        )
    path = context.folder / CHECKPOINTS / BODIES / f"{task.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in body.items()}, path)
    return SafetensorsCheckpoint([path], where=f"sources.{task.name}")
