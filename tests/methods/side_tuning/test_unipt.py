"""UniPT: the checks of its equations, its settings on the backbones, and its counts at the paper's sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.methods.side_tuning import models
from tests.methods.side_tuning.parallel_models import batch, tuned
from transfer_run.errors import UserError
from transfer_run.methods.side_tuning.parallel.interaction import Interaction, Past, relu_attention, seen_mean
from transfer_run.methods.side_tuning.parallel.unipt_sides import ConvSide, PooledSide, TokenSide
from transfer_run.methods.side_tuning.unipt import FORMS, UniPT


def side(variant: str = "tokens", taps: int = 3, width: int = 10, **settings: Any) -> TokenSide:
    torch.manual_seed(0)
    made = TokenSide(width, 6, range(taps), FORMS[variant], **{"out": width, **settings}).double()
    for p in made.parameters():
        nn.init.normal_(p, std=0.4)
    return made


def hidden(count: int, rows: int = 3, tokens: int = 5, width: int = 10, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, tokens, width, generator=draw, dtype=torch.float64) for _ in range(count)]


# ---- equations
def test_uniform_gate() -> None:
    """With w_g = 0 the confidences are exactly 1 / L, for every sample."""
    layer = Interaction(6, eps=1e-8).double()
    nn.init.zeros_(layer.gate.weight)
    guide, *taps = hidden(5, width=6)
    confidence = layer.confidence(guide, taps, None, guide.shape[1])
    assert torch.equal(confidence, torch.full_like(confidence, 1 / 4))


def test_rows_sum_to_one_and_with_the_identity_to_two() -> None:
    guide, tap = (torch.rand(2, 5, 6, dtype=torch.float64) + 0.1 for _ in range(2))
    weights = relu_attention(guide, tap, None, eps=1e-8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    ones = torch.ones(2, 5, 1, dtype=torch.float64)
    for identity, total in ((True, 2.0), (False, 1.0)):
        layer = Interaction(6, eps=1e-8, identity=identity).double()
        layer_sum = layer.interact(guide, torch.cat([tap[..., :5], ones], -1), None)[..., 5:]
        torch.testing.assert_close(layer_sum, total * ones)


def test_a_tap_that_disagrees_everywhere_keeps_itself() -> None:
    """F_L = -F_l, F_l >= 0: no positive score, zeros and not NaN, and exactly the identity is left."""
    tap = torch.rand(2, 5, 6, dtype=torch.float64)
    layer = Interaction(6, eps=1e-8).double()
    assert torch.equal(layer.interact(-tap, tap, None), tap)
    tap.requires_grad_(True)
    layer.interact(-tap, tap, None).sum().backward()
    assert tap.grad is not None
    assert tap.grad.isfinite().all()


def test_toy() -> None:
    """T = 1, r = 1, taps 2 and -1, guide 3, w = 1: F' = 4 and -1, logits 6 and -3, c_0 = sigmoid(9)."""
    layer = Interaction(1, eps=1e-12).double()
    with torch.no_grad():
        layer.gate.weight.fill_(1.0)
        layer.gate.bias.zero_()
    first, second, guide = (torch.full((1, 1, 1), value, dtype=torch.float64) for value in (2.0, -1.0, 3.0))
    assert layer.interact(guide, first, None).item() == pytest.approx(4.0)
    assert layer.interact(guide, second, None).item() == -1.0
    confidence = torch.sigmoid(torch.tensor(9.0, dtype=torch.float64)).item()
    assert layer.confidence(guide, [first, second], None, 1)[0, 0, 0].item() == pytest.approx(confidence, rel=1e-12)
    assert layer(guide, [first, second], None).item() == pytest.approx(4 * confidence - (1 - confidence), rel=1e-9)


@pytest.mark.parametrize("variant", ["tokens", "joint"])
def test_padding_leaves_real_tokens_alone(variant: str) -> None:
    net, (guide, *taps) = side(variant), hidden(4)
    mask = torch.ones(3, 5)
    mask[1, 3:] = mask[2, 2:] = 0
    other = [tap + 5 * (1 - mask).unsqueeze(-1) * torch.randn_like(tap) for tap in (guide, *taps)]
    real = mask.bool()
    torch.testing.assert_close(net(other[1:], other[0], mask)[real], net(taps, guide, mask)[real], atol=1e-9, rtol=0)


