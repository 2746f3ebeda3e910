"""Structural pruning: side blocks cut out of the backbone's weights, row by row (LST's initialisation).

One decision keeps some rows R of a matrix (or of several that share their rows); the rows that the decision before
it kept are the matrix's columns C. So one chain runs through the stacks:

    token table -> C;  per block:  {q, k, v} -> R;  {out} -> R;  {mlp_in, mlp_gate} -> R;  {mlp_out} -> R;  next block
    W becomes W[R][:, C], its bias b[R]; a norm (and a LayerScale) takes the running C; then C <- R

The decoder of an encoder-decoder goes on with the C of the last encoder block. Channels of successive layers do not
correspond and a side head mixes rows of several heads: consequences of the method, kept as they are.

Other families follow the same chain. A norm that stands behind its sublayer (BERT) is cut after `out` and `mlp_out`
instead of before {q, k, v} and `mlp_in`. A fused qkv matrix is cut as its three parts. Where key/value groups have
fewer rows than the queries, {q} and {k, v} are two decisions on the same C, and `out` reads the rows kept of q.
The first matrix is the token table, in a ViT the patch projection. What no decision reaches (norms of single heads,
whose channels are those of no one head any more) is not cut, and comes along only at r = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transfer_run.backbones.base import Backbone

Order = Literal["ascending", "released"]
ROWS_AT_ONCE = 128
SUBLAYERS = (
    ("norm1", "qkv", ("qkv", "q", "k", "v"), "out"),
    ("cross_norm", "cross_qkv", ("cross_q", "cross_k", "cross_v"), "cross_out"),
    ("norm2", "mlp_in", ("mlp_gate", "mlp_in"), "mlp_out"),
)  # norm, label of the decision, matrices that read the residual stream, matrix that writes to it


def kept_rows(
    importances: Iterable[Tensor], columns: Tensor | None, keep: int, *, order: Order = "ascending", logs: bool = False
) -> Tensor:
    """The `keep` most important rows that some matrices share.

    Args:
        importances: one (rows, cols) tensor a matrix; row j scores sum over c of |product of the matrices' [j, c]|.
            Products of squared gradients underflow in float32, so scores are in float64.
        columns: the columns that count; None: all.
        order: `ascending`, or `released`: the iteration order of a Python set, in which the released code stores
            rows (which rows meet in a side head depends on it).
        logs: score by |sum of logarithms| as the released BART code does, which keeps the LEAST important rows.

    Returns:
        (keep,) int64.
    """
    return highest(row_scores(importances, columns, logs=logs), keep, order=order)


def row_scores(importances: Iterable[Tensor], columns: Tensor | None, *, logs: bool = False) -> Tensor:
    """(rows,) float64, see `kept_rows`; some rows at a time, so that the copies in float64 stay small."""
    pieces = []
    for rows in zip(*(i.split(ROWS_AT_ONCE) for i in importances), strict=True):
        chosen = [(i if columns is None else i[:, columns]).double() for i in rows]
        product = torch.stack([i.log() for i in chosen]).sum(0) if logs else torch.stack(chosen).prod(0)
        pieces.append(product.abs_().sum(1))
    return torch.cat(pieces)


def highest(scores: Tensor, keep: int, *, order: Order = "ascending") -> Tensor:
    """(keep,) int64: the indices of the `keep` highest of (rows,) scores."""
    ranked = torch.argsort(scores, stable=True)
    pruned = ranked[: len(ranked) - keep]
    if order == "released":
        rows = list(set(range(len(ranked))) - set(pruned.tolist()))
        return torch.tensor(rows, dtype=torch.int64, device=ranked.device)
    return ranked[len(ranked) - keep :].sort().values


@dataclass
class Matrix:
    """A weight (rows = outputs, columns = inputs), or one third of a fused qkv weight.

    Attributes:
        name: of its module in the block.
        transposed: stored as (inputs, outputs), as in GPT-2.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    importance: Tensor
    transposed: bool


