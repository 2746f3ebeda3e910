"""Sources of every kind, the models behind them, and what a method holds beside the model that it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import transfer_run
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose, make_importable
from transfer_run.experiment.config.composed import Run, write_config
from transfer_run.experiment.planning.plan import beside_the_model, plan_run
from transfer_run.experiment.run import carry_out, ensure_sources
from transfer_run.experiment.sources.models import source_model, source_on_meta
from transfer_run.experiment.sources.resolve import source_tree, sources_of
from transfer_run.task import Task

BERT = ("backbone=bert_tiny", "backbone.weights=random:0", "dataset=python_docs", "dataset.batch_size=32")
SHORT = ("hardware=cpu", "profiler=none", "trainer.max_steps=2", "trainer.progress=none")
LABELS = Task("classification", 8, tuple("abcdefgh"))
VALUES = {"dataset": {"about": {"holds": "text"}}}


def config(tmp_path: Path, *words: str) -> Run:
    return compose([*BERT, *SHORT, f"output_dir={tmp_path / 'out'}", *words])


def library_folder(folder: Path, *, labels: int | None) -> Path:
    """A tiny BERT as transformers writes it, with or without a classifier."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    settings: dict[str, Any] = {
        "vocab_size": 384, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    if labels is None:
        BertModel(BertConfig(**settings)).save_pretrained(folder)
    else:
        BertForSequenceClassification(BertConfig(**settings, num_labels=labels)).save_pretrained(folder)
    return folder


class TestPlainFolders:
    def test_a_classifier_of_transformers_is_a_teacher(self, tmp_path: Path) -> None:
        from transformers import BertForSequenceClassification

        folder = library_folder(tmp_path / "bert", labels=8)
        cfg = config(tmp_path, f"sources.teacher={folder}")
        sources = ensure_sources(cfg, ())
        teacher = source_model("teacher", sources, VALUES, LABELS)
        ids = torch.randint(3, 300, (2, 9))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        library = BertForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            assert torch.allclose(teacher(batch), library(**batch).logits, atol=1e-5)
        assert not teacher.training
        assert not any(p.requires_grad for p in teacher.parameters())

    def test_a_folder_of_timm_is_a_teacher(self, tmp_path: Path) -> None:
        import timm
        from timm.models import save_for_hf

        words = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **words).eval()
        save_for_hf(model, str(tmp_path / "vit"), model_args={**words, "num_classes": 5}, safe_serialization=True)
        task = Task("classification", 5, tuple("abcde"))
        teacher = source_model("t", {"t": tmp_path / "vit"}, {"dataset": {"about": {"holds": "images"}}}, task)
        images = torch.randn(2, 1, 8, 8)
        with torch.no_grad():
            assert torch.allclose(teacher({"pixel_values": images}), model(images), atol=1e-5)

    def test_an_export_is_a_source_like_its_run(self, tmp_path: Path) -> None:
        run = carry_out(config(tmp_path, "method=full", f"export={tmp_path / 'export'}"))
        ids = torch.randint(3, 250, (2, 9))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            one, other = (source_model("a", {"a": f}, VALUES, LABELS)(batch) for f in (run, tmp_path / "export"))
        assert torch.allclose(one, other, atol=1e-6)


