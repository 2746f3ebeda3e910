"""Files and columns that are wrong: one error that names file, row and column."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.data.conftest import nodes
from transfer_run.data.load import build_data
from transfer_run.data.reading.table import read_files, read_folder, read_hub
from transfer_run.data.reading.text_tables import Dialect
from transfer_run.errors import UserError
from transfer_run.task import Task

Write = Callable[[str, str], Path]
GOOD = "text,label\ngood film,1\nbad film,0\n"


def read(path: Path, *overrides: str, backbone: str = "bert_tiny") -> Any:
    dataset, node = nodes("dataset=text_files", f"backbone={backbone}", *overrides)
    data = build_data(dataset | {"path": str(path)}, node, 0)
    data.setup()
    return data


def wrong(path: Path, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        read(path, *overrides)
    return caught.value


def test_formats_hold_the_same_rows(write: Write, tmp_path: Path) -> None:
    rows = [{"text": 'a "quoted" word', "label": 1}, {"text": "NA", "label": 0}, {"text": "two\nlines", "label": 1}]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    write("rows.csv", 'text,label\n"a ""quoted"" word",1\nNA,0\n"two\nlines",1\n')
    write("rows.tsv", 'text\tlabel\n"a ""quoted"" word"\t1\nNA\t0\n"two\nlines"\t1\n')
    lines = [json.dumps(row) for row in rows]
    write("rows.jsonl", "\n".join(lines))
    write("rows.json", f"[{', '.join(lines)}]")
    for ending in ("parquet", "csv", "tsv", "jsonl", "json"):
        as_text = ending in ("csv", "tsv")  # whoever asks for numbers makes them
        expected = [row | {"label": str(row["label"])} for row in rows] if as_text else rows
        assert read_files([tmp_path / f"rows.{ending}"]).rows.to_list() == expected, ending


def test_quotation_marks_may_mean_themselves(write: Write) -> None:
    file = write("train.tsv", 'text\tlabel\n"open\t1\nplain\t0\n')
    assert read_files([file], Dialect(quotes=False)).rows["text"][:] == ['"open', "plain"]
    with pytest.raises(UserError, match="unexpected end of data") as caught:
        read_files([file])
    assert "quoting=none" in caught.value.remedy


def test_a_missing_column_names_the_nearest(write: Write) -> None:
    error = wrong(write("data.csv", GOOD), "dataset.text_columns=[txt]")
    assert error.nearest == ["text"]
    assert "data.csv" in error.where
    assert "text, label" in error.where
    error = wrong(write("data.csv", GOOD), "dataset.label_column=labels")
    assert error.nearest == ["label"]
    assert "dataset.label_column" in error.remedy


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("short.csv", GOOD + "third\n", "row 3"),
        ("long.csv", GOOD + "third,1,2\n", "row 3"),
        ("broken.jsonl", '{"text": "a", "label": 0}\n{"text": \n', "row 2"),
        ("list.jsonl", '{"text": "a", "label": 0}\n[1, 2]\n', "row 2"),
        ("none.parquet", "these are no columns", "none.parquet"),
        ("empty.csv", "", "empty.csv"),
        ("header.csv", "text,label\n", "header.csv"),
    ],
)
def test_what_cannot_be_read_is_named(write: Write, name: str, text: str, says: str) -> None:
    error = wrong(write(name, text))
    assert name in error.where
    assert says in error.where
    assert error.remedy
    assert "corresponds to no data" not in error.what


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"text,label\ngood,1\ncaf\xe9,0\n")
    error = wrong(tmp_path / "latin.csv")
    assert "latin.csv" in error.where
    assert "row " in error.where
    assert "UTF-8" in error.remedy


@pytest.mark.parametrize(
    ("labels", "overrides", "says"),
    [
        ((0, 1, 5), ["dataset.num_labels=2"], "label 5 is outside the range 0 to 1"),
        ((0, 1, -2), [], "label -2 is outside"),
        ((0, 1, 0.5), [], "label 0.5 is outside"),
        (("yes", "no", "perhaps"), ["dataset.label_names=[yes,no]"], "'perhaps' is none of the 2 labels"),
        (
            ("neg", "pos", "so-so"),
            ["dataset.num_labels=2"],
            "3 labels ('neg', 'pos', 'so-so'), but",
        ),
        (("0", "1", "1.5"), ["dataset.num_labels=2"], "label 1.5 is outside the range 0 to 1"),
        ((1.5, 2.5, "many"), ["dataset.form=regression", "dataset.metrics=[pearson]"], "'many' is no number"),
    ],
)
def test_a_wrong_label_names_row_and_column(write: Write, labels: Any, overrides: list[str], says: str) -> None:
    file = write("data.csv", "text,label\n" + "".join(f"some words,{label}\n" for label in labels))
    error = wrong(file, *overrides)
    assert says in error.what
    assert error.where == f"{file}, row 3, column 'label'"


def test_a_row_without_text_is_named(write: Write) -> None:
    file = write("data.jsonl", '{"text": "a", "label": 0}\n{"text": null, "label": 1}\n')
    assert wrong(file).where == f"{file}, row 2, column 'text'"


def test_row_numbers_survive_the_split(write: Write) -> None:
    table = read_files([write("data.csv", GOOD)]).select([1])
    assert table.locate(0, "text").endswith("data.csv, row 2, column 'text'")


def test_missing_files_name_what_is_there(write: Write, tmp_path: Path) -> None:
    write("movies.csv", GOOD)
    error = wrong(tmp_path / "movis.csv")
    assert error.nearest == [str(tmp_path / "movies.csv")]
    error = wrong(tmp_path)
    assert "no file named after a split" in error.what
    assert "movies.csv" in error.nearest
    with pytest.raises(UserError, match="cannot be read"):
        read(write("movies.xlsx", "?"))
    only = write("only/test.csv", GOOD).parent
    with pytest.raises(UserError, match="no training split"):
        read(only)
    dataset, node = nodes("dataset=text_files", "backbone=bert_tiny")
    with pytest.raises(UserError, match="has no path"):
        build_data(dataset | {"num_labels": 2}, node, 0).setup()


def test_files_are_found_by_their_split(write: Write, tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.csv", "train-00001-of-00002.csv", "dev.csv", "test_matched.csv", "trainer.csv"):
        write(f"f/{name}", GOOD)
    tables = read_folder(str(tmp_path / "f"), ("train", "validation", "test", "test_matched"))
    assert {name: len(table) for name, table in tables.items()} == {"train": 4, "validation": 2, "test_matched": 2}


def test_one_file_is_split_by_class(write: Write) -> None:
    rows = [f"words {i},{'yes' if i % 4 else 'no'}" for i in range(80)]
    data = read(write("data.csv", "text,label\n" + "\n".join(rows) + "\n"), "dataset.split_shares.test=0.2")
    assert data.sizes == {"train": 56, "validation": 8, "test": 16}
    assert data.task == Task("classification", 2, ("no", "yes"), ("accuracy",))
    seen = [tuple(e["input_ids"]) for name in data.sizes for e in data.split(name)]
    assert len(set(seen)) == 80
    assert [sum(e["labels"] for e in data.split(name)) for name in data.sizes] == [42, 6, 12]


def test_unlabelled_test_rows_are_noted(write: Write) -> None:
    for name in ("train", "validation"):
        write(f"d/{name}.csv", GOOD)
    file = write("d/test.csv", "text,label\nx,-1\ny,1\n")
    data = read(file.parent)
    taken = "test.csv: -1 is taken for no label; a class that is called so is named: dataset.label_names=['-1', ...]"
    assert data.notes == [taken, "test: 1 of 2 rows have no label; predicted, not scored"]
    batch = next(iter(data.loader("test", batch_size=2)))
    assert batch["labels"].tolist() == [-100, 1]
    words = read(file.parent, backbone="t5_tiny")
    batch = next(iter(words.loader("test", batch_size=2)))
    assert batch["targets"].tolist() == [-1, 1]
    assert batch["labels"][0].tolist() == [-100, -100]


def test_free_answers_and_running_text(write: Write) -> None:
    file = write("qa.jsonl", "".join(f'{{"q": "{i} + 1", "a": "{i + 1}"}}\n' for i in range(30)))
    asked = ("dataset.text_columns=[q]", "dataset.label_column=a", "dataset.metrics=[exact_match]")
    data = read(file, *asked, "dataset.form=text_to_text", "dataset.max_target_length=6", backbone="t5_tiny")
    batch = next(iter(data.loader("validation", batch_size=3)))
    assert "targets" not in batch
    scores = data.metrics("validation")
    scores.update(batch["labels"].clamp(min=0), batch)
    assert scores.compute() == {"exact_match": 1.0}
    book = write("book.txt", "It was a dark night.\n" * 40)
    data = read(book, "dataset.form=language_modeling", "dataset.max_source_length=20", backbone="gpt2_tiny")
    assert data.split("train")[0]["input_ids"] == [c + 3 for c in b"It was a dark night."]


def test_no_network_says_what_to_do() -> None:
    with pytest.raises(UserError, match="cannot be had from the hub") as caught:
        read_hub("nyu-mll/glue", "rte", "main", ("train",))
    assert "dataset.path" in caught.value.remedy
