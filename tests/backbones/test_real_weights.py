"""A real pretrained model, small enough for a test: the Llama of 260 thousand parameters trained on TinyStories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
FOLDER = ROOT.parent / "shared" / "data" / "weights" / "llama-stories260k"
TEXT = "Once upon a time, there was a little girl"
NEXT = [395, 317, 426, 338, 401, 396, 267, 337, 410, 408, 419, 292]

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the real weights are not beside the repository")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    words = yaml.safe_load((ROOT / "configs" / "backbone" / "llama-stories260k.yaml").read_text(encoding="utf-8"))
    return words | {"weights": str(FOLDER)}


@pytest.fixture(scope="module")
def backbone(config: dict[str, Any]) -> Backbone:
    return build_backbone(config).eval()


def logits(backbone: Backbone, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return backbone.language_logits(backbone.finish(backbone.run(backbone.embed(batch))))


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        (TEXT, 0.1114),
        (
            "One day, a little boy went to the park with his mom. He saw a big dog. The dog was very happy and "
            "wanted to play. The boy threw a ball and the dog ran to get it.",
            1.058,
        ),
    ],
)
def test_the_published_loss(backbone: Backbone, config: dict[str, Any], text: str, loss: float) -> None:
    ids = build_tokenizer(config)(text, return_tensors="pt")["input_ids"]
    found = F.cross_entropy(logits(backbone, {"input_ids": ids})[0, :-1], ids[0, 1:])
    assert found.item() == pytest.approx(loss, abs=6e-4)


def test_a_padded_text_has_the_same_logits(backbone: Backbone, config: dict[str, Any]) -> None:
    batch = dict(
        build_tokenizer(config)([TEXT, TEXT + " named Lily. She loved to play"], padding=True, return_tensors="pt")
    )
    alone = dict(build_tokenizer(config)(TEXT, return_tensors="pt"))
    length = alone["input_ids"].shape[1]
    torch.testing.assert_close(logits(backbone, batch)[0, :length], logits(backbone, alone)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cached", [True, False])
def test_the_published_story(backbone: Backbone, config: dict[str, Any], cached: bool) -> None:
    """Greedy, with and without a key/value cache."""
    built = build_tokenizer(config)
    ids = built(TEXT, return_tensors="pt")["input_ids"]
    length, cache, new = ids.shape[1], backbone.new_cache() if cached else None, ids
    for _ in range(45):
        batch = {"input_ids": new if cached else ids} | ({"cache": cache} if cached else {})
        new = logits(backbone, batch)[:, -1:].argmax(-1)
        ids = torch.cat([ids, new], 1)
    told = ids[0, length:].tolist()
    assert told[: len(NEXT)] == NEXT
    story = built.decode(ids[0], skip_special_tokens=True)
    assert story.startswith(
        TEXT + " named Lily. She loved to play outside in the park. One day, she saw a big, red ball."
    )


def test_what_was_loaded_is_on_record(backbone: Backbone) -> None:
    assert backbone.provenance["source"] == "folder"
    assert backbone.provenance["weights"] == str(FOLDER)
    assert backbone.provenance["checksum"].startswith("sha256:")
