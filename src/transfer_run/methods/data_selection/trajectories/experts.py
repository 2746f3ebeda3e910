"""Experts: networks trained on the real images, of which the weights after every epoch are kept.

    experts/expert-000.safetensors      trajectory (E+1, P) float32: the weights before, and after each of E epochs

    L = w_e CE(net(aug(x)), y) + GP       w_e = 0.5, 0.55, ..., 0.95, 1, 1, ... (AST's clipping)
    GP = lambda mean((|G|_2 - 1)^2)       G = d(sum of all logits)/dx, its norm over the channels of each pixel

Shen, Yang, Lam, arXiv 2310.10541; plain SGD without both is MTT's expert (arXiv 2203.11932).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import SGD

from transfer_run.backbones.base import Batch
from transfer_run.errors import UserError
from transfer_run.files import written_whole
from transfer_run.hardware.steps import Steps
from transfer_run.methods.data_selection.trajectories.network import FlatNetwork
from transfer_run.methods.work import Work

TRAJECTORY = "trajectory"


def clipping(epoch: int) -> float:
    """w_e: 0.5, 0.55, ..., 0.95 in the epochs 0 to 9, then 1."""
    return 0.5 + 0.05 * epoch if epoch < 10 else 1.0


def gradient_penalty(logits: Callable[[Tensor], Tensor], images: Tensor, weight: float) -> Tensor:
    """GP of images (B, C, H, W), a scalar with a graph to what `logits` is made of."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(logits(images).sum(), images, create_graph=True)
    return weight * (gradient.norm(2, dim=1) - 1).square().mean()


class Training:
    """The training of one expert after another.

    Args:
        network: holds the weights of the expert at work.
        settings: `epochs`, `lr`, `momentum`, `weight_decay`, `lr_factor`, `clip_loss`, `gradient_penalty`.
        epoch_steps: batches of an epoch.
        vary: images -> images, drawn anew at every call.
    """

    def __init__(
        self,
        network: FlatNetwork,
        settings: Mapping[str, Any],
        epoch_steps: int,
        vary: Callable[[Tensor], Tensor],
    ) -> None:
        self.network, self.settings, self.epoch_steps, self.vary = network, settings, epoch_steps, vary

    @property
    def steps(self) -> int:
        return int(self.settings["epochs"]) * self.epoch_steps

    def fit(self, name: str, batches: Callable[[int], Iterator[Batch]], work: Work) -> Tensor:
        """Train from the network's weights as they are: its trajectory (E+1, P) on the CPU.

        Args:
            batches: number of the first step -> its batch and those that follow.
        """
        settings, method = self.settings, self.network.method
        method.train_backbone()
        optimizer = SGD(
            method.parameters(), lr=float(settings["lr"]), momentum=float(settings["momentum"]),
            weight_decay=float(settings["weight_decay"]),
        )  # fmt: skip
        taken = Steps({"sgd": optimizer})
        trajectory = torch.zeros(int(settings["epochs"]) + 1, self.network.count)
        trajectory[0] = self.network.vector()
        source: Iterator[Batch] | None = None

        def step(number: int) -> Tensor:
            nonlocal source
            source = batches(number) if source is None else source
            self._schedule(optimizer, number)
            loss = self.loss(next(source), number // self.epoch_steps)
            taken.backward(loss)
            taken.step()
            if (number + 1) % self.epoch_steps == 0:
                trajectory[(number + 1) // self.epoch_steps] = self.network.vector()
            return loss.detach()

        work.loop(name, step, self.steps, {"network": method, "sgd": optimizer, "trajectory": trajectory})
        optimizer.state.clear()  # optimizers end when Python next looks for circles
        return trajectory

    def loss(self, batch: Batch, epoch: int) -> Tensor:
        """The loss of one batch of real images in an epoch, a scalar."""
        network, images = self.network, batch["pixel_values"]
        found = network.method.task_loss(network.own(self.vary(images)), batch["labels"])
        if self.settings["clip_loss"]:
            found = clipping(epoch) * found
        weight = float(self.settings["gradient_penalty"])
        return found + gradient_penalty(network.own, images, weight) if weight else found

    def _schedule(self, optimizer: SGD, number: int) -> None:
        """Behind epoch E // 2 + 1 the rate is multiplied, and the momentum begins anew."""
        factor = float(self.settings["lr_factor"])
        first = (int(self.settings["epochs"]) // 2 + 2) * self.epoch_steps
        for group in optimizer.param_groups:
            group["lr"] = float(self.settings["lr"]) * (factor if number >= first else 1.0)
        if number == first and factor != 1:
            optimizer.state.clear()


# ---- the files
def path_of(folder: Path, number: int) -> Path:
    return folder / f"expert-{number:03d}.safetensors"


def size_of(count: int, epochs: int, weights: int) -> int:
    """Bytes of the trajectories of `count` experts."""
    return count * (epochs + 1) * weights * 4


def refuse_full_disk(folder: Path, size: int) -> None:
    """Raises UserError where so many bytes do not fit beside the folder."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"The experts' trajectories need {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.",
            where=str(folder),
            remedy="method.expert.count or method.expert.epochs smaller, or another output_dir",
        )


def write(path: Path, trajectory: Tensor, network: FlatNetwork) -> None:
    """One expert's file, whole or not at all, with the names and shapes of what the vectors are made of."""
    told = {name: list(shape) for name, shape in zip(network.names, network.shapes, strict=True)}
    with written_whole(path) as partial:
        save_file({TRAJECTORY: trajectory}, partial, metadata={"parameters": json.dumps(told)})


def read(path: Path, first: int, count: int) -> Tensor:
    """The weights of `count` epochs from epoch `first` on (count, P); no more of the file is held."""
    with safe_open(path, framework="np") as file:  # a slice of PyTorch's holds all of it
        return torch.from_numpy(file.get_slice(TRAJECTORY)[first : first + count])


def epochs_of(path: Path) -> int:
    """E, the number of the last epoch."""
    with safe_open(path, framework="pt") as file:
        return int(file.get_slice(TRAJECTORY).get_shape()[0]) - 1


def found(folder: Path, network: FlatNetwork, epochs: int) -> list[Path]:
    """The experts' files of a folder.

    Raises:
        UserError: there is none, or one is of another network, has fewer epochs, or cannot be read.
    """
    files = sorted(folder.glob("expert-*.safetensors"))
    if not files:
        raise UserError(
            "There are no experts.", where=f"method.experts: {folder}", remedy="a run of this method, or its folder"
        )
    told = {name: list(shape) for name, shape in zip(network.names, network.shapes, strict=True)}
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                names = json.loads((stored.metadata() or {}).get("parameters", "{}"))
                rows = stored.get_slice(TRAJECTORY).get_shape()[0]
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"An expert cannot be read: {error}.", where=str(file), remedy="train the experts again"
            ) from error
        if names != told:
            raise UserError(
                "That expert is of another network than this run's backbone and classes.",
                where=str(file),
                remedy="the same backbone, image size and classes as the experts'",
            )
        if rows <= epochs:
            raise UserError(
                f"That expert was trained for {rows - 1} epochs, and epoch {epochs} is a goal.",
                where=str(file),
                remedy=f"method.max_start_epoch + method.expert_epochs of at most {rows}",
            )
    return files
