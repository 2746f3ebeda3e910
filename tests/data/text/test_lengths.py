"""What a dataset asks of a backbone, and how large its batches get, from the configs alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import ROOT, nodes
from transfer_run.backbones.weights.names import uses_bytes
from transfer_run.data.load import batch_spec, build_task, data_class
from transfer_run.data.text.lengths import corrupted_lengths, source_length, span_sizes, value_text
from transfer_run.errors import UserError
from transfer_run.experiment.config.compatibility import reads

FOLDER = ROOT / "configs" / "dataset"
SHIPPED = sorted(  # `none` stands for the absence of data
    f.relative_to(FOLDER).with_suffix("").as_posix()
    for f in FOLDER.rglob("*.yaml")
    if f.name[0] != "_"
    and f.stem not in ("none", "sequence", "distilled")
    and f.parent.name != "mtil"  # made of other data sets
)
BACKBONES = {
    "text": ("t5_tiny", "bert_tiny", "gpt2_tiny"),
    "images": ("vit_tiny", "cnn_tiny", "clip_tiny"),
    "pairs": ("clip_tiny",),
    "series": ("dlinear_tiny", "ttm_tiny"),
}
GIVEN = {"series_file": {"channels": ["a", "b"]}}
"""What a set of one's own files must be told."""


@pytest.mark.parametrize("name", SHIPPED)
def test_every_dataset_has_a_task_and_shapes_without_data(name: str) -> None:
    kind = reads(nodes(f"dataset={name}")[0])
    beside = "feature_width" in nodes(f"dataset={name}")[0]  # visual features beside the text: a T5 alone reads them
    for backbone in ("t5_tiny",) if beside else BACKBONES[kind]:
        dataset, node = nodes(f"dataset={name}", f"backbone={backbone}")
        dataset |= GIVEN.get(name, {})
        if dataset["num_labels"] is None and name not in ("digits", "breakhis"):
            dataset["num_labels"] = 3  # left to the data, which a plan does not read
        task, spec = build_task(dataset, node), batch_spec(dataset, node, 5)
        assert data_class(dataset).__module__.startswith("transfer_run.data.")
        assert all(shape[0] == 5 and min(shape) > 0 for shape, _ in spec.values())
        assert task.headline == dataset["metrics"][0]
        if task.form == "text_to_text":
            assert spec["labels"] == ((5, task.max_target_length), torch.int64)
        if "text" in kind or "captions" in kind:
            assert spec["input_ids"][0] == (5, source_length(dataset, node))


def test_a_classification_is_posed_as_words_to_a_t5() -> None:
    dataset, t5 = nodes("dataset=glue/rte", "backbone=t5-base")
    task = build_task(dataset, t5)
    assert (task.form, task.label_names, task.max_target_length) == ("text_to_text", ("0", "1"), 3)
    assert batch_spec(dataset, t5, 100) == {
        "input_ids": ((100, 128), torch.int64),
        "attention_mask": ((100, 128), torch.int64),
        "labels": ((100, 3), torch.int64),
        "targets": ((100,), torch.int64),
    }
    dataset["answers"] = "names"
    assert build_task(dataset, t5).label_names == ("entailment", "not_entailment")
    dataset, bert = nodes("dataset=glue/rte", "backbone=bert-base-uncased")
    assert build_task(dataset, bert).form == "classification"
    assert batch_spec(dataset, bert, 4)["token_type_ids"] == ((4, 128), torch.int64)
    assert "token_type_ids" not in batch_spec(*nodes("dataset=glue/rte", "backbone=roberta-base"), 4)