class PruningChain:
    """Walks the decisions through a backbone and hands out the pruned weights of one block after the other.

    Args:
        backbone: real weights.
        importance: parameter name -> importance of the same shape, of the first weights also (D,), the sum of a
            channel's (`fisher.py`); None: the weights themselves (`magnitude`).
        reduction: r; rows // r rows are kept, of a projection into heads (head width // r) for every head.
        order, logs: see `kept_rows`.

    Attributes:
        columns: the running C.
        decisions: label (`encoder.0.qkv`) -> rows kept.
    """

    def __init__(
        self, backbone: Backbone, importance: Mapping[str, Tensor] | None, reduction: int, *,
        order: Order = "ascending", logs: bool = False,
    ) -> None:  # fmt: skip
        self.backbone, self.importance, self.reduction = backbone, importance, reduction
        self.order, self.logs = order, logs
        self.names = {id(p): name for name, p in backbone.named_parameters()}
        self.decisions: dict[str, Tensor] = {}
        self.start(backbone.stacks[0])

    def start(self, stack: str) -> None:
        """C as the first weights of a stack have it; each of two towers begins anew."""
        scores = self._importance(first_parameter(self.backbone, stack))
        if scores.dim() > 1:
            scores = channel_scores(scores, logs=self.logs)
        self.columns = self._keep("first", scores, len(scores) // self.reduction)

    def block(self, stack: str, index: int) -> dict[str, Tensor]:
        """Pruned weights of a block under their names in the block; the running C moves past it."""
        block, parts = self.backbone.blocks(stack)[index], self.backbone.parts(stack, index)
        inside = {id(module): name for name, module in block.named_modules()}
        modules = {name: self.backbone.get_submodule(path) for name, path in parts.items()}
        cut: dict[str, Tensor] = {}
        for norm, label, readers, writer in SUBLAYERS:
            if writer not in modules:
                continue
            names = [name for name in readers if name in modules]
            names = ["qkv"] if "qkv" in names else names
            reading = [m for n in names for m in self._matrices(modules[n], inside, 3 if n == "qkv" else 1)]
            writing = self._matrices(modules[writer], inside)
            head = writing[0].weight.shape[1] // self.backbone.heads(stack) if label != "mlp_in" else 1
            if self.backbone.pre_norm:
                self._cut_channels(modules[norm], inside, cut)
            self._cut_readers(f"{stack}.{index}.{label}", reading, head, cut)
            self._cut_rows(f"{stack}.{index}.{writer}", writing, self.columns, 1, cut)
            if not self.backbone.pre_norm:
                self._cut_channels(modules[norm], inside, cut)
            scale = getattr(block, "ls2" if label == "mlp_in" else "ls1", nn.Identity())
            self._cut_channels(scale, inside, cut)
        if self.reduction == 1:
            cut = {name: p.detach().clone() for name, p in block.named_parameters()} | cut
        return cut

    def norm(self, module: nn.Module) -> dict[str, Tensor]:
        """A norm's parameters at the running C."""
        return {name: p.detach()[self.columns].clone() for name, p in module.named_parameters()}

    def _cut_readers(self, label: str, matrices: Sequence[Matrix], head: int, cut: dict[str, Tensor]) -> None:
        """q, k, v (or gate and in) jointly; key/value groups with fewer rows than q by a decision of their own."""
        count, columns = len(matrices[0].weight), self.columns
        groups = [m for m in matrices if len(m.weight) != count]
        if groups:
            self._cut_rows(f"{label}.groups", groups, columns, head, cut)
        self._cut_rows(label, [m for m in matrices if len(m.weight) == count], columns, head, cut)

    def _cut_rows(
        self, label: str, matrices: Sequence[Matrix], columns: Tensor, head: int, cut: dict[str, Tensor]
    ) -> None:
        """One decision: the rows that `matrices` share; C <- R."""
        count = len(matrices[0].weight)
        keep = count // head * (head // self.reduction) if head > 1 else count // self.reduction
        scores = row_scores([m.importance for m in matrices], columns.cpu(), logs=self.logs)
        self.columns = rows = self._keep(label, scores, keep)
        pieces: dict[str, list[Tensor]] = {}
        for m in matrices:
            pieces.setdefault(f"{m.name}.weight", []).append(m.weight[rows][:, columns])
            if m.bias is not None:
                pieces.setdefault(f"{m.name}.bias", []).append(m.bias[rows])
        turned = {f"{m.name}.weight" for m in matrices if m.transposed}
        for name, tensors in pieces.items():
            whole = torch.cat(tensors)
            cut[name] = whole.T.contiguous() if name in turned else whole

    def _cut_channels(self, module: nn.Module, inside: Mapping[int, str], cut: dict[str, Tensor]) -> None:
        cut |= {f"{inside[id(module)]}.{name}": tensor for name, tensor in self.norm(module).items()}

    def _keep(self, label: str, scores: Tensor, keep: int) -> Tensor:
        """Rows are ranked in CPU memory, where float64 is cheap, and used where the weights are."""
        rows = highest(scores, keep, order=self.order)
        self.decisions[label] = rows
        return rows.to(next(self.backbone.parameters()).device)

    def _matrices(self, module: nn.Module, inside: Mapping[int, str], thirds: int = 1) -> list[Matrix]:
        turned = isinstance(module, Conv1D)
        weight, bias = module.get_parameter("weight").detach(), module.bias
        scores = self._importance(module.get_parameter("weight"))
        weights = (weight.T if turned else weight).chunk(thirds)
        importances = (scores.T if turned else scores).chunk(thirds)
        biases = [None] * thirds if bias is None else bias.detach().chunk(thirds)  # type: ignore[operator]
        name = inside[id(module)]
        return [Matrix(name, w, b, i, turned) for w, b, i in zip(weights, biases, importances, strict=True)]

    def _importance(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().cpu() if self.importance is None else self.importance[self.names[id(parameter)]]


TOWERS = {
    "image": "model.vision_model.embeddings.patch_embedding.weight",
    "text": "model.text_model.embeddings.token_embedding.weight",
}
"""CLIP's first weights."""


def first_parameter(backbone: Backbone, stack: str | None = None) -> nn.Parameter:
    """What the chain starts from: the token table (V, D), or the patch projection (D, C, p, p) of images."""
    if backbone.family == "clip":
        return backbone.get_parameter(TOWERS[stack or backbone.stacks[0]])
    model = backbone.model
    if hasattr(model, "get_input_embeddings"):
        return model.get_input_embeddings().get_parameter("weight")
    return model.get_parameter("patch_embed.proj.weight")


def channel_scores(weights: Tensor, *, logs: bool = False) -> Tensor:
    """(D,) float64: what each channel of the first weights scores, of a token table (V, D) or a patch projection."""
    if weights.dim() > 2:
        return row_scores([weights.flatten(1)], None, logs=logs)
    total = weights.new_zeros(weights.shape[1], dtype=torch.float64)
    for rows in weights.split(ROWS_AT_ONCE):
        total += (rows.double().log() if logs else rows.double()).abs_().sum(0)
    return total


def decision_matrices(backbone: Backbone, stacks: Iterable[str]) -> dict[str, nn.Parameter]:
    """The blocks' parameters whose importance the chain asks for, by name: what a Fisher pass differentiates by."""
    names = {id(p): name for name, p in backbone.named_parameters()}
    matrices = {name for _, _, readers, writer in SUBLAYERS for name in (*readers, writer)}
    wanted = []
    for stack in stacks:
        for index in range(backbone.depth(stack)):
            parts = backbone.parts(stack, index)
            wanted += [backbone.get_parameter(f"{parts[name]}.weight") for name in parts if name in matrices]
    return {names[id(p)]: p for p in wanted}


def first_parameters(backbone: Backbone, stacks: Iterable[str]) -> dict[str, nn.Parameter]:
    """The weights that the chain starts from, by name."""
    names = {id(p): name for name, p in backbone.named_parameters()}
    firsts = [first_parameter(backbone, stack) for stack in stacks]
    return {names[id(p)]: p for p in firsts}
