"""Odd tables: each is read rightly, noted, or refused with file, row and column; none is silently another one."""

from __future__ import annotations

import datetime
import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.data.conftest import nodes
from transfer_run.data.load import build_data
from transfer_run.data.reading.labels import class_labels, value_labels
from transfer_run.data.reading.table import read_files, read_folder
from transfer_run.data.reading.text_tables import Dialect, dialect_of
from transfer_run.errors import UserError

SPLITS = ("train", "validation", "test")
GOOD = "text,label\n" + "".join(f"words {n},{'yes' if n % 2 else 'no'}\n" for n in range(40))


def texts(path: Path, *words: str, backbone: str = "bert_tiny") -> Any:
    node, model = nodes("dataset=text_files", f"backbone={backbone}", *words)
    data = build_data(node | {"path": str(path)}, model, 0)
    data.setup()
    return data


def table(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def labels(folder: Path, values: list[Any], names: list[str] | None = None, count: int | None = None) -> Any:
    """Class numbers and names of a column, written as JSON."""
    rows = "\n".join(json.dumps({"label": value}) for value in values)
    found, known = class_labels(read_files([table(folder, "t.jsonl", rows)]), "label", names, count)
    return found.tolist(), known


# ---- what stands in a file is what is read
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_texts_stay_as_they_are_written(tmp_path: Path, ending: str) -> None:
    said = ["0002", "1.10", "TRUE", "2001-03-01", "NA", "null", "None", "1e5", " spaced ", "-0", "inf", "café"]
    mark = "\t" if ending == "tsv" else ","
    lines = [json.dumps({"a": v}) for v in said] if ending == "jsonl" else [f"a{mark}b", *(f"{v}{mark}x" for v in said)]
    assert read_files([table(tmp_path, f"t.{ending}", "\n".join(lines) + "\n")]).rows["a"][:] == said


def test_an_answer_keeps_its_zeros(tmp_path: Path) -> None:
    file = table(tmp_path, "t.csv", "q,a\n" + "".join(f"item {n},{n:04}\n" for n in range(30)))
    words = ("dataset.text_columns=[q]", "dataset.label_column=a", "dataset.form=text_to_text")
    more = ("dataset.metrics=[exact_match]", "dataset.max_target_length=6")
    data = texts(file, *words, *more, backbone="t5_tiny")
    row = data.split("train")[3]
    assert data.answers.texts(np.array([row["labels"]]))[0].isdigit()
    assert len(data.answers.texts(np.array([row["labels"]]))[0]) == 4


def test_parts_whose_types_differ_are_one_table(tmp_path: Path) -> None:
    for number, values in enumerate((["0", "1"], ["x", "07"])):
        table(tmp_path, f"train-{number:05}-of-00002.csv", "text,label\n" + "".join(f"t,{v}\n" for v in values))
        table(tmp_path / "j", f"train-{number}.jsonl", "\n".join(json.dumps({"label": v}) for v in (number, "x")))
    assert read_folder(str(tmp_path), SPLITS)["train"].rows["label"][:] == ["0", "1", "x", "07"]
    assert read_folder(str(tmp_path / "j"), SPLITS)["train"].rows["label"][:] == ["0", "x", "1", "x"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_of_encodings_are_no_part_of_a_name(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes("text,label\r\ncafé,1\r\n".encode(encoding))
    assert read_files([tmp_path / "t.csv"]).rows.to_list() == [{"text": "café", "label": "1"}]


def test_compressed_tables_are_read_and_damaged_ones_named(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD.encode())
    (tmp_path / "train.csv.gz").write_bytes(packed)
    assert len(read_folder(str(tmp_path), SPLITS)["train"]) == 40
    (tmp_path / "train.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="cannot be unpacked"):
        read_folder(str(tmp_path), SPLITS)


def test_long_fields_are_read(tmp_path: Path) -> None:
    assert len(read_files([table(tmp_path, "t.csv", f"a,b\n{'x' * 150_000},1\n")]).rows["a"][0]) == 150_000


# ---- delimiters and quotation marks
def test_another_delimiter_is_named_and_then_read(tmp_path: Path) -> None:
    file = table(tmp_path, "t.csv", "text;label\nbright, kind;pos\ngrim;neg\n")
    with pytest.raises(UserError, match="The header is one column") as error:
        read_files([file])
    assert error.value.remedy == "dataset.delimiter=';'"
    rows = read_files([file], dialect_of({"delimiter": ";"})).rows.to_list()
    assert rows == [{"text": "bright, kind", "label": "pos"}, {"text": "grim", "label": "neg"}]
    assert dialect_of({"delimiter": "tab"}) == Dialect("\t")
    with pytest.raises(UserError, match="one character"):
        dialect_of({"delimiter": ";;"})


def test_a_lone_quotation_mark_joins_no_lines(tmp_path: Path) -> None:
    lines = [f"line {n}\t{n % 2}" for n in range(9)]
    lines[3], lines[6] = '"Stop, she said\t1', 'and went" home\t0'
    file = table(tmp_path, "t.tsv", "text\tlabel\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match="cannot be read") as error:
        read_files([file])
    assert "quoting=none" in error.value.remedy
    assert len(read_files([file], Dialect(quotes=False))) == 9
    lines[6] = 'and went"\t0'
    with pytest.raises(UserError, match="joins several lines"):
        read_files([table(tmp_path, "u.tsv", "text\tlabel\n" + "\n".join(lines) + "\n")])


def test_text_behind_a_closing_mark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_files([table(tmp_path, "t.csv", 'text,label\n"Great" he said,1\n')])


def test_line_breaks_within_marks_are_said(tmp_path: Path) -> None:
    found = read_files([table(tmp_path, "t.csv", 'text,label\n"two\nlines",1\nb,0\n')])
    assert found.notes == ("t.csv: 1 of 2 rows hold line breaks within quotation marks",)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two columns 'label'"):
        read_files([table(tmp_path, "t.csv", "text,label,label\na,1,2\n")])


# ---- which files
def test_splits_are_known_whatever_their_case(tmp_path: Path) -> None:
    for name in ("train.csv", "Test.csv", "VALID.CSV"):
        table(tmp_path, name, GOOD)
    assert set(read_folder(str(tmp_path), SPLITS)) == set(SPLITS)


def test_other_files_are_left_out_and_said(tmp_path: Path) -> None:
    for name in ("train.csv", "train_old.csv", "labels.csv", "._train.csv", ".hidden.csv"):
        table(tmp_path, name, GOOD)
    found = read_folder(str(tmp_path), SPLITS)["train"]
    assert len(found) == 40
    assert found.notes == ("labels.csv, train_old.csv: no split, left out",)
    assert "labels.csv, train_old.csv: no split, left out" in texts(tmp_path).notes


@pytest.mark.parametrize("names", [("train.csv", "train.tsv"), ("dev.csv", "val.csv"), ("train.csv", "train-1.csv")])
def test_files_that_cannot_be_meant_together_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        table(tmp_path, name, GOOD.replace(",", "\t") if name.endswith("tsv") else GOOD)
    if names == ("train.csv", "train-1.csv"):  # numbered parts of one
        assert len(read_folder(str(tmp_path), SPLITS)["train"]) == 80
        return
    with pytest.raises(UserError, match="in several files"):
        read_folder(str(tmp_path), SPLITS)


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    table(tmp_path, "train-00000-of-00002.csv", GOOD)
    with pytest.raises(UserError, match="one of 2 parts, of which 1"):
        read_folder(str(tmp_path), SPLITS)
    table(tmp_path, "train-00001-of-00002.csv", GOOD.replace("text", "words", 1))
    with pytest.raises(UserError, match="other columns"):
        read_folder(str(tmp_path), SPLITS)


# ---- labels
@pytest.mark.parametrize(
    ("values", "names", "count", "numbers", "known"),
    [
        ([1, 2, 5, 2], None, None, [0, 1, 2, 1], ("1", "2", "5")),
        ([3, 40000], None, None, [0, 1], ("3", "40000")),
        ([1, 2, 3], None, 3, [0, 1, 2], ("1", "2", "3")),
        ([0, 1], None, 3, [0, 1], ("0", "1", "2")),
        ([0, 1, 0], ["1", "0"], None, [1, 0, 1], ("1", "0")),
        ([1, 0], ["bad", "good"], None, [1, 0], ("bad", "good")),
        ([-1, 1, 2], None, None, [-1, 0, 1], ("1", "2")),
        ([-1, 1], ["-1", "1"], None, [0, 1], ("-1", "1")),
        (["b", None, "a"], None, None, [1, -1, 0], ("a", "b")),
        (["NA", "null"], None, None, [0, 1], ("NA", "null")),
        ([True, False], None, None, [1, 0], ("False", "True")),
        ([True, False], ["no", "yes"], None, [1, 0], ("no", "yes")),
        ([2.0, 1.0], None, None, [1, 0], ("1", "2")),
    ],
)
def test_the_values_that_occur_are_the_classes(
    tmp_path: Path, values: Any, names: Any, count: Any, numbers: list[int], known: tuple[str, ...]
) -> None:
    assert labels(tmp_path, values, names, count) == (numbers, known)
    if all(isinstance(value, int | str) and not isinstance(value, bool) for value in values):
        file = table(tmp_path, "t.csv", "label,x\n" + "".join(f"{value},x\n" for value in values))
        found, named = class_labels(read_files([file]), "label", names, count)
        assert (found.tolist(), named) == (numbers, known)


def test_a_value_that_training_has_not_is_refused_in_a_test(tmp_path: Path) -> None:
    table(tmp_path, "train.csv", "text,label\n" + "".join(f"t,{n % 3 + 1}\n" for n in range(60)))
    table(tmp_path, "test.csv", "text,label\nt,2\nt,4\n")
    with pytest.raises(UserError, match="'4' is none of the 3 labels") as error:
        texts(tmp_path)
    assert error.value.where.endswith("test.csv, row 2, column 'label'")


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}, 0.5])
def test_labels_of_no_kind_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError) as error:
        labels(tmp_path, [value, value])
    assert error.value.where.endswith("row 1, column 'label'")


def test_dates_and_bytes_and_lists_are_no_labels_and_no_texts(tmp_path: Path) -> None:
    for value in (datetime.datetime(2001, 3, 1), b"row", ["word"]):
        Dataset.from_dict({"text": [value] * 2, "label": [value] * 2}).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(UserError, match="A text is expected"):
            texts(tmp_path / "t.parquet")
        with pytest.raises(UserError, match="A label is a word or a number"):
            class_labels(read_files([tmp_path / "t.parquet"]), "label", None, None)


@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "0,5"])
def test_values_are_finite_numbers(tmp_path: Path, value: str) -> None:
    file = table(tmp_path, "t.csv", f'text,label\na,1\nb,"{value}"\nc,\n')
    with pytest.raises(UserError, match="is no number") as error:
        value_labels(read_files([file]), "label")
    assert error.value.where.endswith("row 2, column 'label'")
    rows = table(tmp_path, "t.jsonl", '{"label": 1.5}\n{"label": Infinity}\n')
    with pytest.raises(UserError, match="no finite number"):
        value_labels(read_files([rows]), "label")


