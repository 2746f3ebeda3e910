"""A sequence of data sets: its words, its batches, its scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.methods.continual import models
from transfer_run.data.load import batch_spec
from transfer_run.data.rows.task_batches import StageBatches, TaskByTask
from transfer_run.data.text.class_texts import prompts, templates_of
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose

PHOTOGRAPHS = Path(__file__).parents[4] / "shared" / "data" / "images" / "cifar10-jpeg"
TWO = 'dataset.tasks=["digits name=a classes=[0,1]","digits name=b classes=[2,3,4]"]'


def test_an_epoch_is_a_task_in_passes_without_end() -> None:
    batches = StageBatches([range(5), range(5, 12)], [[], range(20, 23)], 4, steps=5, seed=3)
    batches.set_epoch(0)
    rows = [draw.row for batch in batches for draw in batch]
    assert [len(batch) for batch in batches] == [4] * 5
    assert all(sorted(rows[i : i + 5]) == list(range(5)) for i in (0, 5, 10, 15))
    assert rows[:5] != rows[5:10]
    batches.set_epoch(1)
    own, others = zip(*((batch[:4], batch[4:]) for batch in batches), strict=True)
    assert {draw.row for batch in own for draw in batch} == set(range(5, 12))
    assert {draw.row for batch in others for draw in batch} == {20, 21, 22}


def test_a_resumed_epoch_and_two_ranks_read_the_same_rows() -> None:
    def rows(world: int, rank: int, size: int, start: int = 0) -> list[list[int]]:
        batches = StageBatches([range(50)], [range(50, 80)], size, steps=6, seed=1, world_size=world, rank=rank)
        batches.start_at(start)
        return [[draw.row for draw in batch] for batch in batches]

    whole = rows(1, 0, 8)
    assert rows(1, 0, 8, start=4) == whole[4:]
    halves = zip(rows(2, 0, 4), rows(2, 1, 4), strict=True)
    assert [[*a[:4], *b[:4], *a[4:], *b[4:]] for a, b in halves] == whole


def test_evaluation_goes_task_by_task() -> None:
    batches = TaskByTask([5, 3], 4)
    assert [[draw.row for draw in batch] for batch in batches] == [[0, 1, 2, 3], [4], [5, 6, 7]]
    assert len(batches) == 3


def test_a_batch_brings_images_classes_and_references() -> None:
    data = models.data_of(TWO)
    assert data.task.sequence == ("a", "b")
    assert data.task.num_labels == 3
    loader = data.loader("train", batch_size=8)
    loader.set_epoch(1)
    batch = next(iter(loader))
    assert int(batch["stage"]) == 1
    assert set(batch["labels"].tolist()) == {0, 1, 2}
    assert batch["pixel_values"].shape == batch["reference/pixel_values"].shape == (8, 1, 8, 8)
    text = bytes(int(i) - 3 for i in batch["class_ids"][1] if i >= 3).decode()
    assert text == "a photo of the number 3."
    spec = batch_spec(models.config(TWO)["dataset"], models.config(TWO)["backbone"], 8)
    assert {name: tensor.shape for name, tensor in batch.items()} == {n: torch.Size(s) for n, (s, _) in spec.items()}


def test_evaluation_brings_all_prompts_of_the_task_or_of_all_tasks() -> None:
    prompt = 'dataset.templates={default: ["a {}.", "the {}."]}'
    stages = [
        (int(b["stage"]), tuple(b["class_ids"].shape))
        for b in models.data_of(TWO, prompt).loader("test", batch_size=64)
    ]
    assert sorted(set(stages)) == [(0, (2, 2, 64)), (1, (3, 2, 64))]
    data = models.data_of(TWO, prompt, "dataset.scenario=class")
    last = list(data.loader("test", batch_size=64))[-1]
    assert last["class_ids"].shape == (5, 2, 64)
    assert last["class_stage"].tolist() == [0, 0, 1, 1, 1]
    assert set(last["labels"].tolist()) <= {2, 3, 4}
    assert data.task.num_labels == 5


def test_exemplars_share_the_memory_and_the_first_task_has_none() -> None:
    three = ("dataset.reference.images=memory", "dataset.reference.memory=10", "dataset.reference.texts=classes")
    data = models.data_of(*three)
    none, first, both = data._reference_rows()
    offsets = data.offsets["train"]
    assert none == []
    assert len(first) == 10
    assert len(both) == 10
    assert sum(row - offsets[-1] < offsets[1] for row in both) == 5
    loader = data.loader("train", batch_size=8)
    assert "reference/pixel_values" not in next(iter(loader))
    loader.set_epoch(1)
    batch = next(iter(loader))
    kept = {
        tuple(data.members["low"].example("train", draw_of(row))["pixel_values"].flatten().tolist())
        for row in range(offsets[1])
    }
    assert all(tuple(image.flatten().tolist()) in kept for image in batch["reference/pixel_values"])


def draw_of(row: int) -> object:
    from transfer_run.data.rows.sampling import Draw

    return Draw(row)


@pytest.mark.parametrize(("negatives", "classes"), [("previous", 5), ("sentences", 13)])
def test_more_texts_stand_behind_the_classes(negatives: str, classes: int) -> None:
    data = models.data_of(TWO, f"dataset.negatives={negatives}", "dataset.negative_sentences=10")
    loader = data.loader("train", batch_size=8)
    loader.set_epoch(1)
    batch = next(iter(loader))
    assert batch["class_ids"].shape == (classes, 64)
    assert torch.equal(batch["class_ids"][:3], data.texts[1][:, 0])
    if negatives == "previous":
        assert torch.equal(batch["class_ids"][3:], data.texts[0][:, 0])


def test_scores_are_of_each_task_and_their_mean() -> None:
    data = models.data_of(TWO)
    scores = data.metrics("test")
    for stage, right in ((0, 1), (1, 3)):
        labels = torch.zeros(4, dtype=torch.int64)
        predictions = torch.where(torch.arange(4) < right, 0, 1)
        scores.update(predictions, {"labels": labels, "stage": torch.tensor(stage)})
    assert scores.compute() == pytest.approx({"accuracy": 0.5, "accuracy/a": 0.25, "accuracy/b": 0.75})
    scores.reset()
    assert scores.compute() == {}


def test_real_sentences_come_from_a_text_data_set() -> None:
    data = models.data_of(TWO, 'dataset.reference.texts="python_docs task=language_modeling"')
    assert data.sentences.shape == (20, 64)
    assert len({tuple(row) for row in data.sentences.tolist()}) > 15


def test_the_same_tasks_in_other_words_are_the_same_run() -> None:
    other = 'dataset.tasks=["digits classes=[0,1] name=a keep_in_memory=true","digits name=b classes=[2,3,4]"]'
    runs = [compose(models.words(text)).identity for text in (TWO, other)]
    assert runs[0] == runs[1]
    assert compose(models.words(TWO)).config["trainer"]["max_epochs"] == 2
    assert compose(models.words()).identity != runs[0]


@pytest.mark.parametrize(
    ("tasks", "what", "near"),
    [
        ("digit classes=[0,1]", "no dataset 'digit'", "digits"),
        ("digits clases=[0,1]", "no key 'dataset.clases'", "dataset.classes"),
        ("digits classes=[0,x]", "must be a list of whole numbers", ""),
        ("digits 0,1", "not KEY=VALUE", ""),
        ("sequence", "cannot be a part of one", ""),
        ("python_docs", "holds text, dataset=sequence is made of images", ""),
    ],
)
def test_wrong_words_are_answered_with_the_place(tasks: str, what: str, near: str) -> None:
    with pytest.raises(UserError) as error:
        compose(models.words(f'dataset.tasks=["{tasks}"]'))
    assert what in error.value.what
    assert "dataset.tasks[0]" in error.value.where
    assert not near or near in error.value.nearest


def test_two_tasks_of_one_name_and_no_task_are_refused() -> None:
    with pytest.raises(UserError, match="Two tasks are called 'digits'"):
        compose(models.words('dataset.tasks=["digits classes=[0,1]","digits classes=[2,3]"]'))
    for words, message in (("[]", "dataset.tasks names no data set"), ("3", "dataset.tasks must be a list of text")):
        with pytest.raises(UserError, match=message):
            compose(models.words(f"dataset.tasks={words}"))


def test_prompts_put_the_class_into_words() -> None:
    assert prompts(["polar_bear"], ["a {}.", "the {}."]) == ["a polar bear.", "the polar bear."]
    with pytest.raises(UserError, match="no place for the class"):
        templates_of({"default": ["a photo"]}, "low")


def test_folders_of_tasks_are_found_below_one_path(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for task, classes in (("birds", ("owl", "wren")), ("trees", ("oak", "fir", "elm"))):
        for name in classes:
            for split, count in (("train", 10), ("test", 2)):
                folder = tmp_path / task / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = generator.integers(0, 255, (8, 8), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
    tasks = 'dataset.tasks=["image_folder name=birds num_labels=2","image_folder name=trees num_labels=3"]'
    data = models.data_of(tasks, f"dataset.path={tmp_path}")
    assert data.class_names("trees") == ("elm", "fir", "oak")
    assert data.sizes["test"] == 10


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="no ../shared/data/images/cifar10-jpeg")
def test_real_photographs_are_a_task() -> None:
    things = f"image_folder name=things path={PHOTOGRAPHS} num_labels=10"
    tasks = f'dataset.tasks=["digits name=low classes=[0,1]","{things}"]'
    data = models.data_of(tasks)
    assert len(data.class_names("things")) == 10
    loader = data.loader("train", batch_size=8)
    loader.set_epoch(1)
    batch = next(iter(loader))
    assert batch["class_ids"].shape[0] == 10
    assert batch["pixel_values"].std() > 0.1


def test_prompts_that_are_cut_are_said_and_two_that_are_alike_refused() -> None:
    data = models.data_of(TWO, 'dataset.templates={default:["a photo of the number {} that somebody wrote"]}',
                       "dataset.prompt_length=24")  # fmt: skip
    assert "a: 2 of 2 prompts are cut at 24 tokens" in data.notes
    with pytest.raises(UserError, match="'0' and '1' are the same 12 tokens"):
        models.data_of(TWO, 'dataset.templates={default:["a photo of the number {}"]}', "dataset.prompt_length=12")
