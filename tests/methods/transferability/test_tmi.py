"""The method on small backbones with real digits: one pass, all scores, a ranking, a record, a picture."""

from __future__ import annotations

import inspect
import json
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Candidate, Context
from transfer_run.methods.transfer_scores.all import SCORES
from transfer_run.methods.transfer_scores.class_entropy import tmi
from transfer_run.methods.transfer_scores.leep import leep, nce
from transfer_run.methods.transferability.ranking import extraction
from transfer_run.methods.transferability.ranking.extraction import _labelled, extract
from transfer_run.methods.transferability.tmi import TMI
from transfer_run.task import Task

CONFIGS = Path(__file__).parents[3] / "configs"
DIGITS = Task("classification", 10)


def backbone(name: str, **changes: Any) -> Backbone:
    """A packaged tiny backbone with random weights of a fixed seed."""
    config = yaml.safe_load((CONFIGS / "backbone" / f"{name}.yaml").read_text(encoding="utf-8"))
    return build_backbone(config | {"weights": "random:0"} | changes)


def digits(split: str, batch_size: int, *, size: int = 8, samples: int = 120) -> Iterator[Batch]:
    """The first digits as images of `size` pixels."""
    assert split == "train"
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor((pixels[:samples] / 16 - 0.305) / 0.376, dtype=torch.float32).view(-1, 1, 8, 8)
    images = images if size == 8 else F.interpolate(images, (size, size), mode="bilinear")
    for rows in torch.arange(samples).split(batch_size):
        yield {"pixel_values": images[rows], "labels": torch.tensor(labels)[rows]}