class TestRefusals:
    def test_a_checkpoint_without_a_head_for_the_task(self, tmp_path: Path) -> None:
        from transformers import BartConfig, BartForSequenceClassification

        for labels, has in ((None, "no linear classifier"), (3, "a classifier of 3 classes")):
            folder = library_folder(tmp_path / f"bert{labels}", labels=labels)
            with pytest.raises(UserError, match=has):
                source_model("teacher", {"teacher": folder}, VALUES, LABELS)
        words = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
        bart = BartForSequenceClassification(BartConfig(vocab_size=384, d_model=16, num_labels=8, **words))
        bart.save_pretrained(tmp_path / "bart")  # its classifier reads the decoder, which is not here
        with pytest.raises(UserError, match="no linear classifier"):
            source_model("teacher", {"teacher": tmp_path / "bart"}, VALUES, LABELS)

    def test_a_checkpoint_that_reads_something_else(self, tmp_path: Path) -> None:
        folder = library_folder(tmp_path / "bert", labels=8)
        with pytest.raises(UserError, match="does not read images"):
            source_model("teacher", {"teacher": folder}, {"dataset": {"about": {"holds": "images"}}}, LABELS)

    def test_a_model_of_no_known_kind(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}), encoding="utf-8")
        with pytest.raises(UserError, match="model of type 'mamba'"):
            source_model("teacher", {"teacher": tmp_path}, VALUES, LABELS)

    def test_a_run_that_made_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("seed: 0", encoding="utf-8")
        (tmp_path / "run.log").touch()
        with pytest.raises(UserError, match="made no model"):
            source_model("teacher", {"teacher": tmp_path}, VALUES, LABELS)

    def test_a_source_that_is_not_named(self) -> None:
        with pytest.raises(UserError, match="needs a source 'teacher'") as caught:
            source_model("teacher", {"teachr": Path()}, VALUES, LABELS)
        assert caught.value.nearest == ["sources.teachr"]

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(UserError, match="is a file, not a folder"):
            sources_of(config(tmp_path, f"sources.teacher={tmp_path / 'model.safetensors'}"))

    def test_a_misspelt_folder(self, tmp_path: Path) -> None:
        (tmp_path / "teacher").mkdir()
        with pytest.raises(UserError, match="neither a run's words") as caught:
            sources_of(config(tmp_path, f"sources.teacher={tmp_path / 'techer'}"))
        assert caught.value.nearest == [str(tmp_path / "teacher")]

    def test_weights_of_another_family(self, tmp_path: Path) -> None:
        words = "run:method=pretrain backbone=t5_tiny dataset=python_docs"
        with pytest.raises(UserError, match="cannot come from a run on backbone=t5_tiny"):
            sources_of(config(tmp_path, f"backbone.weights={words}"))

    def test_a_finished_run_of_another_family_however_it_is_named(self, tmp_path: Path) -> None:
        run = compose(["method=pretrain", "backbone=vit_tiny", "dataset=digits", f"output_dir={tmp_path / 'out'}"])
        write_config(run.folder, run.config)
        (run.folder / "result.json").write_text('{"status": "finished"}', encoding="utf-8")
        for named in (run.identity[:8], str(run.folder)):
            with pytest.raises(UserError, match="cannot come from a run on backbone=vit_tiny"):
                sources_of(config(tmp_path, f"backbone.weights=run:{named}"))

    def test_merged_files_are_weights_of_any_family(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        words = f"run:method=average dataset=none method.models=[{tmp_path / 'one'},{tmp_path / 'two'}]"
        (source,) = sources_of(config(tmp_path, f"backbone.weights='{words}'"))
        assert source.config is not None
        assert source.config["backbone"]["family"] == "none"


class TestTheHub:
    @pytest.mark.parametrize("words", ["nobody/no-model-of-this-name", "hub:no-model-of-this-name@main"])
    def test_a_model_that_is_not_here_says_so(
        self, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        cfg = config(tmp_path, "method=distiller", f"sources.teacher='{words}'")
        (node,) = source_tree(cfg).sources
        assert (node.finished, node.run) == (False, None)
        with pytest.raises(UserError, match="cannot be had") as caught:
            ensure_sources(cfg, ())
        assert caught.value.where == f"sources.teacher: {words}"
        assert "hf download" in caught.value.remedy

    def test_a_model_that_is_cached_is_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from transfer_run.backbones.weights import hub

        folder = library_folder(tmp_path / "bert", labels=8)
        monkeypatch.setattr(hub, "_cached", lambda name, revision, patterns: folder)
        cfg = config(tmp_path, "method=distiller", "sources.teacher=someone/tiny")
        assert ensure_sources(cfg, ()) == {"teacher": folder}
        (node,) = source_tree(cfg).sources
        assert node.finished

    def test_two_models_are_two_runs(self, tmp_path: Path) -> None:
        names = ("google-bert/bert-base", "google-bert/bert-large")
        assert len({config(tmp_path, f"sources.teacher={name}").identity for name in names}) == 2


TOY = '''
"""A student of a frozen teacher, with a critic that is trained and thrown away."""

import torch
from torch import nn

from transfer_run.methods.base import Method


class Student(Method):
    """The task's loss and the distance to the teacher's logits, through a critic."""

    shape = "distil"

    def take_sources(self, load_source):
        self.hold("teacher", load_source("teacher"))
        self.critic = nn.Linear(8, 8, device=next(self.backbone.parameters()).device)

    def shipped(self):
        state = self.state_dict()
        return {name: state[name] for name in sorted(state) if name.startswith("backbone.")}

    def loss(self, batch):
        with torch.no_grad():
            wanted = self.teacher(batch)
        logits = self(batch)
        return self.task_loss(logits, batch["labels"]) + (self.critic(logits) - wanted).square().mean()
'''
TOY_CONFIG = """# @package _global_
# A student of a frozen teacher, for the tests.
method:
  name: student
  about:
    {title: A toy, target: a_toy_student.Student, family: distillation, shape: distil, backbones: [encoder],
     reads: {teacher: model}}
"""


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Run]:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "student.yaml").write_text(TOY_CONFIG, encoding="utf-8")
    (tmp_path / "a_toy_student.py").write_text(TOY, encoding="utf-8")

    def composed(*words: str) -> Run:
        cfg = compose([*BERT, *SHORT, f"output_dir={tmp_path / 'out'}", *words], str(tmp_path))
        make_importable(cfg)
        return cfg

    return composed


