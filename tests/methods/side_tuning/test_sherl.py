"""SHERL: the checks of its equations, the late route on the backbones, and its counts at the paper's sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.methods.side_tuning import models
from tests.methods.side_tuning.parallel_models import backbone, batch, task, tracked, tuned
from transfer_run.errors import UserError
from transfer_run.methods.side_tuning.parallel.early_route import ConvSensing, PooledSensing, Sensing, Votes, redundancy
from transfer_run.methods.side_tuning.sherl import FORMS, SHERL
from transfer_run.methods.side_tuning.unipt import UniPT
from transfer_run.methods.tuning.full import Full

DEEP = {"num_hidden_layers": 6}


def sensing(variant: str = "tokens", taps: int = 4, width: int = 10, **form: Any) -> Sensing:
    torch.manual_seed(0)
    made = Sensing(width, 6, range(taps), FORMS[variant] | form).double().eval()
    for name, p in made.named_parameters():
        nn.init.normal_(p, std=0.4)
        if "score.bias" in name:
            nn.init.constant_(p, 2.0)
    return made


def hidden(count: int, rows: int = 3, tokens: int = 5, width: int = 10, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, tokens, width, generator=draw, dtype=torch.float64) for _ in range(count)]


# ---- equations
@pytest.mark.parametrize("variant", ["tokens", "encdec"])
def test_gate(variant: str) -> None:
    """g = 0: V does not depend on the last state; g large: V = up(z) + last."""
    net, (last, *taps) = sensing(variant), hidden(5)
    last.requires_grad_(True)
    nn.init.zeros_(net.gate.g)
    closed = net(taps, last)
    assert not torch.autograd.grad(closed.sum(), last)[0].any()
    slope = torch.autograd.grad(net(taps, last).sum(), net.gate.g)[0]
    torch.testing.assert_close(slope, 10 * last.sum().view(1))  # ten times faster than its rate suggests
    nn.init.constant_(net.gate.g, 100.0)
    torch.testing.assert_close(net(taps, last), closed + last)


def test_redundancy() -> None:
    """n copies: n for all; orthonormal features: 1; a feature and its negative: 1 each; an exact zero: 1."""
    one = torch.randn(1, 1, 6, dtype=torch.float64)
    torch.testing.assert_close(redundancy(one.expand(2, 4, 6), 1e-8), torch.full((2, 4), 4.0, dtype=torch.float64))
    apart = torch.eye(4, 6, dtype=torch.float64)
    torch.testing.assert_close(redundancy(apart, 1e-12), torch.ones(4, dtype=torch.float64))
    opposite = torch.cat([one, -one], 1)
    torch.testing.assert_close(redundancy(opposite, 1e-12), torch.ones(1, 2, dtype=torch.float64))
    assert redundancy(torch.zeros(1, 3, 6), 1e-8).tolist() == [[1.0, 1.0, 1.0]]


def test_copies_share_one_vote() -> None:
    votes = Votes(6, eps=1e-8).double()
    nn.init.constant_(votes.score.bias, 5.0)
    one, guide = (torch.rand(2, 6, dtype=torch.float64) for _ in range(2))
    weights = votes.weights(one.unsqueeze(1).expand(2, 4, 6), guide)
    torch.testing.assert_close(weights, torch.full((2, 4), 0.25, dtype=torch.float64))


def test_toy() -> None:
    """e = (1,1), E = (1,0), (1,0), (0,1), w = (1,1), b = 0: p = (1/4, 1/4, 1/2), z = (3/2, 3/2)."""
    votes = Votes(2, eps=1e-12).double()
    nn.init.ones_(votes.score.weight)
    nn.init.zeros_(votes.score.bias)
    guide = torch.ones(1, 2, dtype=torch.float64)
    features = [torch.tensor([value], dtype=torch.float64) for value in ([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])]
    weights = votes.weights(torch.stack(features, 1), guide)
    assert weights.flatten().tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert votes(features, guide).flatten().tolist() == pytest.approx([1.5, 1.5])


@pytest.mark.parametrize("bias", [-9.0, 9.0])
def test_dead_features_and_negative_scores_give_no_nan(bias: float) -> None:
    """All scores cut at zero: z = e exactly. Features that are exactly zero: finite outputs and gradients."""
    votes = Votes(4, eps=1e-6).double()
    nn.init.constant_(votes.score.bias, bias)
    features = [torch.zeros(2, 4, dtype=torch.float64, requires_grad=True), torch.rand(2, 4, dtype=torch.float64) * 0.1]
    guide = torch.rand(2, 4, dtype=torch.float64)
    z = votes(features, guide)
    if bias < 0:
        assert torch.equal(z, guide)
    z.sum().backward()
    assert z.isfinite().all()
    assert all(p.grad.isfinite().all() for p in (features[0], votes.score.weight))  # type: ignore[union-attr]


@pytest.mark.parametrize("variant", ["tokens", "encdec"])
def test_tokens_are_alone(variant: str) -> None:
    """Permuted tokens permute V; another token t of the taps changes V at t only."""
    net, (last, *taps) = sensing(variant), hidden(5)
    nn.init.constant_(net.gate.g, 0.05)
    plain, order = net(taps, last), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(net([t[:, order] for t in taps], last[:, order]), plain[:, order])
    for tap in taps:
        tap[1, 2] += 1.0
    changed = (net(taps, last) - plain).abs().amax(-1) > 1e-9
    assert changed.nonzero().tolist() == [[1, 2]]


def test_shallow_taps_are_exchangeable_and_the_guide_is_not() -> None:
    net, (last, *taps) = sensing(), hidden(5)

    def permuted(order: list[int]) -> Tensor:
        turned = sensing()
        turned.load_state_dict(net.state_dict())
        turned.downs = nn.ModuleDict({str(place): net.downs[str(index)] for place, index in enumerate(order)})
        return turned([taps[index] for index in order], last)

    torch.testing.assert_close(permuted([2, 0, 1, 3]), net(taps, last))
    assert not torch.allclose(permuted([3, 1, 2, 0]), net(taps, last))


# ---- the late route
def test_only_the_late_block_is_in_the_graph() -> None:
    """Outputs of the early blocks require no gradient, the last one's does; every side parameter has one."""
    method = tuned(SHERL, "bert")
    seen: list[bool] = []
    for block in method.backbone.blocks("encoder"):
        block.register_forward_hook(lambda m, i, o: seen.append((o if isinstance(o, Tensor) else o[0]).requires_grad))
    method.loss(batch("bert", method)).backward()
    assert seen == [False, False, True]
    assert all(p.grad is not None for p in method.sides.parameters())
    assert all(p.grad is None for p in method.backbone.model.parameters())


