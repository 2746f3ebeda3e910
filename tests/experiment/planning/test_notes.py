"""A plan says where it could not take the words as they were given; a run's data say it too."""

from __future__ import annotations

import pytest

from transfer_run.data.load import build_data
from transfer_run.data.text.lengths import cut_lengths
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import plan_run

BERT = {"name": "b", "family": "encoder", "architecture": {"model_type": "bert", "max_position_embeddings": 512}}
ROBERTA = {"name": "r", "family": "encoder", "architecture": {"model_type": "roberta", "max_position_embeddings": 514}}
GPT2 = {"name": "g", "family": "decoder", "architecture": {"model_type": "gpt2", "n_positions": 1024}}
CLIP = {"name": "c", "family": "clip", "architecture": {"text_config": {"max_position_embeddings": 77}}}
T5 = {"name": "t", "family": "t5", "architecture": {"n_positions": 512}}


@pytest.mark.parametrize(("backbone", "room"), [(BERT, 512), (ROBERTA, 512), (GPT2, 1024), (CLIP, 77), (T5, None)])
def test_cut_lengths_are_said(backbone: dict[str, object], room: int | None) -> None:
    lines = cut_lengths({"max_source_length": 4096}, backbone)
    assert len(lines) == (room is not None)
    assert not room or lines[0].startswith(f"texts are cut at {room} tokens, not at dataset.max_source_length=4096")
    assert cut_lengths({"max_source_length": room or 4096}, backbone) == []
    assert cut_lengths({}, backbone) == []  # pictures


def test_a_plan_and_its_run_say_that_texts_are_cut() -> None:
    cfg = compose(["method=linear_probe", "backbone=bert_tiny", "dataset=python_docs", "dataset.max_source_length=4096",
                   "backbone.weights=random:0"])  # fmt: skip
    plan = plan_run(cfg, "cpu")
    (line,) = [line for line in plan.assumptions if "texts are cut" in line]
    length = plan.shapes["input_ids"][0][1]
    assert f"cut at {length} tokens" in line
    data = build_data(cfg.config["dataset"], cfg.config["backbone"], 0)
    data.setup()
    assert line in data.notes


def test_batches_that_do_not_divide_and_strategies_without_devices_are_said() -> None:
    words = ["method=linear_probe", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0"]
    odd = plan_run(compose([*words, "dataset.batch_size=100", "plan.devices=8"])).assumptions
    assert any("planned are 13 on each, 104 in all" in line for line in odd)
    even = plan_run(compose([*words, "dataset.batch_size=96", "plan.devices=8"])).assumptions
    assert not any("divide" in line for line in even)
    alone = plan_run(compose([*words, "plan.strategy=fsdp"])).assumptions
    assert any("plan.strategy=fsdp changes nothing on one device" in line for line in alone)
