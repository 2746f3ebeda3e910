"""BatchFormer: in training the rows of a batch attend to each other before the classifier; at test they do not.

    batch ──> method inside ──> X (N, C) ──┬──────────────────┬──> shared head ──> loss over 2N rows
                                           └──> T over rows ──┘ X'
    test:     method inside ──> X ─────────────────────────────> head

Hou, Yu, Tao, "BatchFormer: Learning to Explore Sample Relationships for Robust Representation Learning", CVPR 2022,
arXiv 2203.01522, section 3. The gradient of a row's loss reaches the features of the other rows through the attention,
which is how classes of many rows help those of few. The head is shared, so T is dropped at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.hardware.optimization import Optimization
from transfer_run.methods.base import Context, Method
from transfer_run.methods.build import build_method
from transfer_run.methods.form import Answering
from transfer_run.methods.forms.classification import Classification
from transfer_run.methods.representation.relation.over_rows import OverRows
from transfer_run.task import Task

RELEASED = 3.0
"""The released code adds the mean losses of X', of X and of both: 1.5 (L_pre + L_post), three times their mean."""
FACTS = ("ships", "needs_backbone_gradient", "asks_inside", "beside_half", "reads_weights", "backbone_dropout")


class Whole(Method):
    """All of the backbone and the head: what is inside where no method is named."""

    ships = "all"

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.train_backbone()


class Related(Classification):
    """Classification whose logits in training are those of X and of X' = T(X): (2N, num_labels), X first.

    Args:
        owner: what holds T (`relation`), which is gone once the model ships.
    """

    def __init__(self, owner: BatchFormer) -> None:
        self.parts = owner._modules  # not the module: a form is none, and a copy of both goes on together
        self.shared, self.at_test = owner.share_classifier, owner.use_at_test

    def logits(self, method: Answering, batch: Batch) -> Tensor:
        rows, head, relation = method.features(batch), method.backbone.head, self.parts.get("relation")
        if relation is None or not (method.training or self.at_test):
            return head(rows)
        related = relation(rows)
        return head(torch.cat([rows, related]) if self.shared and method.training else related)

    def loss(self, method: Answering, logits: Tensor, labels: Tensor) -> Tensor:
        """Labels are repeated for as many rows as there are."""
        return super().loss(method, logits, labels.repeat(len(logits) // len(labels)))


class BatchFormer(Method):
    """A method of classification with an encoder over the rows of the batch between its features and its head.

    Args:
        around: the `method` node of the method inside, any that is fitted to one data set; null: everything is trained.
        num_layers, num_heads, ffn_ratio, dropout: of the encoder (`relation/over_rows.py`).
        share_classifier: the head sees X and X'; False: X' alone in training, as in the released RIDE code.
        lr_scale: the encoder's learning rate over the run's.
        gather: over several processes the rows of all of them see each other; False: each process's own.
        use_at_test: rows see each other at test too: answers then depend on the batch, and the encoder ships.
        fidelity: `released` weighs the loss as the released balanced-softmax code does, by three.
    """

    relation: OverRows

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        around: str | Mapping[str, Any] | None = None,
        num_layers: int = 1,
        num_heads: int = 4,
        ffn_ratio: float = 1.0,
        dropout: float = 0.5,
        share_classifier: bool = True,
        lr_scale: float = 1.0,
        gather: bool = False,
        use_at_test: bool = False,
        fidelity: Literal["paper", "released"] = "paper",
    ) -> None:
        assert not isinstance(around, str), "words are read into a node when the run is composed"
        inside = Whole(backbone, task) if around is None else build_method(around, backbone, task)
        refuse_inside(inside, task, str((around or {}).get("name")))
        super().__init__(backbone, task, head=inside.backbone.head)
        self.backbone, self.inside = inside.backbone, inside
        for fact in FACTS:
            setattr(self, fact, getattr(inside, fact))
        self.share_classifier, self.use_at_test, self.lr_scale = share_classifier, use_at_test, lr_scale
        self.factor = RELEASED if fidelity == "released" else 1.0
        self.relation = OverRows(
            backbone.feature_width, layers=num_layers, heads=num_heads, ffn_ratio=ffn_ratio, dropout=dropout,
            gather=gather, device=next(inside.parameters()).device,
        )  # fmt: skip
        self.form = inside.form = Related(self)

    # ---- what is trained, and what ships
    def parameter_groups(self) -> list[dict[str, Any]]:
        return [*self.inside.parameter_groups(), {"params": list(self.relation.parameters())}]

    def optimizers(self, config: Mapping[str, Any], epoch_steps: int) -> dict[str, Optimization]:
        """The method inside's, with the encoder as one more group at its own rate."""
        (name, made), *_ = self.inside.optimizers(config, epoch_steps).items()
        rate = made.node(config)["lr"] * self.lr_scale
        group = {"params": list(self.relation.parameters()), "lr": rate}
        return {name: Optimization([*made.groups, group], made.settings, made.factor, made.restart_every)}

    def counted_parameters(self) -> int:
        return self.inside.counted_parameters()

    def shipped(self) -> dict[str, Tensor]:
        """What the method inside ships; the encoder only where it is used at test."""
        dropped = () if self.use_at_test else ("relation.",)
        return {name: tensor for name, tensor in super().shipped().items() if not name.startswith(dropped)}

    def settle(self) -> None:
        self.inside.settle()
        if not self.use_at_test:
            self._modules.pop("relation", None)

    def fold(self) -> None:
        self.inside.fold()

    def export(self, folder: Path) -> bool:
        return self.inside.export(folder)

    def keeps_head(self, before: Task) -> bool:
        return self.inside.keeps_head(before)

    # ---- before, while and after it is trained: as the method inside
    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        self.inside.take_sources(load_source)

    def prepare(self, context: Context) -> None:
        self.inside.prepare(context)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        return () if type(self.inside).prepare is Method.prepare else self.inside.rehearse(batch)

    def resume(self, context: Context) -> None:
        self.inside.resume(context)

    def start_fit(self, total_steps: int) -> None:
        self.inside.start_fit(total_steps)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.inside.start_epoch(epoch, epochs)

    def after_step(self, step: int) -> None:
        self.inside.after_step(step)

    def conclude(self, context: Context) -> dict[str, Any]:
        return self.inside.conclude(context)

    # ---- a batch
    def features(self, batch: Batch) -> Tensor:
        return self.inside.features(batch)

    def forward(self, batch: Batch) -> Tensor:
        return self.inside(batch)

    def loss(self, batch: Batch) -> Tensor:
        return self.factor * self.inside.loss(batch) if self.training else self.inside.loss(batch)


def refuse_inside(method: Method, task: Task, name: str) -> None:
    """UserError for a method whose features no classifier reads, or whose training is more than one loss."""
    where, remedy = f"method.around: {name}", "name a method that is fitted with one loss (full, lora, lst), or null"
    if type(method.form) is not Classification:
        raise UserError(
            f"Rows are related before a classifier; {task.form} has none.",
            where="method=batchformer, dataset",
            remedy="choose a data set of classification; for a T5 set dataset.answers=head",
        )
    if method.own_steps or method.held or not method.trains or type(method).forward is not Method.forward:
        what = "takes its steps itself" if method.own_steps else "answers or trains in a way of its own"
        raise UserError(f"The method inside {what}.", where=where, remedy=remedy)
