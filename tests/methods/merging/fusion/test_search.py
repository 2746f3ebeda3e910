"""The search for weights: the checks of the paper's sheet, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from transfer_run.errors import UserError
from transfer_run.methods.merging.fusion import search as module
from transfer_run.methods.merging.fusion.search import Search, chosen, fuse, grid_values, objective

GRID = grid_values(0.0, 2.0, 0.1)
ONE = Search.over(1, GRID)


def logits(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """KL of distributions given by logits, summed term by term."""
    p, q = one.softmax(-1), other.softmax(-1)
    return (p * (p / q).log()).sum(-1)


def by_sums(large: Tensor, small: Tensor, experts: Tensor, alpha: Tensor) -> Tensor:
    """J of one row as it is written."""
    fused = large + (alpha[:, None] * (experts - small)).sum(0)
    total = torch.zeros((), dtype=torch.float64)
    for expert in experts:
        total += (divergence(fused, large) - divergence(expert, small)) ** 2
        total += (divergence(large, fused) - divergence(small, expert)) ** 2
    return total


def test_the_grid_has_both_ends() -> None:
    assert len(GRID) == 21
    assert GRID[0] == 0
    assert GRID[10] == 1.0
    assert GRID[-1] == pytest.approx(2.0)
    with pytest.raises(UserError, match="no weight"):
        grid_values(1.0, 0.5, 0.1)


def test_experts_that_learned_nothing_change_nothing() -> None:
    """Check 2: every J is 0, and the first candidate is taken."""
    large, small = logits(5, 11), logits(5, 11)
    search = Search.over(2, GRID)
    experts = torch.stack([small, small])
    torch.testing.assert_close(objective(large, small, experts, search), torch.zeros(5, 42, dtype=torch.float64))
    fused, weights = fuse(large, small, experts, search)
    assert torch.equal(fused, large)
    assert not weights.any()


def test_a_large_model_that_is_the_small_one_becomes_the_expert() -> None:
    """Check 3: up to a constant; J = 0 at alpha = 1."""
    small, expert = logits(6, 13), logits(6, 13)
    large = small + 4.0
    fused, weights = fuse(large, small, expert[None], ONE)
    assert torch.equal(weights, torch.ones(6, 1, dtype=torch.float64))
    torch.testing.assert_close(fused.softmax(-1), expert.softmax(-1))
    losses = objective(large, small, expert[None], ONE)
    assert bool((losses[:, 10] < 1e-20).all())


def test_constants_do_not_matter() -> None:
    """Check 4."""
    large, small, experts = logits(4, 9), logits(4, 9), logits(2, 4, 9)
    search = Search.over(2, GRID)
    moved = objective(large + 3, small - 7, experts + torch.tensor([1.0, -2.0]).view(2, 1, 1), search)
    torch.testing.assert_close(moved, objective(large, small, experts, search), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("joint", [False, True])
def test_the_closed_forms_are_the_sums(joint: bool) -> None:
    """Check 5, to 1e-12, for every candidate."""
    large, small, experts = logits(3, 10), logits(3, 10), logits(2, 3, 10)
    search = Search.over(2, [0.0, 0.4, 1.3], joint=joint)
    assert len(search.candidates) == (9 if joint else 6)
    losses = objective(large, small, experts, search)
    for row in range(3):
        for number, candidate in enumerate(search.candidates):
            alpha = torch.tensor(candidate, dtype=torch.float64)
            wanted = by_sums(large[row], small[row], experts[:, row], alpha)
            torch.testing.assert_close(losses[row, number], wanted, rtol=1e-10, atol=1e-12)


def test_a_fixed_weight_is_proxy_tuning() -> None:
    """Check 6: log fused - log P is M_t - M_S up to a constant."""
    large, small, expert = logits(4, 9), logits(4, 9), logits(4, 9)
    fused, weights = fuse(large, small, expert[None], [1.0])
    change = fused.log_softmax(-1) - large.log_softmax(-1) - (expert - small)
    torch.testing.assert_close(change, change[:, :1].expand(-1, 9))
    assert torch.equal(weights, torch.ones(4, 1, dtype=torch.float64))


def test_both_divergences_grow_with_the_weight() -> None:
    """Check 7."""
    large, small, expert = logits(8, 12), logits(8, 12), logits(8, 12)
    fused = [large + alpha * (expert - small) for alpha in GRID]
    for way in ([divergence(f, large) for f in fused], [divergence(large, f) for f in fused]):
        assert all(bool((after > before).all()) for before, after in itertools.pairwise(way))


def test_the_same_expert_twice_is_that_expert() -> None:
    """Check 8: J doubles, the distribution is the same."""
    large, small, expert = logits(5, 9), logits(5, 9), logits(5, 9)
    twice = torch.stack([expert, expert])
    search = Search.over(2, GRID)
    torch.testing.assert_close(
        objective(large, small, twice, search)[:, :21], 2 * objective(large, small, expert[None], ONE)
    )
    torch.testing.assert_close(fuse(large, small, twice, search)[0], fuse(large, small, expert[None], ONE)[0])


def test_a_batch_is_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 9: at once, in slices and row by row; another row changes nothing."""
    large, small, experts = logits(7, 9), logits(7, 9), logits(2, 7, 9)
    search = Search.over(2, GRID)
    whole = chosen(large, small, experts, search)
    assert len({tuple(row) for row in whole.tolist()}) > 1
    rows = [chosen(large[i : i + 1], small[i : i + 1], experts[:, i : i + 1], search) for i in range(7)]
    assert torch.equal(torch.cat(rows), whole)
    monkeypatch.setattr(module, "AT_ONCE", 20)  # two rows
    assert torch.equal(chosen(large, small, experts, search), whole)


def test_heads_of_several_sizes_are_cut_before_the_softmax() -> None:
    large, small, expert = logits(3, 12), logits(3, 9), logits(3, 10)
    fused, weights = fuse(large, small, expert[None], ONE)
    same, cut = fuse(large[:, :9], small, expert[None, :, :9], ONE)
    assert fused.shape == (3, 9)
    assert torch.equal(fused, same)
    assert torch.equal(weights, cut)


def test_a_forbidden_token_stays_forbidden() -> None:
    large, small, expert = logits(3, 9), logits(3, 9), logits(3, 9)
    large[:, 4] = -torch.inf
    fused, weights = fuse(large, small, expert[None], ONE)
    assert bool((fused[:, 4] == -torch.inf).all())
    assert not bool(torch.cat([fused[:, :4], fused[:, 5:], weights], 1).isnan().any())
    assert bool(torch.isfinite(objective(large, small, expert[None], ONE)).all())


def test_half_precision_is_searched_in_float32() -> None:
    large, small, expert = (each.bfloat16() for each in (logits(4, 9), logits(4, 9), logits(4, 9)))
    fused, weights = fuse(large, small, expert[None], ONE)
    wide, wanted = fuse(large.float(), small.float(), expert[None].float(), ONE)
    assert fused.dtype == torch.float32
    assert torch.equal(weights, wanted)
    assert torch.equal(fused, wide)


def test_too_many_combinations_are_refused() -> None:
    with pytest.raises(UserError, match="194,481 combinations"):
        Search.over(4, GRID, joint=True)
