"""Retrieval over both towers of a CLIP, end to end: training, scores, plan, resume, models, stored taps, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.matrix.smallest import carried_out_in_two
from transfer_run.backbones.load import build_backbone
from transfer_run.data.load import build_data
from transfer_run.data.scores.names import OF_VIDEOS
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.planning.plan import parameter_counts, plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method

TWO_TOWERS = ("backbone=clip_tiny", "backbone.tower=both", "dataset=digit_captions")
QUICK = (*TWO_TOWERS, "backbone.weights=random:0", "trainer.max_steps=4", "trainer.log_every=1", "optimizer.warmup=0",
         "trainer.progress=none", "hardware=cpu")  # fmt: skip
METHODS = {
    "full": ("method=full",),
    "lora": ("method=lora", "method.rank=2"),
    "linear_probe": ("method=linear_probe",),
    "unipt": ("method=unipt", "optimizer.lr=1e-3"),
    "sherl": ("method=sherl", "optimizer.lr=1e-3"),
    "lst": ("method=lst", "method.init=magnitude", "optimizer.lr=1e-3"),
}


def built(*words: str) -> tuple[Method, dict[str, torch.Tensor]]:
    """A method and a batch of its data."""
    config: dict[str, Any] = dict(compose([*QUICK, *words]).config)
    data = build_data(config["dataset"], config["backbone"], 0)
    torch.manual_seed(0)
    method = build_method(config["method"], build_backbone(config["backbone"]), data.task)
    return method, next(iter(data.loader("train", batch_size=6)))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retrieval")


@pytest.mark.parametrize("name", METHODS)
def test_a_run_from_words_to_scores(name: str, output: Path) -> None:
    folder = carry_out(compose([*METHODS[name], *QUICK, f"output_dir={output}"]))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert {f"test/{metric}" for metric in OF_VIDEOS.values()} <= set(result["metrics"])
    assert result["memory"]["source"] == "tracker"
    assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.02)
    method, batch = built(*METHODS[name])
    loaded = load_model(folder / "checkpoints" / "model")
    assert loaded.predict(batch).shape == (6, 2, 32)
    assert not torch.equal(loaded(batch), method.eval()(batch)), "it has learnt something"
    assert loaded(batch).shape == (6, 6)


@pytest.mark.parametrize("name", ["full", "unipt", "sherl"])
def test_an_interrupted_run_goes_on_to_the_same_numbers(name: str, output: Path, tmp_path: Path) -> None:
    whole = carry_out(compose([*METHODS[name], *QUICK, f"output_dir={output}"]))
    folder = carried_out_in_two(compose([*METHODS[name], *QUICK, f"output_dir={tmp_path}", "profiler=none"]))
    for file in ("metrics.csv", "checkpoints/model/model.safetensors"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize("name", ["linear_probe", "unipt", "sherl"])
def test_taps_of_both_towers_are_stored(name: str, tmp_path: Path) -> None:
    words = (*METHODS[name], *QUICK, "profiler=none", "dataset.batch_size=360", "trainer.max_steps=6")
    words += () if name == "linear_probe" else ("method.backbone_dropout=false",)
    found = [
        carry_out(compose([*words, f"output_dir={tmp_path / kept}", f"cache.taps={kept}"])) for kept in ("none", "disk")
    ]
    assert (found[0] / "metrics.csv").read_text() == (found[1] / "metrics.csv").read_text()
    stored = {path.name for path in tmp_path.rglob("*.taps")}
    assert {"image.0.taps", "text.0.taps"} <= stored


@pytest.mark.parametrize("name", METHODS)
def test_the_scale_is_not_trained_and_all_that_is_trained_has_a_gradient(name: str) -> None:
    method, batch = built(*METHODS[name])
    method.train().loss(batch).backward()
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert "backbone.model.logit_scale" not in trained
    assert {n for n, p in method.named_parameters() if p.grad is not None} == trained
    towers = {part for n in trained for part in ("image", "visual", "vision", "text") if part in n}
    assert "text" in towers
    assert len(towers) > 1, "both towers are trained"


@pytest.mark.parametrize("name", ["unipt", "sherl"])
@pytest.mark.parametrize("variant", ["tokens", "joint"])
def test_token_variants_go_through_the_frozen_projections(name: str, variant: str) -> None:
    method, batch = built(f"method={name}", f"method.variant={variant}")
    method.train().loss(batch).backward()
    assert {n for n, p in method.named_parameters() if p.grad is not None} == {
        n for n, p in method.named_parameters() if p.requires_grad
    }
    assert method.eval().predict(batch).shape == (6, 2, 32)
    if name == "unipt":
        with pytest.raises(UserError, match="projection of a tower"):
            built("method=unipt", f"method.variant={variant}", "method.out_dim=32")


@pytest.mark.parametrize("loss", ["infonce", "triplet"])
def test_the_loss_is_that_of_the_embeddings(loss: str) -> None:
    """Against the definition, from what `predict` gives."""
    method, batch = built("method=full", f"dataset.loss={loss}")
    method.eval()
    images, texts = method.predict(batch).unbind(1)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(6))
    cosines = images @ texts.T
    if loss == "infonce":
        logits = cosines * method.backbone.similarity_scale
        by_hand = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2
    else:
        hinge = (0.2 + cosines - cosines.diagonal()[:, None]).fill_diagonal_(0).relu()
        other = (0.2 + cosines - cosines.diagonal()[None]).fill_diagonal_(0).relu()
        by_hand = hinge.amax(1).sum() + other.amax(0).sum()
    torch.testing.assert_close(method.loss(batch), by_hand)


def test_zero_shot_is_the_library_itself() -> None:
    """Before training: what transformers' CLIP says of the pairs."""
    method, batch = built("method=full")
    method.eval()
    model: Any = method.backbone.model
    theirs = model(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    torch.testing.assert_close(method(batch), theirs.logits_per_image)


@pytest.mark.parametrize(
    ("words", "published"),
    [
        (("method=unipt",), 9_584_642),
        (("method=sherl",), 9_598_006),
        (("method=sherl", "method.layer_gates=false"), 9_597_980),
    ],
)
def test_parameters_of_the_paper(words: tuple[str, ...], published: int) -> None:
    """CLIP4Clip's towers (ViT-B/32): what the official modules were counted to train (SHERL: MSR-VTT, MSVD)."""
    words = (*words, "backbone=openai/clip-vit-base-patch32", "backbone.tower=both")
    for dataset in ("digit_captions", "video_captions"):  # frames add none
        assert parameter_counts(compose([*words, f"dataset={dataset}"]))["trainable"] == published


@pytest.mark.long
def test_a_side_network_saves_what_the_paper_says_it_saves() -> None:
    """Planned on a GPU at CLIP4Clip's towers: a small part of full fine-tuning's activations."""
    words = ("backbone=openai/clip-vit-base-patch32", *TWO_TOWERS[1:], "dataset.batch_size=32")
    full, unipt, sherl = (plan_run(compose([f"method={name}", *words]), "cuda") for name in ("full", "unipt", "sherl"))
    for lean in (unipt, sherl):
        assert lean.memory["by_kind"]["activations"] < 0.5 * full.memory["by_kind"]["activations"]
        assert lean.memory["peak"] < 0.5 * full.memory["peak"]


@pytest.mark.parametrize(
    ("words", "reason", "remedy"),
    [
        (("method=full", "backbone=clip_tiny", "dataset=digit_captions"), "ask both towers", "backbone.tower=both"),
        (("method=full", "backbone=vit_tiny", "dataset=digit_captions"), "images or videos with captions", "clip_tiny"),
        (("method=vqt", *TWO_TOWERS), "does not train on", "choose a dataset of classification"),
        (("method=hst", *TWO_TOWERS), "does not train on", "choose a dataset of classification"),
        *(
            ((f"method={name}", "backbone=clip_tiny", "backbone.tower=both", "dataset=digits"), "image tower alone",
             "backbone.tower=image")
            for name in ("full", "unipt", "sherl", "vqt", "hst", "linear_probe")
        ),
        (("method=full", "backbone=clip_tiny", "backbone.tower=both", "dataset=python_docs"), "text tower alone",
         "backbone.tower=text"),
        (("method=full", *TWO_TOWERS, "dataset.loss=hinge"), "one of infonce, triplet", ""),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], reason: str, remedy: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        compose(words)
    assert remedy in caught.value.remedy


def test_continual_learning_goes_on_with_both_towers() -> None:
    cfg = compose(["method=zscl", "backbone=clip_tiny", "dataset=sequence"])
    assert cfg.config["backbone"]["tower"] == "both"