def test_no_late_block_is_a_side_network_behind_the_backbone() -> None:
    method = tuned(SHERL, "bert", late_blocks=0)
    seen: list[bool] = []
    for block in method.backbone.blocks("encoder"):
        block.register_forward_hook(lambda m, i, o: seen.append((o if isinstance(o, Tensor) else o[0]).requires_grad))
    given = batch("bert", method)
    method.loss(given)
    assert seen == [False] * 3
    taps, state = method.early(given, "encoder")
    assert len(taps) == 4
    pooled = method.backbone.pool(method.sides["encoder"](taps, state.hidden), state)
    torch.testing.assert_close(method.features(given), pooled)


def test_late_blocks_are_limited() -> None:
    assert tuned(SHERL, "bert", late_blocks=2).taps == {"encoder": [0, 1]}
    with pytest.raises(UserError, match="at most 2"):
        tuned(SHERL, "bert", late_blocks=3)
    with pytest.raises(UserError, match="leave 1 tap before"):
        tuned(SHERL, "bert", side_layers={"encoder": [2], "decoder": None})
    with pytest.raises(UserError, match=r"offers 0 to 2.*names \[3\]"):
        tuned(SHERL, "bert", side_layers={"encoder": [3], "decoder": None})


def test_memory_grows_with_the_late_blocks() -> None:
    """The same step in bytes: each late block adds the same, K = 1 lies between K = 0 and a full backward."""
    kept = []
    for late in range(4):
        method = tuned(
            SHERL, "bert", architecture=DEEP, late_blocks=late, side_layers={"encoder": [0, 1], "decoder": None}
        )
        given = batch("bert", method, rows=16)
        kept.append(tracked(method, given))
    steps = [after["kept"] - before["kept"] for before, after in pairwise(kept[1:])]
    assert steps[0] > 0
    assert steps == pytest.approx([steps[0]] * len(steps), rel=0.02)
    assert kept[0]["peak"] < kept[1]["peak"] < kept[2]["peak"] < kept[3]["peak"]
    model = backbone("bert", **DEEP)
    full = Full(model, task("bert", model)).double().eval()
    assert kept[1]["kept"] < tracked(full, given)["kept"]  # type: ignore[arg-type]
    none = tuned(UniPT, "bert", architecture=DEEP)
    assert tracked(none, given)["kept"] < kept[3]["kept"]


