"""Matching a question with a list of answered ones by a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from transfer_run.cli.run import run as command
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.matching import Match, Matches, match
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.run import carry_out
from transfer_run.run_folder import model_folder

KNOWN = ("Is aspirin safe?", "How long is flu contagious?", "May I swim with a cold?")
BRIEF = ("trainer.max_steps=2", "trainer.progress=none", "profiler=none", "dataset.batch_size=4", "hardware=cpu")
TINY = ("backbone=bert_tiny", "backbone.weights=random:0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on pairs of texts."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = "".join(f"words {n},words {n % 3},{'similar' if n % 2 else 'different'}\n" for n in range(24))
    (folder / "train.csv").write_text(f"one,other,label\n{rows}", encoding="utf-8")
    columns = ("dataset.text_columns=[one,other]", "dataset.label_names=[different,similar]")
    words = ["method=full", *TINY, *BRIEF, "dataset=text_files", f"dataset.path={folder / 'train.csv'}", *columns]
    return carry_out(compose([*words, f"output_dir={folder / 'out'}"]))


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    file = tmp_path / "faq.csv"
    file.write_text("id,question,answer\n" + "".join(f"{n},{q},answer {n}\n" for n, q in enumerate(KNOWN)), "utf-8")
    return file


def test_the_likeliest_text_is_the_answer_where_it_passes_the_threshold() -> None:
    ranked = tuple(Match(row, text, "", p) for row, text, p in zip((2, 1, 3), KNOWN, (0.75, 0.5, 0.25), strict=True))
    found = Matches(ranked, "similar", 0)
    assert found.best(0.5) == found.best(0.75) == ranked[0]
    assert found.best(1.01) is None
    assert Matches((), "similar", 0).best(0.0) is None


def test_each_text_has_the_probability_that_the_model_gives_to_the_pair(finished: Path, faq: Path) -> None:
    found = match(finished, KNOWN[0], str(faq))
    assert (found.called, found.cut) == ("similar", 0)
    assert [(each.text, each.answer) for each in found.ranked] == [
        (KNOWN[each.row - 1], f"answer {each.row - 1}") for each in found.ranked
    ]
    assert sorted((each.probability for each in found.ranked), reverse=True) == [e.probability for e in found.ranked]
    method = load_model(model_folder(finished))
    for each in found.ranked:  # alone: neither padding nor its neighbours count; bytes, as bert_tiny reads them
        from transformers import ByT5Tokenizer

        parts = [ByT5Tokenizer()(text)["input_ids"] for text in (KNOWN[0], each.text)]
        ids = torch.tensor([[token for part in parts for token in part]])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            alone = float(method(batch).softmax(-1)[0, -1])
        assert each.probability == pytest.approx(alone, abs=1e-5)


def test_the_command_says_the_match_or_that_there_is_none(
    finished: Path, faq: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={finished}", f"match={KNOWN[1]}", f"among={faq}"]
    assert command([*words, "minimum=0"]) == 0
    assert "match: row" in capsys.readouterr().out
    assert command([*words, "minimum=1.01"]) == 0
    said = capsys.readouterr().out
    assert "no match: none reaches 1.01" in said
    assert all(f"answer {n}" in said for n in range(3))


def test_a_column_is_named_and_a_long_text_said(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.csv").write_text(f"text,more\nshort,{'long ' * 400}\n", "utf-8")
    words = [f"run={finished}", "match=what?"]
    with pytest.raises(UserError, match="no column 'question'"):
        command([*words, f"among={tmp_path / 'long.csv'}"])
    assert command([*words, f"among={tmp_path / 'long.csv'}:more"]) == 0
    assert "1 of 1 pairs are longer than the model reads" in capsys.readouterr().out
    (tmp_path / "lines.txt").write_text("first\nsecond\n", "utf-8")
    assert [each.row for each in match(finished, "what?", str(tmp_path / "lines.txt")).ranked] in ([1, 2], [2, 1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["match= ", "among=FAQ"], "nothing to match"),
        (["match=a", "among=nowhere.csv"], "no such file"),
        (["match=a"], "goes with"),
        (["among=FAQ"], "goes with"),
        (["match=a", "among=FAQ", "minimum=much"], "no number"),
        (["match=a", "among=FAQ", "minimum=nan"], "no number"),
        (["test=own", "minimum=1"], "goes with"),
    ],
)
def test_wrong_words(words: list[str], said: str, finished: Path, faq: Path) -> None:
    with pytest.raises(UserError, match=said):
        command([f"run={finished}", *(word.replace("FAQ", str(faq)) for word in words)])


def test_texts_are_shown_as_they_stand(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["[a] or [b]?", "[/x] ends nothing", "[bold]loud[/bold]"]
    (tmp_path / "odd.jsonl").write_text(
        "".join(f'{{"question": "{line}", "answer": null}}\n' for line in lines), "utf-8"
    )
    assert command([f"run={finished}", "match=[b] or [a]?", f"among={tmp_path / 'odd.jsonl'}", "minimum=0"]) == 0
    said = capsys.readouterr().out
    assert all(line in said for line in lines)
    assert "None" not in said


def test_without_a_run_it_is_said_whom_to_ask() -> None:
    with pytest.raises(UserError, match="asked of a finished run"):
        command(["match=a", "among=b"])


def test_a_run_on_something_else_is_refused(shared_runs: Path, faq: Path) -> None:
    words = ["method=linear_probe", "backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits", *BRIEF]
    folder = carry_out(compose([*words, f"output_dir={shared_runs}"]))
    with pytest.raises(UserError, match="not classes of pairs"):
        match(folder, "a?", str(faq))
