"""Trajectory matching: a few synthetic images a class that teach a network what the whole data set would.

    real images ──> experts, their weights after every epoch kept (experts/*.safetensors)
    an expert's epoch t ──> student: N steps on the synthetic images ──┐
                       └──> the same expert's epochs t+1 ... t+M ──────┴─> squared distance ──> images, step size
    synthetic.safetensors, images/ ──> fresh networks, tested on real images; dataset=distilled dataset.path=run:...

`ast`: Shen, Yang, Lam, "Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
Trajectories", arXiv 2310.10541. `mtt`: Cazenavette et al., "Dataset Distillation by Matching Training Trajectories",
CVPR 2022, arXiv 2203.11932, which it extends. A key that is null is as the variant has it (`OWN`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat as again
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.data.images.synthetic import Synthetic
from transfer_run.errors import UserError, nearest_names
from transfer_run.hardware.steps import Steps
from transfer_run.methods.base import Context
from transfer_run.methods.data_selection.synthetic import augmentation, export, initial
from transfer_run.methods.data_selection.synthetic.evaluation import Recipe, learned
from transfer_run.methods.data_selection.synthetic.report import accuracy, seed_of, summary
from transfer_run.methods.data_selection.trajectories import experts, matching
from transfer_run.methods.data_selection.trajectories.network import FlatNetwork, perturbed
from transfer_run.methods.judging import Judging
from transfer_run.methods.work import Rehearsed, Work
from transfer_run.task import Task

EXPERTS = "experts"
REAL = ("random", "initial")
"""What the synthetic images are compared with: as many real ones at random, and those that they began from."""
EXPERT = {
    "count": 100, "epochs": 50, "lr": None, "momentum": None, "weight_decay": None, "lr_factor": None,
    "clip_loss": None, "gradient_penalty": None,
}  # fmt: skip
EVALUATE = {
    "networks": 5, "epochs": 1000, "batch_size": 256, "every": 20, "momentum": 0.9, "weight_decay": None,
    "late_factor": None, "late_momentum": None, "against": ["random"], "real_lr": 0.01,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "ast": {
        "init": "representative", "balanced_loss": True, "middle_loss": "sum", "weight_perturbation": 1.0,
        "student": {"momentum": 0.9},
        "expert": {"lr": 0.003, "momentum": 0.9, "weight_decay": 1e-3, "lr_factor": 0.6, "clip_loss": True,
                   "gradient_penalty": 2.0},
        "evaluate": {"weight_decay": 1e-3, "late_factor": 0.5, "late_momentum": 0.8},
    },
    "mtt": {
        "init": "real", "balanced_loss": False, "middle_loss": "none", "weight_perturbation": 0.0,
        "student": {"momentum": 0.0},
        "expert": {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "lr_factor": 1.0, "clip_loss": False,
                   "gradient_penalty": 0.0},
        "evaluate": {"weight_decay": 5e-4, "late_factor": 0.1, "late_momentum": 0.9},
    },
}  # fmt: skip


class ExpertTrajectories(Judging):
    """Trains experts on the run's data, distils them into images, tests these; makes no model.

    Args:
        variant: whose settings stand in place of null ones.
        ipc: synthetic images of each class.
        iterations: outer steps.
        syn_steps, expert_epochs, max_start_epoch: N, M and T of the paper: a student takes N steps from an epoch
            t < T of an expert and is compared with its epoch t + M.
        batch_syn: images of each of a student's steps; None: all.
        lr_img, lr_lr: rates of the outer SGD (momentum 0.5) of the images and of the step size, which begins at
            `lr_start`.
        init: the first images: `real`, `representative` or `noise`.
        balanced_loss: a student's loss is weighed by its start epoch (`matching.balance`).
        middle_loss: are the epochs before t + M goals, too: `sum`, `adaptive` or `none`.
        weight_perturbation: alpha of the start's convolutions.
        student: `momentum` of the inner SGD.
        expert: `count`, `epochs`, SGD's settings, `lr_factor` behind half of the epochs, `clip_loss`,
            `gradient_penalty` (its weight).
        experts: a run of this method, or its folder, whose experts serve; None: own ones are trained.
        augment: differentiable operations, of which each step draws one; None: none.
        memory_mode: `official` keeps the graph of all N steps; `efficient` one's, and takes each of them twice more.
        truncate: only the last steps of a student are differentiated; None: all.
        evaluate: `networks` that learn the final set, and the recipe (`evaluation.Recipe`); `against`: which real
            images they learn, too, at the rate `real_lr`.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        variant: Literal["ast", "mtt"] = "ast",
        ipc: int = 1,
        iterations: int = 5000,
        syn_steps: int = 20,
        expert_epochs: int = 3,
        max_start_epoch: int = 20,
        batch_syn: int | None = None,
        lr_img: float = 1000.0,
        lr_lr: float = 1e-5,
        lr_start: float = 0.01,
        init: Literal["real", "representative", "noise"] | None = None,
        balanced_loss: bool | None = None,
        middle_loss: Literal["sum", "adaptive", "none"] | None = None,
        weight_perturbation: float | None = None,
        student: Mapping[str, Any] = {"momentum": None},
        expert: Mapping[str, Any] = EXPERT,
        experts: str | None = None,
        augment: Sequence[str] | None = ("color", "crop", "cutout", "flip", "scale", "rotate"),
        memory_mode: Literal["efficient", "official"] = "efficient",
        truncate: int | None = None,
        evaluate: Mapping[str, Any] = EVALUATE,
    ) -> None:
        super().__init__(backbone, task)
        own = OWN[variant]
        self.variant, self.ipc, self.iterations = variant, ipc, iterations
        self.syn_steps, self.expert_epochs, self.max_start_epoch = syn_steps, expert_epochs, max_start_epoch
        self.batch_syn, self.lr_img, self.lr_lr, self.lr_start = batch_syn, lr_img, lr_lr, lr_start
        self.init = init or own["init"]
        self.balanced_loss = own["balanced_loss"] if balanced_loss is None else balanced_loss
        self.middle_loss = middle_loss or own["middle_loss"]
        self.alpha = own["weight_perturbation"] if weight_perturbation is None else weight_perturbation
        self.momentum = float(_filled(student, own["student"])["momentum"])
        self.expert, self.experts = _filled({**EXPERT, **expert}, own["expert"]), experts
        self.operations = tuple(augment or ())
        self.memory_mode, self.truncate = memory_mode, truncate
        self.evaluate = _filled({**EVALUATE, **evaluate}, own["evaluate"])
        self._refuse_bad_settings()
        FlatNetwork(self.plain())  # refuses a network that it cannot be

    def _refuse_bad_settings(self) -> None:
        images, last = self.ipc * self.task.num_labels, self.max_start_epoch - 1 + self.expert_epochs
        augmentation.check(self.operations, "method.augment")
        bad: tuple[str, str, str] | None = None
        if self.experts is None and last > self.expert["epochs"]:
            told = f"A student that starts in epoch {self.max_start_epoch - 1} is compared with epoch {last}"
            bad = (f"{told}, and experts are trained for {self.expert['epochs']}.", "method.max_start_epoch",
                   f"method.expert.epochs={last}, or an earlier start")  # fmt: skip
        elif self.middle_loss != "none" and self.syn_steps < self.expert_epochs:
            told = f"{self.syn_steps} steps of a student cannot pass the goals of {self.expert_epochs} epochs."
            bad = told, f"method.syn_steps={self.syn_steps}", f"{self.expert_epochs}, or method.middle_loss=none"
        elif self.batch_syn is not None and self.batch_syn > images:
            bad = (f"There are {images} synthetic images.", f"method.batch_syn={self.batch_syn}", "null takes all")
        elif self.truncate is not None and self.truncate > self.syn_steps:
            bad = (f"A student takes {self.syn_steps} steps.", f"method.truncate={self.truncate}", "null: all of them")
        for name in self.evaluate["against"]:
            if name not in REAL:
                near = nearest_names(str(name), REAL) or list(REAL)
                raise UserError(f"There are no images {name!r}.", where="method.evaluate.against", nearest=near)
        if bad:
            raise UserError(bad[0], where=bad[1], remedy=bad[2])

    # ---- the work
    def prepare(self, context: Context) -> None:
        """Experts, the first images, the distillation, its test; each is gone on with where it was stopped."""
        network = FlatNetwork(self.plain())
        files = self._experts(context, network)
        images, said = self._first_images(context, network, files[0])
        labels = torch.arange(self.task.num_labels, device=images.device).repeat_interleave(self.ipc)
        began = images.clone()
        images, rate, losses = self._distil(network, images, labels, partial(_from_files, files), context.work)
        pixels = export.pixels_of(images, self.backbone.config["image"])
        said += [export.write(context.folder, Synthetic(pixels, labels, tuple(self.task.label_names)))]
        export.write_losses(context.folder / "losses.csv", losses)
        curves = self._judge(context, network, {"distilled": images, "initial": began}, labels, float(rate))
        self.results = summary(curves, losses, float(rate), len(images), _scored_on(context))
        for line in (*said, *self.results["table"]):
            context.log(line)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """Two steps of an expert, two outer steps, two steps of a fresh network."""
        network, work = FlatNetwork(self.plain()), Rehearsed()
        drawn = _InTurn(self.operations)
        if self.experts is None:
            training = experts.Training(network, self.expert, 1, drawn.view)
            training.fit("expert", lambda first: again(batch), work)
        shape = (self.task.num_labels * self.ipc, *batch["pixel_values"].shape[1:])
        images = torch.zeros(shape)
        labels = torch.arange(self.task.num_labels).repeat_interleave(self.ipc)
        began = images.clone()

        def trajectory(starts: int, epochs: int) -> tuple[int, Tensor]:
            return 0, torch.zeros(epochs + 1, network.count)

        images = self._distil(network, images, labels, trajectory, work, drawn.next)[0]
        self._learn("", network, images, labels, 0.01, lambda: accuracy(network, [batch]), work)
        del began
        size = experts.size_of(int(self.expert["count"]), int(self.expert["epochs"]), network.count)
        on_disk = [f"on disk, not in memory: the experts' trajectories, {size / 1e6:,.1f} MB"]
        return (on_disk if self.experts is None else []) + ["k-means of the first images (scikit-learn)"] * (
            self.init == "representative"
        )

    # ---- experts
    def _experts(self, context: Context, network: FlatNetwork) -> list[Path]:
        """The files of all experts, trained where there are none."""
        last = self.max_start_epoch - 1 + self.expert_epochs
        if self.experts is not None:
            folder = Path(self.experts)
            folder = folder / EXPERTS if (folder / EXPERTS).is_dir() else folder
            files = experts.found(folder, network, last)
            context.log(f"{len(files)} experts of {folder}; method.expert is not used")
            return files
        folder = context.folder / EXPERTS
        folder.mkdir(exist_ok=True)
        count, epochs = int(self.expert["count"]), int(self.expert["epochs"])
        files = [experts.path_of(folder, number) for number in range(count)]
        left = [number for number, file in enumerate(files) if not file.is_file()]
        size = experts.size_of(len(left), epochs, network.count)
        experts.refuse_full_disk(folder, size)
        if left:
            what = f"{len(left)} experts, {epochs + 1} times {network.count:,} weights each"
            context.log(f"{what}: {size / 1e6:,.1f} MB in {folder}")
        steps = -(-context.sizes["train"] // context.batch_size)
        training = experts.Training(network, self.expert, steps, augmentation.varied(self.operations))
        for number in left:
            name = f"expert-{number:03d}"
            network.begin(seed_of(context.seed, name))
            batches = partial(_from, context, number * training.steps)  # every expert reads in orders of its own
            experts.write(files[number], training.fit(name, batches, context.work), network)
            context.work.forget(name)
        return files

    # ---- images
    def _first_images(self, context: Context, network: FlatNetwork, expert: Path) -> tuple[Tensor, list[str]]:
        """Class by class (classes * ipc, C, H, W), and what is to be said of them."""
        device, seed = next(self.backbone.parameters()).device, seed_of(context.seed, "first images")
        rows = initial.classes_of(context.data, self.task.num_labels)
        if self.init == "noise":
            shape = context.data.split("train")[0]["pixel_values"].shape
            drawn = torch.Generator().manual_seed(seed)
            return torch.randn(self.task.num_labels * self.ipc, *shape, generator=drawn).to(device), []
        said = [line for line in [initial.few(rows, self.ipc, tuple(context.data.label_names))] if line]
        if self.init == "real":
            chosen = initial.random_rows(rows, self.ipc, seed)
        else:
            end = experts.read(expert, experts.epochs_of(expert), 1)[0].to(device)
            batches = initial.in_order(context.data, context.batch_size, device)
            logits = initial.logits_of(partial(network, end), context.work.follow("images to begin from", batches))
            chosen = initial.representative_rows(rows, logits, self.ipc, seed)
        return initial.images_of(context.data, chosen).to(device), said

    # ---- distillation
    def _distil(
        self,
        network: FlatNetwork,
        images: Tensor,
        labels: Tensor,
        trajectory: Callable[..., tuple[int, Tensor]],
        work: Work,
        choose: Callable[[Sequence[str]], str | None] = augmentation.choose,
    ) -> tuple[Tensor, Tensor, list[float]]:
        """The images, the step size and all losses after the last outer step.

        Args:
            trajectory: (T, M) -> t and the weights of the epochs t ... t+M of an expert, both drawn at random.
            choose: which operation a step draws.
        """
        images = images.requires_grad_()
        rate = torch.tensor(self.lr_start, device=images.device).requires_grad_()
        optimizer = SGD(
            [{"params": [images], "lr": self.lr_img}, {"params": [rate], "lr": self.lr_lr}], momentum=0.5, lr=0.0
        )
        taken, losses = Steps({"synthetic": optimizer}), torch.zeros(self.iterations)

        def step(number: int) -> Tensor:
            start, weights = trajectory(self.max_start_epoch, self.expert_epochs)
            found = self.matched(network, images, rate, labels, start, weights.to(images.device), choose)
            images.grad, rate.grad = found.images, found.rate
            taken.step()
            losses[number] = found.loss
            if not float(rate.detach()) > 0:
                raise UserError(
                    f"The students' step size has become {float(rate.detach()):.3g} in outer step {number}.",
                    where=f"method.lr_lr={self.lr_lr}",
                    remedy="method.lr_lr a tenth of it, or method.lr_img smaller",
                )
            return found.loss

        work.loop(
            "distill", step, self.iterations, {"images": images, "rate": rate, "sgd": optimizer, "losses": losses}
        )
        optimizer.state.clear()  # optimizers end when Python next looks for circles
        images.grad = rate.grad = None
        return images.detach(), rate.detach(), losses.tolist()

    def matched(
        self,
        network: FlatNetwork,
        images: Tensor,
        rate: Tensor,
        labels: Tensor,
        start: int,
        weights: Tensor,
        choose: Callable[[Sequence[str]], str | None] = augmentation.choose,
    ) -> matching.Matched:
        """One outer step's loss and gradients, from an expert's weights of the epochs t ... t+M (M+1, P)."""
        factor = matching.balance(start, self.max_start_epoch) if self.balanced_loss else 1.0
        steps = [
            matching.Step(
                rows, augmentation.draw(choose(self.operations), images if rows is None else images[: len(rows)])
            )
            for rows in self._rows(len(images), images.device)
        ]
        student = matching.Student(network, labels, steps, self.momentum, factor, network.method.task_loss)
        way = matching.stepwise if self.memory_mode == "efficient" else matching.whole
        begin = perturbed(weights[0], network, self.alpha)
        aims = matching.goals(weights[1:], self.syn_steps, self.middle_loss)
        return way(student, images, rate, begin, aims, self.truncate)

    def _rows(self, count: int, device: torch.device) -> list[Tensor | None]:
        """Which images each step of a student reads: chunks without replacement, drawn anew when they are used up."""
        if self.batch_syn is None or self.batch_syn == count:
            return [None] * self.syn_steps
        chunks: list[Tensor | None] = []
        while len(chunks) < self.syn_steps:
            chunks += list(torch.randperm(count, device=device).split(self.batch_syn))
        return chunks[: self.syn_steps]

    # ---- what it is worth
    def _judge(
        self, context: Context, network: FlatNetwork, sets: Mapping[str, Tensor], labels: Tensor, rate: float
    ) -> dict[str, list[list[float]]]:
        """Which set -> the accuracies of each fresh network while it learned it."""
        found: dict[str, list[list[float]]] = {}
        split, rows = _scored_on(context), initial.classes_of(context.data, self.task.num_labels)

        def scored() -> float:
            return accuracy(network, context.batches(split, context.batch_size))

        for name in ("distilled", *self.evaluate["against"]):
            for number in range(int(self.evaluate["networks"])):
                seed = seed_of(context.seed, f"{name} {number}")
                images = sets.get(name)
                if images is None:
                    images = initial.images_of(context.data, initial.random_rows(rows, self.ipc, seed)).to(
                        labels.device
                    )
                network.begin(seed_of(context.seed, f"fresh {number}"))
                lr = rate if name == "distilled" else float(self.evaluate["real_lr"])
                curve = self._learn(f"{name}-{number}", network, images, labels, lr, scored, context.work)
                found.setdefault(name, []).append(curve)
        return found

    def _learn(
        self, name: str, network: FlatNetwork, images: Tensor, labels: Tensor, rate: float,
        scored: Callable[[], float], work: Work,
    ) -> list[float]:  # fmt: skip
        recipe = Recipe.of(self.evaluate)
        return learned(f"learns-{name}", network, images, labels, rate, recipe, self.operations, scored, work)


class _InTurn:
    """Operations one after another, for the memory plan: a draw at random would make it a matter of chance."""

    def __init__(self, operations: Sequence[str]) -> None:
        self.operations, self.place = operations, 0

    def next(self, operations: Sequence[str]) -> str | None:
        self.place += 1
        return operations[self.place % len(operations)] if operations else None

    def view(self, images: Tensor) -> Tensor:
        return augmentation.draw(self.next(self.operations), images)(images)


def _filled(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, the variant's own where one is null."""
    return {key: own.get(key) if value is None else value for key, value in settings.items()}


def _from(context: Context, begin: int, first: int) -> Iterator[Batch]:
    return context.endless("train", context.batch_size, begin + first)


def _from_files(files: Sequence[Path], starts: int, epochs: int) -> tuple[int, Tensor]:
    """A start epoch and the weights from there on of one of the experts, drawn by Python's generator."""
    file, start = files[random.randrange(len(files))], random.randrange(starts)
    return start, experts.read(file, start, epochs + 1)


def _scored_on(context: Context) -> str:
    """The split of real images that fresh networks are tested on."""
    return "test" if "test" in context.sizes else "validation"
