"""UniPT's side networks: for tokens, for one global vector, for the stages of a CNN (arXiv 2308.14316, section 3).

Every tap has its own map to the side width r; the last block's output, the guide, has one too and reads all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from transfer_run.methods.side_tuning.parallel.interaction import Interaction, Past, down, projection, relu_attention
from transfer_run.methods.side_tuning.parallel.tap_tuning import conv_norm, flat, recomputed, widened, window


class TokenSide(nn.Module):
    """F^c = F_L + P(G), and what makes the output of it, for taps of T tokens.

    Args:
        width: D of the taps.
        side: r.
        targets: numbers of the taps that the guide reads.
        form: `projection`, `identity`, `eps`, `up_relu` of the variant.
        out: E of the output; None: the side memory F^c itself is wanted (encoder of an encoder-decoder).
        reads_memory: every target first reads the side memory of the encoder, F_l + LN(W A(F_l, M) M).
        causal: no position may see a later one.
    """

    def __init__(
        self, width: int, side: int, targets: Sequence[int], form: Mapping[str, Any], *, out: int | None,
        reads_memory: bool = False, causal: bool = False, lean: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.guide = down(width, side)
        self.downs = nn.ModuleDict({str(index): down(width, side) for index in targets})
        readers = {str(i): nn.Sequential(nn.Linear(side, side), nn.LayerNorm(side)) for i in targets}
        self.readers = nn.ModuleDict(readers if reads_memory else {})
        self.interaction = Interaction(side, eps=form["eps"], identity=form["identity"], causal=causal)
        self.projection = projection(form["projection"], side, width)
        relu = [nn.ReLU()] if form["up_relu"] else []
        self.up = None if out is None else nn.Sequential(*relu, nn.Linear(side, out))
        self.lean = lean

    def forward(
        self, targets: Sequence[Tensor], guide: Tensor, mask: Tensor | None, memory: Tensor | None = None,
        memory_mask: Tensor | None = None, past: Past | None = None,
    ) -> Tensor:  # fmt: skip
        """Y (B, T, E), or the side memory (B, T, r) without an output map.

        Args:
            targets: the tapped hidden states (B, T, D), in the order of their maps.
            guide: the last block's output (B, T, D).
            mask: 1 = real; (B, T), with a past (B, all positions).
            memory: the encoder's side memory (B, S, r), and `memory_mask` (B, S).
            past: what step-by-step decoding has seen; the new positions are added to it.
        """

        def run(
            guide: Tensor, mask: Tensor | None, memory: Tensor | None, seen: Tensor | None, *taps: Tensor
        ) -> Tensor:
            query = self.guide(widened(guide, self.guide))
            features = [self.narrow(name, tap, memory, seen) for name, tap in zip(self.downs, taps, strict=True)]
            whole = query
            if past is not None:
                whole = past.extend("guide", query)
                features = [past.extend(name, f) for name, f in zip(self.downs, features, strict=True)]
            mixed = query + self.projection(self.interaction(query, features, mask, whole=whole))
            return mixed if self.up is None else self.up(mixed)

        return recomputed(self.lean and past is None, run, guide, mask, memory, memory_mask, *targets)

    def narrow(self, name: str, tap: Tensor, memory: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """F_l (B, T, r), after it has read the memory where there is one."""
        features: Tensor = self.downs[name](widened(tap, self.downs[name]))
        if memory is None:
            return features
        weights = relu_attention(features, memory, seen, eps=self.interaction.eps)
        return features + self.readers[name](weights @ memory)


class PooledSide(nn.Module):
    """Y = a + W relu(G) for a global vector a, which alone reads the tokens of every tap (CLIP4Clip).

        F_l' = A_l F_l + F_l[pos]      q = W relu(a), F_l = W_l relu(H_l); pos: CLS, or where the text ends

    Args:
        widths: D of every tap, the last block's among them.
        out: E, the width of a.
        side: r.
        eps: the least that a row of scores is divided by.
    """

    def __init__(self, widths: Sequence[int], out: int, side: int, *, eps: float, lean: bool = True) -> None:
        super().__init__()
        self.guide = nn.Sequential(nn.ReLU(), nn.Linear(out, side))
        self.downs = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Linear(width, side)) for width in widths)
        self.interaction = Interaction(side, eps=eps, identity=False, clamp=True)
        self.up = nn.Sequential(nn.ReLU(), nn.Linear(side, out))
        self.lean = lean

    def forward(self, taps: Sequence[Tensor], anchor: Tensor, mask: Tensor | None, position: Tensor) -> Tensor:
        """(B, E).

        Args:
            taps: (B, T, D) each.
            anchor: a (B, E), frozen.
            mask: (B, T), 1 = real.
            position: (B,), the token that the global vector was taken from.
        """

        def run(anchor: Tensor, mask: Tensor | None, position: Tensor, *taps: Tensor) -> Tensor:
            query = self.guide(widened(anchor, self.guide)).unsqueeze(1)
            features = [narrow(widened(tap, narrow)) for narrow, tap in zip(self.downs, taps, strict=True)]
            mixed = self.interaction(query, features, mask, position=position)
            return anchor + self.up(mixed).squeeze(1)

        return recomputed(self.lean, run, anchor, mask, position, *taps)


class GuidedPooling(nn.Module):
    """A stage at the size of the last one: within each window a mean, and a sum weighted by what the guide asks for.

        g = relu(conv C_L),  s = relu(sum_channels g C_j) / its window's sum + 1 / R^2,  C_j' = window's sum of s C_j

    Args:
        channels: of the stage.
        guide: channels of the last stage.
        eps: of the normalisation.
    """

    def __init__(self, channels: int, guide: int, eps: float) -> None:
        super().__init__()
        self.ask = nn.Sequential(nn.Conv2d(guide, channels, 1), nn.ReLU())
        self.eps = eps

    def forward(self, stage: Tensor, guide: Tensor) -> Tensor:
        """(B, C, h R, w R) and (B, D, h, w) -> (B, C, h, w)."""
        (height, width), rate = guide.shape[-2:], window(stage, guide)
        cells = stage.unflatten(3, (width, rate)).unflatten(2, (height, rate))  # (B, C, h, R, w, R), a view
        asked = self.ask(guide)[:, :, :, None, :, None]
        scores = (asked * cells).sum(1, keepdim=True).relu()
        weights = scores / (scores.sum((3, 5), keepdim=True) + self.eps) + 1 / rate**2
        return (weights * cells).sum((3, 5))


class ConvSide(nn.Module):
    """The token form on the cells of the last stage of a CNN, with 1x1 convolutions and batch norms.

    Args:
        channels: of the stages that the guide reads, by number.
        guide: channels of the last stage.
        out: E.
        side: r.
    """

    def __init__(
        self, channels: Mapping[int, int], guide: int, out: int, side: int, form: Mapping[str, Any], *,
        lean: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.guide = conv_norm(guide, side)
        self.pools = nn.ModuleDict({str(i): GuidedPooling(width, guide, form["eps"]) for i, width in channels.items()})
        self.downs = nn.ModuleDict({str(i): conv_norm(width, side) for i, width in channels.items()})
        self.interaction = Interaction(side, eps=form["eps"], identity=form["identity"])
        self.projection = conv_norm(side, side)
        relu = [nn.ReLU()] if form["up_relu"] else []
        self.up = nn.Sequential(*relu, nn.Conv2d(side, out, 1))
        self.lean = lean

    def forward(self, stages: Sequence[Tensor], guide: Tensor) -> Tensor:
        """Y (B, cells, E) of the stages (B, C_j, H_j, W_j) and the last one (B, D, h, w)."""
        guide = widened(guide, self.guide)
        query = self.guide(guide)
        features = [
            flat(narrow(pool(widened(stage, narrow), guide)))
            for pool, narrow, stage in zip(self.pools.values(), self.downs.values(), stages, strict=True)
        ]

        def run(query: Tensor, *features: Tensor) -> Tensor:
            return self.interaction(query, features, None)

        mixed = recomputed(self.lean, run, flat(query), *features)  # batch norms may not run twice: they stay outside
        maps = mixed.transpose(1, 2).unflatten(2, tuple(query.shape[-2:]))
        return flat(self.up(query + self.projection(maps)))
