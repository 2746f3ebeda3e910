"""Numbers that a model writes, targets that are none, and what of texts is cut: counted, or refused with its row."""

from __future__ import annotations

import pytest

from tests.data.test_tables import Write, read, wrong
from transfer_run.errors import UserError

NUMBERS = ("dataset.form=regression", "dataset.metrics=[mae]")


@pytest.mark.parametrize(
    ("values", "room"),
    [(["1000", "1037", "1075"], 5), (["-30.0", "-27.5", "12"], 6), (["0.0017", "0.0", "1e-3"], 7)],
)
def test_numbers_are_written_as_they_stand_and_find_room(write: Write, values: list[str], room: int) -> None:
    """1037 was trained as "103", 27.5 as "27.": perfect answers scored an error of 1216.8."""
    rows = "".join(f"row {i},{value}\n" for i, value in enumerate(values * 10))
    data = read(write("n.csv", f"text,label\n{rows}"), *NUMBERS, backbone="t5_tiny")
    assert data.task.max_target_length == room
    for split in ("train", "test"):
        scores = data.metrics(split)
        batch = next(iter(data.loader(split, batch_size=3)))
        scores.update(batch["labels"].clamp(min=0), batch)
        assert scores.compute()["mae"] == pytest.approx(0, abs=1e-9)
        assert {float(text) for text in data.answers.texts(batch["labels"])} <= {float(value) for value in values}


def test_a_number_that_finds_no_room_is_refused(write: Write) -> None:
    file = write("n.csv", "text,label\n" + "".join(f"row {i},{10 ** (i % 4)}\n" for i in range(30)))
    with pytest.raises(UserError) as caught:
        read(file, *NUMBERS, "dataset.max_target_length=3", backbone="t5_tiny")
    error = caught.value
    assert "is written in" in error.what
    assert "row" in error.where
    assert "max_target_length=5" in error.remedy
    read(file, *NUMBERS, "dataset.max_target_length=5", backbone="t5_tiny")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_targets_are_finite(write: Write, value: str, ending: str) -> None:
    written = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(value, value)
    if ending == "csv":
        text = f"text,label\na,1\nb,{value}\nc,2\n"
    else:
        text = "".join(f'{{"text": "{t}", "label": {v}}}\n' for t, v in (("a", 1.5), ("b", written), ("c", 2)))
    error = wrong(write(f"n.{ending}", text), *NUMBERS)
    assert "row 2" in error.where
    assert "number" in error.what


def test_a_training_row_without_a_value_is_refused(write: Write) -> None:
    error = wrong(write("n.csv", "text,label\na,1\nb,\nc,\n"), *NUMBERS)
    assert "row 2" in error.where
    assert "1 more" in error.what
    write("d/test.csv", "text,label\na,1\nb,\n")
    data = read(write("d/train.csv", "text,label\n" + "a,1\n" * 20).parent, *NUMBERS)
    assert "test: 1 of 2 rows have no label; predicted, not scored" in data.notes


def test_what_is_cut_is_counted(write: Write) -> None:
    rows = "".join(
        f'{{"text": "{"x" * (5 + 10 * (i % 4 == 0))}", "label": "{"y" * (2 + i % 2)}"}}\n' for i in range(40)
    )
    words = ("dataset.max_source_length=10", "dataset.split_shares={validation: 0.5, test: 0}")
    free = ("dataset.form=text_to_text", "dataset.metrics=[exact_match]", "dataset.max_target_length=3")
    data = read(write("a.jsonl", rows), *words, *free, backbone="t5_tiny")
    cut = {name: sum(len(row["text"]) > 9 for row in data.encoders[name].rows.rows) for name in ("train", "validation")}
    assert sum(cut.values()) == 10
    for name, count in cut.items():
        assert f"{name}: {count} of 20 rows are cut at 10 tokens" in data.notes
    assert sum("20 answers are longer than dataset.max_target_length=3" in note for note in data.notes) == 2
    assert any("counted as wrong, whatever is written" in note for note in data.notes if note.startswith("validation"))


def test_the_end_of_running_text_is_said(write: Write) -> None:
    book = write("book.txt", "It was a dark night.\n" * 40)
    words = ("dataset.form=language_modeling", "dataset.max_source_length=20")
    notes = read(book, *words, backbone="gpt2_tiny").notes
    assert any("fill no window of 20 and are left out" in note for note in notes)
