"""Pairs made of questions with answers: the intermediate tasks that double fine-tuning compares (arXiv 2008.13546).

    qa_match            question + its answer | the answer of another question of the same category
    answer_completion   first half of an answer + its second half | another answer's, of the same category
    question_category   two questions of one category | of two
    question_pairs      two questions that are labelled in the data (Quora's): the same | not

Each question makes one pair of either class, so labels are balanced and N examples are N pairs whatever the task.
Negatives drawn from everywhere would be told by their topic alone; hence the same category wherever it has another.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transfer_run.data.reading.labels import check_texts, class_labels
from transfer_run.data.reading.table import Table, existing, read_files, read_folder, read_hub
from transfer_run.data.rows.splits import SPLITS
from transfer_run.data.sets.mqp import grouped_parts
from transfer_run.data.sets.python_docs import AREAS
from transfer_run.data.text.encoding import TextRows
from transfer_run.data.text.stdlib import docstrings
from transfer_run.data.text.text_data import TextData
from transfer_run.errors import UserError

FIRST, SECOND = "first", "second"
HUB = "hub:"
CALL = re.compile(r"[\w.]+(\([\w, ]*\))?")


@dataclass(frozen=True)
class Pair:
    """Two texts; `label` 1: they belong together, 0: they do not."""

    first: str
    second: str
    label: int


@dataclass(frozen=True)
class Answered:
    """Questions with their answers, and the category of each (one for all where the data have none)."""

    questions: list[str]
    answers: list[str]
    categories: list[str]

    def select(self, rows: Sequence[int]) -> Answered:
        return Answered(*([texts[i] for i in rows] for texts in (self.questions, self.answers, self.categories)))


class QuestionAnswerPairs(TextData):
    """`dataset.path` is a file of questions and answers, or a folder with splits; without a path they come from the
    documentation inside Python (a function's call is asked about, its docstring answers).
    """

    def read_rows(self) -> dict[str, TextRows]:
        settings = self.dataset
        if settings["task"] == "question_pairs":
            whole = self._labelled_pairs()
            groups = [pair.first for pair in whole]
        else:
            answered = self._excluded(self._answered())
            groups = answered.questions
        parts = grouped_parts(groups, settings["split_shares"], settings["pair_seed"])
        found = {}
        for number, (name, rows) in enumerate(zip(SPLITS, parts, strict=True)):
            seed, limit = settings["pair_seed"] + number, settings["max_examples"] if name == "train" else None
            if settings["task"] == "question_pairs":
                pairs = _balanced([whole[i] for i in rows], seed, limit)
            else:
                pairs = make_task(settings["task"], answered.select(rows), seed, limit)
            if limit is not None and len(pairs) < limit:
                raise UserError(
                    f"The data make {len(pairs)} training pairs, fewer than the {limit} that are asked for.",
                    where="dataset.max_examples",
                    remedy=f"ask for at most {len(pairs)}, or give more data",
                )
            rows_ = [{FIRST: pair.first, SECOND: pair.second} for pair in pairs]
            found[name] = TextRows(rows_, np.array([pair.label for pair in pairs], dtype=np.int64))
        return found

    def _answered(self) -> Answered:
        path = self.dataset.get("path")
        if not path:
            self.notes.append("no dataset.path: the questions and answers are Python's documentation, a substitution")
            return documented()
        table = _read(path)
        self.notes += table.notes
        question, answer = self.dataset["question_column"], self.dataset["answer_column"]
        category = self.dataset["category_column"]
        check_texts(table, [question, answer, *([category] if category else [])])
        categories = table.rows[category][:] if category else [""] * len(table)
        return Answered(
            [str(q) for q in table.rows[question][:]],
            [str(a) for a in table.rows[answer][:]],
            [str(c) for c in categories],
        )

    def _excluded(self, answered: Answered) -> Answered:
        """Without the target task's questions, which the target's test would otherwise have seen."""
        source = self.dataset["exclude"]
        if not source:
            return answered
        columns, forbidden = list(self.dataset["exclude_columns"]), set()
        for table in _tables(source):
            table.require(columns, "dataset.exclude_columns")
            forbidden |= {plain(str(text)) for column in columns for text in table.rows[column][:]}
        kept = [i for i, question in enumerate(answered.questions) if plain(question) not in forbidden]
        self.notes.append(f"{len(answered.questions) - len(kept)} questions that {source} holds were left out")
        return answered.select(kept)

    def _labelled_pairs(self) -> list[Pair]:
        settings, path = self.dataset, self.dataset.get("path")
        columns = [settings["question_column"], settings["answer_column"]]
        if path:
            table = _read(path)
        else:
            table = read_hub(settings["hub"], settings["hub_name"], settings["revision"], ["train"])["train"]
        check_texts(table, columns)
        labels, _ = class_labels(table, settings["label_column"], None, 2)
        texts = zip(table.rows[columns[0]][:], table.rows[columns[1]][:], labels.tolist(), strict=True)
        return [Pair(str(first), str(second), label) for first, second, label in texts if label >= 0]


def _tables(source: str) -> list[Table]:
    """All splits of a file, a folder, or hub:NAME@REVISION."""
    if source.startswith(HUB):
        name, _, revision = source.removeprefix(HUB).partition("@")
        return list(read_hub(name, None, revision or None, SPLITS).values())
    folder = existing(source)
    return list(read_folder(source, SPLITS).values()) if folder.is_dir() else [read_files([folder])]


def _read(path: str) -> Table:
    found = existing(path)
    return read_files([found]) if found.is_file() else read_folder(path, ["train"])["train"]


def plain(text: str) -> str:
    """What two copies of a text share: its words, in lower case."""
    return " ".join(text.lower().split())


def documented() -> Answered:
    """The embedded data: a documented function's name and arguments, its docstring, the part of the library."""
    area_of = {module: area for area, modules in AREAS.items() for module in modules}
    found = Answered([], [], [])
    for doc in docstrings(tuple(area_of)):
        call, _, answer = doc.text.partition(": ")
        if answer and CALL.fullmatch(call):
            found.questions.append(call)
            found.answers.append(answer)
            found.categories.append(area_of[doc.module])
    return found


def make_task(task: str, answered: Answered, seed: int, limit: int | None = None) -> list[Pair]:
    """The pairs of an intermediate task, at most `limit` of them."""
    if task == "qa_match":
        return make_pairs(answered.questions, answered.answers, answered.categories, seed, limit=limit)
    if task == "answer_completion":
        halves = [_halved(answer) for answer in answered.answers]
        return make_pairs([h[0] for h in halves], [h[1] for h in halves], answered.categories, seed, limit=limit)
    return category_pairs(answered.questions, answered.categories, seed, limit=limit)


def make_pairs(
    questions: Sequence[str], answers: Sequence[str], categories: Sequence[str], seed: int, *,
    exclude: Sequence[str] = (), limit: int | None = None,
) -> list[Pair]:  # fmt: skip
    """Each question with its own answer (1), and with the answer of another question (0).

    The other one is of the same category if that has an answer with other words, else any.

    Args:
        exclude: questions that shall not appear.
        limit: pairs in all; questions are taken in a random order.
    """
    random, forbidden = np.random.default_rng(seed), {plain(question) for question in exclude}
    rows = [i for i, question in enumerate(questions) if plain(question) not in forbidden]
    by_category = defaultdict(list)
    for i in rows:
        by_category[categories[i]].append(i)
    pairs: list[Pair] = []
    for i in random.permutation(rows):
        if limit is not None and len(pairs) + 2 > limit:
            break
        other = _other(i, answers, by_category[categories[i]], random)
        if other is None:
            other = _other(i, answers, rows, random)
        if other is not None:
            pairs += [Pair(questions[i], answers[i], 1), Pair(questions[i], answers[other], 0)]
    return pairs


def _other(row: int, answers: Sequence[str], among: Sequence[int], random: np.random.Generator) -> int | None:
    """A row of `among` whose answer says something else."""
    for _ in range(8):  # a draw nearly always succeeds; only where it does not, look at all
        drawn = among[int(random.integers(len(among)))]
        if answers[drawn] != answers[row]:
            return drawn
    left = [i for i in among if answers[i] != answers[row]]
    return left[int(random.integers(len(left)))] if left else None


def category_pairs(
    questions: Sequence[str], categories: Sequence[str], seed: int, *, limit: int | None = None
) -> list[Pair]:
    """Each question with another one of its category (1), and with one of another category (0)."""
    random = np.random.default_rng(seed)
    by_category = defaultdict(list)
    for i, category in enumerate(categories):
        by_category[category].append(i)
    others = {c: [i for i in range(len(questions)) if categories[i] != c] for c in by_category}
    pairs: list[Pair] = []
    for i in random.permutation(len(questions)):
        if limit is not None and len(pairs) + 2 > limit:
            break
        near = _other(int(i), questions, by_category[categories[i]], random)
        if near is not None and others[categories[i]]:
            far = others[categories[i]][int(random.integers(len(others[categories[i]])))]
            pairs += [Pair(questions[i], questions[near], 1), Pair(questions[i], questions[far], 0)]
    return pairs


def _balanced(pairs: Sequence[Pair], seed: int, limit: int | None) -> list[Pair]:
    """As many pairs of either label, in a random order."""
    random = np.random.default_rng(seed)
    by_label = [[pair for pair in pairs if pair.label == label] for label in (0, 1)]
    count = min(map(len, by_label)) if limit is None else min(*map(len, by_label), limit // 2)
    chosen = [group[i] for group in by_label for i in random.permutation(len(group))[:count]]
    return [chosen[i] for i in random.permutation(len(chosen))]


def _halved(answer: str) -> tuple[str, str]:
    words = answer.split()
    middle = (len(words) + 1) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])
