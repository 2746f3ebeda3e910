"""Losses on layers and predictions, the bound, the mappings: the spec's checks 2 to 6."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from transfer_run.errors import UserError
from transfer_run.methods.distillation.objectives.information import log_mean_of_others, mi_bound, weight_of
from transfer_run.methods.distillation.objectives.mapping import adapted_weights, layer_pairs, transport_plan
from transfer_run.methods.distillation.objectives.objectives import ATTENTION, HIDDEN

K = 7


def scores(seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(K, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- MI-alpha
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_constant_scores_carry_no_information(alpha: float) -> None:
    c = 1.7
    constant = torch.full((K, K), c, dtype=torch.float64)
    assert float(mi_bound(constant, constant[0], alpha)) == pytest.approx(0, abs=1e-12)


def test_infonce_is_bounded_and_blind_to_a_constant() -> None:
    q = torch.zeros(K, dtype=torch.float64)
    for seed in range(5):
        found = float(mi_bound(scores(seed, 3.0), q, 1.0))
        assert found <= math.log(K - 1) + 1e-12
        assert float(mi_bound(scores(seed, 3.0) + 40, q, 1.0)) == pytest.approx(found, abs=1e-9)
    sharp = 50 * torch.eye(K, dtype=torch.float64)
    assert float(mi_bound(sharp, q, 1.0)) == pytest.approx(math.log(K - 1), abs=1e-6)
    assert float(mi_bound(sharp.float(), q.float(), 1.0)) == pytest.approx(math.log(K - 1), abs=1e-5)


def test_without_the_batch_mean_it_is_tuba() -> None:
    s = scores()
    off = ~torch.eye(K, dtype=torch.bool)
    expected = 1 + s.diagonal().mean() - s[off].exp().mean()
    assert float(mi_bound(s, torch.zeros(K, dtype=torch.float64), 0.0)) == pytest.approx(float(expected), rel=1e-12)


def test_the_mean_of_the_others_leaves_its_own_column_out() -> None:
    for scale in (1.0, 30.0):
        s = scores(2, scale).requires_grad_()
        naive = torch.stack([s[:, [k for k in range(K) if k != j]].logsumexp(1) for j in range(K)], 1) - math.log(K - 1)
        found = log_mean_of_others(s)
        assert torch.allclose(found, naive, rtol=1e-10)
        weights = torch.rand(K, K, dtype=torch.float64)
        (mine,), (theirs,) = (torch.autograd.grad((x * weights).sum(), s) for x in (found, naive))
        assert torch.allclose(mine, theirs, atol=1e-10)


def test_the_mean_survives_ties_and_certainty() -> None:
    tied = torch.zeros(K, K, requires_grad=True)
    assert torch.allclose(log_mean_of_others(tied), torch.zeros(K, K), atol=1e-6)
    certain = (200 * torch.eye(K)).requires_grad_()
    loss = mi_bound(certain, torch.zeros(K), 0.9)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(certain.grad).all()


def test_alpha_is_a_probability_or_a_logit() -> None:
    assert weight_of("mi", 0.9, "prob") == 0.9
    assert weight_of("mi", 0.9, "logit") == pytest.approx(0.711, abs=5e-4)
    assert weight_of("mi", 0.1, "logit") == pytest.approx(0.525, abs=5e-4)
    assert [weight_of(name, 0.3, "prob") for name in ("nce", "tuba", "nwj")] == [1.0, 0.0, 0.0]


# ---- hidden states and attention maps
def states(width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    return torch.randn(3, 4, width, generator=draw), mask


@pytest.mark.parametrize("loss", ["mse", "cos", "pkd", "l2", "fsp", "nst"])
def test_equal_states_cost_nothing(loss: str) -> None:
    h, mask = states()
    assert float(HIDDEN[loss](h, h.clone(), mask)) == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("loss", sorted(HIDDEN))
def test_padding_does_not_count(loss: str) -> None:
    (h, mask), other = states(), torch.randn(3, 4, 8)
    noise = torch.where(mask[..., None].bool(), 0.0, 100 * torch.randn(3, 4, 8))
    assert float(HIDDEN[loss](h + noise, other - noise, mask)) == pytest.approx(float(HIDDEN[loss](h, other, mask)))


@pytest.mark.parametrize("loss", sorted(ATTENTION))
def test_attention_to_and_from_padding_does_not_count(loss: str) -> None:
    _, mask = states()
    s, t = torch.rand(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    pairs = (mask[:, :, None] * mask[:, None, :])[:, None].bool()
    found = float(ATTENTION[loss](s, t, mask))
    if loss.startswith("mse"):
        noise = torch.where(pairs, 0.0, torch.rand(3, 2, 4, 4))
        assert float(ATTENTION[loss](s + noise, t, mask)) == pytest.approx(found)
        assert float(ATTENTION[loss](s, s, mask)) == 0
    else:  # a softmax over the row sees all of it: only whole rows of padded queries are left out
        noise = torch.where(mask[:, None, :, None].bool(), 0.0, torch.rand(3, 2, 4, 4))
        assert float(ATTENTION[loss](s + noise, t, mask)) == pytest.approx(found)


def test_attention_losses_by_hand() -> None:
    s, t, mask = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.ones(2, 4)
    by_hand = (s - t).pow(2).sum() / (2 * 16)  # over pairs of tokens, not over heads
    assert float(ATTENTION["mse"](s, t, mask)) == pytest.approx(float(by_hand), rel=1e-6)
    by_hand = -(t.softmax(-1) * s.log_softmax(-1)).sum(-1).mean()
    assert float(ATTENTION["ce"](s, t, mask)) == pytest.approx(float(by_hand), rel=1e-6)
    with pytest.raises(UserError, match="attention heads"):
        ATTENTION["ce"](s, t[:, :2], mask)
    assert torch.isfinite(ATTENTION["ce_mean"](s, t[:, :2], mask))


def test_fsp_and_nst_by_hand() -> None:
    (h, mask), t = states(), torch.randn(3, 4, 8)
    rows = [(h[b, : mask[b].sum()], t[b, : mask[b].sum()]) for b in range(3)]
    fsp = torch.stack([((a.T @ a - b.T @ b) / len(a)).pow(2).mean() for a, b in rows]).mean()
    assert float(HIDDEN["fsp"](h, t, mask)) == pytest.approx(float(fsp), rel=1e-5)
    squares = [((a @ a.T - b @ b.T) / 8).pow(2).sum() for a, b in rows]
    nst = torch.stack(squares).sum() / sum(len(a) ** 2 for a, _ in rows)
    assert float(HIDDEN["nst"](h, t, mask)) == pytest.approx(float(nst), rel=1e-5)
    assert torch.isfinite(HIDDEN["nst"](h, torch.randn(3, 4, 20), mask))


# ---- layer mapping
SKIP = {
    (12, 4): [0, 3, 6, 9, 12], (12, 6): [0, 2, 4, 6, 8, 10, 12], (12, 3): [0, 4, 8, 12], (12, 5): [0, 2, 4, 7, 9, 12],
    (12, 12): list(range(13)),
}  # fmt: skip


@pytest.mark.parametrize(("depths", "expected"), SKIP.items())
def test_skip_and_last(depths: tuple[int, int], expected: list[int]) -> None:
    teacher, student = depths
    assert layer_pairs("skip", "hidden", student, teacher) == list(enumerate(expected))
    last = [(i, teacher - student + i) for i in range(student + 1)]
    assert layer_pairs("last", "hidden", student, teacher) == last
    assert layer_pairs("last", "attention", student, teacher) == last[:-1]
    k = teacher / student
    maps = [(i, int((i + 1) * k - 1)) for i in range(student)]
    assert layer_pairs("skip", "attention", student, teacher) == maps
    assert maps[-1] == (student - 1, teacher - 1)
    assert layer_pairs("final", "hidden", student, teacher) == [(student, teacher)]
    assert layer_pairs("none", "hidden", student, teacher) == []


def test_equal_depths_are_mapped_one_to_one() -> None:
    assert layer_pairs("skip", "hidden", 12, 12) == layer_pairs("last", "hidden", 12, 12)
    assert layer_pairs("skip", "attention", 12, 12) == [(i, i) for i in range(12)]


def test_a_teacher_of_fewer_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="fewer"):
        layer_pairs("skip", "hidden", 6, 4)
    assert len(layer_pairs("emd", "hidden", 6, 4)) == 24


def test_the_transport_plan_is_nearly_the_cheapest() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        cost = torch.rand(4, 6, generator=draw, dtype=torch.float64)
        s, t = (torch.rand(n, generator=draw, dtype=torch.float64) + 0.2 for n in cost.shape)
        s, t = s / s.sum(), t / t.sum()
        plan = transport_plan(cost, s, t)
        sums = np.concatenate([np.kron(np.eye(4), np.ones(6)), np.kron(np.ones(4), np.eye(6))])
        best = linprog(cost.numpy().ravel(), A_eq=sums, b_eq=np.concatenate([s, t]), bounds=(0, None)).fun
        assert torch.allclose(plan.sum(0), t, atol=1e-9)
        assert torch.allclose(plan.sum(1), s, atol=2e-3)
        assert float((plan * cost).sum()) == pytest.approx(best, rel=0.03)


def test_cheap_layers_gain_weight() -> None:
    weights = adapted_weights(torch.full((3,), 1 / 3), torch.tensor([0.1, 0.3, 0.6]), 5.0)
    assert float(weights.sum()) == pytest.approx(1)
    assert weights[0] > weights[1] > weights[2]
    unit = torch.tensor([0.3, 0.9, 1.8])
    assert torch.allclose(weights, (3.0 / unit / 5).softmax(0))
