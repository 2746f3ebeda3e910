"""Block by block, a backbone computes exactly what its library computes in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.families.clip import CLIP
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.methods.forms.classification import Classification
from transfer_run.task import Task

TAPS = {"atol": 0.0, "rtol": 0.0}


def taps_of(case: Any, stack: str) -> list[Tensor]:
    state = case.embed(stack)
    return [state.hidden, *(after.hidden for after in case.backbone.taps(state))]


def finished(case: Any, stack: str) -> tuple[Tensor, Any]:
    state = case.backbone.run(case.embed(stack))
    return case.backbone.finish(state), state


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta"])
def test_encoders(build: Callable[..., Any], name: str) -> None:
    case = build(name)
    expected = case.backbone.model(**case.batch, output_hidden_states=True)
    for ours, theirs in zip(taps_of(case, "encoder"), expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, **TAPS)
    last, state = finished(case, "encoder")
    torch.testing.assert_close(last, expected.last_hidden_state, **TAPS)
    pooled = case.backbone.pool(last, state)
    if name == "bert":
        torch.testing.assert_close(pooled, expected.pooler_output, **TAPS)
    elif name == "roberta":
        torch.testing.assert_close(pooled, expected.last_hidden_state[:, 0], **TAPS)
    else:
        rows = [row[mask.bool()].mean(0) for row, mask in zip(last, case.batch["attention_mask"], strict=True)]
        torch.testing.assert_close(pooled, torch.stack(rows))


def test_barts_encoder(build: Callable[..., Any]) -> None:
    """The encoder inside the library's whole BART, and its sequence classifier's way to read and to classify."""
    from transformers import BartForSequenceClassification

    case = build("bart")
    backbone, batch = case.backbone, case.batch
    batch["input_ids"][:, 1] = 1  # two ends of text a row, as a pair of sentences has
    batch["input_ids"][torch.arange(3), batch["attention_mask"].sum(1) - 2] = 1  # the last one is not the last token
    config = backbone.model.config
    config.num_labels = 3
    whole = BartForSequenceClassification(config).eval()
    whole.model.encoder.load_state_dict(backbone.model.state_dict())
    expected = whole.model.encoder(**batch, output_hidden_states=True)
    for ours, theirs in zip(taps_of(case, "encoder"), expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, **TAPS)
    last, state = finished(case, "encoder")
    torch.testing.assert_close(last, expected.last_hidden_state, **TAPS)
    ends = batch["input_ids"].eq(1)
    pooled = last[ends].view(3, -1, 32)[:, -1]
    torch.testing.assert_close(backbone.pool(last, state), pooled, **TAPS)
    backbone.head = Classification().head(backbone, Task("classification", 3))
    backbone.head.load_state_dict(whole.classification_head.state_dict())
    torch.testing.assert_close(backbone.head(pooled), whole.classification_head(pooled), **TAPS)


def test_a_text_without_an_end_is_read_at_its_last_token(build: Callable[..., Any]) -> None:
    case = build("bart")
    last, state = finished(case, "encoder")
    assert not case.batch["input_ids"].eq(1).any()
    ends = case.batch["attention_mask"].sum(1) - 1
    torch.testing.assert_close(case.backbone.pool(last, state), last[torch.arange(3), ends], **TAPS)
    del case.batch["attention_mask"]
    last, state = finished(case, "encoder")
    torch.testing.assert_close(case.backbone.pool(last, state), last[:, -1], **TAPS)


def test_barts_first_token_and_mean(config_of: Callable[[str], dict[str, Any]], build: Callable[..., Any]) -> None:
    case = build("bart")
    for pooling in ("cls", "mean"):
        other = build_backbone(config_of("bart") | {"pooling": pooling, "weights": "random:1"}).eval()
        state = other.run(other.embed(case.batch))
        pooled, last = other.pool(other.finish(state), state), other.finish(state)
        rows = [row[mask.bool()] for row, mask in zip(last, case.batch["attention_mask"], strict=True)]
        expected = torch.stack([row[0] if pooling == "cls" else row.mean(0) for row in rows])
        torch.testing.assert_close(pooled, expected)
    with pytest.raises(UserError, match="pooling=pooler is not defined for bart"):
        build_backbone(config_of("bart") | {"pooling": "pooler"})


def test_bert_reads_segments(build: Callable[..., Any]) -> None:
    case = build("bert")
    case.batch["token_type_ids"] = (torch.arange(9) > 3).long().expand(3, -1)
    last, _ = finished(case, "encoder")
    torch.testing.assert_close(last, case.backbone.model(**case.batch).last_hidden_state, **TAPS)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3", "mistral"])
def test_decoders(build: Callable[..., Any], name: str) -> None:
    case = build(name)
    expected = case.backbone.model(**case.batch, output_hidden_states=True, use_cache=False)
    for ours, theirs in zip(taps_of(case, "decoder")[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(ours, theirs, **TAPS)
    last, state = finished(case, "decoder")
    torch.testing.assert_close(last, expected.hidden_states[-1], **TAPS)
    torch.testing.assert_close(case.backbone.language_logits(last), expected.logits, **TAPS)
    ends = case.batch["attention_mask"].sum(1) - 1
    torch.testing.assert_close(case.backbone.pool(last, state), last[torch.arange(3), ends], **TAPS)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "mistral"])
def test_decoders_with_a_cache(build: Callable[..., Any], name: str) -> None:
    """Token by token with a key/value cache gives the logits of the whole text."""
    case = build(name, torch.float64)
    backbone, ids = case.backbone, case.batch["input_ids"][:1]
    whole = backbone.language_logits(backbone.finish(backbone.run(backbone.embed({"input_ids": ids}))))
    cache, steps = backbone.new_cache(), []
    for place in range(ids.shape[1]):
        state = backbone.run(backbone.embed({"input_ids": ids[:, place : place + 1], "cache": cache}))
        steps.append(backbone.language_logits(backbone.finish(state)))
    torch.testing.assert_close(torch.cat(steps, 1), whole)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_decoders_generate_as_the_library(build: Callable[..., Any], name: str) -> None:
    """Prompts padded on the left, positions counted over real tokens, as the library's `generate` does."""
    case = build(name)
    backbone, mask = case.backbone, case.batch["attention_mask"].flip(1)
    ids = torch.where(mask.bool(), case.batch["input_ids"], 0)
    expected = backbone.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    cache, new = backbone.new_cache(), ids
    for _ in range(5):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        words = {"input_ids": new, "attention_mask": mask, "position_ids": positions, "cache": cache}
        last = backbone.finish(backbone.run(backbone.embed(words)))[:, -1:]
        new = backbone.language_logits(last).argmax(-1)
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, mask.new_ones(3, 1)], 1)
    assert torch.equal(ids, expected)