def test_padding_leaves_the_pooled_form_alone() -> None:
    net, taps = PooledSide([10, 10], 8, 8, eps=1e-6).double(), hidden(2)
    anchor, mask = hidden(1, width=8)[0][:, 0], torch.ones(3, 5)
    mask[0, 2:] = 0
    other = [tap + (1 - mask).unsqueeze(-1) for tap in taps]
    position = torch.tensor([1, 4, 4])
    torch.testing.assert_close(net(other, anchor, mask, position), net(taps, anchor, mask, position))
    assert not torch.allclose(net(taps, anchor, mask, position), net(taps, anchor, mask, position - 1))


def test_the_order_of_the_taps_is_nothing() -> None:
    """Targets permuted together with their maps leave Y as it is; permuted alone they do not."""
    net, (guide, *taps) = side(), hidden(4)
    turned = side()
    turned.load_state_dict(net.state_dict())
    order = [2, 0, 1]
    turned.downs = nn.ModuleDict({str(place): net.downs[str(index)] for place, index in enumerate(order)})
    permuted = [taps[index] for index in order]
    torch.testing.assert_close(turned(permuted, guide, None), net(taps, guide, None))
    assert not torch.allclose(net(permuted, guide, None), net(taps, guide, None))


def test_tokens_permute() -> None:
    """Without a mask, permuted tokens give permuted outputs."""
    net, (guide, *taps) = side(), hidden(4)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        net([t[:, order] for t in taps], guide[:, order], None), net(taps, guide, None)[:, order]
    )


def test_causal_means() -> None:
    features, mask = torch.arange(4.0).view(1, 4, 1), torch.tensor([[0, 1, 1, 1]])
    assert seen_mean(features, None, 4).flatten().tolist() == [0.0, 0.5, 1.0, 1.5]
    assert seen_mean(features, mask, 2).flatten().tolist() == [1.5, 2.0]
    assert seen_mean(features, mask).item() == 2.0


def test_step_by_step_is_the_whole_at_once() -> None:
    net, (guide, *taps) = side(causal=True), hidden(4)
    mask = torch.ones(3, 5)
    mask[1, 0] = 0
    past, pieces = Past(), []
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        here = slice(start, stop)
        pieces.append(net([t[:, here] for t in taps], guide[:, here], mask[:, :stop], past=past))
    torch.testing.assert_close(torch.cat(pieces, 1), net(taps, guide, mask))
    past.batch_select_indices(torch.tensor([2, 2]))
    assert {len(t) for t in past.features.values()} == {2}


# ---- counts, `methods.trainable_params` of the paper's sizes
def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_at_the_papers_sizes() -> None:
    """As instantiated from the official modules: VSE-infinity 5,921,281 and 6,433,537, CLIP4Clip 9,584,642,
    CLIP-ViL 4,736,641, MDETR 481,666."""
    with torch.device("meta"):
        assert count(TokenSide(768, 512, range(12), FORMS["tokens"], out=1024)) == 5_921_281
        assert count(ConvSide({1: 256, 2: 512, 3: 1024}, 2048, 1024, 512, FORMS["cnn"])) == 6_433_537
        text, image = (PooledSide([width] * 13, 512, 512, eps=1e-6) for width in (512, 768))
        assert count(text) + count(image) == 9_584_642
        assert count(TokenSide(768, 384, range(12), FORMS["joint"], out=768)) == 4_736_641
        encoder = TokenSide(256, 128, [1, 3, 5], FORMS["encdec"], out=None)
        decoder = TokenSide(256, 128, [1, 3, 5], FORMS["encdec"], out=256, reads_memory=True)
        assert count(encoder) + count(decoder) + count(nn.LayerNorm(256)) == 481_666


