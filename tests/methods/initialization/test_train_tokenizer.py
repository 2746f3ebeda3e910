"""A tokenizer of the run's text: its kinds, its special tokens, what is refused, and who reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.methods.initialization.test_clp_transfer import LINES
from tests.methods.merging.test_runs import carried_out
from transfer_run.backbones.load import build_backbone
from transfer_run.data.load import build_data
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.methods.base import Context
from transfer_run.methods.initialization.train_tokenizer import TrainTokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(LINES, encoding="utf-8")
    return path


def trained(file: Path, folder: Path, *words: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """The tokenizer, and what the method says of it."""
    config = compose(
        ["method=train_tokenizer", "backbone=gpt2_tiny", "dataset=text_files", "dataset.form=language_modeling",
         "dataset.max_source_length=16", f"dataset.path={file}", *words]
    ).config  # fmt: skip
    data = build_data(config["dataset"], config["backbone"], 0)
    data.setup()
    method = TrainTokenizer(build_backbone(dict(config["backbone"])), data.task, **settings)
    method.prepare(Context(0, folder, lambda *_: iter(()), data=data, log=lambda line: None))
    return AutoTokenizer.from_pretrained(folder / "tokenizer"), method.results


@pytest.mark.parametrize("kind", ["byte_bpe", "bpe", "unigram", "wordpiece"])
def test_every_kind_reads_its_text(kind: Any, file: Path, tmp_path: Path) -> None:
    tokenizer, said = trained(file, tmp_path, algorithm=kind, size=300)
    text = "the old cat sat on the mat"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip().replace(" ,", ",") == text
    assert tokenizer.unk_token_id not in ids
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len(tokenizer) == said["tokens"] <= 300
    assert said["metrics"]["train/bytes_a_token"] > 1.1


@pytest.mark.parametrize("kind", ["byte_bpe", "bpe"])
def test_bytes_know_every_text(kind: Any, file: Path, tmp_path: Path) -> None:
    tokenizer, _ = trained(file, tmp_path, algorithm=kind, size=300)
    assert tokenizer.decode(tokenizer("Grüße 早", add_special_tokens=False)["input_ids"]).strip() == "Grüße 早"


def test_lower_case(file: Path, tmp_path: Path) -> None:
    tokenizer, _ = trained(file, tmp_path, size=300, lowercase=True)
    assert tokenizer("THE CAT")["input_ids"] == tokenizer("the cat")["input_ids"]


def test_it_reads_training_rows_alone(file: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text("one two three " * 20, encoding="utf-8")
    for split in ("validation", "test"):
        (tmp_path / "data" / f"{split}.txt").write_text("zzzz qqqq " * 40, encoding="utf-8")
    tokenizer, _ = trained(tmp_path / "data", tmp_path, size=300)
    assert "Ġtwo" in tokenizer.get_vocab()
    assert not [token for token in tokenizer.get_vocab() if "zz" in token]


def test_what_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no room for 256 bytes"):
        trained(file, tmp_path, size=100)
    rows = tmp_path / "rows.json"
    rows.write_text('{"rows": {"train": [0, 1, 2, 3]}}', encoding="utf-8")
    with pytest.raises(UserError, match="numbers windows of tokens"):
        trained(file, tmp_path, f"dataset.rows={rows}", size=300)


def test_only_a_run_that_makes_one_is_read_as_a_tokenizer(file: Path, tmp_path: Path) -> None:
    data = f"dataset=text_files dataset.form=language_modeling dataset.max_source_length=16 dataset.path={file}"
    words = ["backbone=gpt2_tiny", *data.split(), "trainer.max_steps=1"]
    with pytest.raises(UserError, match=r"which makes a model; .* reads a tokenizer there"):
        carried_out(
            tmp_path, "method=pretrain", *words, f"backbone.tokenizer=run:method=pretrain backbone=gpt2_tiny {data}"
        )
    made = f"method=train_tokenizer backbone=gpt2_tiny method.size=300 {data}"
    one, other = (
        compose(["method=pretrain", *words, f"backbone.tokenizer=run:{each}"]) for each in (made, f"{made} seed=1")
    )
    assert one.identity != other.identity
    assert (
        compose(["method=pretrain", *words, f"backbone.tokenizer=run:{made} method.algorithm=byte_bpe"]).identity
        == one.identity
    )
