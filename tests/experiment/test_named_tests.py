"""`dataset.tests`: further test sets in one run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.own_configs import own
from transfer_run.data.load import build_data, build_tests
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.identity import identity
from transfer_run.experiment.run import carry_out

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (90, 90, 90)}
OWN = ["blue", "green", "red"]


def pictures(folder: Path, names: list[str], count: int = 4, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = random.integers(0, 40, (8, 8, 3))
            Image.fromarray((np.array(COLOURS[name]) + noise).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def texts(file: Path, rows: list[tuple[str, str]]) -> Path:
    file.write_text("said,kind\n" + "".join(f"{said},{kind}\n" for said, kind in rows), encoding="utf-8")
    return file


ROWS = [(f"{kind} number {n}", kind) for n in range(20) for kind in ("bad", "good")]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A run on pictures with two more test sets: a folder of class folders, and one with a test folder alone."""
    pictures(tmp_path / "own", OWN, 10)
    pictures(tmp_path / "other", ["green", "red"], 3, seed=1)
    pictures(tmp_path / "split" / "test", OWN, 2, seed=2)
    tests = f'{{other: "image_folder path={tmp_path}/other", split: "image_folder path={tmp_path}/split"}}'
    return [
        "method=linear_probe", "backbone=vit_tiny", "backbone.weights=random", "dataset=image_folder", "hardware=cpu",
        f"dataset.path={tmp_path}/own", "trainer.max_epochs=1", f"output_dir={tmp_path}/out", "trainer.progress=none",
        f"dataset.tests={tests}", "profiler.memory=false",
    ]  # fmt: skip


def test_every_set_is_scored_beside_the_runs_own(words: list[str]) -> None:
    folder = carry_out(compose(words))
    assert folder is not None
    metrics = json.loads((Path(str(folder)) / "result.json").read_text())["metrics"]
    assert {name for name in metrics if name.startswith("test/accuracy")} == {
        "test/accuracy", "test/accuracy/other", "test/accuracy/split",
    }  # fmt: skip


def test_classes_keep_the_numbers_of_the_runs_own_and_all_rows_are_tested(words: list[str]) -> None:
    cfg = compose(words)
    data = build_data(cfg.config["dataset"], cfg.config["backbone"], 0)
    tests = build_tests(data)
    assert data.label_names == ("blue", "green", "red")
    assert {name: dict(test.sizes) for name, test in tests.items()} == {"other": {"test": 6}, "split": {"test": 6}}
    assert sorted(tests["other"].labels("test")) == [1, 1, 1, 2, 2, 2]


def test_they_are_in_the_identity_only_where_they_are_named(words: list[str], tmp_path: Path) -> None:
    plain = compose([word for word in words if not word.startswith("dataset.tests")])
    dataset = {key: value for key, value in plain.config["dataset"].items() if key != "tests"}
    assert plain.identity == identity({**plain.config, "dataset": dataset}, {}, {})
    named = compose(words)
    assert named.identity != plain.identity
    pictures(tmp_path / "other", ["blue"], 1)
    assert compose(words).identity != named.identity


def test_texts_begin_from_the_runs_own_columns(tmp_path: Path) -> None:
    own, other = texts(tmp_path / "own.csv", ROWS), texts(tmp_path / "other.csv", [("a good one", "good")] * 5)
    cfg = compose(
        [
            "method=full", "backbone=bert_tiny", "dataset=text_files", f"dataset.path={own}",
            "dataset.text_columns=[said]", "dataset.label_column=kind", "dataset.max_source_length=20",
            f'dataset.tests={{other: "text_files path={other}"}}',
        ]
    )  # fmt: skip
    node = cfg.config["dataset"]["tests"]["other"]
    assert [node[key] for key in ("text_columns", "label_column", "max_source_length")] == [["said"], "kind", 20]
    tests = build_tests(build_data(cfg.config["dataset"], cfg.config["backbone"], 0))
    assert tests["other"].labels("test").tolist() == [1] * 5