def sentences(split: str, batch_size: int, *, answers: torch.Tensor | None = None) -> Iterator[Batch]:
    """Random bytes of different lengths, every batch padded to its own longest."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2 if answers is None else answers
    lengths = torch.randint(3, 20, (len(labels),), generator=generator)
    for rows in torch.arange(len(labels)).split(batch_size):
        width = int(lengths[rows].max())
        mask = (torch.arange(width) < lengths[rows][:, None]).long()
        ids = torch.randint(3, 259, mask.shape, generator=generator) * mask
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels[rows]}


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def context(tmp_path: Path, log: list[str]) -> Context:
    folder = tmp_path / "runs" / "digits" / "tmi-vit_tiny-00000000"
    folder.mkdir(parents=True)

    def cnn() -> Candidate:
        return Candidate(backbone("cnn_tiny"), partial(digits, size=32))

    return Context(0, folder, digits, log=log.append, batch_size=50, candidates={"cnn_tiny": cnn})


def carried_out(context: Context, model: Backbone, task: Task = DIGITS, **settings: Any) -> dict[str, Any]:
    method = TMI(model, task, **settings)
    method.prepare(context)
    return method.conclude(context)


# ---- the whole method
def test_a_pool_is_scored_ranked_recorded_and_drawn(context: Context, log: list[str]) -> None:
    result = json.loads(json.dumps(carried_out(context, backbone("vit_tiny"), pool=["cnn_tiny"]), allow_nan=False))
    assert set(result["scores"]) == set(SCORES) - {"leep", "nce"}
    for score, values in result["scores"].items():
        assert set(values) == {"vit_tiny", "cnn_tiny"}
        assert result["ranking"][score] == sorted(values, key=lambda name: -values[name])
    for name, width in (("vit_tiny", 64), ("cnn_tiny", 128)):
        assert set(result["candidates"][name]["skipped"]) == {"leep", "nce"}
        assert set(result["candidates"][name]["seconds"]) == set(result["scores"])
        extraction = result["extraction"][name]
        assert extraction["samples"] == 120
        assert extraction["classes"] == 10
        assert extraction["widths"] == {"head_input": width}
        assert extraction["seconds"] > 0
    assert (context.folder / result["picture"]).read_bytes().startswith(b"\x89PNG")
    printed = "\n".join(log)
    assert f"by tmi: {', '.join(result['ranking']['tmi'])}" in printed
    assert result["table"][0] == "ranking, higher is better; tmi is H(Z|Y) / classes (released code)"
    assert result["table"][1].split() == list(result["scores"])
    assert "vit_tiny: without leep, nce: the weights came without a classifier" in printed


def test_scores_are_those_of_the_head_input(context: Context) -> None:
    model = backbone("vit_tiny")
    method = TMI(
        model, DIGITS, scores=["tmi"], tmi={"k": 2, "norm": "max", "min_distance": 0.1, "divide_by_classes": False}
    )
    batch = next(digits("train", 120))
    with torch.no_grad():
        features = method.eval().features(batch).double().numpy()
    method.prepare(context)
    expected = tmi(features, batch["labels"].numpy(), k=2, min_distance=0.1, divide_by_classes=False)
    result = method.conclude(context)
    assert_allclose(result["scores"]["tmi"]["vit_tiny"], expected, rtol=1e-4)  # batches of 50 differ in round-off
    assert result["definition"]["tmi"] == "H(Z|Y) (paper)"
    assert torch.equal(method.predict(batch), method.features(batch))


def test_nothing_is_trained_changed_or_shipped(context: Context) -> None:
    model = backbone("cnn_tiny").train()
    context.batches = partial(digits, size=32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method = TMI(model, DIGITS, scores=["lfc"])
    assert not any(p.requires_grad for p in method.parameters())
    method.prepare(context)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())  # batch norm's statistics too
    assert model.training
    assert method.shipped() == {}
    assert not TMI.trains
    assert not TMI.tests


def test_backbones_of_the_pool_are_built_one_at_a_time(context: Context) -> None:
    alive: list[weakref.ref[Backbone]] = []

    def build() -> Candidate:
        assert all(reference() is None for reference in alive)
        model = backbone("cnn_tiny")
        alive.append(weakref.ref(model))
        return Candidate(model, partial(digits, size=32))

    context.candidates = {"a": build, "b": build}
    result = carried_out(context, backbone("vit_tiny"), pool=["a", "b"], scores=["lfc"])
    assert len(alive) == 2
    assert result["scores"]["lfc"]["a"] == result["scores"]["lfc"]["b"]


# ---- layers
def test_layers_are_ranked_beside_the_head_input(context: Context) -> None:
    model = backbone("vit_tiny")
    result = carried_out(context, model, pool=["cnn_tiny"], tap="all_blocks", scores=["lfc", "hscore_reg"])
    widths = result["extraction"]["vit_tiny"]["widths"]
    assert list(widths) == [*(f"block{i}" for i in range(6)), "head_input"]
    assert set(widths.values()) == {17 * 64, 64}
    maps = result["extraction"]["cnn_tiny"]["widths"]  # (C, H, W) of each stage, flattened
    assert [maps[f"block{i}"] for i in range(4)] == [16 * 8 * 8, 32 * 4 * 4, 64 * 2 * 2, 128]
    assert (
        set(result["ranking"]["lfc"]) == set(result["candidates"]) >= {"vit_tiny", "vit_tiny/block0", "cnn_tiny/block3"}
    )
    assert (context.folder / "ranking.png").is_file()


def test_block_outputs_are_those_of_the_backbone() -> None:
    model = backbone("vit_tiny").eval()
    batch = next(digits("train", 30, samples=30))
    with torch.no_grad():
        third = model.run(model.embed(batch), 3).hidden
    flat = extract(model, [batch], tap="all_blocks").features["block2"]
    pooled = extract(model, [batch], tap="all_blocks", block_features="pooled").features["block2"]
    assert_allclose(flat, third.flatten(1).numpy(), rtol=1e-5)
    assert_allclose(pooled, third.mean(1).numpy(), rtol=1e-5, atol=1e-6)


def test_texts_of_different_lengths_are_pooled_over_their_real_tokens() -> None:
    model = backbone("bert_tiny").eval()
    batches = list(sentences("train", 10))
    found = extract(model, batches, tap="all_blocks")
    assert found.features["block0"].shape == (40, 128)
    alone = {
        name: tensor[:1, : int(batches[0]["attention_mask"][0].sum())]
        for name, tensor in batches[0].items()
        if name != "labels"
    }
    with torch.no_grad():
        hidden = model.run(model.embed(alone), 1).hidden
    assert_allclose(found.features["block0"][0], hidden.mean(1)[0].numpy(), rtol=1e-3, atol=1e-5)


# ---- labels
def test_t5_is_scored_by_the_numbers_behind_its_label_words(context: Context) -> None:
    def posed(split: str, batch_size: int) -> Iterator[Batch]:
        for batch in sentences(split, batch_size):
            yield batch | {"labels": batch["input_ids"][:, :2], "targets": batch["labels"]}

    context.batches = posed
    task = Task("text_to_text", 2, ("no", "yes"), max_target_length=4)
    result = carried_out(context, backbone("t5_tiny"), task, scores=["tmi", "lfc"])
    assert result["extraction"]["t5_tiny"]["classes"] == 2
    assert set(result["scores"]) == {"tmi", "lfc"}


def test_unlabelled_samples_are_left_out_and_the_rest_is_cut() -> None:
    answers = torch.tensor([0, 1, -1, 1, 0, -1, 1, 0, 0, 1])
    model = backbone("bert_tiny")
    found = extract(model, sentences("train", 4, answers=answers))
    assert found.labels.tolist() == [0, 1, 1, 0, 1, 0, 0, 1]
    cut = extract(model, sentences("train", 4, answers=answers), max_samples=5)
    assert cut.labels.tolist() == [0, 1, 1, 0, 1]
    assert_allclose(cut.features["head_input"], found.features["head_input"][:5], rtol=1e-4, atol=1e-6)


def test_values_make_a_regression(context: Context) -> None:
    context.batches = partial(sentences, answers=torch.linspace(0, 5, 40))
    result = carried_out(
        context, backbone("bert_tiny"), Task("regression", 1, metrics=("pearson",)), scores=["tmi", "logme"]
    )
    assert set(result["scores"]) == {"logme"}
    assert "regression" in result["candidates"]["bert_tiny"]["skipped"]["tmi"]


def test_the_source_classifier_gives_leep_and_nce(context: Context) -> None:
    model = backbone("vit_tiny")
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(5, 64, generator=generator), torch.randn(5, generator=generator)
    model.source_head = (weight, bias)
    result = carried_out(context, model, scores=["leep", "nce"], tap="all_blocks")
    assert result["ranking"] == {"leep": ["vit_tiny"], "nce": ["vit_tiny"]}  # the same for every layer
    batch = next(digits("train", 120))
    with torch.no_grad():
        probabilities = (TMI(model, DIGITS).eval().features(batch) @ weight.T + bias).double().softmax(-1).numpy()
    labels = batch["labels"].numpy()
    assert_allclose(result["scores"]["leep"]["vit_tiny"], leep(probabilities, labels), rtol=1e-4)
    assert_allclose(result["scores"]["nce"]["vit_tiny"], nce(probabilities.argmax(1), labels), rtol=1e-4)
    assert result["extraction"]["vit_tiny"]["source_classes"] == 5


# ---- what fine-tuning reached
def test_given_accuracies_are_compared_with_the_scores(context: Context) -> None:
    reference = {"vit_tiny": 0.9, "cnn_tiny": 0.8}
    result = carried_out(context, backbone("vit_tiny"), pool=["cnn_tiny"], reference=reference, scores=["tmi", "lfc"])
    assert result["reference"] == reference
    for score in ("tmi", "lfc"):
        agrees = result["ranking"][score] == ["vit_tiny", "cnn_tiny"]
        assert result["agreement"][score]["weighted_tau"] == (1.0 if agrees else -1.0)
    assert "weighted tau" in result["table"][-1]


def test_finished_runs_from_the_same_weights_are_the_reference(context: Context, finished: Callable[..., Path]) -> None:
    model, beside = backbone("vit_tiny"), context.folder.parent
    cnn = backbone("cnn_tiny").provenance["checksum"]
    finished(beside / "full-vit_tiny-1", model.provenance["checksum"], 0.9)
    finished(beside / "full-cnn_tiny-1", cnn, 0.7)
    finished(beside / "full-cnn_tiny-2", "of other weights", 0.99)
    context.found = {"tuned": sorted(beside.glob("full-*"))}
    named = finished(beside.parent / "elsewhere", cnn, 0.8, method="linear_probe")
    settings: dict[str, Any] = {"pool": ["cnn_tiny"], "scores": ["lfc"]}
    assert carried_out(context, model, **settings)["reference"] == {"vit_tiny": 0.9, "cnn_tiny": 0.7}
    weights = finished(beside.parent / "pretraining", cnn, 0.95, method="pretrain")
    context.sources = {"probe": named, "backbone": weights, "pool.cnn_tiny": weights}
    assert carried_out(context, model, **settings)["reference"] == {"vit_tiny": 0.9, "cnn_tiny": 0.8}
    alone = carried_out(context, model, reference_method=None, reference={"vit_tiny": 0.5}, **settings)
    assert alone["reference"] == {"vit_tiny": 0.5, "cnn_tiny": 0.8}


# ---- the user's errors, and warnings
def test_an_unknown_score_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="logm") as error:
        TMI(backbone("vit_tiny"), DIGITS, scores=["tmi", "logm"])
    assert error.value.nearest[0] == "logme"


@pytest.mark.parametrize("name", ["vit_tniy", "vit_tiny/block9"])
def test_a_reference_for_nothing_ranked(context: Context, log: list[str], name: str) -> None:
    with pytest.raises(UserError, match=name) as error:
        carried_out(context, backbone("vit_tiny"), scores=["lfc"], reference={name: 0.9})
    assert error.value.nearest == ["vit_tiny"]
    assert not log or "/" in name  # a wrong backbone is refused before anything is computed


def test_a_data_set_without_labels(context: Context) -> None:
    context.batches = partial(sentences, answers=torch.full((6,), -1))
    with pytest.raises(UserError, match="No training sample carries a label"):
        carried_out(context, backbone("bert_tiny"))


def test_features_that_are_not_finite(context: Context) -> None:
    model = backbone("vit_tiny")
    with torch.no_grad():
        model.final_norm("image").weight.fill_(torch.inf)
    with pytest.raises(UserError, match="vit_tiny at head_input are not finite"):
        carried_out(context, model)


def test_features_that_outgrow_the_memory(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "LARGEST_SHARE", 1e-6)
    with pytest.raises(UserError, match="features of 50 samples already take") as error:
        carried_out(context, backbone("vit_tiny"), tap="all_blocks")
    assert "method.max_samples" in error.value.remedy


def test_warnings_of_the_floor_and_of_the_saturated_hscore(context: Context, log: list[str]) -> None:
    context.batches = partial(digits, samples=60)
    settings = {"k": 3, "norm": "max", "min_distance": 1e6, "divide_by_classes": True}
    result = carried_out(context, backbone("vit_tiny"), scores=["tmi", "hscore"], tmi=settings)
    assert result["candidates"]["vit_tiny"]["floored"] == 1.0
    assert any("100% of the distances lie below" in line for line in log)
    assert any("hscore is C - 1 for any features" in line for line in log)
    assert_allclose(result["scores"]["hscore"]["vit_tiny"], 9, rtol=0.05)


# ---- the config is the signature
def test_the_config_holds_the_keyword_arguments_with_their_defaults() -> None:
    node = yaml.safe_load((CONFIGS / "method" / "tmi.yaml").read_text(encoding="utf-8"))["method"]
    keys = {name: value for name, value in node.items() if name not in ("name", "about")}
    keywords = [p for p in inspect.signature(TMI).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert keys == {parameter.name: parameter.default for parameter in keywords}
    model = backbone("vit_tiny")
    assert np.isfinite(extract(model, digits("train", 60)).features["head_input"]).all()
    TMI(model, DIGITS, **keys)


def test_a_batch_that_is_labelled_whole_is_not_copied() -> None:
    """A second copy of the images stood beside them, which the plan of the pass did not have."""
    images = torch.zeros(4, 3, 2, 2)
    whole, cut = ({"images": images, "labels": torch.tensor(labels)} for labels in ([0, 1, 1, 0], [0, -100, 1, 0]))
    (first,) = _labelled([whole], None)
    assert first["images"] is images
    assert first["answers"].tolist() == [0, 1, 1, 0]
    (second,) = _labelled([cut], None)
    assert second["images"].shape[0] == 3
    (third,) = _labelled([whole, whole], 3)
    assert third["answers"].tolist() == [0, 1, 1]
