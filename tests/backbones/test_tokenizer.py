"""The tokenizer that goes with the weights, and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transfer_run.backbones.tokenizer import build_tokenizer
from transfer_run.backbones.weights import hub
from transfer_run.errors import UserError

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "weights" / "llama-stories260k"
T5 = {"name": "t5_tiny", "weights": "random", "hub": None, "tokenizer": None, "architecture": {"vocab_size": 384}}


@pytest.mark.parametrize(
    "words", [{}, {"weights": "random:3"}, {"weights": "run:method=pretrain"}, {"tokenizer": "bytes", "weights": "hub"}]
)
def test_bytes_need_no_files(words: dict[str, Any]) -> None:
    built = build_tokenizer(T5 | words)
    assert len(built) == 384
    encoded = built("hé", "b", padding="max_length", max_length=8)
    assert encoded["input_ids"] == [107, 198, 172, 1, 101, 1, 0, 0]
    assert encoded["attention_mask"] == [1] * 6 + [0] * 2
    assert built.decode(encoded["input_ids"], skip_special_tokens=True).startswith("hé")
    assert (built.pad_token_id, built.eos_token_id, built.unk_token_id) == (0, 1, 2)


def test_an_earlier_run_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}", encoding="utf-8")
    assert len(build_tokenizer(T5 | {"weights": str(tmp_path)})) == 384


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(UserError, match="has 384 tokens, the backbone 't5_tiny' embeds 300"):
        build_tokenizer(T5 | {"architecture": {"vocab_size": 300}})
    with pytest.raises(UserError, match="embeds 99"):
        build_tokenizer(T5 | {"architecture": {"text_config": {"vocab_size": 99}}})


def test_no_tokenizer_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer") as error:
        build_tokenizer(T5 | {"weights": str(tmp_path)})
    assert "backbone.tokenizer=PATH" in error.value.remedy


def test_the_hubs_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Asked for at the revision of the weights; an id of its own is asked for at its newest."""
    asked = []

    def fetch(name: str, revision: str | None) -> Path:
        asked.append((name, revision))
        return tmp_path

    monkeypatch.setattr(hub, "fetch_tokenizer", fetch)
    for words in ({"tokenizer": None}, {"tokenizer": "someone/words"}):
        with pytest.raises(UserError, match="holds no tokenizer"):
            build_tokenizer(T5 | {"weights": "hub", "hub": "someone/model", "revision": "abc"} | words)
    assert asked == [("someone/model", "abc"), ("someone/words", None)]


def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        build_tokenizer(T5 | {"weights": "hub", "hub": "someone/model", "revision": None})


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"the real tokenizer is not in {STORIES.parent.name}")
@pytest.mark.parametrize("words", [{"weights": str(STORIES)}, {"tokenizer": str(STORIES)}])
def test_a_real_one(words: dict[str, Any]) -> None:
    """It has no padding token of its own; padding stands on the right."""
    built = build_tokenizer(T5 | {"architecture": {"vocab_size": 512}} | words)
    text = "Once upon a time, there was a little girl"
    expected = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421]
    encoded = built([text, "Once"], padding=True)
    assert encoded["input_ids"][0] == expected
    assert encoded["attention_mask"][1][0] == 1
    assert encoded["attention_mask"][1][-1] == 0
    assert built.pad_token_id is not None
