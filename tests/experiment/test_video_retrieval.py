"""Retrieval of videos, end to end: the mean over frames, training, scores, the plan, refusals, the papers' counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from transfer_run.backbones.load import build_backbone
from transfer_run.data.load import build_data
from transfer_run.data.scores.retrieval import OF_VIDEOS, RetrievalScores
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.run import carry_out
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method
from transfer_run.methods.forms import retrieval as pairs
from transfer_run.task import Task

VIDEOS = ("backbone=clip_tiny", "backbone.tower=both", "dataset=digit_videos")
QUICK = (*VIDEOS, "backbone.weights=random:0", "trainer.max_steps=2", "trainer.log_every=1", "optimizer.warmup=0",
         "trainer.progress=none", "hardware=cpu", "dataset.batch_size=16")  # fmt: skip
METHODS = {
    "full": ("method=full",),
    "lora": ("method=lora", "method.rank=2"),
    "adapter": ("method=adapter",),
    "bitfit": ("method=bitfit",),
    "prompt_tuning": ("method=prompt_tuning", "method.length=2"),
    "linear_probe": ("method=linear_probe",),
    "lst": ("method=lst", "method.init=magnitude"),
    "qst": ("method=qst",),
    "unipt": ("method=unipt", "optimizer.lr=1e-3"),
    "sherl": ("method=sherl", "optimizer.lr=1e-3"),
}
Built = tuple[Method, dict[str, torch.Tensor]]


def built(*words: str) -> Built:
    """A method in eval mode, and the first batch of its data: videos of 2, 3, 4, 5, 6 frames, four read."""
    config: dict[str, Any] = dict(compose([*QUICK, *words]).config)
    data = build_data(config["dataset"], config["backbone"], 0)
    torch.manual_seed(0)
    method = build_method(config["method"], build_backbone(config["backbone"]), data.task).eval()
    return method, next(iter(data.loader("train", batch_size=5, shuffle=False)))


def test_the_mean_over_frames_by_hand() -> None:
    """Two videos of three frames, one of them padded by one."""
    rows = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1], [0.6, 0.8], [1, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = pairs.mean_of_frames(rows, mask)
    torch.testing.assert_close(found, torch.tensor([[2.0, 1.0], [0.6, 1.8]]) / torch.tensor([[5.0], [3.6]]).sqrt())
    assert pairs.mean_of_frames(rows, None) is rows
    assert pairs.mean_of_frames(rows.bfloat16(), mask).dtype == torch.bfloat16


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_video_is_the_mean_of_what_the_method_makes_of_its_frames(name: str) -> None:
    """Each frame by itself, as image and text; frames of padding and the order of the others change nothing."""
    method, batch = built(*METHODS[name])
    mask, frames = batch["frame_mask"], batch["pixel_values"]
    assert mask.sum(1).tolist() == [2, 3, 4, 4, 4]
    alone = {key: value for key, value in batch.items() if key != "frame_mask"}
    each = torch.stack([method.predict({**alone, "pixel_values": frames[:, i]})[:, 0] for i in range(4)], dim=1)
    videos, texts = method.predict(batch).unbind(1)
    torch.testing.assert_close(videos, F.normalize((each * mask[..., None]).sum(1) / mask.sum(1, True), dim=-1))
    torch.testing.assert_close(texts, method.predict({**alone, "pixel_values": frames[:, 0]})[:, 1])
    cosines = method.backbone.similarity_scale * videos @ texts.T
    torch.testing.assert_close(method(batch), cosines)
    noise = torch.where(mask[..., None, None, None] == 0, torch.randn_like(frames), frames)
    assert not torch.equal(noise, frames)
    torch.testing.assert_close(method.predict({**batch, "pixel_values": noise})[:, 0], videos)
    turned = {**batch, "pixel_values": frames.flip(1), "frame_mask": mask.flip(1)}
    torch.testing.assert_close(method.predict(turned)[:, 0], videos)


@torch.no_grad()
def test_a_video_of_one_frame_is_an_image() -> None:
    method, batch = built("method=full", "dataset.frames=1")
    image = {key: value for key, value in batch.items() if key != "frame_mask"}
    image["pixel_values"] = batch["pixel_values"].squeeze(1)
    torch.testing.assert_close(method.predict(batch), method.predict(image))
    torch.testing.assert_close(method.loss(batch), method.loss(image))


@pytest.mark.parametrize("name", ["full", "lora", "lst", "unipt"])
def test_a_run_from_words_to_scores(name: str, tmp_path: Path) -> None:
    profiler = "memory" if name == "unipt" else "none"
    folder = carry_out(compose([*METHODS[name], *QUICK, f"output_dir={tmp_path}", f"profiler={profiler}"]))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert {f"test/{metric}" for metric in OF_VIDEOS} <= set(result["metrics"])
    if name == "unipt":
        assert result["memory"]["source"] == "tracker"
        assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.02)
    method, batch = built(*METHODS[name])
    loaded = load_model(folder / "checkpoints" / "model")
    assert loaded(batch).shape == (5, 5)
    assert not torch.equal(loaded(batch), method(batch)), "it has learnt something"


def test_a_run_on_folders_of_frames(tmp_path: Path) -> None:
    from PIL import Image

    for video in range(6):
        (tmp_path / str(video) / "v").mkdir(parents=True)
        for frame in range(1 + video % 3):
            Image.new("L", (8, 8), 40 * video + frame).save(tmp_path / str(video) / "v" / f"{frame}.png")
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text("video,caption\n" + "".join(f"{v}/v,film {v}\n" for v in range(6)))
    words = ("method=unipt", *QUICK, "dataset=video_captions", f"dataset.path={tmp_path}", "dataset.frames=2",
             "dataset.batch_size=3", "profiler=none", f"output_dir={tmp_path / 'out'}")  # fmt: skip
    result = json.loads((carry_out(compose(words)) / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"]["test/rsum"] > 0


def test_taps_of_videos_are_not_kept(tmp_path: Path) -> None:
    words = ("method=unipt", "method.backbone_dropout=false", *QUICK, "profiler=none", "cache.taps=disk")
    with pytest.raises(UserError, match="holds videos") as caught:
        carry_out(compose([*words, f"output_dir={tmp_path}"]))
    assert "cache.taps=none" in caught.value.remedy


def test_scores_of_videos_have_their_names() -> None:
    scores = RetrievalScores(Task("retrieval", 0, metrics=("text_to_video_r1", "rsum")))
    scores.update(torch.eye(3).unsqueeze(1).expand(3, 2, 3), {"labels": torch.arange(3)})
    assert scores.compute() == {"text_to_video_r1": 1.0, "rsum": 6.0}
    with pytest.raises(UserError, match="does not score retrieval") as caught:
        RetrievalScores(Task("retrieval", 0, metrics=("text_to_video_r1", "image_to_text_r1")))
    assert "video_to_text_r1" in caught.value.remedy


@pytest.mark.parametrize(
    ("words", "reason", "remedy"),
    [
        (("method=full", "backbone=clip_tiny", "dataset=digit_videos"), "ask both towers", "backbone.tower=both"),
        (("method=full", "backbone=vit_tiny", "dataset=digit_videos"), "images or videos with captions", "clip_tiny"),
        (("method=vqt", *VIDEOS), "does not train on", "choose a dataset of classification"),
    ],
)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], reason: str, remedy: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        compose(words)
    assert remedy in caught.value.remedy
