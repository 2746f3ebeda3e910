"""TTM: Tiny Time Mixers for zero-shot and few-shot forecasting (Ekambaram et al., NeurIPS 2024). arXiv 2401.03955.

    pretrain    all is trained, each channel a series of its own       the forecast's mean squared error
    zero_shot   nothing is trained
    few_shot    backbone frozen, decoder and head trained, on the last 5 % of the training rows
    full        the same on all of them

In fine-tuning the decoder may mix channels (section 3.2), and the forecast may be reconciled with channels that are
known in the future (the exogenous mixer). The model itself is a family of backbones (`backbones/families/ttm.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.backbones.families.ttm import TinyTimeMixer
from transfer_run.errors import UserError
from transfer_run.hardware.optimization import Optimization
from transfer_run.methods.base import Context, Method
from transfer_run.methods.domain.forecasting.rate_finder import find_rate
from transfer_run.methods.forms.forecasting import as_known, mean_over_known
from transfer_run.methods.work import Rehearsed, Work
from transfer_run.task import Task

FINDER = "finder"
FCM = {
    "enabled": False, "context_length": 1, "use_mixer": False, "mix_layers": 2, "gated": True, "prepend_past": True,
}  # fmt: skip


class TTM(Method):
    """See the module.

    Args:
        stage: what is trained.
        fewshot_fraction, fewshot_location: which training rows `few_shot` reads (through `dataset.few_shot`).
        freeze_backbone: few_shot, full: train decoder and head alone.
        backbone_dropout: the frozen part's dropout acts in training, as in the official code.
        head_dropout: of decoder and head; None: the backbone's own.
        decoder_mode: mix_channel puts a fresh channel mixer into every decoder layer.
        fcm: forecast channel mixing: `context_length` steps before and behind, `use_mixer` with `mix_layers`, `gated`,
            `prepend_past` (the last past values in front, not zeros).
        loss: what is trained on, of standardised values; `huber_delta`, `quantile` (pinball) go with it.
        lr: `finder` tries 100 rates before training; a number; None: `optimizer.lr`.

    Raises:
        UserError: fresh channel mixers where nothing, or a backbone for any number of channels, is trained.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        stage: Literal["pretrain", "zero_shot", "few_shot", "full"] = "few_shot",
        fewshot_fraction: float = 0.05,
        fewshot_location: Literal["last", "first"] = "last",
        freeze_backbone: bool = True,
        backbone_dropout: bool = True,
        head_dropout: float | None = None,
        decoder_mode: Literal["common_channel", "mix_channel"] = "common_channel",
        fcm: Mapping[str, Any] = FCM,
        loss: Literal["mse", "mae", "huber", "pinball"] = "mse",
        huber_delta: float = 1.0,
        quantile: float = 0.5,
        lr: str | float | None = FINDER,
    ) -> None:
        super().__init__(backbone, task)
        self.stage, self.rate = stage, checked_rate(lr)
        self.found = None if isinstance(self.rate, str) else self.rate
        self.kind, self.huber_delta, self.quantile = loss, huber_delta, quantile
        self.tuned = stage in ("few_shot", "full")
        self.frozen, self.frozen_dropout = self.tuned and freeze_backbone, backbone_dropout
        self.trains, self.ships = stage != "zero_shot", "trained" if self.frozen else "all"
        if stage == "zero_shot":
            self.ships = "nothing"
        self._mix(decoder_mode, fcm)
        self._set_dropout(head_dropout)
        self.requires_grad_(self.trains)
        if self.frozen:
            self.backbone.model.backbone.requires_grad_(False)
            self.needs_backbone_gradient = False

    def _mix(self, decoder_mode: str, fcm: Mapping[str, Any]) -> None:
        for asked, key in ((decoder_mode == "mix_channel", "decoder_mode"), (fcm["enabled"], "fcm.enabled")):
            if asked and not self.tuned:
                raise UserError(
                    f"stage={self.stage} "
                    + ("trains a backbone for any number of channels" if self.trains else "trains nothing")
                    + ": fresh layers that mix the channels of this data set have no place in it.",
                    where=f"method.{key}",
                    remedy="method.stage=few_shot or full",
                )
        channels, backbone = self.task.channels, cast(TinyTimeMixer, self.backbone)
        if decoder_mode == "mix_channel":
            backbone.mix_channels(len(channels))
        if fcm["enabled"]:
            backbone.model.mix_forecasts(
                self.task.num_labels,
                [channels.index(name) for name in self.task.exogenous],
                around=fcm["context_length"],
                gated=fcm["gated"],
                past=fcm["prepend_past"],
                mixer_layers=fcm["mix_layers"] if fcm["use_mixer"] else None,
            )

    def _set_dropout(self, share: float | None) -> None:
        model = self.backbone.model
        for module in itertools.chain(model.decoder.modules(), model.head.modules()):
            if isinstance(module, nn.Dropout) and share is not None:
                module.p = share

    def train(self, mode: bool = True) -> TTM:
        super().train(mode)
        if mode and self.frozen and not self.frozen_dropout:
            self.backbone.model.backbone.eval()
        return self

    # ---- the learning rate
    def prepare(self, context: Context) -> None:
        if self.trains and self.rate == FINDER:

            def batches(first: int) -> Iterator[Batch]:
                return context.endless("train", context.batch_size, first, augment=True)

            self.found = self._found(batches, context.work)
            context.log(f"learning rate finder: {self.found:.3g}")

    def rehearse(self, batch: Batch) -> Sequence[str]:
        if self.trains and self.rate == FINDER:
            self._found(lambda first: itertools.repeat(batch), Rehearsed(), rehearsed=True)
        return ()

    def _found(self, batches: Any, work: Work, *, rehearsed: bool = False) -> float:
        self.train()
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], foreach=False)
        return find_rate(self, self.loss, batches, optimizer, work, rehearsed=rehearsed)

    def optimizers(self, config: Mapping[str, Any], epoch_steps: int) -> dict[str, Optimization]:
        settings = {} if self.found is None else {"lr": self.found}
        return {"main": Optimization(self.parameter_groups(), settings)}

    def conclude(self, context: Context) -> dict[str, Any]:
        return {"learning_rate": self.found} if self.trains and self.found is not None else {}

    # ---- the loss
    def loss(self, batch: Batch) -> Tensor:
        labels = batch["labels"]
        if self.kind == "mse":
            return self.task_loss(self(batch), labels)
        forecast, right = self(batch).float(), as_known(labels)
        if self.kind == "pinball":
            error = right - forecast
            return mean_over_known(torch.maximum(self.quantile * error, (self.quantile - 1) * error), labels)
        if self.kind == "huber":
            return mean_over_known(F.huber_loss(forecast, right, reduction="none", delta=self.huber_delta), labels)
        return mean_over_known((forecast - right).abs(), labels)


def checked_rate(rate: str | float | None) -> str | float | None:
    """`method.lr` as a number, `finder` or None.

    Raises:
        UserError: it is something else.
    """
    if rate is None or rate == FINDER:
        return rate
    if isinstance(rate, str | bool) or not rate > 0:
        raise UserError(
            f"{rate!r} is no learning rate.",
            where="method.lr",
            nearest=[FINDER],
            remedy="a number above 0, finder, or null for optimizer.lr",
        )
    return float(rate)
