"""Pictures two folders deep: a domain that is tested and not trained on, and classes of two names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transfer_run.data.load import build_data
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import plan_run

WORDS = ("method=full", "backbone=cnn_tiny", "backbone.weights=random:0", "dataset=image_folder")


def picture(file: Path, value: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(file)


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Three domains of two classes, ten pictures each; one class is missing in one domain."""
    root = tmp_path / "pacs"
    for number, domain in enumerate(("art", "photo", "sketch")):
        for label in ("cat", "dog"):
            for n in range(10):
                if (domain, label) != ("sketch", "cat"):
                    picture(root / domain / label / f"{n}.png", 50 * number)
    return root


def read(root: Path, *words: str) -> Any:
    config = compose([*WORDS, f"dataset.path={root}", *words]).config
    data = build_data(config["dataset"], config["backbone"], 0)
    data.setup()
    return data


def outer(data: Any, split: str) -> set[str]:
    return {Path(data.images[split].locate(row)).parent.parent.name for row in range(data.sizes[split])}


def test_a_domain_is_left_out_of_training_and_validation(domains: Path) -> None:
    data = read(domains, "dataset.levels=domain/class", "dataset.held_out=[art]")
    assert data.label_names == ("cat", "dog")
    assert data.sizes == {"train": 27, "validation": 3, "test": 20}
    assert [outer(data, split) for split in ("train", "test")] == [{"photo", "sketch"}, {"art"}]
    assert outer(data, "validation") <= {"photo", "sketch"}
    assert "domains: photo, sketch are trained on, art tested" in data.notes
    assert np.bincount(data.labels("test")).tolist() == [10, 10]


def test_several_domains_are_left_out_and_a_class_without_pictures_is_said(domains: Path) -> None:
    data = read(domains, "dataset.levels=domain/class", "dataset.held_out=[sketch,art]")
    assert outer(data, "test") == {"sketch", "art"}
    assert data.sizes["test"] == 30
    data = read(domains, "dataset.levels=domain/class", "dataset.held_out=[sketch]")
    assert any("no picture of cat" in note for note in data.notes)


def test_a_class_of_the_domain_left_out_that_no_other_has_is_refused(domains: Path) -> None:
    picture(domains / "art" / "horse" / "1.png")
    with pytest.raises(UserError, match="'horse' is not among"):
        read(domains, "dataset.levels=domain/class", "dataset.held_out=[art]")


def test_both_folders_name_a_class(domains: Path) -> None:
    data = read(domains, "dataset.levels=class/class")
    assert data.label_names == ("art/cat", "art/dog", "photo/cat", "photo/dog", "sketch/dog")
    assert sum(data.sizes.values()) == 50
    some = read(domains, "dataset.levels=class/class", "dataset.classes=[photo/dog,art/cat]")
    assert some.label_names == ("photo/dog", "art/cat")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset.levels=domain/class",), "is not named"),
        (("dataset.levels=domain/class", "dataset.held_out=[]"), "is not named"),
        (("dataset.held_out=[art]",), "no domains"),
        (("dataset.levels=class/class", "dataset.held_out=[art]"), "no domains"),
        (("dataset.levels=domain/class", "dataset.held_out=[arts]"), "no domain 'arts'"),
        (("dataset.levels=domain/class", "dataset.held_out=[art,photo,sketch]"), "none is left"),
        (("dataset.levels=domains",), "dataset.levels"),
    ],
)
def test_words_that_cannot_be_meant(words: tuple[str, ...], said: str, domains: Path) -> None:
    with pytest.raises(UserError, match=said):
        read(domains, *words)


def test_a_plan_refuses_what_its_words_alone_forbid() -> None:
    with pytest.raises(UserError, match="is not named"):
        plan_run(compose([*WORDS, "dataset.num_labels=2", "dataset.levels=domain/class"]))
    with pytest.raises(UserError, match="labels, not 5"):
        plan_run(compose(["dataset=glue/stsb_classes", "backbone=bert_tiny", "method=full", "dataset.num_labels=5"]))


def test_folders_that_cannot_be_meant(domains: Path) -> None:
    words = ("dataset.levels=domain/class", "dataset.held_out=[art]")
    picture(domains / "photo" / "stray.png")
    with pytest.raises(UserError, match="a picture that is in no class folder"):
        read(domains, *words)
    (domains / "photo" / "stray.png").unlink()
    (domains / "empty").mkdir()
    with pytest.raises(UserError, match="holds no class folders"):
        read(domains, *words)
    (domains / "empty").rmdir()
    (domains / "art").rename(domains / "train")
    with pytest.raises(UserError, match="a folder of splits"):
        read(domains, *words)


def test_levels_are_in_the_identity_and_what_was_before_is_not(domains: Path) -> None:
    plain = compose([*WORDS, f"dataset.path={domains}"]).identity
    held = [compose([*WORDS, f"dataset.path={domains}", "dataset.levels=domain/class", f"dataset.held_out=[{name}]"])
            for name in ("art", "photo")]  # fmt: skip
    assert len({plain, *(run.identity for run in held)}) == 3
    assert compose([*WORDS, f"dataset.path={domains}", "dataset.levels=class"]).identity == plain