TEACHER = "sources.teacher='method=full backbone=bert_tiny backbone.weights=random:1 dataset=python_docs " + (
    "trainer.max_steps=2 profiler=none dataset.batch_size=32'"
)


class TestWhatAMethodHolds:
    def test_the_plan_counts_a_teacher_as_weights_alone(self, toy: Callable[..., Run]) -> None:
        alone = plan_run(toy("method=full"))
        plan = plan_run(toy("method=student", TEACHER))
        teacher = alone.memory["phases"]["step"]["by_kind"]["parameters"]
        kinds, plain = (p.memory["phases"]["step"]["by_kind"] for p in (plan, alone))
        assert kinds["parameters"] - plain["parameters"] == pytest.approx(teacher, rel=0.01)
        critic = 4 * (8 * 8 + 8)
        assert kinds["gradients"] - plain["gradients"] == critic
        assert kinds["optimizer"] - plain["optimizer"] == pytest.approx(2 * critic, abs=16)
        activations = [p.memory["phases"]["backward"]["by_kind"]["activations"] for p in (plan, alone)]
        assert activations[0] < 1.02 * activations[1], "nothing of the teacher's forward pass is kept"

    def test_the_report_has_a_line_for_each(self, toy: Callable[..., Run]) -> None:
        from rich.console import Console

        console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(plan_run(toy("method=student", TEACHER)).report)
        shown = console.export_text()
        assert "teacher: a frozen copy of 2.5 MiB, counted as weights without gradients or optimizer states" in shown
        assert "critic: 72 parameters are trained and counted, not exported" in shown

    def test_a_run_trains_the_critic_and_ships_the_student(self, toy: Callable[..., Run]) -> None:
        cfg = toy("method=student", TEACHER, "profiler=memory")
        folder = carry_out(cfg)
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.03)
        model = transfer_run.load(folder)
        assert beside_the_model(model) == []
        assert not hasattr(model, "critic")
        about = json.loads((folder / "checkpoints" / "model" / "model.json").read_text(encoding="utf-8"))
        assert about["complete"], "the student can be a backbone: nothing of the teacher is missing in it"
        (source,) = source_tree(cfg).sources
        assert source.finished

    def test_a_teacher_that_has_finished_is_planned_from_its_folder(self, toy: Callable[..., Run]) -> None:

        teacher = carry_out(toy("method=lora"))
        cfg = toy("method=student", f"sources.teacher={teacher}")
        model = source_on_meta("teacher", cfg, LABELS)
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert plan_run(cfg).memory["peak"] > 0
