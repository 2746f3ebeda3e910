"""Double fine-tuning: pairs, splits, the hand-over between the stages, the matcher, and one run from end to end."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import transfer_run
from transfer_run.backbones.load import build_backbone
from transfer_run.data.load import build_data
from transfer_run.data.reading.table import table_of
from transfer_run.data.sets.mqp import grouped_parts, parsed
from transfer_run.data.sets.qa_pairs import category_pairs, documented, make_pairs, make_task
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.stages import stage_words
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.sources.resolve import source_tree
from transfer_run.methods.task_transfer.double_finetuning import DoubleFineTuning
from transfer_run.tables.spec import read
from transfer_run.task import Task

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "text" / "mqp"
QUESTIONS = [f"question {i}" for i in range(40)]
ANSWERS = [f"answer {i}" for i in range(40)]
CATEGORIES = ["heart"] * 20 + ["skin"] * 19 + ["alone"]
CSV = """1,"How long, in days, is ""flu"" contagious?","When may I, having flu, go out?",1
1,"How long, in days, is ""flu"" contagious?",Is flu a virus?,0
2,Is aspirin safe?,"Aspirin, daily: good or bad?",0
2,Is aspirin safe?,Can I take aspirin without danger?,1
"""
SMALL = ("backbone=bert_tiny", "hardware=cpu", "profiler=none", "trainer.progress=none", "trainer.max_steps=2")


def dataset(name: str, **changes: Any) -> Any:
    """The data set `name` as bert_tiny reads it."""
    node = dict(registry.entry("dataset", name).content["dataset"])
    data = build_data({**node, **changes}, registry.entry("backbone", "bert_tiny").content["backbone"], 0)
    data.setup()
    return data


class TestPairs:
    def test_labels_are_balanced_and_negatives_are_of_the_same_category(self) -> None:
        pairs = make_pairs(QUESTIONS, ANSWERS, CATEGORIES, 0)
        assert Counter(pair.label for pair in pairs) == {0: 40, 1: 40}
        own = dict(zip(QUESTIONS, ANSWERS, strict=True))
        of = dict(zip(ANSWERS, CATEGORIES, strict=True)) | dict(zip(QUESTIONS, CATEGORIES, strict=True))
        for pair in pairs:
            assert (own[pair.first] == pair.second) == bool(pair.label)
            assert of[pair.first] in (of[pair.second], "alone"), "a category of one member has nothing else to give"

    def test_they_are_a_function_of_the_seed(self) -> None:
        one, again, other = (make_pairs(QUESTIONS, ANSWERS, CATEGORIES, seed) for seed in (0, 0, 1))
        assert one == again != other

    def test_excluded_questions_do_not_appear(self) -> None:
        pairs = make_pairs(QUESTIONS, ANSWERS, CATEGORIES, 0, exclude=["  QUESTION 3", "question 7"])
        assert not {"question 3", "question 7"} & {pair.first for pair in pairs}
        assert not {"answer 3", "answer 7"} & {pair.second for pair in pairs}

    def test_an_answer_that_is_given_twice_is_no_negative(self) -> None:
        pairs = make_pairs(["a", "b", "c"], ["same", "same", "other"], ["x"] * 3, 0)
        assert all(pair.second == "other" for pair in pairs if not pair.label and pair.first in "ab")
        assert make_pairs(["a", "b"], ["same", "same"], ["x", "x"], 0) == []

    def test_question_categories(self) -> None:
        pairs = category_pairs(QUESTIONS, CATEGORIES, 0)
        of = dict(zip(QUESTIONS, CATEGORIES, strict=True))
        assert Counter(pair.label for pair in pairs) == {0: 39, 1: 39}, "the question that is alone has no partner"
        assert all((of[pair.first] == of[pair.second]) == bool(pair.label) for pair in pairs)

    @pytest.mark.parametrize("task", ["qa_match", "answer_completion", "question_category"])
    def test_every_task_makes_the_same_number_of_pairs_and_steps(self, task: str) -> None:
        data = dataset("qa_pairs", task=task, max_examples=120)
        assert data.sizes["train"] == 120
        assert len(data.loader("train", batch_size=16)) == 8
        labels = data.encoders["train"].rows.labels
        assert labels.sum() == 60

    def test_no_question_is_in_two_splits(self) -> None:
        data = dataset("qa_pairs")
        firsts = {name: {row["first"] for row in data.encoders[name].rows.rows} for name in data.sizes}
        assert not firsts["train"] & firsts["test"]
        assert not firsts["train"] & firsts["validation"]

    def test_labelled_pairs_are_drawn_in_equal_numbers(self, tmp_path: Path) -> None:
        rows = [{"question1": f"q{i}", "question2": f"p{i}", "is_duplicate": int(i % 3 == 0)} for i in range(200)]
        (tmp_path / "qqp.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        columns = {"question_column": "question1", "answer_column": "question2", "label_column": "is_duplicate"}
        data = dataset("qa_pairs", task="question_pairs", path=str(tmp_path / "qqp.jsonl"), max_examples=20, **columns)
        assert Counter(data.encoders["train"].rows.labels.tolist()) == {0: 10, 1: 10}

    def test_the_targets_questions_are_left_out_of_a_local_file(self, tmp_path: Path) -> None:
        rows = [{"question": q, "answer": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
        (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "train.csv").write_text("sentence1,sentence2\nQuestion 5,question 6\n", encoding="utf-8")
        data = dataset("qa_pairs", path=str(tmp_path / "qa.jsonl"), exclude=str(tmp_path / "target"))
        seen = {row["first"] for name in data.sizes for row in data.encoders[name].rows.rows}
        assert len(seen) == 38
        assert not {"question 5", "question 6"} & seen
        assert "2 questions" in data.notes[0]

    def test_the_targets_questions_may_be_named_by_the_hub(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []

        def read_hub(name: str, config: Any, revision: Any, splits: Any) -> dict[str, Any]:
            asked.append((name, revision))
            rows = Dataset.from_dict({"question_1": ["Question 5"], "question_2": ["question 6"]})
            return {"train": table_of(rows, "the hub")}

        monkeypatch.setattr("transfer_run.data.sets.qa_pairs.read_hub", read_hub)
        rows = [{"question": q, "answer": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
        (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        columns = ["question_1", "question_2"]
        data = dataset("qa_pairs", path=str(tmp_path / "qa.jsonl"), exclude="hub:a/b@c", exclude_columns=columns)
        assert asked == [("a/b", "c")]
        assert "2 questions that hub:a/b@c holds" in data.notes[0]

    def test_more_pairs_than_there_are(self) -> None:
        with pytest.raises(UserError, match="fewer than the 1000000"):
            dataset("qa_pairs", max_examples=1_000_000)

    def test_the_embedded_questions_do_not_hold_their_answers(self) -> None:
        answered = documented()
        assert len(answered.questions) > 500
        pairs = make_task("qa_match", answered, 0)
        assert not any(pair.second in pair.first for pair in pairs)


class TestMedicalQuestionPairs:
    def test_the_file_as_it_is_published(self, tmp_path: Path) -> None:
        (tmp_path / "mqp.csv").write_text(CSV, encoding="utf-8")
        rows = parsed(tmp_path / "mqp.csv")
        assert [row.label for row in rows] == [1, 0, 0, 1]
        assert rows[0].first == 'How long, in days, is "flu" contagious?'
        assert {row.doctor for row in rows} == {"1", "2"}
        (tmp_path / "bad.csv").write_text(CSV + "3,only a question,1\n", encoding="utf-8")
        with pytest.raises(UserError, match="3 fields") as caught:
            parsed(tmp_path / "bad.csv")
        assert "row 5" in caught.value.where

    @pytest.mark.parametrize("by", ["question", "doctor"])
    def test_a_group_is_in_one_split_only(self, by: str, tmp_path: Path) -> None:
        lines = [f"{i % 7},question {i},rewritten {i} {label},{label}" for i in range(60) for label in (1, 0)]
        (tmp_path / "mqp.csv").write_text("\n".join(lines), encoding="utf-8")
        data = dataset("mqp", path=str(tmp_path / "mqp.csv"), split_by=by)
        splits = {name: data.encoders[name].rows for name in data.sizes}
        groups = [{row["sentence1"] for row in rows.rows} for rows in splits.values()]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 60
        assert all(rows.labels.mean() == 0.5 for rows in splits.values())
        if by == "question":
            assert [len(group) for group in groups] == [48, 6, 6]

    def test_the_parts_do_not_depend_on_the_order_of_equal_groups(self) -> None:
        parts = grouped_parts(["a", "b", "a", "c", "d", "b"], {"validation": 0.25, "test": 0.25}, 0)
        assert sorted(i for part in parts for i in part) == list(range(6))
        assert [len({"abacdb"[i] for i in part}) for part in parts] == [2, 1, 1]

    def test_a_share_of_the_training_questions(self, tmp_path: Path) -> None:
        lines = [f"1,question {i},rewritten {i} {label},{label}" for i in range(60) for label in (1, 0)]
        (tmp_path / "mqp.csv").write_text("\n".join(lines), encoding="utf-8")
        whole, quarter = (dataset("mqp", path=str(tmp_path / "mqp.csv"), train_fraction=f) for f in (1.0, 0.25))
        assert (whole.sizes["train"], quarter.sizes["train"]) == (96, 24)
        assert whole.sizes["test"] == quarter.sizes["test"]
        assert quarter.encoders["train"].rows.labels.mean() == 0.5

    def test_the_real_data(self) -> None:
        if not REAL.is_dir():
            pytest.skip("the real data text/mqp are not beside the repository")
        data = dataset("mqp", path=str(REAL))
        assert data.sizes == {"train": 2440, "validation": 304, "test": 304}
        rows = [row for name in data.sizes for row in data.encoders[name].rows.rows]
        labels = np.concatenate([data.encoders[name].rows.labels for name in data.sizes])
        assert (len(rows), int(labels.sum())) == (3048, 1524)
        assert len({row["sentence1"] for row in rows}) == pytest.approx(1524, abs=1)
        assert len({text for row in rows for text in row.values()}) == pytest.approx(4567, rel=0.001)


def stages(*before: str) -> str:
    first = ",".join(("dataset.task=qa_match", *before))
    return f"stages=[[{first}],[dataset.task=question_category,optimizer.lr=0]]"


def chained(tmp_path: Path, *words: str) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Tensors of the first and of the second stage, and the second one's folder."""
    sizes = ("dataset.max_examples=32", "dataset.split_shares={validation:0.01,test:0.01}", "optimizer.lr=0.01")
    given = ("method=double_finetuning", "dataset=qa_pairs", *SMALL, *sizes, f"output_dir={tmp_path}")
    cfg = compose([*given, stages(), *words])
    last = carry_out(cfg)
    (first,) = source_tree(cfg).sources
    found = [load_file(f / "checkpoints" / "model" / "model.safetensors") for f in (first.folder, last)]
    return found[0], found[1], last