@pytest.mark.parametrize("name", ["t5", "t5_v1_1"])
def test_t5(build: Callable[..., Any], name: str) -> None:
    case = build(name)
    expected = case.backbone.model(**case.batch, output_hidden_states=True, use_cache=False)
    for stack, theirs in (("encoder", expected.encoder_hidden_states), ("decoder", expected.decoder_hidden_states)):
        for ours, tap in zip(taps_of(case, stack)[:-1], theirs[:-1], strict=True):
            torch.testing.assert_close(ours, tap, **TAPS)
        torch.testing.assert_close(finished(case, stack)[0], theirs[-1], **TAPS)
    torch.testing.assert_close(case.backbone.language_logits(finished(case, "decoder")[0]), expected.logits, **TAPS)


@pytest.mark.parametrize("name", ["t5", "t5_v1_1"])
def test_t5_with_a_cache(build: Callable[..., Any], name: str) -> None:
    case = build(name, torch.float64)
    backbone, ids = case.backbone, case.batch["decoder_input_ids"]
    memory = backbone.finished_state(backbone.run(backbone.embed(case.batch, "encoder")))
    whole = backbone.finish(backbone.run(backbone.embed(case.batch, "decoder", memory)))
    cache, steps = backbone.new_cache(), []
    for place in range(ids.shape[1]):
        words = {"decoder_input_ids": ids[:, place : place + 1], "cache": cache}
        steps.append(backbone.finish(backbone.run(backbone.embed(words, "decoder", memory))))
    torch.testing.assert_close(torch.cat(steps, 1), whole)


@pytest.mark.parametrize("name", ["vit", "vit_average"])
def test_vit(build: Callable[..., Any], name: str) -> None:
    case = build(name)
    model, images = case.backbone.model, case.batch["pixel_values"]
    last, state = finished(case, "image")
    torch.testing.assert_close(last, model.forward_features(images), **TAPS)
    torch.testing.assert_close(
        case.backbone.pool(last, state), model.forward_head(model.forward_features(images), pre_logits=True), **TAPS
    )
    theirs = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    for ours, tap in zip(taps_of(case, "image")[1:], theirs, strict=True):
        torch.testing.assert_close(ours[:, case.backbone.special_tokens(state) :], tap, **TAPS)
    assert case.backbone.grid(state) == (4, 4)
    assert last.shape[1] - case.backbone.special_tokens(state) == 16


@pytest.mark.parametrize("name", ["resnet", "resnet_deep", "efficientnet", "mobilenet"])
def test_cnn(build: Callable[..., Any], name: str) -> None:
    case = build(name)
    backbone, model, images = case.backbone, case.backbone.model, case.batch["pixel_values"]
    last, state = finished(case, "image")
    torch.testing.assert_close(last, model.forward_features(images), **TAPS)
    torch.testing.assert_close(backbone.pool(last, state), torch.flatten(model.forward_head(last, True), 1), **TAPS)
    assert backbone.pool(last, state).shape == (3, backbone.feature_width)
    for index, tap in enumerate(taps_of(case, "image")):
        assert tap.shape[1] == backbone.width("image", index - 1)
    assert backbone.grid(state) == (2, 2)


