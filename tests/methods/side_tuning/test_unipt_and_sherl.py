"""What UniPT and SHERL share: every family of backbones, what is frozen, what is kept, order in time, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.methods.side_tuning import models
from tests.methods.side_tuning.parallel_models import EXTRA, NAMES, batch, tracked, tuned
from transfer_run.errors import UserError
from transfer_run.methods.side_tuning.parallel.tap_tuning import PARTS, TapTuning, in_autocast_dtype, recomputed
from transfer_run.methods.side_tuning.sherl import SHERL
from transfer_run.methods.side_tuning.unipt import UniPT

BOTH = pytest.mark.parametrize("kind", [UniPT, SHERL])
BOUND = {"atol": 1e-9, "rtol": 1e-9}
VARIANTS = [*((name, "auto") for name in NAMES), ("bert", "joint"), ("vit", "joint"), ("clip-image", "tokens"),
            ("clip-text", "tokens")]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_the_side_network_alone_is_trained_and_both_modes_agree(kind: type[TapTuning], name: str, variant: str) -> None:
    """Outputs and gradients to 1e-9; no weight of the backbone has a gradient, every one beside it does."""
    found = {}
    for mode in ("efficient", "official"):
        method = tuned(kind, name, variant=variant, memory_mode=mode)
        given = batch(name, method)
        found[mode] = method(given), models.gradients(method, given)
        assert all(p.grad is None and not p.requires_grad for p in method.backbone.model.parameters())
        trained = {n for n, p in method.named_parameters() if p.requires_grad}
        assert set(found[mode][1]) == trained
        still = {n for n, g in found[mode][1].items() if not g.any()}
        assert all(n.endswith(("gate.bias", "score.bias")) for n in still), still
    torch.testing.assert_close(found["efficient"][0], found["official"][0], **BOUND)
    for key, gradient in found["official"][1].items():
        torch.testing.assert_close(found["efficient"][1][key], gradient, **BOUND, msg=lambda m, n=key: f"{n}: {m}")


@BOTH
@pytest.mark.parametrize("name", ["bert", "t5", "vit", "cnn", "clip-text"])
def test_taps_carry_no_gradient_and_are_handed_on(kind: type[TapTuning], name: str) -> None:
    """The state that a tap came from is the tap: nothing is copied, and an unread tap does not live on."""
    method = tuned(kind, name)
    stack = method.backbone.stacks[0]
    state = method.open(batch(name, method), stack)
    wanted = {1, method.backbone.depth(stack)}
    taps, last = method.read(state, wanted)
    assert set(taps) == wanted
    assert not any(tap.requires_grad for tap in taps.values())
    assert taps[last.index] is last.hidden
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert in_autocast_dtype(torch.ones(2)).dtype == torch.bfloat16
        assert in_autocast_dtype(taps[1]).dtype == torch.float64


@BOTH
@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "vit", "clip-image", "cnn"])
def test_efficient_keeps_less_for_backward(kind: type[TapTuning], name: str) -> None:
    """Measured by the tracker: bytes alive between forward and backward, and at the peak of the step."""
    taken = {}
    for mode in ("efficient", "official"):
        method = tuned(kind, name, memory_mode=mode)
        taken[mode] = tracked(method, batch(name, method, rows=16))
    assert taken["efficient"]["kept"] < taken["official"]["kept"], taken
    assert taken["efficient"]["peak"] <= taken["official"]["peak"], taken


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_unipt_keeps_the_taps_and_little_else(name: str) -> None:
    """Every tap once, no second copy; beside them what pooling, head and loss keep."""
    method = tuned(UniPT, name)
    given = batch(name, method, rows=32)
    state = method.open(given, method.backbone.stacks[0])
    tap = state.hidden.numel() * state.hidden.element_size()
    taps = (method.backbone.depth(state.stack) + 1) * tap
    assert taps <= tracked(method, given)["kept"] <= taps + 1.5 * tap


def test_recomputed_by_rows() -> None:
    """The same numbers and gradients; the function runs on a part at a time, and again in backward."""
    calls: list[int] = []

    def double(x: Tensor, scale: Tensor, none: None, whole: Tensor) -> Tensor:
        calls.append(len(x))
        return (x * scale).exp() + whole.sum()

    x, scale = (torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    whole = torch.randn(2, requires_grad=True, dtype=torch.float64)
    loss = recomputed(True, double, x, scale, None, whole).sum()
    assert calls == [2, 2, 1, 1]
    lean = torch.autograd.grad(loss, (x, scale, whole))
    assert len(calls) == 2 * PARTS
    plain = torch.autograd.grad(recomputed(False, double, x, scale, None, whole).sum(), (x, scale, whole))
    for ours, theirs in zip(lean, plain, strict=True):
        torch.testing.assert_close(ours, theirs)
    calls.clear()
    with torch.no_grad():
        recomputed(True, double, x, scale, None, whole)
    assert calls == [6]


@BOTH
def test_batch_norms_of_the_side_network_see_each_batch_once(kind: type[TapTuning]) -> None:
    method = tuned(kind, "cnn").train()
    method.loss(batch("cnn", method)).backward()
    counts = {int(b) for n, b in method.named_buffers() if n.startswith("sides.") and n.endswith("tracked")}
    assert counts == {1}


# ---- language
@BOTH
@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_no_position_sees_a_later_one(kind: type[TapTuning], name: str) -> None:
    method = tuned(kind, name)
    given = batch(name, method, rows=2)
    key = "decoder_input_ids" if name == "t5" else "input_ids"
    if name == "t5":
        given[key] = method.backbone.shift_right(given["labels"])
    before = method(given)
    cut = given[key].shape[1] // 2
    changed = {**given, key: given[key].clone()}
    changed[key][:, cut:] = (changed[key][:, cut:] + 5) % models.VOCABULARY
    after = method(changed)
    torch.testing.assert_close(after[:, :cut], before[:, :cut], **BOUND)
    assert not torch.allclose(after[:, cut:], before[:, cut:])


@BOTH
@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_generation_with_and_without_caches(kind: type[TapTuning], name: str) -> None:
    method = tuned(kind, name)
    method.backbone.model.config.eos_token_id = -1
    given = batch(name, method, rows=3)
    texts = [method.generate(given, 5, use_cache) for use_cache in (True, False)]
    assert torch.equal(*texts)
    assert texts[0].shape == (3, 5)


@BOTH
@pytest.mark.parametrize("name", ["bert", "t5", "clip-text"])
def test_padding_changes_nothing(kind: type[TapTuning], name: str) -> None:
    """Other tokens at masked places leave the outputs as they are."""
    method = tuned(kind, name)
    given = batch(name, method, rows=4)
    other = {**given, "input_ids": given["input_ids"].where(given["attention_mask"].bool(), 5)}
    assert not torch.equal(other["input_ids"], given["input_ids"])
    torch.testing.assert_close(method(other), method(given), **BOUND)


# ---- refusals
@BOTH
@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("bert", {"variant": "cnn"}, "reads the stages of a CNN"),
        ("vit", {"variant": "pooled"}, "ends in one global vector"),
        ("bert", {"variant": "encdec"}, "encoder and a decoder"),
        ("t5", {"variant": "tokens"}, "one stack of tokens"),
        ("cnn", {"variant": "joint"}, "one stack of tokens"),
        ("t5-head", {"variant": "encdec"}, "a task of classification"),
        ("bert", {"variant": "token"}, "no variant 'token'"),
        ("bert", {"reduction": 64}, "leaves nothing"),
    ],
)
def test_what_is_not_possible_is_refused(
    kind: type[TapTuning], name: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        tuned(kind, name, **settings)
    assert error.value.where


def test_windows_that_do_not_fit_are_refused() -> None:
    for kind in (UniPT, SHERL):
        method = tuned(kind, "cnn")
        with pytest.raises(UserError, match="do not lie in windows"):
            method(batch("cnn", method, size=72))


@BOTH
@pytest.mark.parametrize("name", ["bert", "t5", "vit", "cnn", "clip-image"])
def test_it_builds_on_meta_with_the_same_parameters(kind: type[TapTuning], name: str) -> None:
    from tests.methods.side_tuning import parallel_models
    from transfer_run.backbones.load import build_backbone

    config = EXTRA.get(name) or models.BACKBONES[name]
    model = build_backbone({**config, "name": name, "weights": "random"}, weights=False, device="meta")
    meta = kind(model, parallel_models.task(name, model))
    assert all(p.is_meta for p in meta.parameters())
    real = tuned(kind, name)
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


@BOTH
def test_bfloat16(kind: type[TapTuning]) -> None:
    """Under autocast, and over a backbone that is stored in bfloat16: finite, near float32, one narrow copy a tap."""
    method = tuned(kind, "bert").float()
    given = batch("bert", method, rows=16)
    exact = method(given)
    wide = tracked(method, given)["kept"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = method(given)
        narrow = tracked(method, given)["kept"]
    torch.testing.assert_close(near.float(), exact, atol=0.3, rtol=0.3)
    assert narrow < wide
    method.backbone.model.bfloat16()
    method.backbone.head = nn.Identity()
    out = method(given)
    out.float().square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None for p in method.sides.parameters())
