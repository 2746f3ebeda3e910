"""LST's options, errors, memory and precision."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from tests.methods.side_tuning.models import BACKBONES, backbone, batch, gradients, kept_bytes, lst, task
from transfer_run.backbones.base import Backbone, State
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.memory.attention import attention
from transfer_run.memory.fake import AnswersNo, fake_mode, make_fake
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method
from transfer_run.methods.side_tuning.lst import LST

ROOT = Path(__file__).parents[3]


def test_the_config_is_the_signature() -> None:
    """Every key of the method's config is a keyword argument with the same default."""
    config = yaml.safe_load((ROOT / "configs/method/lst.yaml").read_text())["method"]
    arguments = {
        n: p.default for n, p in inspect.signature(LST.__init__).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    assert {n: v for n, v in config.items() if n not in ("name", "about")} == arguments
    model = backbone("t5")
    assert isinstance(build_method(config, model, task(model)), LST)


# ---- options
def test_gate_one_is_a_gate_that_is_open() -> None:
    """Without ladders the outputs are those of learned gates at g = 1, and no map is built."""
    model = backbone("t5")
    one, learned = lst(model, gate="one"), lst(model)
    weights = learned.state_dict()
    one.load_state_dict({n: t for n, t in weights.items() if n in one.state_dict()})
    with torch.no_grad():
        for ladder in learned.ladders.values():
            ladder.mix.alpha.fill_(100)
    assert torch.equal(one(batch(model)), learned(batch(model)))
    assert not any(".maps." in n or "alpha" in n for n, _ in one.named_parameters())


@pytest.mark.parametrize("gate", ["none", "schedule-linear", "schedule-hyperbolic"])
def test_other_gates_by_hand(gate: str) -> None:
    """One kept layer: s + down(tap), or the epoch's value between them."""
    model = backbone("bert")
    method = lst(model, gate=gate, side_layers={"encoder": [1]})
    method.start_epoch(2, 5)
    share = {"none": (1.0, 1.0), "schedule-linear": (0.5, 0.5), "schedule-hyperbolic": (1 / 3, 2 / 3)}[gate]
    given, ladder = batch(model), method.ladders["encoder"]
    state = model.embed(given)
    tap = model.run(state, 2).hidden
    seen: list[Tensor] = []
    ladder.steps.blocks["1"].register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    method(given)
    torch.testing.assert_close(seen[0], share[0] * ladder.first(state.hidden) + share[1] * ladder.maps["1"](tap))
    stored = method.shipped()
    assert ("ladders.encoder.mix.value" in stored) is gate.startswith("schedule")


def test_fusing_after_the_block() -> None:
    model = backbone("bert")
    method, given = lst(model, fuse_after=True, side_layers={"encoder": [0]}), batch(model)
    ladder, outputs = method.ladders["encoder"], []
    ladder.steps.blocks["0"].register_forward_hook(lambda m, i, o: outputs.append((i[0], o)))
    side, state = method.climb(given, "encoder")
    (entered, left), gate = outputs[0], ladder.mix.gate(0)
    assert torch.equal(entered, ladder.first(model.embed(given).hidden))
    torch.testing.assert_close(side.hidden, gate * left + (1 - gate) * ladder.maps["0"](state.hidden))


def test_merging_the_backbones_last_state() -> None:
    model = backbone("t5")
    method, given = lst(model, merge_last=True), batch(model)
    with torch.no_grad():
        method.output.alpha.fill_(-100)  # g = 0: the backbone alone
    torch.testing.assert_close(method(given), Method(model, task(model)).eval()(given))
    with torch.no_grad():
        method.output.alpha.fill_(100)
    alone = lst(model)
    alone.load_state_dict({n: t for n, t in method.state_dict().items() if n != "output.alpha"})
    assert torch.equal(method(given), alone(given))


@pytest.mark.parametrize("name", ["t5", "gpt2"])
@pytest.mark.parametrize("kept", [None, [0]])
def test_distillation(name: str, kept: list[int] | None) -> None:
    """Cross-entropy plus lambda times KL(backbone at T = 0.1 || side), summed over positions, divided by the batch."""
    model = backbone(name)
    method = lst(model, lambda_distill=0.3, side_layers={"encoder": kept, "decoder": kept})
    given = batch(model)
    logits, teacher = method(given), Method(model, task(model)).eval()(given).detach()
    target = (teacher / 0.1).softmax(-1)
    divergence = (target * ((teacher / 0.1).log_softmax(-1) - logits.log_softmax(-1))).sum() / len(logits)
    expected = method.task_loss(logits, given["labels"]) + 0.3 * divergence
    torch.testing.assert_close(method.loss(given), expected, atol=1e-4, rtol=1e-5)


def test_dropout() -> None:
    """In training the backbone's dropout is active unless it is switched off; the side network's always is."""
    model = backbone("t5", dropout_rate=0.5)
    given = batch(model)
    noisy, steady = (lst(model, backbone_dropout=on).train() for on in (True, False))

    def taps(method: LST) -> Tensor:
        method.train()
        return method.climb(given, "encoder")[1].hidden

    assert not torch.equal(taps(noisy), taps(noisy))
    assert torch.equal(taps(steady), taps(steady))
    assert not torch.equal(steady(given), steady(given))
    assert torch.equal(steady.eval()(given), steady(given))


@pytest.mark.parametrize("on", [True, False])
def test_the_side_draws_its_own_dropout_of_the_embedding(on: bool) -> None:
    """s_0 and b_0 are two draws of the same embedding: their zeros differ, half of each is zero."""
    model = backbone("t5", dropout_rate=0.5)
    method, given = lst(model, backbone_dropout=on).train(), batch(model)
    entered: dict[str, Tensor] = {}
    method.ladders["encoder"].first.register_forward_pre_hook(lambda m, i: entered.__setitem__("side", i[0]))
    model.blocks("encoder")[0].register_forward_pre_hook(lambda m, i: entered.__setitem__("backbone", i[0]))
    method(given)
    zeros = {name: (hidden == 0).float() for name, hidden in entered.items()}
    assert 0.4 < zeros["side"].mean() < 0.6
    assert (zeros["backbone"].mean() > 0.4) if on else (zeros["backbone"].mean() == 0)
    assert not torch.equal(zeros["side"], zeros["backbone"])
    embedded = model.model.shared(given["input_ids"])
    kept = entered["side"] != 0
    torch.testing.assert_close(entered["side"][kept], 2 * embedded[kept])


# ---- errors
@pytest.mark.parametrize(
    ("name", "settings", "message", "nearest"),
    [
        ("t5", {"reduction_factor": 9}, "d_kv is 8", ["8", "7", "6"]),
        ("bert", {"reduction_factor": 3}, "4 heads must divide", ["2", "4", "1"]),
        ("llama", {"reduction_factor": 8}, "even number", ["4", "3", "2"]),
        ("vit", {"reduction_factor": 16}, "4 heads must divide", ["8", "7", "4"]),
        ("t5", {"side_layers": {"encoder": [1, 7]}}, "layers 0 to 3", []),
        ("t5", {"side_layers": {"decoder": []}}, "layers 0 to 2", []),
        ("bert", {"lambda_distill": 0.1}, "a new head lacks", []),
    ],
)
def test_what_cannot_be_is_refused(name: str, settings: dict[str, Any], message: str, nearest: list[str]) -> None:
    model = backbone(name)
    with pytest.raises(UserError, match=message) as caught:
        LST(model, task(model), **{"init": "random"} | settings)
    assert sorted(caught.value.nearest) == sorted(nearest)
    assert caught.value.remedy


# ---- memory
def saved(model: Backbone, mode: str, *, checkpointing: bool = False, **settings: Any) -> int:
    model.activation_checkpointing = checkpointing
    method = lst(model, memory_mode=mode, **settings).train()
    return kept_bytes(method, batch(model, rows=4, length=48))


@pytest.mark.parametrize("name", ["t5", "bert", "llama"])
def test_efficient_keeps_less(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes kept for backward with a GPU's attention kernels: official > efficient > recomputed side blocks > taps."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    model = backbone(name)
    official, efficient = saved(model, "official"), saved(model, "efficient")
    recomputed = saved(model, "efficient", checkpointing=True)
    assert official > 1.2 * efficient
    assert efficient > 1.8 * recomputed
    stack = model.stacks[0]
    assert recomputed > 4 * 48 * model.width(stack) * (model.depth(stack) + 1) * 4


def test_one_position_bias_for_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With padding the bias holds the mask too, (B, H, S, S); a further block keeps no second one."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    rows, heads, length = 4, 4, 128
    sizes = []
    for kept in ([0], [0, 1]):
        model = backbone("t5")
        method = lst(model, side_layers={"encoder": kept, "decoder": [0]})
        sizes.append(kept_bytes(method, batch(model, rows=rows, length=length)))
    assert sizes[1] - sizes[0] < rows * heads * length * length * 4


def test_nothing_of_the_backbone_is_kept_but_the_taps() -> None:
    """With one layer kept, a deeper backbone keeps not a byte more; every further kept layer keeps its tap."""
    one = {"side_layers": {"encoder": [0], "decoder": [0]}}
    sizes = [saved(backbone("t5", num_layers=depth), "efficient", **one) for depth in (2, 6)]
    assert sizes[0] == sizes[1]


def test_caches_in_training_change_nothing() -> None:
    """`trainer.use_cache_in_training` keeps both decoders' keys and values, also where side blocks are recomputed."""
    model = backbone("t5", dropout_rate=0.0)
    method, given = lst(model).train(), batch(model)
    expected = gradients(method, given)
    for model.activation_checkpointing in (False, True):
        method.zero_grad()
        method.training_loss(given, use_cache=True).backward()
        for name, p in method.named_parameters():
            if p.requires_grad:
                torch.testing.assert_close(p.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_order_of_the_taps_matters() -> None:
    """Taps permuted together with their maps are another ladder (UniPT's parallel layers do not mind: its check 7)."""
    model = backbone("bert")
    ladder = lst(model).ladders["encoder"]
    zero, *taps = torch.randn(4, 2, 5, 32).unbind()

    def climbed(taps: list[Tensor]) -> Tensor:
        side = ladder.steps.begin(State(ladder.first(zero), "encoder"))
        for index, tap in enumerate(taps):
            side = ladder.rung(index, side, tap)
        return side.hidden

    plain, order = climbed(taps), [2, 0, 1]
    ladder.maps = nn.ModuleDict({str(place): ladder.maps[str(index)] for place, index in enumerate(order)})
    assert not torch.allclose(climbed([taps[index] for index in order]), plain, atol=1e-3)


def test_the_backbone_stops_after_the_last_tap() -> None:
    """What nothing reads is not run; the encoder runs to its end, the decoder's memory."""
    model = backbone("t5")
    ran: list[str] = []
    for stack in model.stacks:
        for index, block in enumerate(model.blocks(stack)):
            block.register_forward_hook(lambda m, i, o, n=f"{stack}.{index}": ran.append(n))
    lst(model, side_layers={"encoder": [1], "decoder": [0]})(batch(model))
    assert ran == ["encoder.0", "encoder.1", "encoder.2", "encoder.3", "decoder.0"]
    ran.clear()
    lst(model, side_layers={"encoder": [1], "decoder": [0]}, memory_mode="official")(batch(model))
    assert ran == [f"encoder.{i}" for i in range(4)] + [f"decoder.{i}" for i in range(3)]


@pytest.mark.parametrize("name", BACKBONES)
def test_planned_from_shapes_alone(name: str) -> None:
    """Built on the meta device, a training step runs on fake tensors: nothing asks a tensor for its value."""
    config = BACKBONES[name] | {"name": name}
    model = build_backbone(config, device="meta")
    method = LST(model, task(model), reduction_factor=2)
    assert all(p.is_meta for p in method.parameters())
    mode = fake_mode()
    make_fake(method, mode)
    real = backbone(name)
    with mode, AnswersNo():
        given = {n: torch.empty(t.shape, dtype=t.dtype) for n, t in batch(real).items()}
        loss = method.loss(given)
        loss.backward()
    assert loss.shape == ()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


# ---- precision
@pytest.mark.parametrize("name", ["t5", "bert", "llama", "vit"])
def test_bfloat16_autocast(name: str) -> None:
    model = backbone(name)
    method, given = lst(model), batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(given)
    loss.backward()
    assert loss.item() == pytest.approx(method.loss(given).item(), rel=0.05)
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32
               for p in method.parameters() if p.requires_grad)  # fmt: skip


def test_a_backbone_stored_in_bfloat16() -> None:
    """The frozen part may be narrower than the side network; the side network's gradients stay float32."""
    model = backbone("t5").bfloat16()
    method, given = lst(model).eval(), batch(model)
    assert method.output.up.weight.dtype == torch.float32
    grads = gradients(method, given)
    assert all(g.dtype == torch.float32 for g in grads.values())
    model.float()
    torch.testing.assert_close(method(given), lst(model)(given), atol=1e-5, rtol=1e-5)
