"""Token and embedding operations: what changes, and what never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.methods.distillation.models import BERT, bert, distiller, text
from transfer_run.errors import UserError
from transfer_run.methods.distillation.objectives.augmentation import (
    delete,
    free_tokens,
    mask_token,
    masked_language_model,
    mixup,
    substitute,
    swap,
)

SPECIAL = (1, 2)


def sentences() -> dict[str, torch.Tensor]:
    """Rows 1 ... 2 0 0: a first and a last special token, padding behind."""
    ids = torch.tensor([[1, 10, 11, 12, 13, 2, 0, 0], [1, 20, 21, 22, 23, 24, 25, 2]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([0, 1])}


def test_only_real_words_are_free() -> None:
    assert free_tokens(sentences(), SPECIAL).sum(1).tolist() == [4, 6]
    assert free_tokens(sentences(), ()).sum(1).tolist() == [6, 8]


def test_swapping_keeps_the_words_and_the_special_places() -> None:
    batch, moved = sentences(), False
    for seed in range(5):
        torch.manual_seed(seed)
        changed = swap(batch, SPECIAL, 0.8)["input_ids"]
        assert torch.equal(changed.sort(1).values, batch["input_ids"].sort(1).values)
        fixed = ~free_tokens(batch, SPECIAL)
        assert torch.equal(changed[fixed], batch["input_ids"][fixed])
        moved |= not torch.equal(changed, batch["input_ids"])
    assert moved
    assert torch.equal(swap(batch, SPECIAL, 0.0)["input_ids"], batch["input_ids"])


def test_deleting_moves_the_rest_up() -> None:
    torch.manual_seed(0)
    batch = sentences() | {"token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]])}
    changed = delete(batch, SPECIAL, 0.5, 0)
    for row in range(2):
        length = int(changed["attention_mask"][row].sum())
        left = changed["input_ids"][row, :length].tolist()
        before = batch["input_ids"][row, batch["attention_mask"][row].bool()].tolist()
        assert [left[0], left[-1]] == [1, 2]
        assert left == [token for token in before if token in left]  # order is kept
        assert changed["input_ids"][row, length:].tolist() == [0] * (8 - length)
        assert changed["attention_mask"][row].tolist() == [1] * length + [0] * (8 - length)
    assert changed["attention_mask"].sum() < batch["attention_mask"].sum()
    everything = delete(batch, SPECIAL, 1.0, 0)
    assert everything["input_ids"][:, :3].tolist() == [[1, 2, 0], [1, 2, 0]]


def test_mixtures_lie_between_two_rows_and_masks_are_joined() -> None:
    torch.manual_seed(0)
    batch = text(rows=5)
    given, change = mixup(batch, 0.4)
    assert given["input_ids"].shape == (10, 9)
    assert given["labels"].shape == (5,)
    hidden = torch.randn(10, 9, 4)
    mixed = change(hidden)
    assert torch.equal(mixed[:5], hidden[:5])
    for row in range(5):
        partners = [
            p for p in range(5) for w in [_weight(mixed[5 + row], hidden[5 + row], hidden[5 + p])] if w is not None
        ]
        assert partners
        joined = [batch["attention_mask"][row] | batch["attention_mask"][p] for p in partners]
        assert any(torch.equal(given["attention_mask"][5 + row], mask) for mask in joined)


def _weight(mixed: torch.Tensor, own: torch.Tensor, other: torch.Tensor) -> float | None:
    """lambda of mixed = lambda own + (1 - lambda) other, where there is one in 0..1."""
    if torch.equal(own, other):
        return 1.0 if torch.allclose(mixed, own, atol=1e-6) else None
    weight = float(((mixed - other) * (own - other)).sum() / (own - other).pow(2).sum())
    fits = torch.allclose(mixed, weight * own + (1 - weight) * other, atol=1e-5)
    return weight if fits and -1e-6 <= weight <= 1 + 1e-6 else None


# ---- masked language model
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A masked language model that says 30 wherever it is asked."""
    path = tmp_path_factory.mktemp("mlm")
    sizes: dict[str, Any] = {k: v for k, v in BERT.items() if k != "model_type"}
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**{**sizes, "num_hidden_layers": 1}))
    with torch.no_grad():
        model.cls.predictions.bias[30] = 100.0
    model.save_pretrained(path)
    return str(path)


def test_masked_words_are_drawn_anew(folder: str) -> None:
    torch.manual_seed(0)
    batch, model = sentences(), masked_language_model(folder, meta=False).eval()
    changed = substitute(batch, SPECIAL, 1.0, model, 3)["input_ids"]
    free = free_tokens(batch, SPECIAL)
    assert (changed[free] == 30).all()
    assert torch.equal(changed[~free], batch["input_ids"][~free])
    assert torch.equal(substitute(batch, SPECIAL, 0.0, model, 3)["input_ids"], batch["input_ids"])
    never = substitute(batch, (*SPECIAL, 30), 1.0, model, 3)["input_ids"]
    assert (never[free_tokens(batch, (*SPECIAL, 30))] != 30).all()


def test_a_student_learns_from_substitutions(folder: str) -> None:
    settings = {"model": folder, "mask_id": 3}
    method = distiller(bert(1, layers=2), bert(2), augment="contextual", augmentation=settings)
    loss = method.train().training_loss(text())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None for p in method.get_submodule("masked_lm").parameters())
    assert not any("masked_lm" in name for name in method.shipped())
    assert masked_language_model(folder, meta=True).get_input_embeddings().weight.device.type == "meta"


def test_the_mask_token_is_that_of_the_tokenizer_beside_the_model(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mask_id"):
        mask_token(folder, {})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(35))]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    transformers.BertConfig(**{k: v for k, v in BERT.items() if k != "model_type"}).save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert mask_token(str(tmp_path), tokenizer.get_vocab()) == tokenizer.mask_token_id
    with pytest.raises(UserError, match="other numbers"):
        mask_token(str(tmp_path), {"w0": 0})


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no masked language model"):
        masked_language_model(str(tmp_path), meta=False)
