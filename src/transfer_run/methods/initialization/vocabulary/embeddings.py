"""Embeddings for another vocabulary: those of shared tokens copied, the others weighted means of these.

    W[v] = E[v]                                                  v shared
    W[v] = sum_u w(v,u) E[u] / sum_u w(v,u),  u all shared       v missing;  w(v,u) = cos(H[v], H[u])

H is the embedding of a small model that owns the new vocabulary. Rows of missing tokens are worked at in blocks: no
matrix is larger than a block's rows times the shared tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Negative = Literal["keep", "clip"]


@dataclass(frozen=True)
class Rule:
    """How similarities become weights.

    Attributes:
        negative: `keep` (the paper), or `clip` them at zero.
        top_k: of how many shared tokens the mean is taken; None: all (the paper).
        temperature: softmax of the similarities over it; None: they are divided by their sum (the paper).
        guard: where the sum of a row's similarities is at most this part of the sum of their sizes, the positive ones
            alone are taken: a row that nearly cancels would be many times as long as any other. The paper has none.
    """

    negative: Negative = "keep"
    top_k: int | None = None
    temperature: float | None = None
    guard: float = 1e-6

    def weights(self, similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (M, O) that sum to one from similarities (M, O), changed in place; the sums (M,) before, and in which
        rows they were guarded. A row without any positive similarity is the mean of all.
        """
        if self.top_k is not None and self.top_k < similarity.shape[1]:
            kept, places = similarity.topk(self.top_k, dim=1)
            similarity.fill_(-torch.inf if self.temperature is not None else 0).scatter_(1, places, kept)
        if self.temperature is not None:
            ones = similarity.new_ones(len(similarity))
            return (similarity / self.temperature).softmax(1), ones, ones < 0
        if self.negative == "clip":
            similarity.clamp_(min=0)
        sums = similarity.sum(1)
        lost = sums.abs() <= self.guard * similarity.abs().sum(1)
        if bool(lost.any()):
            positive = similarity[lost].clamp_(min=0)
            positive[positive.sum(1) <= 0] = 1.0
            similarity[lost] = positive
        return similarity.div_(similarity.sum(1, keepdim=True)), sums, lost


@dataclass
class Report:
    """What a build met: the smallest |sum| of weights, and how many rows took the positive ones alone."""

    least_sum: float = float("inf")
    guarded: int = 0

    def add(self, sums: Tensor, guarded: Tensor) -> None:
        self.least_sum = min(self.least_sum, float(sums.abs().min()))
        self.guarded += int(guarded.sum())


def precise(table: Tensor) -> torch.dtype:
    """The type that is computed in: float32, or float64 where the table has it."""
    return torch.float64 if table.dtype == torch.float64 else torch.float32


def spare(table: Tensor, rows: int) -> Tensor:
    """A table of so many rows that each hold the mean of the columns, in the table's type."""
    mean = table.to(precise(table)).mean(0)
    return mean.to(table.dtype).repeat(rows, 1)


def copied(table: Tensor, rows: int, shared: Mapping[int, int]) -> Tensor:
    """`spare`, with the rows of shared tokens in their new places."""
    out = spare(table, rows)
    if shared:
        new, old = (torch.tensor(list(each), device=table.device) for each in (shared.keys(), shared.values()))
        out[new] = table[old]
    return out


def drawn(table: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Rows drawn from a normal distribution with the mean and the deviation of every column."""
    values = table.to(precise(table))
    std, mean = torch.std_mean(values, dim=0)
    noise = torch.randn(rows, table.shape[1], generator=generator, dtype=values.dtype).to(table.device)
    return (noise * std + mean).to(table.dtype)


def rebuilt(
    tables: Sequence[Tensor],
    helper: Tensor,
    rows: int,
    shared: Mapping[int, int],
    missing: Sequence[int],
    *,
    rule: Rule = Rule(),
    block: int = 4096,
    follow: Any = None,
) -> tuple[list[Tensor], Report]:
    """The tables (V_s, h) of the source for the helper's vocabulary, (rows, h) each, all with the same weights.

    Args:
        helper: the helper's embedding (V_t or more, h').
        follow: goes through the blocks and tells of them.
    """
    out, report = [copied(table, rows, shared) for table in tables], Report()
    kind = precise(helper if helper.dtype == torch.float64 else tables[0])
    new, old = (torch.tensor(list(each), device=helper.device) for each in (shared.keys(), shared.values()))
    known = _unit(helper[new].to(kind))
    sources = [table[old.to(table.device)].to(kind) for table in tables]
    blocks = list(_blocks(missing, block))
    for numbers in blocks if follow is None else follow(blocks):
        places = torch.tensor(numbers, device=helper.device)
        similarity = _unit(helper[places].to(kind)) @ known.T
        weights, sums, guarded = rule.weights(similarity)
        report.add(sums, guarded)
        for table, source in zip(out, sources, strict=True):
            table[places.to(table.device)] = (weights @ source).to(table.dtype)
    return out, report


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _blocks(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield list(numbers[start : start + size])
