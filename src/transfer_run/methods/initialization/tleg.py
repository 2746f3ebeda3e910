"""TLEG: a transformer whose weights are a line over depth, learned of a teacher; two blocks describe any depth.

    batch ──> mixed images ──┬──> stem ──> W_0, W_1, ... ──> norm ──> mean ──> head ──> z      W_l = B + (l / L) A
                             └──> teacher (frozen) ───────────────────────────────────> t
    loss = (1 - a) CE(z, y) + a tau^2 / (numel of z) sum KL(softmax(t / tau) || softmax(z / tau))

Xia, Zhang, Yang, Chen, Chen, Geng, "Transformer as Linear Expansion of Learngene", AAAI 2024, arXiv 2312.05614. The
run ships B, A, stem, norm and head (`line/blocks.py`); a network of any depth is made of them by `method=expand`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.initialization.line.blocks import Line
from transfer_run.methods.initialization.line.mixing import mixed
from transfer_run.methods.teacher import PIXELS, Reader, reader_of
from transfer_run.task import Task

DISTILL = {"alpha": 1.0, "tau": 1.0, "divide_by": "numel"}
DATA = {"normalize": "per_model", "size": "per_model"}
RELEASED_EPS = 1e-5
"""Of the norms inside the released auxiliary blocks; the descendants' are 1e-6."""


class Tleg(Method):
    """The auxiliary model: the backbone's depth is its L, and its blocks have the weights of a line.

    Args:
        distill: `alpha`, the share of the teacher's answers in the loss; `tau`; `divide_by`, the number of logits
            (`numel`, as released) or of rows (`batch`).
        mixup, cutmix: `a` of Beta(a, a); 0: none. Teacher and student see the same mixed images.
        data: how the teacher reads the student's images: with its own mean and deviation (`normalize`) and size, or
            with the student's.
        memory_mode: `efficient` forms weights again in backward; `official` keeps all L sets of them. Equal numbers.
        fidelity: `released` gives the norms of the blocks the released constant, which those of descendants have not.
    """

    ships = "all"

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        distill: Mapping[str, Any] = DISTILL,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        data: Mapping[str, Any] = DATA,
        memory_mode: Literal["efficient", "official"] = "efficient",
        fidelity: Literal["paper", "released"] = "paper",
    ) -> None:
        super().__init__(backbone, task)
        self.distill, self.data, self.mixup, self.cutmix = dict(distill), dict(data), mixup, cutmix
        blocks = backbone.blocks(backbone.stacks[0])
        self.line = Line(blocks, recompute=memory_mode == "efficient")
        self.couples_rows = bool(mixup or cutmix)
        self.requires_grad_(True)
        for block in blocks if fidelity == "released" else ():
            for module in block.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = RELEASED_EPS

    # ---- the teacher
    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        """Hold the teacher, as it reads the student's images; none where the labels alone teach."""
        if self.distill["alpha"] > 0:
            how = {"normalize": self.data["normalize"] == "per_model", "own_size": self.data["size"] == "per_model"}
            self.hold("teacher", reader_of(self, load_source("teacher"), "teacher", **how))

    def the_teacher(self) -> Reader | None:
        """None in a model that was loaded to be used."""
        return self._modules.get("teacher")  # type: ignore[return-value]

    # ---- the loss
    def loss(self, batch: Batch) -> Tensor:
        """In training that of the mixed batch; else, and without a teacher, the labels'."""
        if not self.training:
            return super().loss(batch)
        labels, share = batch["labels"], None
        if self.mixup or self.cutmix:
            images, share = mixed(batch[PIXELS], mixup=self.mixup, cutmix=self.cutmix)
            batch = {**batch, PIXELS: images}
        logits, alpha, teacher = self(batch), self.distill["alpha"], self.the_teacher()
        if alpha == 0:
            return self._of_labels(logits, labels, share)
        if teacher is None:
            raise UserError("There is no teacher to learn from.", where="sources.teacher",
                            remedy="sources.teacher='method=full backbone=NAME dataset=NAME'")  # fmt: skip
        taught = alpha * distillation(logits, teacher(batch), self.distill["tau"], self.distill["divide_by"])
        return taught if alpha == 1 else taught + (1 - alpha) * self._of_labels(logits, labels, share)

    def _of_labels(self, logits: Tensor, labels: Tensor, share: Tensor | None) -> Tensor:
        """Of mixed images: each of both labels by its share."""
        own = self.task_loss(logits, labels)
        return own if share is None else share * own + (1 - share) * self.task_loss(logits, labels.flip(0))

    # ---- what is trained
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Vectors and positions do not decay, which includes the slopes of norms; base and slope matrices do."""
        library = getattr(self.backbone.model, "no_weight_decay", set)
        spared = {id(p) for name, p in self.backbone.model.named_parameters() if name in library()}
        trained = [p for p in self.parameters() if p.requires_grad]
        still = {id(p) for p in trained if p.ndim <= 1} | spared
        return [{"params": [p for p in trained if id(p) not in still]},
                {"params": [p for p in trained if id(p) in still], "weight_decay": 0.0}]  # fmt: skip

    def settle(self) -> None:
        """Without the teacher."""
        self._modules.pop("teacher", None)
        self.held = frozenset()

    def has_whole_backbone(self) -> bool:
        """Not while two blocks stand for all of them."""
        return "line" not in self._modules and super().has_whole_backbone()

    def fold(self) -> None:
        """The backbone's blocks get weights of their own: the auxiliary model as an ordinary one of its depth."""
        self.line.release(self.backbone.blocks(self.backbone.stacks[0]))
        del self.line


def distillation(logits: Tensor, taught: Tensor, tau: float, divide_by: str) -> Tensor:
    """tau^2 / n sum KL(softmax(taught / tau) || softmax(logits / tau)), n: numbers in logits (B, C), or rows."""
    ours, theirs = (F.log_softmax(each.float() / tau, -1) for each in (logits, taught))
    total = F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return tau**2 * total / (logits.numel() if divide_by == "numel" else len(logits))
