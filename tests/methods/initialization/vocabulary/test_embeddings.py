"""Embeddings for another vocabulary: the spec's toys, invariances, and one result for every size of blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from transfer_run.methods.initialization.vocabulary.embeddings import Rule, copied, drawn, rebuilt

PAPER = Rule(guard=0.0)


def shapes(
    missing: int = 40, shared: int = 25, width: int = 6, narrow: int = 4
) -> tuple[Tensor, Tensor, dict[int, int]]:
    """The source's table, the helper's, and the shared: numbers of two orders."""
    source = torch.randn(50, 6, dtype=torch.float64)
    helper = torch.randn(missing + shared, 4, dtype=torch.float64)
    new, old = torch.randperm(missing + shared)[:shared].tolist(), torch.randperm(50)[:shared].tolist()
    return source, helper, dict(zip(new, old, strict=True))


def lost(helper: Tensor, shared: dict[int, int]) -> list[int]:
    return [number for number in range(len(helper)) if number not in shared]


def test_the_toys() -> None:
    """Check 3, and 5."""
    source = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    helper = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 1.0], [0.0, 2.5]])
    (table,), _ = rebuilt([source], helper, 5, {0: 0, 1: 1}, [2, 3, 4])
    torch.testing.assert_close(table[2], source.mean(0))
    torch.testing.assert_close(table[3], 0.75 * source[0] + 0.25 * source[1])
    torch.testing.assert_close(table[4], source[1])  # orthogonal to the rest
    assert torch.equal(table[:2], source)


@pytest.mark.parametrize("block", [1, 7, 40, 1000])
@pytest.mark.parametrize(
    "rule", [PAPER, Rule("clip"), Rule("keep", 3, guard=0), Rule(temperature=0.2), Rule("clip", 5)]
)
def test_blocks_and_a_loop_agree(block: int, rule: Rule) -> None:
    """Check 6."""
    source, helper, shared = shapes()
    missing = lost(helper, shared)
    (table,), _ = rebuilt([source], helper, len(helper), shared, missing, rule=rule, block=block)
    for v in missing:
        cosines = torch.stack([torch.cosine_similarity(helper[v], helper[u], dim=0) for u in shared])
        if rule.top_k is not None:
            least = cosines.sort(descending=True).values[rule.top_k - 1]
            cosines = torch.where(cosines >= least, cosines, -torch.inf if rule.temperature else 0.0)
        if rule.negative == "clip":
            cosines = cosines.clamp(min=0)
        weights = (cosines / rule.temperature).softmax(0) if rule.temperature else cosines / cosines.sum()
        wanted = sum(w * source[old] for w, old in zip(weights, shared.values(), strict=True))
        torch.testing.assert_close(table[v], wanted, rtol=1e-10, atol=1e-10)


def test_scale_and_rotation_of_the_helper_change_nothing() -> None:
    """Check 4."""
    source, helper, shared = shapes()
    missing = lost(helper, shared)
    (table,), _ = rebuilt([source], helper, len(helper), shared, missing)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    scaled = helper * torch.rand(len(helper), 1, dtype=torch.float64).add(0.1)
    for other in (scaled, helper @ turn):
        torch.testing.assert_close(rebuilt([source], other, len(helper), shared, missing)[0][0], table)


def test_rows_lie_between_the_shared_ones() -> None:
    """Check 2: in their span; with similarities that are not negative, in their hull."""
    source, helper, shared = shapes(shared=3)
    missing = lost(helper, shared)
    (table,), _ = rebuilt([source], helper, len(helper), shared, missing)
    known = source[list(shared.values())]
    solved = torch.linalg.lstsq(known.T, table[missing].T)
    torch.testing.assert_close(known.T @ solved.solution, table[missing].T)
    (hull,), report = rebuilt([source], helper.abs(), len(helper), shared, missing)
    assert bool((hull[missing] <= known.max(0).values + 1e-12).all())
    assert bool((hull[missing] >= known.min(0).values - 1e-12).all())
    assert report.guarded == 0


def test_a_head_takes_the_same_weights() -> None:
    source, helper, shared = shapes()
    missing = lost(helper, shared)
    head = 2 * source + 1
    (table, other), _ = rebuilt([source, head], helper, len(helper), shared, missing)
    torch.testing.assert_close(other[missing], 2 * table[missing] + 1)
    for new, old in shared.items():
        assert torch.equal(other[new], head[old])


def test_rows_that_nearly_cancel_are_means_over_the_positive_ones_alone() -> None:
    source = torch.tensor([[1.0], [2.0]])
    helper = torch.tensor([[1.0, 0.0], [-0.8, 0.6], [0.9, 0.1]])
    kept, said = rebuilt([source], helper, 3, {0: 0, 1: 1}, [2], rule=PAPER)
    guarded, told = rebuilt([source], helper, 3, {0: 0, 1: 1}, [2], rule=Rule(guard=0.5))
    assert (said.guarded, told.guarded) == (0, 1)
    assert said.least_sum == told.least_sum > 0
    assert float(kept[0][2]) < -1  # outside of all
    assert float(guarded[0][2]) == 1


def test_similarities_that_cancel_are_said_and_do_not_blow_up() -> None:
    source = torch.tensor([[1.0], [2.0], [3.0]])
    helper = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    (table,), report = rebuilt([source], helper, 5, {0: 0, 1: 1}, [2, 3, 4])
    assert report.guarded == 3
    assert report.least_sum == 0
    torch.testing.assert_close(table[3], source[0])  # the positive one alone
    for row in (2, 4):  # similar to nothing: all alike
        torch.testing.assert_close(table[row], source[:2].mean(0))
    assert bool(table.abs().max() <= 3)


def test_the_type_stays_and_is_rounded_to_once() -> None:
    source, helper, shared = shapes()
    missing = lost(helper, shared)
    half = source.bfloat16()
    (table,), _ = rebuilt([half], helper, len(helper), shared, missing)
    assert table.dtype == torch.bfloat16
    (exact,), _ = rebuilt([half.double()], helper, len(helper), shared, missing)
    assert torch.equal(table, exact.bfloat16())


def test_rows_of_no_token_are_the_mean_of_the_columns() -> None:
    source, _, shared = shapes()
    table = copied(source, 80, shared)
    torch.testing.assert_close(table[70:], source.mean(0).expand(10, -1))
    for new, old in shared.items():
        assert torch.equal(table[new], source[old])


def test_drawn_rows_have_the_columns_mean_and_deviation() -> None:
    source = torch.randn(400, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 3.0, -2.0])
    table = drawn(source, 4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(table.mean(0), source.mean(0), rtol=0.1, atol=0.2)
    torch.testing.assert_close(table.std(0), source.std(0), rtol=0.1, atol=0.02)
    assert torch.equal(table, drawn(source, 4000, torch.Generator().manual_seed(0)))