def test_one_class_alone_is_said(tmp_path: Path) -> None:
    data = texts(table(tmp_path, "t.csv", "text,label\n" + "a,spam\n" * 40))
    assert "train: every row has the label 'spam': nothing can be learned from it" in data.notes


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("yes", "Yes"), "'Yes', 'yes' are classes of their own"),
        ((" no", "no"), "' no', 'no' are classes of their own"),
        (("caf\u00e9", "cafe\u0301"), "are classes of their own"),
        (("1", "nan"), "'nan' is taken for the name of a class"),
        (("N/A", "b"), "'N/A' is taken for the name of a class"),
        (("yes", "no"), None),
    ],
)
def test_names_that_may_be_slips_are_said(labels: tuple[str, str], said: str | None, tmp_path: Path) -> None:
    rows = "".join(f"text {i},{labels[i % 2]}\n" for i in range(40))
    data = texts(table(tmp_path, "t.csv", "text,label\n" + rows))
    assert len(data.label_names) == 2
    found = [note for note in data.notes if "class" in note]
    assert found == [] if said is None else said in found[0]


@pytest.mark.parametrize(
    ("labels", "words", "said"),
    [
        (("1", "0001"), (), "'0001', '1' are one label, the number 1"),
        (("1", "1.0"), (), "'1', '1.0' are one label, the number 1"),
        (("1", "-1"), (), "-1 is taken for no label"),
        (("1", "-1"), ("dataset.label_names=['-1','1']",), None),
        (("1.0", "2.0"), (), None),
        (("1", "one"), (), None),
        (("0", "1"), (), None),
    ],
)
def test_numbers_that_are_written_in_two_ways_or_mean_no_label_are_said(
    labels: tuple[str, str], words: tuple[str, ...], said: str | None, tmp_path: Path
) -> None:
    rows = "".join(f"text {i},{(*labels, '0')[i % 3]}\n" for i in range(42) if not words or i % 3 < 2)
    data = texts(table(tmp_path, "t.csv", "text,label\n" + rows), *words)
    found = [note for note in data.notes if "label" in note and note.startswith("t.csv: ")]
    assert found == [] if said is None else said in found[0]
    if words:
        assert data.label_names == ("-1", "1")
        assert set(data.labels("train").tolist()) == {0, 1}


