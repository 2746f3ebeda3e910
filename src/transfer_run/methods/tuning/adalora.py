"""AdaLoRA: low-rank changes P L Q whose singular values are pruned to a budget while they are trained.

Zhang et al. 2023 (arXiv 2303.10512). peft's layers and rank allocator; this adds what a training loop owes them: the
orthogonality penalty in the loss (section 3.1), the allocation after every step (section 3.2), and the allocator's
running averages as buffers, so that a resumed run goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.inside.targets import Layers
from transfer_run.methods.tuning.attach.inject import ADAPTER
from transfer_run.methods.tuning.attach.peft_method import PeftMethod
from transfer_run.task import Task


class AdaLoRA(PeftMethod):
    """Rank-adaptive LoRA.

    Args:
        settings: of peft's `AdaLoraConfig`, without `total_step`, which the run knows; `tinit` and `tfinal` are steps
            before and after the pruning, as shares of the run when below 1.
        orthogonality: weight of the penalty ||P^T P - I|| + ||Q Q^T - I||, mean over the matrices.
    """

    sensitivity: Tensor  # smoothed |p * gradient| of every trained scalar
    uncertainty: Tensor  # its smoothed variation
    kept: Tensor  # which singular values are not pruned
    allocated: Tensor  # the last step that was dealt with

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        settings: Mapping[str, Any],
        targets: Sequence[str] = ("q", "v"),
        cross_attention: bool = True,
        layers: Layers | None = None,
        orthogonality: float = 0.5,
        fused_qkv: Literal["parts", "whole"] = "parts",
    ) -> None:
        if settings["target_r"] >= settings["init_r"]:
            raise UserError(
                f"Nothing to prune from init_r={settings['init_r']} to target_r={settings['target_r']}.",
                where="method.settings.target_r",
                remedy="choose target_r below init_r",
            )
        self.shares = {name: settings[name] for name in ("tinit", "tfinal")}
        settings = {**settings, "tinit": 0, "tfinal": 0, "total_step": 2}
        super().__init__(
            backbone,
            task,
            tuner="AdaLoraConfig",
            settings=settings,
            targets=targets,
            cross_attention=cross_attention,
            layers=layers,
            fused_qkv=fused_qkv,
        )
        for name, parameter in backbone.model.named_parameters():
            if f"ranknum.{ADAPTER}" in name:  # on the meta device peft forgets that these are constants
                parameter.requires_grad_(False)
        self.orthogonality = orthogonality
        trained, values = sum(p.numel() for _, p in self._parts("")), sum(p.numel() for _, p in self._parts("lora_E"))
        device = next(backbone.parameters()).device
        self.register_buffer("sensitivity", torch.zeros(trained, device=device))
        self.register_buffer("uncertainty", torch.zeros(trained, device=device))
        self.register_buffer("kept", torch.ones(values, dtype=torch.bool, device=device))
        self.register_buffer("allocated", torch.zeros((), dtype=torch.long, device=device))

    def _parts(self, kind: str) -> list[tuple[str, nn.Parameter]]:
        """Trained parameters of one kind (`lora_A`, `lora_E`, `lora_B`; empty: all), by their names in the model."""
        named = self.backbone.model.named_parameters()
        return [(n, p) for n, p in named if "lora_" in n and ADAPTER in n and p.requires_grad and kind in n]

    def loss(self, batch: Batch) -> Tensor:
        penalties = []
        for name, p in self._parts(""):
            if "lora_E" not in name:
                gram = p @ p.T if "lora_A" in name else p.T @ p
                penalties.append(torch.linalg.norm(gram - torch.eye(gram.shape[0], dtype=p.dtype, device=p.device)))
        return super().loss(batch) + self.orthogonality * torch.stack(penalties).mean()

    def start_fit(self, total_steps: int) -> None:
        config: Any = self._tuner[0].peft_config[ADAPTER]
        first, last = (round(v * total_steps) if v < 1 else int(v) for v in self.shares.values())
        if first + last >= total_steps:
            raise UserError(
                f"AdaLoRA's warm-up and final steps ({first} + {last}) leave none of {total_steps} for the pruning.",
                where="method.settings.tinit, method.settings.tfinal",
                remedy="make them smaller or train longer",
            )
        config.total_step, config.tinit, config.tfinal = total_steps, first, last

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Update the importances from the step's gradients and prune singular values to the step's budget."""
        if step == int(self.allocated):  # in the middle of an accumulated step
            return
        self.allocated.fill_(step)
        tuner: Any = self._tuner[0]
        config, allocator = tuner.peft_config[ADAPTER], tuner.rankallocator
        sizes = dict(self._parts(""))
        for store, buffer in ((allocator.exp_avg_ipt, self.sensitivity), (allocator.exp_avg_unc, self.uncertainty)):
            pieces = buffer.split([p.numel() for p in sizes.values()])
            store.update({name: piece.view_as(sizes[name]) for name, piece in zip(sizes, pieces, strict=True)})
        allocator.ipt = dict.fromkeys(sizes)
        singular = self._parts("lora_E")
        pieces = self.kept.split([p.numel() for _, p in singular])
        config.rank_pattern = {name: piece.tolist() for (name, _), piece in zip(singular, pieces, strict=True)}
        tuner.update_and_allocate(step)
        if allocator.exp_avg_ipt:
            self.sensitivity.copy_(torch.cat([allocator.exp_avg_ipt[name].flatten() for name in sizes]))
            self.uncertainty.copy_(torch.cat([allocator.exp_avg_unc[name].flatten() for name in sizes]))
        kept = [k for name, _ in singular for k in config.rank_pattern[name]]
        self.kept.copy_(torch.tensor(kept, device=self.kept.device))

    def settle(self) -> None:
        """The allocator's running averages are not part of the model."""
        del self.sensitivity, self.uncertainty, self.kept, self.allocated