def test_vse_text_module_as_a_method() -> None:
    """`out_dim=1024` on a BERT-base gives the module of the count above, under a head on 1024 numbers."""
    from transfer_run.backbones.families.encoder import Encoder
    from transfer_run.task import Task

    with torch.device("meta"):
        bert = Encoder.from_architecture(
            {"name": "bert-base", "pooling": "cls", "architecture": {"model_type": "bert", "vocab_size": 100}}
        )
        method = UniPT(bert, Task("classification", 3), out_dim=1024)
    assert method.counted_parameters() == 5_921_281
    assert (method.backbone.head.in_features, method.backbone.head.out_features) == (1024, 3)


# ---- settings
def test_output_width_of_its_own() -> None:
    """The head reads the mean of Y over the real tokens."""
    method = tuned(UniPT, "bert", out_dim=20, reduction=4)
    given = batch("bert", method)
    assert method.features(given).shape == (5, 20)
    other = {**given, "input_ids": given["input_ids"].where(given["attention_mask"].bool(), 9)}
    torch.testing.assert_close(method(other), method(given))
    assert method.sides["encoder"].guide[0].out_features == 5


def test_chosen_taps() -> None:
    method = tuned(UniPT, "t5", taps={"encoder": [1, 3], "decoder": [0, 2]})
    assert list(method.sides["encoder"].downs) == ["1", "3"]
    assert list(method.sides["decoder"].readers) == ["0", "2"]
    given = batch("t5", method)
    assert all(g.isfinite().all() for g in models.gradients(method, given).values())
    with pytest.raises(UserError, match=r"offers 0 to 3.*names \[4\]"):
        tuned(UniPT, "t5", taps={"encoder": [4], "decoder": None})  # the last block is the guide
    with pytest.raises(UserError, match="offers 1 to 3"):
        tuned(UniPT, "cnn", taps={"encoder": [0], "decoder": None})  # the stem is no stage


def test_a_setting_that_the_variant_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="variant=pooled has no projection"):
        tuned(UniPT, "clip-image", projection="mlp")
    with pytest.raises(UserError, match="variant=encdec has no out_dim"):
        tuned(UniPT, "t5", out_dim=8)
    with pytest.raises(UserError, match="language head"):
        tuned(UniPT, "gpt2", out_dim=8)


@pytest.mark.parametrize("setting", [{"projection": "mlp"}, {"up_relu": False}, {"identity": False}, {"eps": 0.5}])
def test_every_setting_counts(setting: dict[str, Any]) -> None:
    method, plain = tuned(UniPT, "bert", **setting), tuned(UniPT, "bert")
    given = batch("bert", plain)
    assert not torch.allclose(method(given), plain(given))


def test_the_pooled_form_starts_from_the_global_vector() -> None:
    """Y = a + W relu(G): with W = 0 the model is the plain tower; CLS for images, where the text ends for texts."""
    for name in ("clip-image", "clip-text"):
        method = tuned(UniPT, name)
        given = batch(name, method)
        up = method.sides[method.backbone.stacks[0]].up[1]
        with torch.no_grad():
            up.weight.zero_()
            up.bias.zero_()
        backbone, stack = method.backbone, method.backbone.stacks[0]
        state = backbone.run(backbone.embed(given, stack))
        torch.testing.assert_close(method.features(given), backbone.pool(backbone.finish(state), state))
        place = method.position(state)
        ends = torch.zeros(5) if name == "clip-image" else given["attention_mask"].sum(1) - 1
        assert place.tolist() == ends.tolist()


def test_language_heads_read_a_new_trained_norm() -> None:
    for name in ("t5", "gpt2", "llama"):
        model = tuned(UniPT, name)
        assert model.norm is not None
        assert all(p.requires_grad for p in model.norm.parameters())
        fresh = UniPT(model.backbone, model.task).norm
        assert fresh is not None
        for key, p in fresh.norm.named_parameters():
            assert torch.equal(p, torch.zeros_like(p) if key == "bias" else torch.ones_like(p))
    assert tuned(UniPT, "bert").norm is None