class TestHandOver:
    def test_the_encoder_goes_on_bit_for_bit_with_a_new_head_and_optimizer(self, tmp_path: Path) -> None:
        first, second, folder = chained(tmp_path)
        assert all(torch.equal(first[n], second[n]) for n in first if n.startswith("backbone.model."))
        assert not torch.equal(first["backbone.head.weight"], second["backbone.head.weight"])
        log = (folder / "run.log").read_text(encoding="utf-8")
        assert "a new head" in log
        before = json.loads((folder / "result.json").read_text(encoding="utf-8"))["extra"]["before"]
        (said,) = [note for note in before if "a substitution" in note]
        assert all(f"the stage before learned from {note}" in log for note in before)
        assert said in log
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
        assert {int(s["step"]) for s in state.values()} == {2}, "steps of this stage alone"

    def test_the_head_can_go_on(self, tmp_path: Path) -> None:
        first, second, _ = chained(tmp_path, "method.reset_head=false")
        assert all(torch.equal(first[n], second[n]) for n in first)

    def test_without_the_first_stage_it_is_plain_fine_tuning(self, tmp_path: Path) -> None:
        words = ("dataset=qa_pairs", *SMALL, f"output_dir={tmp_path}", "dataset.max_examples=32", "optimizer.lr=1e-3")
        words = (*words, "optimizer.schedule=linear", "optimizer.warmup=0.1", "dataset.split_shares.test=0.01")
        words = (*words, "dataset.split_shares.validation=0.01")
        one, plain = (carry_out(compose([*words, f"method={m}"])) for m in ("double_finetuning", "full"))
        found = [load_file(f / "checkpoints" / "model" / "model.safetensors") for f in (one, plain)]
        assert all(torch.equal(found[0][n], found[1][n]) for n in found[1])
        alone = compose([*words, "method=double_finetuning", "stages=[[seed=0]]"])
        assert alone.identity == compose([*words, "method=double_finetuning"]).identity

    def test_any_method_can_be_the_inner_one(self, tmp_path: Path) -> None:
        _, second, _ = chained(tmp_path, "method=lora")
        assert any("lora_A" in name for name in second)


