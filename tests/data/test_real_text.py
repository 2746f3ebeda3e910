"""GLUE's tasks from real files: the LST paper's splits, prompts, answers, pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.data.conftest import data_of, nodes, real
from transfer_run.data.load import batch_spec, build_data
from transfer_run.errors import UserError


def glue(task: str, backbone: str, *overrides: str, folder: str = "text") -> Any:
    return data_of(f"dataset=glue/{task}", f"backbone={backbone}", f"dataset.path={real(folder)}", *overrides)


@pytest.mark.parametrize(
    ("task", "folder", "sizes"),
    [
        ("rte", "text", (2490, 138, 139)),
        ("cola", "text/cola", (8551, 521, 522)),
        ("mrpc", "text/mrpc", (3576, 250, 250)),
        ("sst2", "text/sst2", (5920, 1000, 872)),
        ("stsb", "text/stsb/en", (5749, 750, 750)),
    ],
)
def test_splits_of_the_lst_paper(task: str, folder: str, sizes: tuple[int, int, int]) -> None:
    data = glue(task, "t5_tiny", folder=folder)
    assert tuple(data.sizes.values()) == sizes
    assert [note for note in data.notes if "are cut at" not in note] == []
    rows = {name: {str(row) for row in data.encoders[name].rows.rows} for name in data.sizes}
    overlap = (rows["train"] & rows["test"]) | (rows["validation"] & rows["test"])
    assert len(overlap) < 0.03 * sizes[2], "only sentences that the data repeat stand in two splits"


def test_halves_follow_the_papers_generator() -> None:
    data, official = glue("rte", "t5_tiny"), glue("rte", "t5_tiny", "dataset.splits=glue")
    order = torch.randperm(277, generator=torch.Generator().manual_seed(42)).tolist()
    whole = official.encoders["validation"].rows
    for name, part in (("validation", order[:138]), ("test", order[138:])):
        rows = data.encoders[name].rows
        assert [rows.rows[i] for i in range(5)] == [whole.rows[j] for j in part[:5]]
        assert rows.labels.tolist() == whole.labels[part].tolist()
    notes = [note for note in official.notes if "are cut at" not in note]
    assert notes == ["test: 3000 of 3000 rows have no label; predicted, not scored"]
    scores = official.metrics("test")
    batch = next(iter(official.loader("test", batch_size=4)))
    scores.update(torch.zeros(4, 2, dtype=torch.int64), batch)
    assert scores.compute() == {}


def test_a_t5_reads_a_prompt_and_writes_a_digit() -> None:
    data = glue("rte", "t5_tiny", "dataset.max_source_length=4000")
    example, row = data.split("validation")[3], data.encoders["validation"].rows.rows[3]
    text = data.tokenizer.decode(example["input_ids"], skip_special_tokens=True)
    assert text == f"rte sentence1: {row['sentence1']} sentence2: {row['sentence2']}"
    assert data.tokenizer.decode(example["labels"], skip_special_tokens=True) == str(example["targets"])
    assert data.label_names == ("entailment", "not_entailment")


def test_an_encoder_reads_a_pair() -> None:
    data = glue("rte", "bert_tiny", "dataset.max_source_length=500")
    ids, row = data.split("train")[0]["input_ids"], data.encoders["train"].rows.rows[0]
    first = data.tokenizer.decode(ids[: ids.index(data.tokenizer.eos_token_id)])
    assert first == row["sentence1"]
    assert ids.count(data.tokenizer.eos_token_id) == 2


def test_scores_are_written_in_fifths() -> None:
    data = glue("stsb", "t5_tiny", folder="text/stsb/en")
    example = data.split("train")[2]
    written = float(data.tokenizer.decode(example["labels"], skip_special_tokens=True))
    assert abs(written - example["targets"]) <= 0.1001
    batch = next(iter(data.loader("validation", batch_size=100)))
    scores = data.metrics("validation")
    scores.update(batch["labels"], batch)
    result = scores.compute()
    assert list(result) == ["glue", "pearson", "spearman"]
    assert result["pearson"] > 0.99, "only rounding stands between the answers and the scores"


@pytest.mark.parametrize(("task", "folder"), [("rte", "text/rte"), ("stsb", "text/stsb/en")])
@pytest.mark.parametrize("backbone", ["t5_tiny", "bert_tiny", "gpt2_tiny"])
def test_no_batch_is_larger_than_planned(task: str, folder: str, backbone: str) -> None:
    overrides = (f"dataset=glue/{task}", f"backbone={backbone}", f"dataset.path={real(folder)}")
    data, spec = data_of(*overrides), batch_spec(*nodes(*overrides), 64)
    for number, batch in enumerate(data.loader("train", batch_size=64)):
        assert batch.keys() == spec.keys()
        assert all(n <= m for name, t in batch.items() for n, m in zip(t.shape, spec[name][0], strict=True))
        assert all(t.dtype == spec[name][1] for name, t in batch.items())
        if number == 10:
            break
    assert batch["input_ids"].shape == spec["input_ids"][0], "long texts fill the plan"


def test_a_sub_word_tokenizer_and_a_decoder() -> None:
    tokenizer = real("weights/llama-stories260k")
    overrides = ("dataset=glue/rte", "backbone=llama-stories260k", f"backbone.tokenizer={tokenizer}")
    data = data_of(*overrides, f"dataset.path={real('text/rte')}", "dataset.max_source_length=64")
    batch = next(iter(data.loader("train", batch_size=8)))
    assert batch["input_ids"].shape[1] <= 64
    assert data.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).startswith("rte sentence1:")


@pytest.mark.parametrize(("splits", "says"), [("lst", "validation_mismatched"), ("glue", "validation_matched")])
def test_mnli_names_the_split_that_is_missing(splits: str, says: str) -> None:
    dataset, backbone = nodes("dataset=glue/mnli", "backbone=bert_tiny", f"dataset.splits={splits}")
    data = build_data(dataset | {"path": real("text/rte")}, backbone, 0)
    with pytest.raises(UserError, match=says):
        data.setup()


def test_class_names_of_the_data_are_taken() -> None:
    path = real("text/trec")
    data = data_of(
        "dataset=text_files", "backbone=bert_tiny", f"dataset.path={path}", "dataset.text_columns=[sentence]"
    )
    assert data.task.num_labels == 6
    assert data.label_names == ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")
    assert data.sizes["test"] == 500
    parts = [set(data.encoders[name].rows.rows["sentence"]) for name in ("train", "validation")]
    assert len(parts[0]) + len(parts[1]) > 5300