def test_t5_decoder_blocks_read_the_memory_that_is_theirs() -> None:
    """Early decoder blocks read the ordinary encoder output, the late one the side memory."""
    method = tuned(SHERL, "t5")
    seen: list[Tensor] = []
    for block in method.backbone.blocks("decoder"):
        block.layer[1].EncDecAttention.register_forward_hook(
            lambda m, args, kwargs, out: seen.append(kwargs["key_value_states"]), with_kwargs=True
        )
    given = batch("t5", method)
    given["decoder_input_ids"] = method.backbone.shift_right(given["labels"])
    memory = method.encode(given)
    method.decode(given, memory)
    plain, side = memory.backbone.hidden, memory.side.hidden
    assert [tensor is side for tensor in seen] == [False, False, True]
    assert all(tensor is plain for tensor in seen[:2])
    assert not plain.requires_grad
    assert side.requires_grad


def test_t5_without_a_late_block_has_no_side_encoder() -> None:
    method = tuned(SHERL, "t5", late_blocks=0)
    assert list(method.sides) == ["decoder"]
    found = models.gradients(method, batch("t5", method))
    assert set(found) == {n for n, p in method.named_parameters() if p.requires_grad}


def test_t5_takes_its_own_settings() -> None:
    """glu maps at d / 8, no norm behind the output map, new norms, N(0, 0.01^2), for both kinds of task."""
    for name in ("t5", "t5-head"):
        model = backbone(name, d_model=64)
        method = SHERL(model, task(name, model))
        side: Any = method.sides["encoder"]
        assert side.downs["1"].fc1.out_features == 8
        assert side.downs["1"].fc1.weight.std().item() == pytest.approx(0.01, rel=0.2)
        assert list(method.norms) == list(method.sides)
        assert not any(isinstance(part, nn.LayerNorm) for part in side.modules())


@pytest.mark.parametrize(
    ("name", "late", "taps", "visited"),
    [
        ("cnn", 1, [1, 2, 3, -1], 1),
        ("cnn", 2, [1, 2, 3], 2),
        ("cnn", 0, [1, 2, 3, -1], 0),
        ("cnn-single", 1, [1, 2, 3], 1),
    ],
)
def test_the_late_units_of_a_cnn(name: str, late: int, taps: list[int], visited: int) -> None:
    """The last units of the last stage run on V; with none before them the stage below is the guide."""
    method = tuned(SHERL, name, late_blocks=late)
    assert method.taps == {"image": taps}
    seen: list[bool] = []
    for unit in method.units():
        unit.register_forward_hook(lambda m, i, o: seen.append(o.requires_grad))
    models.gradients(method, batch(name, method))
    assert sum(seen) == visited
    assert len(seen) == len(method.units())
    with pytest.raises(UserError, match="late blocks"):
        tuned(SHERL, name, late_blocks=3)


def test_a_shape_that_the_late_units_keep_is_the_backbones_own() -> None:
    """With V put to the frozen state, the model is the plain backbone."""
    for name in ("cnn", "bert", "vit", "gpt2-head"):
        method = tuned(SHERL, name)
        given = batch(name, method)
        for side in method.sides.values():
            side.forward = lambda taps, last: last
        model = method.backbone
        state = model.run(model.embed(given))
        torch.testing.assert_close(method.features(given), model.pool(model.finish(state), state))


