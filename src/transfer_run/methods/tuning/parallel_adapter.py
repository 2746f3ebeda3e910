"""Parallel adapters: a bottleneck beside a frozen sub-layer reads what the sub-layer reads. arXiv 2110.04366.

feed-forward   FFN(x) + s A(x)                       (the paper's best: s = 4, init `lora`)
attention      (heads + A(x)) W_o                    `parallel`
               head_i + ReLU(q'_i P_k^T) P_v         `multihead`, q' = W_q LN(x) unscaled, P as in prefix tuning
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.inside.bottleneck import Bottleneck, Bypass, Norm
from transfer_run.methods.inside.precision import in_type_of, trained_type
from transfer_run.methods.inside.prefix import Prefixes, Rows, make_prefixes
from transfer_run.methods.inside.targets import (
    Layers,
    Target,
    chosen_blocks,
    find_targets,
    in_features,
    out_features,
    project,
)
from transfer_run.task import Task


class MultiHead(nn.Module):
    """The multi-head parallel adapter's change: x (B, T, D) -> (B, T, H d), head i seeing its own slice of P.

    Args:
        linear, target: the frozen query projection.
        heads: H.
        rows: gives P_k and P_v, each (r, H d).
    """

    def __init__(self, linear: nn.Module, target: Target, heads: int, rows: Callable[[], Rows], dropout: float) -> None:
        super().__init__()
        like = next(linear.parameters())
        self._query, self.heads, self.rows = (linear, target), heads, rows
        self.norm = nn.LayerNorm(in_features(linear), device=like.device, dtype=trained_type(like))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query = project(*self._query, in_type_of(x, self.norm(in_type_of(self.norm.weight, x))))
        keys, values = (in_type_of(query, rows) for rows in self.rows())
        return multihead_change(query, keys, values, self.heads, self.dropout)


def multihead_change(query: Tensor, keys: Tensor, values: Tensor, heads: int, dropout: nn.Module) -> Tensor:
    """ReLU(q_i P_k,i^T) P_v,i for every head i, side by side.

    Args:
        query: (B, T, H d); keys, values: (r, H d).
    """
    query, keys, values = (t.unflatten(-1, (heads, -1)) for t in (query, keys, values))
    weights = (query.transpose(-2, -3) @ keys.permute(1, 2, 0)).relu()
    return (dropout(weights) @ values.transpose(0, 1)).transpose(-2, -3).flatten(-2)


def attach_to_mlp(backbone: Backbone, stack: str, index: int, unit: Bottleneck) -> nn.Module:
    """Put the unit beside a block's feed-forward; returns the module to register.

    The feed-forward is hooked as a whole where it is one module; else x is taken at its first linear and the change
    added at its last.
    """
    parts = backbone.parts(stack, index)
    whole, first, last = parts.get("mlp"), parts["mlp_in"], parts["mlp_out"]
    if whole is not None and first.startswith(f"{whole}.") and last.startswith(f"{whole}."):
        backbone.get_submodule(whole).register_forward_hook(unit.beside)
        return unit
    bypass = Bypass(unit)
    backbone.get_submodule(first).register_forward_pre_hook(bypass.read)
    backbone.get_submodule(last).register_forward_hook(bypass.add_to_output)
    return bypass


def attach_to_attention(backbone: Backbone, query: Target, output: Target, change: nn.Module) -> Bypass:
    """Add the change of what the queries are made of to the concatenated heads, before the output projection."""
    bypass = Bypass(change)
    backbone.get_submodule(query.path).register_forward_pre_hook(bypass.read)
    backbone.get_submodule(output.path).register_forward_pre_hook(bypass.add_to_input)
    return bypass


class ParallelAdapter(Method):
    """Parallel adapters are trained, and the head.

    Args:
        mlp: adapters beside the feed-forwards.
        attention: adapters beside the attentions, of one of two kinds.
        cross_attention: beside cross-attention as well.
        activation, dropout: of all units.
        bottleneck: r of the feed-forward's units.
        scale, learn_scale, layernorm, init, init_std: of the feed-forward's units, see `Bottleneck`.
        attention_bottleneck: r of the attention's units, which have s = 1, a LayerNorm on their input and init `bert`,
            whatever is said of the others (as the authors ran them).
        hidden: width of the MLPs that make the rows of `multihead` in training, as in prefix tuning; None: free rows.
        layers: blocks to adapt, by stack; a stack that is not named: all.

    Raises:
        UserError: neither site is chosen.
    """

    beside_half = True

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        mlp: bool = True,
        attention: Literal["none", "parallel", "multihead"] = "none",
        cross_attention: bool = True,
        bottleneck: int = 512,
        attention_bottleneck: int = 30,
        hidden: int | None = 800,
        activation: str = "relu",
        dropout: float = 0.1,
        scale: float = 4.0,
        learn_scale: bool = False,
        layernorm: Norm = "none",
        init: Literal["bert", "lora"] = "lora",
        init_std: float = 0.02,
        layers: Layers | None = None,
    ) -> None:
        super().__init__(backbone, task)
        self.freeze_backbone()
        if not mlp and attention == "none":
            remedy = "set method.mlp=true or method.attention=parallel|multihead"
            raise UserError("No place is left for a parallel adapter.", where="method", remedy=remedy)
        self.adapters = nn.ModuleDict()
        unit: dict[str, Any] = {"activation": activation, "dropout": dropout}
        if mlp:
            shape = {
                "scale": scale,
                "learn_scale": learn_scale,
                "layernorm": layernorm,
                "init": init,
                "init_std": init_std,
            }
            self.adapters.update(mlp_adapters(backbone, bottleneck, {**unit, **shape}, layers))
        self.prefixes = Prefixes()
        self.reads_weights = attention == "multihead"  # runs the query projection a second time, by itself
        if attention != "none":
            queries = find_targets(backbone, ("q",), cross_attention=cross_attention, layers=layers)
            outputs = find_targets(backbone, ("out",), cross_attention=cross_attention, layers=layers)
            if attention == "multihead":
                self.prefixes, rows = make_prefixes(backbone, queries, attention_bottleneck, hidden)
                changes = [self._multihead(q, own, dropout) for q, own in zip(queries, rows, strict=True)]
            else:
                pairs = zip(queries, outputs, strict=True)
                changes = [self._parallel(q, out, attention_bottleneck, unit) for q, out in pairs]
            for query, output, change in zip(queries, outputs, changes, strict=True):
                name = f"{output.stack}_{output.index}_{output.part}"
                self.adapters[name] = attach_to_attention(backbone, query, output, change)

    def _parallel(self, query: Target, output: Target, size: int, unit: dict[str, Any]) -> nn.Module:
        linear, into = self.backbone.get_submodule(query.path), self.backbone.get_submodule(output.path)
        like = next(linear.parameters())
        return Bottleneck(in_features(linear), size, out_width=in_features(into), layernorm="in", like=like, **unit)

    def _multihead(self, query: Target, rows: Callable[[], Rows], dropout: float) -> nn.Module:
        heads = self.backbone.heads(query.stack)
        return MultiHead(self.backbone.get_submodule(query.path), query, heads, rows, dropout)

    def settle(self) -> None:
        self.prefixes.settle()

    def counted_parameters(self) -> int:
        made = sum(p.numel() for p in self.prefixes.parameters())
        return super().counted_parameters() - made + self.prefixes.counted()


def mlp_adapters(
    backbone: Backbone, bottleneck: int, unit: dict[str, Any], layers: Layers | None
) -> dict[str, nn.Module]:
    """A parallel unit beside the feed-forward of every chosen block, by `stack_index_mlp`."""
    find_targets(backbone, ("mlp_in", "mlp_out"), layers=layers)  # complains where blocks have no feed-forward
    made: dict[str, nn.Module] = {}
    for stack, index in chosen_blocks(backbone, layers):
        first, last = backbone.part(stack, index, "mlp_in"), backbone.part(stack, index, "mlp_out")
        size = {"out_width": out_features(last), "like": next(first.parameters())}
        adapter = Bottleneck(in_features(first), bottleneck, **size, **unit)  # type: ignore[arg-type]
        made[f"{stack}_{index}_mlp"] = attach_to_mlp(backbone, stack, index, adapter)
    return made
