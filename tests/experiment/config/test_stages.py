"""A list of stages: runs of their own, each going on from the model of the one before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import transfer_run
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose, saved
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.words import parse
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.sources.resolve import source_tree
from transfer_run.methods.base import Method
from transfer_run.run_folder import read_config

BERT = ("backbone=bert_tiny", "backbone.weights=random:0", "dataset=python_docs", "dataset.batch_size=64")
SHORT = ("hardware=cpu", "profiler=none", "trainer.max_steps=2", "trainer.progress=none")
STAY = "optimizer.lr=0"  # a stage that changes nothing shows what it was handed


def config(tmp_path: Path | str, *words: str) -> Run:
    return compose([*BERT, *SHORT, f"output_dir={tmp_path}", *words])


def chain(last: Path) -> list[Path]:
    """Folders of a finished run and of the stages before it, the last one first."""
    folders, name = [last], "x"
    while name:
        tree = source_tree(saved(folders[-1]))
        name = next((source.name for source in tree.sources), "")
        folders += [source.folder for source in tree.sources]
    return folders


def last_backbone(folder: Path) -> dict[str, Any]:
    return dict(read_config(folder)["backbone"])


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / "model" / "model.safetensors")


def body(folder: Path) -> dict[str, Tensor]:
    return {n: t for n, t in tensors(folder).items() if n.startswith("backbone.model.")}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestWords:
    @pytest.mark.parametrize(
        "word",
        [
            "stages=[[dataset=a,trainer.max_epochs=1,method.x=[1,2]],[dataset=b]]",
            'stages=[["dataset=a","trainer.max_epochs=1","method.x=[1,2]"],["dataset=b"]]',
            "stages=[[dataset=a, trainer.max_epochs=1, 'method.x=[1,2]'], [dataset=b]]",
        ],
    )
    def test_a_list_of_words_is_read_as_it_is_written(self, word: str) -> None:
        assert parse(word).value() == [["dataset=a", "trainer.max_epochs=1", "method.x=[1,2]"], ["dataset=b"]]

    def test_every_form_gives_the_same_run(self, tmp_path: Path) -> None:
        forms = (
            "stages=[[seed=1,optimizer.lr=1e-3],[seed=2]]",
            "stages=[{seed:1,optimizer.lr:1e-3},{seed:2}]",
            "stages=[seed=1 optimizer.lr=1e-3,seed=2]",
            "stages=[{seed:1,optimizer:{lr:1e-3}},[seed=2]]",
        )
        assert len({config(tmp_path, "method=full", form).identity for form in forms}) == 1

    @pytest.mark.parametrize(
        ("stages", "message"),
        [
            ("3", "must be a list of runs"),
            ("[3]", "Stage 1 is no list of words"),
            ("[[seed]]", "is not KEY=VALUE"),
            ("[[force=true]]", "force cannot be set for one stage"),
            ("[[seed=1],[backbone.weights=random]]", "Stage 2 names weights of its own"),
            ("[[seed=1],[method=pretrain]]", "does not go on from another stage"),
            ("[[dataset=python_dcs],[seed=1]]", "no dataset 'python_dcs'"),
            ("[[backbone=t5_tiny],[backbone=bert_tiny]]", "cannot come from a run on"),
        ],
    )
    def test_one_clear_error(self, stages: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=message):
            source_tree(config(tmp_path, "method=full", f"stages={stages}"))


class TestIdentity:
    def test_one_stage_is_a_plain_run(self, tmp_path: Path) -> None:
        """Skipping the first stage is plain fine-tuning."""
        assert (
            config(tmp_path, "method=full", "stages=[[seed=3]]").identity
            == config(tmp_path, "method=full", "seed=3").identity
        )

    def test_the_stage_before_is_the_run_of_the_shorter_list(self, tmp_path: Path) -> None:
        whole = config(tmp_path, "method=full", "stages=[[seed=1],[seed=2],[seed=3]]")
        (second,) = source_tree(whole).sources
        (first,) = second.sources
        assert (second.name, first.name) == ("stage 2", "stage 1")
        assert second.folder == config(tmp_path, "method=full", "stages=[[seed=1],[seed=2]]").folder
        assert first.folder == config(tmp_path, "method=full", "seed=1").folder

    def test_any_change_of_an_earlier_stage_makes_another_run(self, tmp_path: Path) -> None:
        lists = ("[[seed=1],[seed=2]]", "[[seed=3],[seed=2]]", "[[seed=2]]", "[[seed=1],[seed=1],[seed=2]]")
        found = {config(tmp_path, "method=full", f"stages={stages}").identity for stages in lists}
        assert len(found) == len(lists)

    def test_it_differs_from_taking_the_backbone_alone(self, tmp_path: Path) -> None:
        staged = config(tmp_path, "method=full", "stages=[[seed=1],[seed=2]]")
        weights = str(staged.config["backbone"]["weights"]).replace("stage:", "run:", 1)
        assert config(tmp_path, "method=full", "seed=2", f"backbone.weights={weights}").identity != staged.identity

    def test_a_later_stage_keeps_the_tokenizer_of_the_first_weights(self, tmp_path: Path) -> None:
        words = ("method=full", "dataset=python_docs", f"output_dir={tmp_path}", "stages=[[seed=1],[seed=2]]")
        cfg = compose(["backbone=bert-base-uncased", *words])
        assert (
            cfg.config["backbone"]["tokenizer"]
            == f"{cfg.config['backbone']['hub']}@{cfg.config['backbone']['revision']}"
        )


def test_the_tree_of_three_levels_shows_what_exists_and_what_would_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    stages = "stages=[[seed=1],[seed=2],[seed=3,method=linear_probe]]"
    words = ("method=full", "dataset.batch_size=8")
    carry_out(config(tmp_path, *words, "seed=1"))
    capsys.readouterr()
    carry_out(config(tmp_path, *words, stages, "dry_run=true"))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    top, second, first = ([cell.strip() for cell in line.strip("│").split("│")] for line in shown)
    assert [row[0] for row in (top, second, first)] == ["this run", "stage 2", "stage 1"]
    assert [row[1] for row in (top, second, first)] == ["linear_probe", "full", "full"]
    assert [row[4] for row in (top, second, first)] == ["would run", "would run", "finished"]
    peaks = [float(row[5].removesuffix(" MiB")) for row in (top, second, first)]
    assert 0 < peaks[0] < peaks[1] == peaks[2]
    assert len(list(tmp_path.glob("runs/*/*/result.json"))) == 1


class TestHandOver:
    def test_a_whole_model_goes_on_with_its_head(self, tmp_path: Path) -> None:
        last = carry_out(config(tmp_path, "method=full", f"stages=[[seed=1],[seed=2,{STAY}]]"))
        assert equal(tensors(last), tensors(chain(last)[1]))
        assert "the head of the stage before goes on" in (last / "run.log").read_text(encoding="utf-8")

    def test_another_label_set_gets_a_new_head(self, tmp_path: Path) -> None:
        names = "dataset.label_names=[a,b,c,d,e,f,g,h]"
        last = carry_out(config(tmp_path, "method=full", f"stages=[[seed=1,{names}],[seed=2,{STAY}]]"))
        before = chain(last)[1]
        assert equal(body(last), body(before))
        assert not torch.equal(tensors(last)["backbone.head.weight"], tensors(before)["backbone.head.weight"])
        assert "a new head: the stage before answered a, b" in (last / "run.log").read_text(encoding="utf-8")

    @pytest.mark.parametrize("method", [("lora",), ("lst", "method.init=random")], ids=["lora", "lst"])
    def test_trained_modules_go_on_in_the_same_method(self, method: tuple[str, ...], tmp_path: Path) -> None:
        words = (f"method={method[0]}", *method[1:])
        last = carry_out(config(tmp_path, *words, f"stages=[[seed=1],[seed=2],[seed=3,{STAY}]]"))
        _, second, first = chain(last)
        assert equal(tensors(last), tensors(second))
        assert not equal(tensors(last), tensors(first))
        about = [json.loads((f / "checkpoints/model/model.json").read_text()) for f in (last, first)]
        assert about[0]["provenance"] == about[1]["provenance"], "all stand on the same frozen weights"
        assert not about[0]["complete"]

    @pytest.mark.parametrize(
        "method", ["lora", "bitfit", *(pytest.param(m, marks=pytest.mark.slow) for m in ("ia3", "peft/dora"))]
    )
    def test_another_method_gets_the_changes_folded_into_the_backbone(self, method: str, tmp_path: Path) -> None:
        last = carry_out(config(tmp_path, f"stages=[[method={method},optimizer.lr=0.05],[method=linear_probe,{STAY}]]"))
        before, now = transfer_run.load(chain(last)[1]), transfer_run.load(last)
        plain = Method(build_backbone({**last_backbone(last), "weights": "random:0"}), now.task).eval()
        ids = torch.randint(3, 250, (3, 12), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            assert torch.allclose(now(batch), before(batch), atol=1e-5)
            assert not torch.allclose(now.features(batch), plain.features(batch), atol=1e-3)

    @pytest.mark.slow
    def test_other_settings_are_another_method(self, tmp_path: Path) -> None:
        stages = f"stages=[[method.rank=4,optimizer.lr=0.05],[method.rank=2,{STAY}]]"
        last = carry_out(config(tmp_path, "method=lora", stages))
        before, now = transfer_run.load(chain(last)[1]), transfer_run.load(last)
        ids = torch.randint(3, 250, (3, 12))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            assert torch.allclose(now(batch), before(batch), atol=1e-5)

    @pytest.mark.parametrize("words", ["lst,method.init=random", "prompt_tuning,method.length=3"])
    def test_what_cannot_be_folded_is_refused(self, words: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"method=\w+ trained cannot be folded"):
            carry_out(config(tmp_path, f"stages=[[method={words}],[method=full]]"))

    def test_a_form_that_is_not_trained_is_refused(self, tmp_path: Path) -> None:
        words = ("method=peft/p_tuning", "method.length=3")
        with pytest.raises(UserError, match="is not what this method trains"):
            carry_out(config(tmp_path, *words, "stages=[[seed=1],[seed=2]]"))


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_from_its_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transfer_run.errors import Preempted
    from transfer_run.experiment.training.checkpoints import Checkpoints

    words = ("method=lora", "stages=[[seed=1],[seed=2]]", "trainer.max_steps=4")
    whole = carry_out(config(tmp_path / "whole", *words))
    carry_out(config(tmp_path / "broken", "method=lora", "seed=1", "trainer.max_steps=4"))
    ordinary = Checkpoints.on_train_batch_end

    def stop_at_two(self: Checkpoints, trainer: object, *rest: object) -> None:
        if trainer.global_step == 2:  # type: ignore[attr-defined]
            self.signals.asked = 15
        ordinary(self, trainer, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", stop_at_two)
        with pytest.raises(Preempted):
            carry_out(config(tmp_path / "broken", *words))
    assert equal(tensors(carry_out(config(tmp_path / "broken", *words))), tensors(whole))