# ---- counts
def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_parameter_counts_at_the_papers_sizes() -> None:
    """As instantiated from the official modules: VSE-infinity, CLIP4Clip (both forms), CLIP-ViL, MDETR."""
    with torch.device("meta"):
        assert count(Sensing(768, 512, range(12), FORMS["tokens"])) == 5_133_058
        stages = {1: 256, 2: 512, 3: 1024, -1: 2048}
        assert count(ConvSensing(stages, 512, FORMS["cnn"])) == 3_027_458
        for gated, total in ((True, 9_598_006), (False, 9_597_980)):
            towers = [
                PooledSensing([width] * 13, 512, 512, eps=1e-6, gated=gated, temperature=0.1) for width in (512, 768)
            ]
            assert count(*towers) == total
        assert count(Sensing(768, 384, range(12), FORMS["joint"])) == 7_387_778
        form = FORMS["tokens"] | {"guide_mlp": True}
        assert count(*(Sensing(256, 128, range(4), form) for _ in range(2))) == 464_900


@pytest.mark.parametrize(
    ("width", "blocks", "layers", "settings", "total"),
    [
        (768, 12, [1, 2, 3, 5, 6, 7, 9, 10, 11], {}, 1_907_236),
        (768, 12, [1, 2, 3, 5, 6, 7, 9, 10, 11], {"reduction": 4}, 4_511_812),
        (1024, 24, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 22, 23], {}, 4_700_548),
        (1024, 24, [22, 23], {}, 1_087_620),
    ],
)
def test_t5_counts(width: int, blocks: int, layers: list[int], settings: dict[str, Any], total: int) -> None:
    """T5-base at r = 8 and 4, T5-large, T5-3B, with the side layers of the released scripts."""
    from transfer_run.backbones.families.t5 import T5

    architecture = {"vocab_size": 8, "d_model": width, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": blocks}
    with torch.device("meta"):
        model = T5.from_architecture({"name": "t5", "architecture": architecture})
        method = SHERL(model, task("t5", model), side_layers={"encoder": layers, "decoder": layers}, **settings)
    assert method.counted_parameters() == total


# ---- settings
@pytest.mark.parametrize(
    "setting",
    [{"down": "glu"}, {"guide_mlp": True}, {"up_norm": False}, {"eps": 0.5}, {"side_width": 5}, {"gate_T": 1.0},
     {"side_layers": {"encoder": [1], "decoder": None}}],
)  # fmt: skip
def test_every_setting_counts(setting: dict[str, Any]) -> None:
    method, plain = tuned(SHERL, "bert", **setting), tuned(SHERL, "bert")
    given = batch("bert", plain)
    assert not torch.allclose(method(given), plain(given))


def test_settings_that_a_variant_lacks_are_refused() -> None:
    with pytest.raises(UserError, match="variant=pooled has no late_blocks"):
        tuned(SHERL, "clip-image", late_blocks=1)
    with pytest.raises(UserError, match="variant=pooled has no gate_init"):
        tuned(SHERL, "clip-image", gate_init=1.0)


def test_settings_that_another_one_leaves_without_effect_are_refused() -> None:
    with pytest.raises(UserError, match="side_width=5 leaves reduction without effect"):
        tuned(SHERL, "bert", side_width=5, reduction=2)
    with pytest.raises(UserError, match="layer_gates=false leaves gate_T without effect"):
        tuned(SHERL, "clip-image", layer_gates=False, gate_T=1.0)
    with pytest.raises(UserError, match="ends without a norm"):
        tuned(SHERL, "bert", final_side_norm=True)
    assert tuned(SHERL, "vit", final_side_norm=True).norms


def test_dropout_behind_the_output_map() -> None:
    method = tuned(SHERL, "bert", backbone_dropout=False).train()
    given = batch("bert", method)
    assert not torch.equal(method(given), method(given))
    found = []
    for mode in ("efficient", "official"):
        method = tuned(SHERL, "bert", backbone_dropout=False, memory_mode=mode).train()
        torch.manual_seed(3)
        found.append(models.gradients(method, given))
    for key, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][key], atol=1e-9, rtol=1e-9)
    still = tuned(SHERL, "bert", backbone_dropout=False, up_dropout=0.0).train()
    assert torch.equal(still(given), still(given))


def test_layer_gates_of_the_pooled_form() -> None:
    """MSR-VTT: k_l = sigmoid(g_l / T) from g_l = 1; MSVD: none."""
    model = backbone("clip-image")
    gated: Any = SHERL(model, task("clip-image", model)).sides["image"]
    assert gated.g.tolist() == [1.0] * 5
    assert tuned(SHERL, "clip-image", layer_gates=False).sides["image"].g is None
