"""The Checks of TIES, against what they say and against a plain implementation on flat vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.methods.merging.toy import LONG, equal, flat, job, merged, random_models, streamed, vectors
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.base import Merging
from transfer_run.methods.merging.engine.stream import BLOCK, merge_in_memory
from transfer_run.methods.merging.task_arithmetic import Scaled, TaskArithmeticRule, store_task_vector
from transfer_run.methods.merging.ties import Ties, TiesRule

SETTINGS: list[dict[str, Any]] = [
    {},
    {"merge": "dis-sum"},
    {"merge": "dis-max", "resolve": "normmass"},
    {"resolve": "normfrac", "keep": 0.5},
    {"resolve": "none", "merge": "dis-mean"},
    {"resolve": "none", "merge": "mean"},
    {"scope": "tensor"},
    {"threshold": "exact"},
    {"scope": "tensor", "threshold": "exact", "resolve": "normfrac"},
    {"weights": [0.5, 2.0, 1.0]},
    {"keep": 1.0},
]


def gridded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values on a coarse grid: many magnitudes tie and many sums cancel."""
    return {name: (tensor * 8).round() / 8 for name, tensor in tensors.items()}


def test_toy() -> None:
    """Check 5."""
    rows = [[3.0, -1, 0], [1, -2, 0], [-1, 0, 4]]
    for merge, wanted in {"dis-mean": [2, -1.5, 4], "dis-sum": [4, -3, 4], "dis-max": [3, -2, 4]}.items():
        assert merged(*vectors(rows), TiesRule(keep=1.0, merge=merge))["x"].tolist() == wanted


def test_one_model() -> None:
    """Check 2."""
    base, models = random_models(1)
    assert torch.allclose(flat(merged(base, models, TiesRule(1.0, keep=1.0))), flat(models[0]), atol=1e-6)
    assert equal(merged(base, models, TiesRule(0.0, keep=1.0)), base)


def test_task_arithmetic_of_one_nth_is_the_average() -> None:
    """Check 3."""
    base, models = random_models(3)
    assert torch.allclose(
        flat(merged(base, models, TaskArithmeticRule(1 / 3))), flat(merged(None, models, AverageRule())), atol=1e-6
    )


def test_identical_models() -> None:
    """Check 4."""
    base, models = random_models(1)
    same = [models[0]] * 3
    assert torch.allclose(flat(merged(base, same, TiesRule(keep=1.0))), flat(models[0]), atol=1e-6)
    change, count = flat(models[0]) - flat(base), flat(base).numel()
    cut = change.abs().sort().values[count - int(count * 0.3) - 1]
    wanted = flat(base) + change * (change.abs() >= cut)
    assert torch.allclose(flat(merged(base, same, TiesRule(keep=0.3))), wanted, atol=1e-6)


@pytest.mark.parametrize("merge", ["dis-mean", "dis-max"])
def test_signs_are_those_elected_and_nothing_grows(merge: str) -> None:
    """Check 6."""
    base, models = random_models(4)
    rule = TiesRule(None, keep=0.4, merge=merge)
    out = flat(merged(base, models, rule))
    work = job(base, models)
    rule.survey(work)
    rows: list[Tensor] = []
    for name in work.layout.merged:
        for piece in work.pieces(name):
            rows.append(torch.stack(rule.trimmed(work, piece, work.base_values(piece))))
    trimmed = torch.cat(rows, dim=1)
    signs = trimmed.sum(0).sign()
    assert bool(((out.sign() == signs) | (out == 0) | (signs == 0)).all())
    assert bool((out.abs() <= trimmed.abs().amax(0) + 1e-7).all())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.5, 2.0, 8.0]), resolve=st.sampled_from(["mass", "normmass"]))