def test_scores_are_posed_as_values() -> None:
    dataset, t5 = nodes("dataset=glue/stsb", "backbone=t5-base")
    task = build_task(dataset, t5)
    assert (task.form, task.num_labels, task.max_target_length, task.headline) == ("text_to_text", 0, 5, "glue")
    assert batch_spec(dataset, t5, 2)["targets"] == ((2,), torch.float32)
    dataset, bert = nodes("dataset=glue/stsb", "backbone=bert_tiny")
    assert batch_spec(dataset, bert, 2)["labels"] == ((2,), torch.float32)
    assert build_task(dataset, bert).num_labels == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0"), (5, "5.0"), (3.8, "3.8"), (2.75, "2.8"), (2.69, "2.6"), (4.333, "4.4"), (0.09, "0.0")],
)
def test_values_are_rounded_to_a_fifth(value: float, text: str) -> None:
    assert value_text(value, 0.2) == text


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [(1037.0, None, "1037"), (27.5, None, "27.5"), (-0.0017, None, "-0.0017"), (1e22, None, "10000000000000000000000"),
     (1037.0, 10, "1040"), (0.3, 0.25, "0.25"), (0.37, 0.25, "0.25"), (-2.4, 0.5, "-2.5"), (7.0, 1, "7")],
)  # fmt: skip
def test_values_are_written_as_they_stand_or_as_asked(value: float, step: float | None, text: str) -> None:
    assert value_text(value, step) == text


@pytest.mark.parametrize(
    ("dataset", "backbone", "says"),
    [
        (["python_docs", "dataset.task=language_modeling"], "t5_tiny", "decoder"),
        (["python_docs", "dataset.task=span_corruption"], "gpt2_tiny", "t5"),
        (["digits"], "t5_tiny", "vit"),
    ],
)
def test_an_impossible_pair_says_what_would_fit(dataset: list[str], backbone: str, says: str) -> None:
    config = nodes(f"dataset={dataset[0]}", f"backbone={backbone}", *dataset[1:])
    with pytest.raises(UserError) as caught:
        batch_spec(*config, 2)
    assert says in caught.value.remedy


def test_classes_must_be_known_to_plan() -> None:
    dataset, backbone = nodes("dataset=text_files", "backbone=bert_tiny")
    with pytest.raises(UserError, match="number of classes is not known") as caught:
        build_task(dataset, backbone)
    assert "dataset.num_labels" in caught.value.remedy
    with pytest.raises(UserError, match="holds 2 names"):
        build_task(dataset | {"num_labels": 3, "label_names": ["a", "b"]}, backbone)


@pytest.mark.parametrize(
    ("backbone", "length"),
    [("clip_tiny", 64), ("roberta-base", 512), ("bert_tiny", 512), ("gpt2_tiny", 512), ("t5_tiny", 4000)],
)
def test_sources_end_where_the_positions_end(backbone: str, length: int) -> None:
    dataset, node = nodes("dataset=text_files", f"backbone={backbone}")
    assert source_length(dataset | {"max_source_length": 4000}, node) == length


def test_who_reads_bytes(tmp_path: Path) -> None:
    assert uses_bytes({"tokenizer": "bytes", "weights": "hub"})
    assert uses_bytes({"tokenizer": None, "weights": "random"})
    assert uses_bytes({"tokenizer": None, "weights": "run:method=pretrain"})
    assert not uses_bytes({"tokenizer": None, "weights": "hub"})
    assert not uses_bytes({"tokenizer": "t5-base", "weights": "random"})
    assert not uses_bytes({"tokenizer": None, "weights": str(tmp_path)})
    (tmp_path / "model.json").write_text("{}")
    assert uses_bytes({"tokenizer": None, "weights": str(tmp_path)})


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 300), st.floats(0.05, 0.7), st.floats(1, 30))
def test_corrupted_text_fills_the_source(room: int, density: float, mean: float) -> None:
    dataset = {"max_source_length": room, "noise_density": density, "mean_span": mean}
    length, target = corrupted_lengths(dataset, {"family": "t5"})
    noise, spans = span_sizes(length, density, mean)
    assert 1 <= spans <= min(noise, length - noise)
    assert length - noise + spans + 1 <= room
    longer, more = span_sizes(length + 1, density, mean)
    assert length + 1 - longer + more + 1 > room
    assert target == noise + spans + 1
