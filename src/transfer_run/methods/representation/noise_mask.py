"""Noise mask: a policy chooses, for every image, the distribution of a mask of noise; the network learns under it.

    heat       image ──> policy ──> Beta(exp a', exp b') a cell ──> sample, blurred ──> image x mask ──> network ──> CE
               loss = CE mean_b log sum_j q(m_bj)        both are trained, each by its own optimizer
    finetune   image ──> network ──> CE                  the mean of the last epochs' weights ships, the policy never

Yavuz, Yang, "Policy Gradient-Driven Noise Mask", ICPR 2024, arXiv 2406.14568. The mask carries no gradient: the policy
learns through log q alone, the network through CE, times a number near log G^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.hardware.optimization import Optimization
from transfer_run.hardware.steps import Steps
from transfer_run.methods.base import Context, Method
from transfer_run.methods.representation.masks.average import LastEpochs
from transfer_run.methods.representation.masks.picture import save_masks
from transfer_run.methods.representation.masks.policy import Policy, drawn, log_density, objective, over_image
from transfer_run.task import Task

BLUR = {"kernel": 13, "sigma": 6.0}
POLICY = {"trunk": "resnet10t", "lr_scale": 0.1, "schedule": "cosine"}
DECAY = {"every": None, "factor": 0.1}
AVERAGE = {"last": 3}


class NoiseMask(Method):
    """Everything is trained, under masks or after them.

    Args:
        stage: `heat`, with the policy, or `finetune`, without masks, from the weights of the stage before.
        grid: G, cells a side.
        blur: `kernel` (pixels, odd; 1: none) and `sigma` of the Gaussian over the mask.
        mix, base_momentum: share of the running mean in the parameters, and how slowly it moves.
        policy: `trunk` (a model of timm), its learning rate over the run's (`lr_scale`), and its `schedule`.
        objective: `code`, the batch's mean cross-entropy for every row; `per_sample`, each row's own.
        masked_validation: heat: validate under a mask drawn from the running means, as the released code does.
        decay: heat: the network's rate is multiplied by `factor` every so many epochs; null: `optimizer.schedule`.
        average: finetune: the mean of the weights at the ends of the `last` epochs ships; 1: those of the last.
    """

    ships = "all"

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        stage: Literal["heat", "finetune"] = "heat",
        grid: int = 64,
        blur: Mapping[str, Any] = BLUR,
        mix: float = 0.9,
        base_momentum: float = 0.99,
        policy: Mapping[str, Any] = POLICY,
        objective: Literal["code", "per_sample"] = "code",
        masked_validation: bool = False,
        decay: Mapping[str, Any] = DECAY,
        average: Mapping[str, Any] = AVERAGE,
    ) -> None:
        super().__init__(backbone, task)
        self.train_backbone()
        self.blur, self.settings, self.decay = dict(blur), dict(policy), dict(decay)
        self.objective, self.masked_validation = objective, masked_validation
        self.epoch_steps = 0
        self.found: dict[str, Any] = {}
        device = next(backbone.model.parameters()).device
        if stage == "finetune":
            self.average = LastEpochs(self.backbone, int(average["last"])).to(device)
            self.changing = frozenset({"average"})
            return
        image = backbone.config.get("image") or {}
        refuse_settings(image, grid, int(blur["kernel"]))
        if objective == "per_sample" and (task.class_weights or task.label_smoothing or task.balanced_softmax):
            raise UserError(
                "A row's own loss knows neither class weights nor smoothing nor class counts.",
                where="method.objective=per_sample",
                remedy="method.objective=code, or leave dataset.class_weights, label_smoothing and balanced_softmax",
            )
        self.policy = Policy(str(policy["trunk"]), int(image.get("channels", 3)), grid, mix, base_momentum, device)
        self.changing = frozenset({"policy"})

    def the_policy(self) -> Policy | None:
        """None after it: while it is fine-tuned, and in a model that ships."""
        return self._modules.get("policy")  # type: ignore[return-value]

    # ---- the loss
    def mask(self, a: Tensor, b: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (B, G^2) of Beta(exp a, exp b), and what lies over the images (B, 1, H, W)."""
        cells = drawn(a, b)
        height, width = images.shape[-2:]
        return cells, over_image(cells, height, width, self.blur["kernel"], self.blur["sigma"]).to(images.dtype)

    def forward(self, batch: Batch) -> Tensor:
        """In training on masked images; in evaluation on whole ones, or all under one mask of the running means."""
        policy = self.the_policy()
        if policy is None or not (self.training or self.masked_validation):
            return super().forward(batch)
        images = batch["pixel_values"]
        parameters = policy.mixed(*policy(images)) if self.training else (policy.base_a, policy.base_b)
        return super().forward({**batch, "pixel_values": images * self.mask(*parameters, images)[1]})

    def loss(self, batch: Batch) -> Tensor:
        policy = self.the_policy()
        if policy is None or not self.training:
            return super().loss(batch)
        images = batch["pixel_values"]
        a, b = policy(images)
        mixed_a, mixed_b = (each.float() for each in policy.mixed(a, b))
        cells, over = self.mask(mixed_a, mixed_b, images)
        policy.follow(a, b)
        logits = super().forward({**batch, "pixel_values": images * over})
        loss, factor = objective(log_density(mixed_a, mixed_b, cells), self._entropy(logits, batch["labels"]),
                                 self.objective)  # fmt: skip
        policy.watch(factor)
        return loss

    def _entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.objective == "code":
            return self.task_loss(logits, labels)
        return F.cross_entropy(logits.float(), labels, reduction="none")

    def step(self, batch: Batch, steps: Steps) -> Tensor:
        """One backward of the one loss; then every optimizer moves what is its own."""
        loss = self.training_loss(batch, use_cache=steps.use_cache)
        steps.backward(loss)
        steps.step()
        return loss

    # ---- what is trained, and how
    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def optimizers(self, config: Mapping[str, Any], epoch_steps: int) -> dict[str, Optimization]:
        """`main` of the network, and while it is heated `policy`, at a part of its rate."""
        self.epoch_steps, policy, decay = epoch_steps, self.the_policy(), self.decay
        own = [p for p in self.backbone.parameters() if p.requires_grad]
        if policy is None:
            return {"main": Optimization([{"params": own}])}
        every, factor = decay["every"], decay["factor"]
        falls = None if every is None else lambda step: float(factor ** (step // (every * epoch_steps)))
        settings = {"lr": config["lr"] * self.settings["lr_scale"], "schedule": self.settings["schedule"], "warmup": 0}
        made = {"main": Optimization([{"params": own}], factor=falls)}
        return made | {"policy": Optimization([{"params": list(policy.parameters())}], settings)}

    def start_fit(self, total_steps: int) -> None:
        if "average" in self._modules:
            self.average.start(total_steps, self.epoch_steps)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        policy = self.the_policy()
        if policy is not None:
            policy.shoot(epoch, epochs)

    def after_step(self, step: int) -> None:
        if "average" in self._modules:
            self.average.after_step(step, self.backbone)

    # ---- what ships
    def shipped(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().shipped().items() if name.startswith("backbone.")}

    def counted_parameters(self) -> int:
        """Those of the network."""
        policy = self.the_policy()
        return super().counted_parameters() - (sum(p.numel() for p in policy.parameters()) if policy else 0)

    def settle(self) -> None:
        """The network alone; what the policy came to is told by `conclude`."""
        policy = self.the_policy()
        if policy is not None and not policy.shots.is_meta:
            self.found = {"shots": policy.shots.float().cpu(), "lowest": float(policy.lowest)}
        for name in ("policy", "average"):
            self._modules.pop(name, None)
        self.changing = frozenset()

    def conclude(self, context: Context) -> dict[str, Any]:
        """`masks.png`, the mean mask over the epochs; the smallest factor of the loss, with a warning below zero."""
        shots = self.found.get("shots")
        if shots is None or (shots < 0).all():
            return {}
        save_masks(shots, context.folder / "masks.png")
        lowest = self.found["lowest"]
        if lowest < 0:
            context.log(
                f"warning: log sum q(m) fell to {lowest:.3g}: where it is below zero, the network was driven uphill"
            )
        return {"masks": "masks.png", "smallest_factor": round(lowest, 6)}


def refuse_settings(image: Mapping[str, Any], grid: int, kernel: int) -> None:
    """UserError for a grid finer than the image, or a blur that it has no room for."""
    size = image.get("size")
    if kernel % 2 == 0:
        raise UserError("A blur has a middle: its pixels a side are odd.", where=f"method.blur.kernel={kernel}",
                        nearest=[str(kernel - 1), str(kernel + 1)])  # fmt: skip
    if size is None:
        return
    least = int(size) if isinstance(size, int) else min(map(int, size))
    if grid > least:
        raise UserError(
            f"A grid of {grid} cells a side is finer than an image of {least} pixels: cells would be left out.",
            where=f"method.grid={grid}",
            remedy=f"method.grid={least}, or less",
        )
    if kernel // 2 >= least:
        raise UserError(
            f"A blur of {kernel} pixels reflects {kernel // 2} at each edge, an image of {least} has no more.",
            where=f"method.blur.kernel={kernel}",
            remedy=f"method.blur.kernel={2 * least - 1}, or less",
        )