@pytest.mark.parametrize("values", [("2.5", "2.5"), ("2.5", "2.75")])
def test_one_value_alone_is_said(values: tuple[str, str], tmp_path: Path) -> None:
    rows = "".join(f"text {i},{values[i % 2]}\n" for i in range(40))
    data = texts(table(tmp_path, "t.csv", "text,label\n" + rows), "dataset.form=regression", "dataset.metrics=[mae]")
    said = "train: every row has the value 2.5: nothing can be learned from it" in data.notes
    assert said == (values[1] != "2.75")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dataset.text_columns=[text,text]", "'text' is named twice"),
        ("dataset.text_columns=[text,label]", "every row would tell its own answer"),
        ("dataset.text_columns=[label]", "every row would tell its own answer"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(words: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        texts(table(tmp_path, "t.csv", GOOD), words)


def test_a_test_without_labels_is_predicted_alone(tmp_path: Path) -> None:
    table(tmp_path, "train.csv", GOOD)
    table(tmp_path, "test.csv", "text\n" + "what is it\n" * 4)
    data = texts(tmp_path)
    assert data.labels("test").tolist() == [-100] * 4
    assert "test: there is no column 'label'" in data.notes


def test_many_columns_and_long_values_make_short_messages(tmp_path: Path) -> None:
    names = [f"column{n}" for n in range(5000)]
    file = table(tmp_path, "t.csv", ",".join(names) + "\n" + ",".join("x" for _ in names) + "\n")
    with pytest.raises(UserError) as error:
        texts(file, "dataset.text_columns=[colum1]")
    assert len(str(error.value)) < 1000
    with pytest.raises(UserError) as error:
        labels(tmp_path, ["x" * 9000, "b"], ["a", "b"])
    assert len(error.value.what) < 500


@pytest.mark.parametrize("backbone", ["bert_tiny", "t5_tiny"])
def test_questions_of_doctors_are_read_by_the_one_reader(tmp_path: Path, backbone: str) -> None:
    rows = [f"Dr. {n % 3},question {n},other {n},{n % 2}" for n in range(30)]
    file = tmp_path / "mqp.csv"
    file.write_bytes("\ufeff".encode() + "\n".join(rows).encode())
    node, model = nodes("dataset=mqp", f"backbone={backbone}")
    assert sum(build_data(node | {"path": str(file)}, model, 0).sizes.values()) == 30
    file.write_bytes(file.read_bytes() + b"\nDr. 1,caf\xe9,x,1")
    with pytest.raises(UserError, match="cannot be read") as error:
        build_data(node | {"path": str(file)}, model, 0).setup()
    assert str(file) in error.value.where


# ---- archives and patterns
def test_a_table_in_an_archive(tmp_path: Path) -> None:
    for name, held in (
        ("train", {"train.csv": GOOD, "__MACOSX/._train.csv": "x"}),
        ("two", {"a.csv": GOOD, "b.csv": GOOD}),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.csv.zip", "w") as archive:
            for inside, text in held.items():
                archive.writestr(inside, text)
    assert texts(tmp_path / "train.csv.zip").sizes == {"train": 32, "validation": 4, "test": 4}
    with pytest.raises(UserError, match="holds 2 files"):
        texts(tmp_path / "two.csv.zip")
    (tmp_path / "no.csv.zip").write_bytes(b"PK no archive")
    with pytest.raises(UserError, match="cannot be unpacked"):
        texts(tmp_path / "no.csv.zip")


def test_a_pattern_names_the_splits_or_is_all_train(tmp_path: Path) -> None:
    for place, name, rows in (("a", "train-1", 3), ("b", "train-2", 4), ("b", "test", 2), ("b", "old", 9)):
        lines = "".join(f"words {n},{'yes' if n % 2 else 'no'}\n" for n in range(rows))
        table(tmp_path / place, f"{name}.csv", f"text,label\n{lines}")
    data = texts(tmp_path / "*" / "*.csv", "dataset.split_shares={validation: 0, test: 0}")
    assert data.sizes == {"train": 7, "test": 2}
    assert "old.csv: no split, left out" in data.notes
    assert "train: 2 files, train-1.csv to train-2.csv" in data.notes
    assert texts(tmp_path / "b" / "o*.csv", "dataset.split_shares={validation: 0, test: 0}").sizes == {"train": 9}
    with pytest.raises(UserError, match="fits no table"):
        texts(tmp_path / "*.tsv")