def trained(method: DoubleFineTuning, rows: torch.Tensor, labels: torch.Tensor, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    method.train()
    for _ in range(steps):
        picked = torch.randint(len(rows), (32,), generator=generator)
        loss = method.loss({"input_ids": rows[picked], "labels": labels[picked]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.long
def test_a_related_first_task_helps_where_the_target_is_small() -> None:
    """Labels of both tasks follow one hidden rule, which of two kinds most tokens are of; 32 target examples."""
    node = dict(registry.entry("backbone", "bert_tiny").content["backbone"])
    node["architecture"] = {
        **node["architecture"], "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64,
    }  # fmt: skip
    task, gains = Task("classification", 2, ("a", "b")), []
    for seed in range(5):
        torch.manual_seed(seed)
        kind = torch.randperm(300) < 150
        rows = torch.randint(0, 300, (3000, 9))
        labels = (kind[rows].sum(1) > 4).long()
        start = build_backbone({**node, "weights": f"random:{seed}"})
        scores = []
        for first_stage in (True, False):
            method = DoubleFineTuning(copy.deepcopy(start), task)
            if first_stage:
                trained(method, rows[:2000], labels[:2000], 200, seed)
            method = DoubleFineTuning(method.backbone, task)
            trained(method, rows[2000:2032], labels[2000:2032], 60, seed)
            method.eval()
            with torch.no_grad():
                scores.append(float((method({"input_ids": rows[2032:]}).argmax(-1) == labels[2032:]).float().mean()))
        gains.append(scores[0] - scores[1])
    assert np.mean(gains) > 0.05, gains


@pytest.mark.long
def test_real_questions_from_end_to_end(tmp_path: Path) -> None:
    """Answered questions, then the doctors' question pairs, each a run of its own; the second finds the first one."""
    if not REAL.is_dir():
        pytest.skip("the real data text/mqp are not beside the repository")
    small = [word for word in SMALL if not word.startswith("trainer.max_steps")]
    before = f"[dataset=qa_pairs,dataset.max_examples=64,trainer.max_steps=3,dataset.exclude={REAL}]"
    after = f"[dataset=mqp,dataset.path={REAL},trainer.max_steps=5]"
    words = [*small, "method=double_finetuning", "dataset.max_source_length=96", f"stages=[{before},{after}]"]
    folder = carry_out(compose([*words, f"output_dir={tmp_path}"]))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["dataset"] == "mqp"
    assert 0.3 < result["metrics"]["test/accuracy"] < 0.8
    assert transfer_run.load(folder).task.label_names == ("different", "similar")
    assert len(list(tmp_path.glob("runs/*/*/result.json"))) == 2


def test_the_experiments_and_tables_compose() -> None:
    for name in ("double_finetuning", "double_finetuning_docs"):
        cfg = compose([f"experiment={name}"])
        assert str(cfg.config["backbone"]["weights"]).startswith("stage:")
        assert len(cfg.config["stages"]) == 2
    first = stage_words(compose(["experiment=double_finetuning"]).config["stages"])[0]
    assert any(word.startswith("dataset.exclude=hub:curaihealth/medical_questions_pairs@") for word in first)
    assert "dataset.category_column=category" in first
    spec = read("double_finetuning/headline")
    column = spec.columns[0]
    for row in spec.rows:
        if row.words is not None:
            compose(spec.cell_words(row, column, "smoke"))
    assert {row.name: row.paper.get("accuracy") for row in spec.rows}["question-answer pairs"] == 82.6
