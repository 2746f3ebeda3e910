"""What a run lacks is said before any other run is carried out for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.own_configs import own
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out

PRETRAINED = ["backbone=t5_tiny", "dataset=python_docs"]
"""The backbone's weights are a run that would have to be carried out first."""


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The error of a run's words; fails when anything was carried out meanwhile."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def error(*words: str) -> UserError:
        with pytest.raises(UserError) as caught:
            carry_out(compose([*words, f"output_dir={tmp_path}", "trainer.progress=none"]))
        assert not list(tmp_path.rglob("run.log"))
        return caught.value

    return error


def test_what_the_machine_lacks(refused, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "0 GPUs, and 1 are asked for" in refused(*PRETRAINED, "hardware=1gpu").what
    assert "does not divide among 3" in refused(*PRETRAINED, "hardware=cpu", "hardware.devices=3").what


def test_a_fused_optimizer_that_would_clip_scaled_gradients(refused) -> None:  # type: ignore[no-untyped-def]
    words = ["method=full", *PRETRAINED, "optimizer=adamw_fused", "hardware.precision=16-mixed"]
    assert "optimizer=adamw" in refused(*words).remedy


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["method=lst", "method.side_layers.encoder=[7]"], "has layers 0 to 3"),
        (["method=lst", "method.reduction_factor=200"], "reduction_factor"),
        (["method=bitfit"], "bias"),
    ],
)
def test_what_the_method_refuses(refused, words: list[str], says: str) -> None:  # type: ignore[no-untyped-def]
    error = refused(*PRETRAINED, *words)
    assert says in f"{error.what} {error.where}"


def test_data_without_a_path_or_with_wrong_columns(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "has no path" in refused("backbone=t5_tiny", "dataset=text_files", "dataset.num_labels=2").what
    rows = tmp_path / "rows.csv"
    rows.write_text("words,label\na,0\nb,1\n", encoding="utf-8")
    words = ("backbone=t5_tiny", "dataset=text_files", "dataset.num_labels=2", f"dataset.path={rows}")
    assert refused(*words).what == "The data have no column 'text'."


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("dataset.tests.a=image_folder", "The dataset has no path."),
        ('dataset.tests.a="digits classes=[0,1]"', "The test set has the classes 0, 1, dataset=digits 5, 6, 7, 8, 9."),
        ('dataset.augment=["random_resized_crop scale=[2,1]"]', "random_resized_crop cannot be made like this"),
        ("dataset.metrics=[accurcy]", "The metric 'accurcy' does not score classification"),
        ("dataset.class_weights=[1,2]", "There are 2 weights for 5 classes."),
    ],
)
def test_what_its_own_keys_say_wrong_of_the_data(refused, words: str, says: str) -> None:  # type: ignore[no-untyped-def]
    assert says in refused("method=full", "backbone=vit_tiny", "dataset=digits", words).what


def test_a_task_without_a_path(refused) -> None:  # type: ignore[no-untyped-def]
    weights = "backbone.weights='run:method=full backbone=clip_tiny dataset=digits'"
    error = refused("method=zscl", "backbone=clip_tiny", weights, "dataset=sequence", "dataset.tasks=[image_folder]")
    assert error.what == "The dataset has no path."
    assert error.where == "dataset.nodes.image_folder: image_folder"


def test_rows_that_are_none_of_the_data_set(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "rows.json"
    file.write_text('{"rows": {"train": [100000]}}', encoding="utf-8")
    error = refused("method=full", "backbone=vit_tiny", "dataset=digits", f"dataset.rows={file}")
    assert error.where.startswith(f"dataset.rows: {file}")


def test_data_beside_the_runs_own_without_a_path(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = own(tmp_path / "mine", "method", "beside", "full", about={"beside": {"unlabeled": "images"}})
    error = refused(
        f"hydra.searchpath=[{folder}]",
        "method=beside",
        "backbone=vit_tiny",
        "dataset=digits",
        "dataset.beside.unlabeled=image_folder",
    )
    assert error.what == "The dataset has no path."
    assert error.where == "dataset.beside.unlabeled: image_folder"


@pytest.mark.parametrize("more", [(), ("hardware=1gpu",)])
def test_all_that_is_missing_is_said_together(refused, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    error = refused("method=lst", "backbone=t5-base", "dataset=glue/rte", *more)
    assert ("0 GPUs" in error.what) == bool(more)
    assert "cannot be had from the hub" in error.what
    assert "is not on this machine" in error.what
    assert "dataset.path" in error.remedy
    assert "hf download google-t5/t5-base" in error.remedy


def test_a_source_that_cannot_run_is_named_before_the_others(refused) -> None:  # type: ignore[no-untyped-def]
    teacher = "method=full backbone=t5_tiny dataset=text_files dataset.num_labels=2"
    error = refused("method=distiller", "backbone=bert_tiny", "dataset=python_docs", f"sources.teacher='{teacher}'")
    assert "has no path" in error.what