def test_clip(build: Callable[..., Any]) -> None:
    case = build("clip")
    backbone: CLIP = case.backbone
    expected = backbone.model(**case.batch)
    torch.testing.assert_close(backbone.encode(case.batch, "image"), expected.image_embeds)
    torch.testing.assert_close(backbone.encode(case.batch, "text"), expected.text_embeds)
    for stack, theirs in (("image", expected.vision_model_output), ("text", expected.text_model_output)):
        last, state = finished(case, stack)
        if stack == "image":
            torch.testing.assert_close(state.hidden, theirs.last_hidden_state, **TAPS)
        else:
            torch.testing.assert_close(last, theirs.last_hidden_state, **TAPS)
    image, text = backbone.encode(case.batch, "image"), backbone.encode(case.batch, "text")
    torch.testing.assert_close(backbone.similarity_scale * image @ text.T, expected.logits_per_image)


@pytest.mark.parametrize(("tower", "other"), [("image", "text"), ("text", "image")])
def test_one_clip_tower_alone(
    build: Callable[..., Any], config_of: Callable[[str], dict[str, Any]], tmp_path: Path, tower: str, other: str
) -> None:
    """The same features as with both, nothing of the other tower, and it can be saved and read."""
    both = build("clip")
    both.backbone.save_library(tmp_path / "both")
    config = config_of("clip") | {"tower": tower, "weights": str(tmp_path / "both")}
    alone = build_backbone(config).eval()
    assert alone.stacks == (tower,)
    assert alone.feature_width == both.backbone.width(tower)
    state = alone.run(alone.embed(both.batch))
    last, same = finished(both, tower)
    torch.testing.assert_close(alone.pool(alone.finish(state), state), both.backbone.pool(last, same), **TAPS)
    assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in both.backbone.parameters())
    with pytest.raises(UserError, match="tower alone"):
        alone.embed(both.batch, other)
    alone.save_library(tmp_path / "alone")
    again = build_backbone(config | {"weights": str(tmp_path / "alone")})
    assert again.provenance["checksum"] == alone.provenance["checksum"]
    with pytest.raises(UserError, match="missing"):
        build_backbone(config | {"weights": str(tmp_path / "alone"), "tower": "both"})


def test_clip_old_end_token(build: Callable[..., Any]) -> None:
    """Configs of before 2023 call 2 the end token; the text's feature stands at the largest id then."""
    case = build("clip")
    case.backbone.model.text_model.config.eos_token_id = case.backbone.model.text_model.eos_token_id = 2
    case.batch["input_ids"][0, 2] = 2
    torch.testing.assert_close(case.backbone.encode(case.batch, "text"), case.backbone.model(**case.batch).text_embeds)


def all_features(case: Any) -> Tensor:
    backbone: Backbone = case.backbone
    return torch.cat([backbone.pool(*finished(case, stack)).flatten() for stack in backbone.stacks])


def test_every_kind_runs_in_pieces(case: Any) -> None:
    """From i to j, stopping anywhere, is the same run; and later blocks do not write into earlier taps."""
    for stack in case.backbone.stacks:
        whole = case.backbone.run(case.embed(stack)).hidden
        kept = [(after.hidden, after.hidden.clone()) for after in case.backbone.taps(case.embed(stack))]
        middle = case.backbone.run(case.embed(stack), stop=1)
        assert middle.index == 1
        replaced = middle.with_hidden(middle.hidden.clone())
        torch.testing.assert_close(case.backbone.run(replaced).hidden, whole, **TAPS)
        assert all(torch.equal(tap, copy) for tap, copy in kept)


def test_activation_checkpointing_changes_no_gradient(case: Any) -> None:
    backbone: Backbone = case.backbone
    gradients = []
    for checkpointing in (False, True):
        backbone.activation_checkpointing = checkpointing
        for module in backbone.modules():  # without dropout, in train mode, where checkpointing applies
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        backbone.train()
        backbone.zero_grad()
        torch.manual_seed(0)
        all_features(case).square().sum().backward()
        gradients.append([p.grad.clone() for p in backbone.model.parameters() if p.grad is not None])
    assert gradients[0]
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("name", ["t5", "bert", "bart", "gpt2", "qwen3", "vit_average", "clip"])
def test_eager_attention_is_the_same_function(build: Callable[..., Any], name: str) -> None:
    case = build(name)
    fused = all_features(case)
    case.backbone.set_attention("eager")
    torch.testing.assert_close(all_features(case), fused, atol=1e-5, rtol=1e-4)
