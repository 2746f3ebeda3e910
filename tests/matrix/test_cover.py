"""Every method where two choices meet: it trains what it says and nothing else, starts where it says, reloads."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tests.matrix.cover import PRECISIONS, REFUSED, Case, cover, methods, node, pairs, possible, refusals
from transfer_run.errors import UserError
from transfer_run.methods.base import Method

CASES = cover()
PLACES = list({(case.method, case.backbone): case for case in CASES if case.form != "retrieval"}.values())
TUNING = [case for case in PLACES if node(case.method)["about"]["family"] == "tuning" and case.method != "pretrain"]
STARTS_ELSEWHERE = {  # not at the pretrained function
    "adapter", "prefix_tuning", "mam_adapter", "prompt_tuning", "peft/p_tuning", "peft/c3a", "peft/vblora",
    "peft/unilora",
}  # fmt: skip
ROUNDS = {"peft/hra", "peft/deft", "peft/psoft"}  # at it, but for rounding


def marked(cases: list[Case]) -> list[pytest.param]:  # type: ignore[valid-type]
    return [pytest.param(case, id=str(case), marks=pytest.mark.xdist_group(case.method)) for case in cases]


def test_every_possible_pair_occurs() -> None:
    wanted = {pair for method in methods() for case in possible(method) for pair in pairs(case)}
    assert {pair for case in CASES for pair in pairs(case)} == wanted
    assert len(CASES) < sum(len(possible(method)) for method in methods()) / 3


@pytest.mark.parametrize("case", marked(CASES))
def test_it_trains_what_it_says_and_reloads(case: Case) -> None:
    tuned, data = case.build(), case.batch()
    start = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    buffers = {name: b.clone() for name, b in tuned.backbone.model.named_buffers()}
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    tuned.start_fit(4)
    optimizer = torch.optim.Adam(tuned.parameter_groups(), lr=1e-3)
    touched: set[str] = set()
    for step in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if case.precision == PRECISIONS[1] else contextlib.nullcontext():
            loss = tuned.train().training_loss(data)
        assert loss.isfinite()
        loss.backward()
        touched |= {n for n in trained if tuned.get_parameter(n).grad is not None and tuned.get_parameter(n).grad.any()}
        assert all(p.grad is None for n, p in tuned.named_parameters() if n not in trained)
        optimizer.step()
        tuned.after_step(step + 1)
    assert {name for name in trained - touched if not idle(case, name)} == set(), "trained, but without a gradient"
    assert all(torch.equal(start[n], p) for n, p in tuned.named_parameters() if n not in trained)
    assert all(p.isfinite().all() for p in tuned.parameters())
    frozen_norms_stay(tuned, buffers)
    reloads(case, tuned)


def idle(case: Case, name: str) -> bool:
    """Is this trained tensor one that the case's task does not reach? What stands here is known, not wanted."""
    unread = case.form in ("classification", "regression")
    if unread and case.backbone == "t5" and ("decoder" in name or "lm_head" in name):
        return True  # a T5 under a head (dataset.answers=head): methods still attach to the decoder that nothing runs
    if name.endswith(".k.bias") and case.precision == PRECISIONS[1]:
        return True  # it moves all scores of a query alike, which softmax does not see: at most rounding
    if case.method == "pretrain" and unread and "lm_head" in name:
        return True  # the whole model is made and shipped, its language head too
    return case.method in ("sherl", "parallel_adapter")  # scores and units that a ReLU closes for all four rows


def frozen_norms_stay(tuned: Method, before: dict[str, torch.Tensor]) -> None:
    """Running statistics move exactly where the norm itself is trained, and are then shipped."""
    moved = {n for n, b in tuned.backbone.model.named_buffers() if n in before and not torch.equal(b, before[n])}
    for path, norm in tuned.backbone.model.named_modules():
        if isinstance(norm, _BatchNorm):
            assert (f"{path}.running_mean" in moved) == norm.weight.requires_grad, path
    assert {f"backbone.model.{name}" for name in moved} <= set(tuned.shipped())


def reloads(case: Case, tuned: Method) -> None:
    """What is shipped makes a freshly built method the same function."""
    tuned.settle()
    data = case.batch()
    before = tuned.eval()(data)
    again = case.build(draw=2)
    again.settle()
    wanted, tensors = again.shipped(), tuned.shipped()
    assert wanted.keys() == tensors.keys()
    with torch.no_grad():
        for tensor, value in zip(wanted.values(), tensors.values(), strict=True):
            tensor.copy_(value)
    torch.testing.assert_close(again.eval()(data), before, rtol=0, atol=0)


@pytest.mark.parametrize("case", marked(TUNING))
def test_tuning_starts_at_the_pretrained_function(case: Case) -> None:
    """Bit for bit, but for methods that are known to start elsewhere, and those do."""
    tuned = case.build().eval()
    plain = Case("full", case.backbone, case.form, case.precision, None).build().eval()
    plain.backbone.head.load_state_dict(tuned.backbone.head.state_dict())
    with torch.no_grad():
        difference = (tuned(case.batch()) - plain(case.batch())).abs().max()
    untied = case.method == "linear_probe" and case.form in ("text_to_text", "language_modeling")
    bound = 1e-5 if case.method in ROUNDS or untied else 0.0  # the language head's factor is folded into its weights
    assert (difference > 0) if case.method in STARTS_ELSEWHERE else (difference <= bound)


@pytest.mark.parametrize("case", marked(PLACES))
def test_it_can_be_built_on_meta(case: Case) -> None:
    tuned = case.build(device="meta")
    assert all(p.is_meta for p in tuned.parameters())
    real = {n: (p.shape, p.requires_grad) for n, p in case.build().named_parameters()}
    assert {n: (p.shape, p.requires_grad) for n, p in tuned.named_parameters()} == real


@pytest.mark.parametrize("case", refusals(), ids=str)
def test_what_is_refused_is_refused_in_words(case: Case) -> None:
    reason = REFUSED.get((case.method, case.backbone)) or REFUSED[case.method, case.form]
    with pytest.raises(UserError, match=reason):
        case.build()


@pytest.mark.parametrize("method", ["lora", "ia3", "adapter", "parallel_adapter", "prefix_tuning", "mam_adapter"])
def test_a_copy_is_independent(method: str) -> None:
    """Hooks and prefixes of a copy are its own."""
    case = Case(method, "bert", "classification", PRECISIONS[0], None)
    tuned, data = case.build().eval(), case.batch()
    before = tuned(data)
    twin = copy.deepcopy(tuned)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    torch.testing.assert_close(tuned(data), before, rtol=0, atol=0)
    assert (twin(data) - before).abs().max() > 1e-4