def test_order_scale_and_sign_of_the_models(seed: int, scale: float, resolve: str) -> None:
    """Check 7; powers of two scale without rounding."""
    base, models = random_models(3, seed=seed)
    zero = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    rule = TiesRule(None, keep=0.5, resolve=resolve)
    out = flat(merged(zero, models, rule))
    assert torch.allclose(flat(merged(zero, models[::-1], rule)), out, atol=1e-6)
    scaled = [{name: tensor * scale for name, tensor in model.items()} for model in models]
    assert torch.equal(flat(merged(zero, scaled, rule)), out * scale)
    negated = [{name: -tensor for name, tensor in model.items()} for model in models]
    assert torch.equal(flat(merged(zero, negated, rule)), -out)


def test_scopes() -> None:
    """Check 8."""
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    models = [{"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([100.0, 200.0])}]
    assert flat(merged(base, models, TiesRule(keep=0.5))).tolist() == [0, 2, 100, 200]
    assert flat(merged(base, models, TiesRule(keep=0.5, threshold="exact"))).tolist() == [0, 0, 100, 200]
    exact = TiesRule(keep=0.5, threshold="exact", scope="tensor")
    assert flat(merged(base, models, exact)).tolist() == [0, 2, 0, 200]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_what_cancels_out_takes_the_majoritys_sign(place: int) -> None:
    """Check 9, at any position, and with the majority only known after that position."""
    rows = [[1.0] * 4, [1.0] * 4]
    rows[1][place] = -1.0
    assert merged(*vectors(rows), TiesRule(None, keep=1.0))["x"].tolist() == [1.0] * 4
    negative = [[-value for value in row] for row in rows]
    assert merged(*vectors(negative), TiesRule(None, keep=1.0))["x"].tolist() == [-1.0] * 4
    assert merged(*vectors(negative), TiesRule(None, keep=1.0, merge="dis-max"))["x"].tolist() == [-1.0] * 4


def test_without_a_majority_a_cancelled_sign_stays_zero() -> None:
    rows = [[1.0, 2.0, -2.0], [-1.0, 2.0, -2.0]]
    assert merged(*vectors(rows), TiesRule(None, keep=1.0))["x"].tolist() == [-1.0, 2.0, -2.0]
    assert merged(*vectors(rows), TiesRule(None, keep=1.0, merge="dis-max"))["x"].tolist() == [0.0, 2.0, -2.0]


@pytest.mark.parametrize("words", SETTINGS, ids=str)
@pytest.mark.parametrize("grid", [False, True])
def test_streaming_and_memory_give_identical_bits(words: dict[str, Any], grid: bool, tmp_path: Path) -> None:
    """Check 1, second half: any piece size, any number of shards, files or memory."""
    base, models = random_models(3, LONG)
    if grid:
        base, *models = [gridded(tensors) for tensors in (base, *models)]
    whole = merged(base, models, TiesRule(0.7, **words), chunk_bytes=1e9)
    pieces = streamed(base, models, TiesRule(0.7, **words), tmp_path, max_shard_bytes=3e5, chunk_bytes=1)
    assert equal(whole, pieces)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) == 2
    assert not torch.equal(flat(whole), flat(base))


def plain(base: Tensor, models: list[Tensor], keep: float) -> Tensor:
    """TIES as the paper writes it, on flat vectors."""
    rows = torch.stack(models) - base
    for row in rows:
        cut = row.abs().kthvalue(row.numel() - int(row.numel() * keep)).values
        row[row.abs() < cut] = 0
    signs = rows.sum(0).sign()
    signs[signs == 0] = signs.sum().sign()
    agrees = torch.where(signs > 0, rows > 0, rows < 0)
    return base + (rows * agrees).sum(0) / agrees.sum(0).clamp(min=1)


@pytest.mark.parametrize("grid", [False, True])
def test_equals_a_plain_implementation_to_the_bit(grid: bool) -> None:
    base, models = random_models(3, {"x": (BLOCK + 3,), "y": (5, 7)}, seed=4)
    if grid:
        base, *models = [gridded(tensors) for tensors in (base, *models)]
    out = merged(base, models, TiesRule(keep=0.2), chunk_bytes=1)
    assert torch.equal(flat(out), plain(flat(base), [flat(model) for model in models], 0.2))


def test_exact_threshold_keeps_exactly_so_many() -> None:
    base, models = random_models(2, LONG)
    zero = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    models = [gridded(model) for model in models]
    for keep in (0.0001, 0.25, 0.9):
        out = flat(merged(zero, models[:1], TiesRule(keep=keep, threshold="exact"), chunk_bytes=1))
        change = flat(models[0])
        assert int((out != 0).sum()) == min(int(out.numel() * keep), int((change != 0).sum()))
        assert change[out != 0].abs().min() >= change[out == 0].abs().max()


def test_mostly_zero_changes_are_not_trimmed() -> None:
    rows = [[0.0] * 9 + [5.0], [0.0] * 8 + [1.0, 0.0]]
    assert merged(*vectors(rows), TiesRule(None, keep=0.2))["x"].tolist() == [0.0] * 8 + [1.0, 5.0]


def test_a_model_that_changed_nothing_has_no_say() -> None:
    for resolve in ("normfrac", "normmass"):
        rows = [[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]]
        assert merged(*vectors(rows), TiesRule(None, keep=1.0, resolve=resolve))["x"].tolist() == [1.0, -2.0, 3.0]


def test_weights_are_those_of_a_weighted_mean() -> None:
    rows = [[1.0, -1.0], [3.0, 5.0]]
    assert merged(*vectors(rows), TiesRule(None, keep=1.0, weights=[3, 1]))["x"].tolist() == [1.5, 5.0]
    with pytest.raises(UserError, match="weights"):
        merged(*vectors(rows), TiesRule(weights=[1.0]))


def test_float64_arithmetic() -> None:
    base, models = random_models(3, LONG, seed=2)
    single = merged(base, models, TiesRule(keep=0.3))
    double = merged(base, models, TiesRule(keep=0.3), dtype=torch.float64)
    assert {tensor.dtype for tensor in double.values()} == {torch.float32}
    assert float((flat(single) - flat(double)).abs().max()) < 1e-6


def test_a_search_scales_the_stored_task_vector(tmp_path: Path) -> None:
    base, models = random_models(3, LONG)
    work = job(base, models)
    stored = work.replaced([store_task_vector(work, TiesRule(None), tmp_path / "vector")])
    for scale in (0.3, 1.0, 1.7):
        assert equal(merge_in_memory(stored, Scaled(scale)), merged(base, models, TiesRule(scale)))


def test_values_that_are_no_numbers_are_named() -> None:
    base, models = random_models(2)
    models[1]["conv"][0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="conv") as raised:
        merged(base, models, TiesRule())
    assert raised.value.where == "model1"
    merged(base, models, TiesRule(), exclude=["conv"])


@pytest.mark.parametrize("keep", [0.0, 20.0, -0.1])
def test_keep_is_a_share(keep: float) -> None:
    with pytest.raises(UserError, match="no share"):
        TiesRule(keep=keep)


def test_dis_max_without_election_is_refused() -> None:
    with pytest.raises(UserError, match="elects none"):
        TiesRule(resolve="none", merge="dis-max")


@pytest.mark.parametrize(
    ("merge", "resolve", "said"),
    [("sum", "mass", True), ("mean", "normfrac", True), ("sum", "none", False), ("dis-sum", "mass", False)],
)
def test_an_election_that_does_nothing_is_said(
    merge: Any, resolve: Any, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(Merging, "prepare", lambda self, context: None)
    method = Ties(None, None, merge=merge, resolve=resolve, models=["a", "b"])
    method.prepare(Context(seed=0, folder=tmp_path, batches=lambda split, size: iter(()), log=lines.append))
    assert [f"method.resolve={resolve} does nothing" in line for line in lines] == [True] * said
