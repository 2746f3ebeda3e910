"""Vocabulary logits a chunk at a time: the same loss and gradients, and refused where somebody reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from transfer_run.backbones.base import Batch
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.advice import LOSS_CHUNK
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method
from transfer_run.run_folder import read_result
from transfer_run.task import Task

RUNNING = Task("language_modeling", 0, metrics=("perplexity",))
WRITTEN = Task("text_to_text", 2, metrics=("accuracy",), max_target_length=5)
WORDS = ["backbone=llama_tiny", "dataset=python_docs", "dataset.form=language_modeling", "dataset.max_source_length=64"]
BRIEF = ["backbone.weights=random:0", "hardware=cpu", "trainer.max_steps=3", "trainer.progress=none"]


def made(method: str, backbone: str, task: Task, chunk: int | None) -> Method:
    torch.manual_seed(0)
    about = dict(registry.entry("backbone", backbone).content["backbone"]) | {"weights": "random"}
    settings = dict(registry.entry("method", method).content["method"])
    made = build_method(settings, build_backbone(about, weights=False, loss_chunk=chunk), task)
    made.train()
    for part in made.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return made


def batch_of(task: Task) -> Batch:
    torch.manual_seed(1)
    ids = torch.randint(3, 250, (3, 11))
    if task is RUNNING:
        return {"input_ids": ids, "labels": ids.masked_fill(torch.rand(3, 11) < 0.2, -100)}
    labels = torch.randint(3, 250, (3, 5))
    labels[1, 3:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize(
    ("method", "backbone", "task"),
    [
        ("full", "llama_tiny", RUNNING),
        ("linear_probe", "llama_tiny", RUNNING),
        ("lora", "t5_tiny", WRITTEN),
        ("lst", "t5_tiny", WRITTEN),
        ("unipt", "llama_tiny", RUNNING),
        ("prompt_tuning", "llama_tiny", RUNNING),
    ],
)
def test_loss_and_gradients_are_those_of_all_tokens_at_once(method: str, backbone: str, task: Task, chunk: int) -> None:
    whole, parted = (made(method, backbone, task, each) for each in (None, chunk))
    losses = []
    for each in (whole, parted):
        torch.manual_seed(2)
        loss = each.training_loss(batch_of(task))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    grads: list[dict[str, Tensor]] = [
        {name: p.grad for name, p in each.named_parameters() if p.grad is not None} for each in (whole, parted)
    ]
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], atol=1e-6, rtol=1e-4), name
    torch.testing.assert_close(parted(batch_of(task)).shape[-1], whole(batch_of(task)).shape[-1])  # predictions: real


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothing_is_of_training_alone_and_no_token_is_counted_twice(smoothing: float) -> None:
    task = Task("language_modeling", 0, metrics=("perplexity",), label_smoothing=smoothing)
    whole, parted = (made("full", "llama_tiny", task, chunk) for chunk in (None, 4))
    batch = batch_of(RUNNING)
    for training in (True, False):
        one, other = (each.train(training).training_loss(batch).item() for each in (whole, parted))
        assert one == pytest.approx(other, rel=1e-5)
    unlabelled = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert torch.isnan(parted.training_loss(unlabelled))
    assert torch.isnan(whole.training_loss(unlabelled))


def test_whoever_reads_the_logits_is_refused() -> None:
    method = made("lst", "llama_tiny", RUNNING, 4)
    method.lambda_distill = 1.0  # type: ignore[assignment]
    with pytest.raises(UserError, match="reads the logits"):
        method.training_loss(batch_of(RUNNING))
    assert not method.backbone.words_later
    plain = made("full", "llama_tiny", RUNNING, 4)
    plain.backbone.words_later = True
    logits = plain(batch_of(RUNNING))
    with pytest.raises(UserError, match="reads the logits"):
        logits.argmax(-1)
    with pytest.raises(UserError, match="reads the logits"):
        torch.softmax(logits, -1)


def test_weights_of_classes_are_refused() -> None:
    task = Task("text_to_text", 2, metrics=("accuracy",), max_target_length=5, class_weights=(1.0, 2.0))
    method = made("full", "t5_tiny", task, 4)
    with pytest.raises(UserError, match="weights"):
        method.training_loss(batch_of(WRITTEN))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backbone=vit_tiny", "dataset=digits", "hardware.loss_chunk=4"], "has no words"),
        ([*WORDS, "hardware=fsdp", "hardware.loss_chunk=4"], "shards"),
        ([*WORDS, "hardware.loss_chunk=0"], "hardware.loss_chunk"),
    ],
)
def test_where_it_cannot_be_it_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_run(compose(["method=full", "backbone.weights=random:0", *words]))


def test_a_run_is_what_its_plan_says_and_scores_as_the_whole_one(tmp_path: Path) -> None:
    found = []
    for chunk in ("null", "16"):
        words = ["method=lora", *WORDS, *BRIEF, f"hardware.loss_chunk={chunk}", f"output_dir={tmp_path}"]
        result = read_result(carry_out(compose(words)))
        assert result is not None
        assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.02)
        found.append(result)
    whole, parted = found
    assert parted["memory"]["peak"] < whole["memory"]["peak"]
    assert parted["identity"] != whole["identity"]
    score = "test/perplexity"
    assert parted["metrics"][score] == pytest.approx(whole["metrics"][score], rel=1e-4)


def test_the_plan_of_large_logits_advises_it_with_its_number() -> None:
    big = ["method=lora", "backbone=Qwen/Qwen2.5-0.5B", *WORDS[1:3], "dataset.max_source_length=1024"]
    run = compose([*big, "dataset.batch_size=8", "hardware.precision=bf16-mixed"])
    plan = plan_run(run)
    line = next(line for line in plan.advise() if LOSS_CHUNK in line)
    assert line.startswith(f"+ {LOSS_CHUNK}")
    chunked = plan_run(run.changed(hardware={"loss_chunk": 1024}))
    assert chunked.memory["peak"] < 0.6 * plan.memory["peak"]
