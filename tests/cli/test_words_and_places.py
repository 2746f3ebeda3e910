"""Words of `transfer-table`, and folders that cannot be used: one message, exit code 2, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.own_configs import own
from transfer_run.cli.carry import carry
from transfer_run.cli.exits import exit_code
from transfer_run.cli.table import show
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.files import make_folder

PROBE = ("method=linear_probe", "backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits", "hardware=cpu",
         "trainer.max_steps=1", "trainer.progress=none", "profiler=none")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vqt/params", "method.num_query_token=3"], "nearest: method.num_query_tokens"),
        (["lst/table1", "trainer.max_steps=zero"], "trainer.max_steps"),
        (["lst/table1", "lst/table2"], "'lst/table2' is not KEY=VALUE"),
        (["lst/table1", "method=lora"], "rows name their methods"),
    ],
)
def test_wrong_words_leave_an_earlier_table_as_it_was(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lst_table1.md").write_text("kept", encoding="utf-8")
    assert exit_code(lambda: show([*words, "--out", str(tmp_path)])) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["lst_table1.md"]


def test_a_table_that_cannot_be_written_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert exit_code(lambda place=place: show(["lst/table1", "--out", str(place)])) == 2  # type: ignore[misc]
        assert f"--out {place}" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["output_dir", "export", "cache.folder"])
def test_folders_that_cannot_be_used_are_named(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    taps = ["cache.taps=disk"] if key == "cache.folder" else []
    words = [*PROBE, f"output_dir={tmp_path / 'out'}", *taps, f"{key}={tmp_path / 'file' / 'below' / 'place'}"]
    with pytest.raises(UserError, match="cannot be used") as caught:
        carry_out(compose(words))
    assert key in caught.value.where
    make_folder(tmp_path / "new" / "folder", "output_dir")
    assert (tmp_path / "new" / "folder").is_dir()


def test_a_plan_of_a_cpu_has_no_quantised_weights() -> None:
    words = ["method=lst", "backbone=bert_tiny", "dataset=python_docs", "backbone.load=nf4"]
    with pytest.raises(UserError, match="need a CUDA GPU"):
        plan_run(compose([*words, "hardware=cpu"]))
    assert plan_run(compose(words), "cuda").memory["peak"] > 0


@pytest.mark.parametrize("text", ["0GB", "0.0GiB"])
def test_a_budget_of_nothing_is_no_budget(text: str) -> None:
    words = ["method=linear_probe", "backbone=vit_tiny", "dataset=digits", f"plan.budget={text}"]
    with pytest.raises(UserError, match="not an amount of memory"):
        plan_run(compose(words))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that says it may be written to and may not")
def test_an_export_to_where_nothing_can_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used") as caught:
        carry_out(compose([*PROBE, f"output_dir={tmp_path}", "export=/proc/exported"]))
    assert "export=/proc/exported" in caught.value.where
    assert not list(tmp_path.rglob("run.log"))


@pytest.mark.parametrize(("saved", "says"), [(False, "nothing was saved yet"), (True, "from the last checkpoint")])
def test_an_interrupted_run_says_what_it_will_go_on_from(
    saved: bool, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = compose([*PROBE, f"output_dir={tmp_path}"])

    def interrupted(run: Run) -> Path:
        if saved:
            (run.folder / "checkpoints").mkdir(parents=True)
            (run.folder / "checkpoints" / "last.ckpt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("transfer_run.experiment.run.carry_out", interrupted)
    with pytest.raises(KeyboardInterrupt, match=says):
        carry(run)


def test_a_method_without_data_is_refused_by_its_words() -> None:
    with pytest.raises(UserError, match="method=full needs a data set"):
        compose(["method=full", "dataset=none"])


def test_a_key_that_a_class_does_not_take(tmp_path: Path) -> None:
    folder = own(tmp_path / "mine", "method", "mine", "partial", bloks=1)
    words = [*PROBE[1:], "method=mine", f"output_dir={tmp_path}", "dry_run=true"]
    with pytest.raises(UserError, match="takes no 'bloks'") as caught:
        carry_out(compose(words, str(folder)))
    assert "method.bloks" in caught.value.where
    assert caught.value.nearest == ["blocks"]
