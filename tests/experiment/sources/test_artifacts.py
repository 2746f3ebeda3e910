"""What a method of a user's own makes is read by other runs as its kind says: named, planned, resumed, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.matrix.smallest import carried_out_in_two
from transfer_run.errors import UserError
from transfer_run.experiment.config.artifacts import artifact
from transfer_run.experiment.config.compose import compose, make_importable
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.sources.resolve import config_with_data
from transfer_run.experiment.training.train import _source_data

PAINTER = '''
from PIL import Image
from transfer_run.methods.judging import Judging

class Painter(Judging):
    """Draws twelve pictures of two classes."""

    def prepare(self, context):
        for number in range(24):
            folder = context.folder / "images" / ("dark", "light")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 40 + 5 * number if number % 2 else number).save(folder / f"{number}.png")
        self.results = {"painted": 24}
'''
METHOD = """# @package _global_
# Paints a data set.
method:
  name: {name}
  about: {{title: A toy, target: a_toy_painter.Painter, family: toys, shape: reshape, makes: {makes}, backbones: [vit]}}
"""
VIT = "backbone=vit_tiny backbone.weights=random:0"
PAINTED = f"method=painter {VIT} dataset=digits"
READER = ["method=linear_probe", *VIT.split(), "dataset=image_folder", "dataset.num_labels=2", "dataset.batch_size=4",
          "trainer.max_steps=4", "trainer.log_every=1", "hardware=cpu", "trainer.progress=none"]  # fmt: skip


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Run]:
    """Words -> run, with two methods and a kind of artifact from a folder outside of the repository."""
    for name, makes in (("painter", "images"), ("sketcher", "sketches")):
        (tmp_path / "method").mkdir(exist_ok=True)
        (tmp_path / "method" / f"{name}.yaml").write_text(METHOD.format(name=name, makes=makes), encoding="utf-8")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "sketches.yaml").write_text("says: a book of sketches\nat: images\n", encoding="utf-8")
    (tmp_path / "a_toy_painter.py").write_text(PAINTER, encoding="utf-8")

    def composed(*words: str) -> Run:
        run = compose([f"output_dir={tmp_path / 'out'}", *words], str(tmp_path))
        make_importable(run)
        return run

    return composed


def test_pictures_that_a_run_paints_are_trained_on(
    run_of: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(*READER, f"dataset.path='run:{PAINTED}'")
    carry_out(run_of(*READER, f"dataset.path='run:{PAINTED}'", "dry_run=true"))
    assert "painter" in capsys.readouterr().out, "the tree names what would be made"
    assert not (tmp_path / "out").exists()
    assert plan_run(run).memory["peak"] > 0, "planned before there is a picture"
    result = json.loads((carry_out(run) / "result.json").read_text(encoding="utf-8"))
    assert result["time"]["steps"] == 4
    assert result["identity"] == run.identity
    (painted,) = (tmp_path / "out").rglob("images")
    by_folder = run_of(*READER, f"dataset.path=run:{painted.parent}")
    assert by_folder.identity == run.identity, "the same run, however the pictures are named"
    assert run_of(*READER, f"dataset.path='run:{PAINTED} seed=1'").identity != run.identity
    assert run_of(*READER, f"dataset.path={painted}").identity != run.identity, "a folder is told by its files"
    capsys.readouterr()
    carry_out(by_folder)
    assert "finished already" in capsys.readouterr().out


def test_a_run_on_painted_pictures_goes_on_where_it_stopped(run_of: Callable[..., Run], tmp_path: Path) -> None:
    words = [*READER, f"dataset.path='run:{PAINTED}'", "profiler=none"]
    whole = carry_out(run_of(*words))
    folder = carried_out_in_two(run_of(*words, f"output_dir={tmp_path / 'again'}"))
    one, two = ((run / "metrics.csv").read_text(encoding="utf-8") for run in (whole, folder))
    losses = [[line.split(",")[:3] for line in text.splitlines() if "," in line] for text in (one, two)]
    assert losses[0] == losses[1]


def test_a_run_on_painted_pictures_is_merged_and_its_data_opened_again(
    run_of: Callable[..., Run], tmp_path: Path
) -> None:
    words = ["method=full", *READER[1:], f"dataset.path='run:{PAINTED}'", "trainer.max_steps=1", "profiler=none"]
    one, two = (carry_out(run_of(*words, f"optimizer.lr={lr}")) for lr in (0.1, 0.2))
    merge = ["method=average", "dataset=none", f"sources={{a:{one},b:{two}}}", "hardware=cpu", "trainer.progress=none"]
    result = json.loads((carry_out(run_of(*merge)) / "result.json").read_text(encoding="utf-8"))
    assert [row["task"] for row in result["extra"]["tasks"]] == ["a", "b", "average"]
    opened = _source_data({"a": one}, "a")
    assert sum(opened.sizes.values()) == 24
    (painted,) = (tmp_path / "out").glob("runs/digits/painter-*")
    (painted / "result.json").unlink()
    with pytest.raises(UserError, match=r"run that made dataset.path of full-\S+ is not there") as error:
        config_with_data(one)
    assert PAINTED in error.value.where


FULL = f"method=full {VIT} dataset=digits trainer.max_steps=1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (f"dataset.path='run:{FULL}'",),
            "which makes a model; dataset=image_folder reads a folder of images",
        ),
        (("dataset.path='run:method=sketcher backbone=vit_tiny dataset=digits'",), "which makes a book of sketches"),
        (("dataset=digits", f"dataset.path='run:{PAINTED}'"), "dataset=digits reads nothing that a run makes"),
        (
            ("dataset=digits", f"dataset.rows='run:{PAINTED}'"),
            "which makes a folder of images; dataset=digits",
        ),
        (
            ("dataset=digits", f"backbone.weights='run:{PAINTED}'"),
            "reads merged files or a model or weights",
        ),
    ],
)
def test_another_kind_is_refused_before_the_first_run(
    words: tuple[str, ...], message: str, run_of: Callable[..., Run], tmp_path: Path
) -> None:
    given = [word for word in READER if not any(word.partition("=")[0] == w.partition("=")[0] for w in words)]
    given = [word for word in given if "dataset=digits" not in words or word != "dataset.num_labels=2"]
    with pytest.raises(UserError) as error:
        carry_out(run_of(*given, *words))
    assert message in error.value.what
    assert not list(tmp_path.glob("out/runs/**/config.yaml")), "a source was carried out first"


def test_a_kind_that_nobody_has_made_is_named() -> None:
    with pytest.raises(UserError, match="no kind of artifact 'imags'") as error:
        artifact("imags")
    assert error.value.nearest[0] == "images"
