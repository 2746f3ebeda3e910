"""Short real runs: real text, real steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import yaml
from torch import Tensor

from tests.methods.side_tuning.models import backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.methods.base import Context, Method
from transfer_run.methods.side_tuning.lst import LST
from transfer_run.task import Task

ROOT = Path(__file__).parents[3]
LLAMA = ROOT.parent / "shared" / "data" / "weights" / "llama-stories260k"


def prose(count: int) -> list[str]:
    """The `count` longest help topics of Python, as running text."""
    return [" ".join(topics[name].split()) for name in sorted(topics, key=lambda name: -len(topics[name]))[:count]]


def fit(method: LST, batches: Iterator[dict[str, Tensor]], steps: int, lr: float) -> list[float]:
    optimizer, losses = torch.optim.AdamW(method.parameter_groups(), lr=lr), []
    method.train()
    for _, given in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        loss = method.loss(given)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    method.eval()
    return losses


def paragraphs(length: int, size: int) -> Iterator[dict[str, Tensor]]:
    """Bytes of a paragraph; the answer is the word for the help topic it stands in."""
    draw, texts, words = torch.Generator().manual_seed(0), prose(2), (b"first", b"other")
    while True:
        numbers = torch.randint(2, (size,), generator=draw).tolist()
        starts = torch.randint(min(len(text) for text in texts) - length, (size,), generator=draw).tolist()
        ids = [list(texts[n].encode("ascii", "replace")[s : s + length]) for n, s in zip(numbers, starts, strict=True)]
        labels = torch.tensor([[b + 3 for b in words[n]] + [1] for n in numbers])
        source = torch.tensor(ids) + 3
        yield {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": labels}


def test_a_byte_level_t5_learns_the_answers() -> None:
    """From random frozen weights: the loss falls to the entropy of the two words, every answer is one of them."""
    model = backbone("t5", vocab_size=384, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=2)
    torch.manual_seed(0)
    method = LST(model, Task("text_to_text", 2, max_target_length=6), reduction_factor=4, init="magnitude")
    method.cut_from_backbone(None)
    losses = fit(method, paragraphs(32, 8), 60, 1e-2)
    assert sum(losses[:3]) / 3 > 4.5
    assert sum(losses[-10:]) / 10 < 0.3
    given = next(paragraphs(32, 8))
    assert {tuple(answer) for answer in method.predict(given).tolist()} <= {tuple(w) for w in given["labels"].tolist()}


@pytest.mark.skipif(not LLAMA.is_dir(), reason=f"no real weights in {LLAMA}")
def test_a_real_llama_learns_another_kind_of_text(tmp_path: Path) -> None:
    """A Llama that knows only stories, side network pruned by Fisher: held-out technical prose gets likelier."""
    from transformers import AutoTokenizer

    config = yaml.safe_load((ROOT / "configs/backbone/llama-stories260k.yaml").read_text())
    model = build_backbone(config | {"weights": str(LLAMA)})
    ids = torch.tensor(AutoTokenizer.from_pretrained(LLAMA)(prose(1)[0][:20000], verbose=False)["input_ids"])
    rows = ids[: len(ids) // 48 * 48].view(-1, 48)

    def given(some: Tensor) -> dict[str, Tensor]:
        return {"input_ids": some, "attention_mask": torch.ones_like(some), "labels": some}

    held_out, train, draw = given(rows[-12:]), rows[:-12], torch.Generator().manual_seed(0)
    task = Task("language_modeling", 0)
    with torch.no_grad():
        alone = Method(model, task).eval().loss(held_out).item()
    torch.manual_seed(0)
    method = LST(model, task, reduction_factor=2)
    samples = Context(0, tmp_path, lambda split, size: (given(row[None]) for row in train[:20]), log=lambda line: None)
    method.prepare(samples)
    fit(method, (given(train[torch.randint(len(train), (8,), generator=draw)]) for _ in range(80)), 80, 1e-2)
    with torch.no_grad():
        assert method.loss(held_out).item() < alone - 0.4
