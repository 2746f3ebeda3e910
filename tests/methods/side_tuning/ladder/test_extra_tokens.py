"""Check 11: visual tokens reach the side encoder only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.methods.side_tuning.models import backbone, batch, gradients, kept_bytes, lst, stir, task
from transfer_run.errors import UserError
from transfer_run.methods.side_tuning.ladder.extra_tokens import ExtraTokens
from transfer_run.methods.side_tuning.ladder.pruning import first_parameter
from transfer_run.methods.side_tuning.lst import LST

FEATURES, TOKENS = 6, 5


def visual(rows: int = 3) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    corners = torch.rand(rows, TOKENS, 4, generator=draw)
    return {"extra_embeds": torch.randn(rows, TOKENS, FEATURES, generator=draw), "extra_boxes": corners,
            "extra_images": torch.arange(TOKENS).expand(rows, -1) % 2}  # fmt: skip


@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
def test_masked_visual_tokens_change_nothing(memory_mode: str) -> None:
    """With all of them masked, text states and logits are those of the text-only model."""
    model = backbone("t5")
    given, images = batch(model), visual()
    with_images = lst(model, extra_width=FEATURES, memory_mode=memory_mode)
    without = lst(model, memory_mode=memory_mode)
    without.load_state_dict({n: t for n, t in with_images.state_dict().items() if not n.startswith("extra.")})
    blind = {**given, **images, "extra_mask": torch.zeros(3, TOKENS)}
    text = given["attention_mask"].bool()
    seen, alone = with_images.encode(blind).side, without.encode(given).side
    torch.testing.assert_close(seen.hidden[:, : text.shape[1]][text], alone.hidden[text], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(with_images(blind), without(given), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(with_images({**given, **images}), without(given), atol=1e-3)


def test_the_backbone_never_sees_the_image() -> None:
    model = backbone("t5")
    method, given = lst(model, extra_width=FEATURES), batch(model)
    one = method.encode({**given, **visual()}).backbone
    other = method.encode({**given, **visual(), "extra_embeds": torch.zeros(3, TOKENS, FEATURES)}).backbone
    assert torch.equal(one.hidden, other.hidden)
    assert one.hidden.shape[1] == given["input_ids"].shape[1]


def test_visual_tokens_are_trained_on() -> None:
    """Every part of the visual embedding learns; the token table that orders the objects stays frozen."""
    model = backbone("t5")
    method, given = lst(model, extra_width=FEATURES), batch(model) | visual()
    grads = gradients(method, given)
    names = [n for n, _ in method.named_parameters() if n.startswith("extra.")]
    assert len(names) == 7
    assert all(grads[n].abs().max() > 0 for n in names)
    assert first_parameter(model).grad is None


def test_modes_agree_with_visual_tokens() -> None:
    model = backbone("t5").double()
    given = batch(model) | {n: t.double() if t.is_floating_point() else t for n, t in visual().items()}
    official, efficient = (lst(model, extra_width=FEATURES, memory_mode=m).double() for m in ("official", "efficient"))
    ours, theirs = gradients(efficient, given), gradients(official, given)
    for n in theirs:
        torch.testing.assert_close(ours[n], theirs[n], atol=1e-9, rtol=1e-9)
    assert kept_bytes(efficient, given) < kept_bytes(official, given)


def test_generation_with_visual_tokens() -> None:
    model = backbone("t5")
    model.model.config.eos_token_id = -1
    method, given = lst(model, extra_width=FEATURES), batch(model) | visual()
    assert torch.equal(method.generate(given, 5), method.generate(given, 5, use_cache=False))


def test_embedding_by_hand() -> None:
    model = backbone("t5")
    extra = ExtraTokens(model, FEATURES)
    with torch.no_grad():
        for p in extra.parameters():
            p.copy_(torch.randn_like(p))
    table, given = first_parameter(model), visual()
    tokens, mask = extra(given, table)
    assert mask.shape == (3, TOKENS)
    x1, x2, y1, y2 = given["extra_boxes"][0, 2]
    box = torch.stack([x1, x2, y1, y2, (x2 - x1) * (y2 - y1)])

    def normed(part: torch.nn.Sequential, value: Tensor) -> Tensor:
        out = part[0].weight @ value + part[0].bias
        return out / (out.square().mean() + 1e-6).sqrt() * part[1].weight

    expected = normed(extra.features, given["extra_embeds"][0, 2]) + normed(extra.boxes, box)
    expected = expected + extra.images.weight[0] + table[len(table) - 1 - 2]
    torch.testing.assert_close(tokens[0, 2], expected, atol=1e-5, rtol=1e-5)


def test_refused_elsewhere() -> None:
    model = backbone("bert")
    with pytest.raises(UserError, match="defined for the encoder of T5"):
        LST(model, task(model), extra_width=FEATURES)


def test_text_alone_where_images_are_expected_is_refused() -> None:
    model = backbone("t5")
    method = lst(model, extra_width=FEATURES)
    stir(method)
    with pytest.raises(UserError, match="extra_embeds"):
        method(batch(model))


@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
def test_the_side_encoder_by_hand(memory_mode: str) -> None:
    """With visual tokens seen: no position bias for any pair with one of them, and no ladder where they stand."""
    model = backbone("t5")
    method, given = lst(model, extra_width=FEATURES, memory_mode=memory_mode), batch(model) | visual()
    ladder, taps = method.ladders["encoder"], []
    state = model.embed(given, "encoder")
    embedded = state.hidden
    for _ in range(model.depth("encoder")):
        state = model.step(state)
        taps.append(state.hidden)
    tokens, seen = method.extra(given, first_parameter(model))
    side = ladder.first(torch.cat([embedded, tokens], dim=1))
    mask = torch.cat([given["attention_mask"].bool(), seen.bool()], dim=1)[:, None, None]
    bias = bias_by_hand(ladder.steps.blocks["0"].layer[0].SelfAttention, embedded.shape[1], TOKENS)
    for index, tap in enumerate(taps):
        gate = torch.sigmoid(ladder.mix.alpha[index] / 0.1)
        rung = torch.cat([ladder.maps[str(index)](tap), torch.zeros(3, TOKENS, side.shape[-1])], dim=1)
        side = block_by_hand(ladder.steps.blocks[str(index)], gate * side + (1 - gate) * rung, bias, mask)
    expected = rms(side, ladder.steps.norm)
    got = method.encode(given).side
    assert got.hidden.shape[1] == given["input_ids"].shape[1] + TOKENS
    torch.testing.assert_close(got.hidden, expected, atol=1e-5, rtol=1e-4)


def bias_by_hand(attention: nn.Module, text: int, extra: int) -> Tensor:
    """(1, H, S, S): T5's table at the distance of two text tokens (below 8 a bucket each, 16 on for what follows)."""
    table = attention.relative_attention_bias.weight
    bias = torch.zeros(1, table.shape[1], text + extra, text + extra)
    for query in range(text):
        for key in range(text):
            bias[0, :, query, key] = table[abs(key - query) + 16 * (key > query)]
    return bias


def block_by_hand(block: nn.Module, side: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """A T5 encoder block: attention without scaling, then the feed-forward with ReLU, norms before both."""
    attention, feed = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
    normed = rms(side, block.layer[0].layer_norm)
    heads = bias.shape[1]
    query, key, value = (part(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
                         for part in (attention.q, attention.k, attention.v))  # fmt: skip
    weights = (query @ key.mT + bias).masked_fill(~mask, -torch.inf).softmax(-1)
    side = side + attention.o((weights @ value).transpose(1, 2).flatten(2))
    return side + feed.wo(feed.wi(rms(side, block.layer[1].layer_norm)).relu())


def rms(hidden: Tensor, norm: nn.Module) -> Tensor:
    return hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