@pytest.mark.parametrize(
    ("tests", "says"),
    [
        ('{a: "text_file path=x"}', "text_file"),
        ('{a: "digits form=regression"}', "form must be one of classification"),
        ('{a: "image_folder path=. form=multi_label"}', "form is multi_label"),
        ('{a: "digits clases=[1,2]"}', "clases"),
        ("{a.b: digits}", "name of letters"),
        ('{a: ""}', "Nothing is named where a data set must be"),
        ('{a: "digits tests={b:digits}"}', "tests is a key of the run's own data set alone"),
        ('{a: "digits beside.b=digits"}', "beside.b is a key of the run's own data set alone"),
        ('{a: "digits about.target=os.path"}', "about.target is a fact that no words set"),
        ("{a: python_docs}", "dataset=python_docs holds text, which backbone=vit_tiny"),
        ('{a: "digits metrics=[f1]"}', "metrics is a key of the run's own data set alone"),
        ("{a: \"image_folder path='run:method=full seed=1'\"}", "reads what a run makes, not one .* by path"),
        ('{a: "digits rows=run:3f9a01cc"}', "reads what a run makes, not one .* by rows"),
        ("{a: 3}", "name of letters"),
    ],
)
def test_words_that_name_no_fitting_data_set_are_refused(tests: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        compose(["method=full", "backbone=vit_tiny", "dataset=digits", f"dataset.tests={tests}"])


def test_data_beside_that_the_backbone_does_not_read_are_refused(tmp_path: Path) -> None:
    folder = own(tmp_path, "method", "beside", "full", about={"beside": {"other": "images"}})
    words = [f"hydra.searchpath=[{folder}]", "method=beside", "backbone=vit_tiny", "dataset=digits"]
    with pytest.raises(UserError, match="dataset=python_docs holds text, which backbone=vit_tiny") as error:
        compose([*words, "dataset.beside.other=python_docs"])
    assert error.value.where == "dataset.beside.other"
    with pytest.raises(UserError, match="There is no operation 'flop'") as error:
        compose([*words, 'dataset.beside.other="digits augment=[flop]"'])
    assert error.value.where == "dataset.beside.other: augment[0]: flop"
    compose([*words, "dataset.beside.other=digits"])


def test_at_least_one_metric_is_named() -> None:
    with pytest.raises(UserError, match="dataset=digits has no metric"):
        compose(["method=full", "backbone=vit_tiny", "dataset=digits", "dataset.metrics=[]"])


def test_a_sequence_is_tested_on_its_own_tasks() -> None:
    with pytest.raises(UserError, match="made of others is tested on these alone"):
        compose(["method=zscl", "backbone=clip_tiny", "dataset=sequence", "dataset.tests={a: digits}"])


@pytest.mark.parametrize("other", ["digits classes=[6,5]", "digits classes=[1,2]"])
def test_other_classes_or_another_order_are_refused(other: str) -> None:
    words = ["method=full", "backbone=vit_tiny", "dataset=digits", "dataset.classes=[5,6]"]
    cfg = compose([*words, f'dataset.tests={{other: "{other}"}}'])
    with pytest.raises(UserError, match="The test set has the classes"):
        build_tests(build_data(cfg.config["dataset"], cfg.config["backbone"], 0))


def test_a_class_that_the_run_does_not_know_is_refused(words: list[str], tmp_path: Path) -> None:
    pictures(tmp_path / "other2", ["grey", "red"], 3)
    cfg = compose([word.replace(f"{tmp_path}/other", f"{tmp_path}/other2") for word in words])
    with pytest.raises(UserError, match="The class 'grey' is not among the 3"):
        build_tests(build_data(cfg.config["dataset"], cfg.config["backbone"], 0))


def test_a_run_may_have_no_validation_split(words: list[str]) -> None:
    none = [*words[:-2], "dataset.split_shares.validation=0", "profiler.memory=false"]
    folder = carry_out(compose(none))
    metrics = json.loads((Path(str(folder)) / "result.json").read_text())["metrics"]
    assert {name.partition("/")[0] for name in metrics} == {"test"}
    with pytest.raises(UserError, match="no validation split to choose by"):
        carry_out(compose([*none, "trainer.select=best"]))
