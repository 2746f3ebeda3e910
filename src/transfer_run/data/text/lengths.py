"""How a dataset is posed to a backbone: the prediction's form, the answer words, the lengths. Needs neither data nor
tokenizer files, so that a plan can be made from two configs alone.

A T5 reads and writes text: there a classification is posed as text-to-text, its answers are label words
(Raffel et al. 2020, section 2.4); other text models get a classification head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from transfer_run.backbones.declared import TEXT_TO_TEXT, family_of
from transfer_run.backbones.weights.names import uses_bytes
from transfer_run.data.asked import asked
from transfer_run.data.text.template import check_template
from transfer_run.errors import UserError
from transfer_run.task import Task, class_count

VALUE_ROOM = 12
"""Tokens of a value that is written as it stands, end included, where only the data could tell (a plan reads none)."""


def describe_text(dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
    """The task of a text dataset on `backbone`.

    Raises:
        UserError: the form does not fit the backbone, or the number of classes is known neither from
            `dataset.num_labels` nor from `dataset.label_names`, or the prompt names what is no column.
    """
    family, row = family_of(backbone), asked(dataset)
    form = family.form(dataset)
    check_columns(dataset)
    if dataset.get("prompt") and dataset["text_columns"] and not (family.pairs or row.running):
        check_template(dataset["prompt"], dataset["text_columns"])
    metrics, written = tuple(dataset["metrics"]), form == TEXT_TO_TEXT
    if row.running:
        metrics = ("perplexity",) if row.noisy else ("perplexity", "bits_per_byte")
    names = tuple(dataset.get("label_names") or ())
    if row.named:
        count = class_count(dataset)
        names = names or tuple(str(n) for n in range(count))
        words = answer_words(dataset, names) if written else names
        length = answer_length(dataset, backbone, words) if written else 0
        return Task(form, count, words, metrics, length)
    if written:
        return Task(form, 0, (), metrics, answer_length(dataset, backbone, ()))
    return Task(form, int(row.value), (), metrics)


def check_columns(dataset: Mapping[str, Any]) -> None:
    """Each column is read once, and what is asked for is not among what is read.

    Raises:
        UserError: `dataset.text_columns` holds a column twice, or that of the label.
    """
    columns = list(dataset.get("text_columns") or ())
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise UserError(
            f"The column {twice!r} is named twice.", where="dataset.text_columns", remedy="name each column once"
        )
    if not asked(dataset).running and dataset.get("label_column") in columns:
        raise UserError(
            f"The column {dataset['label_column']!r} is what is asked for and stands among the texts that are read:"
            " every row would tell its own answer.",
            where="dataset.text_columns, dataset.label_column",
            remedy="leave it out of dataset.text_columns",
        )


def answer_words(dataset: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """What a text-to-text model writes for each class: the names, or with `dataset.answers=digits` "0", "1", ..."""
    return tuple(str(i) for i in range(len(names))) if dataset.get("answers") == "digits" else tuple(names)


def value_text(value: float, step: float | None = None) -> str:
    """A value as a text-to-text model writes it: rounded to the nearest multiple of `step` (T5, section 2.4), or with
    all of its own digits."""
    if step is None:
        return str(int(value)) if value.is_integer() else repr(value)
    digits = max(0, -int(Decimal(str(step)).normalize().as_tuple().exponent))
    return f"{round(value / step) * step:.{digits}f}"


def answer_length(dataset: Mapping[str, Any], backbone: Mapping[str, Any], words: Sequence[str]) -> int:
    """Longest answer in tokens, end included: `dataset.max_target_length`, else that of the longest word.

    In bytes the latter is exact. No sub-word tokenizer makes more tokens of a word than it has bytes, plus one for the
    word's beginning, so for others it is a bound.
    """
    given = dataset.get("max_target_length")
    if given is not None:
        return int(given)
    if asked(dataset).noisy:
        return corrupted_lengths(dataset, backbone)[1]
    if asked(dataset).value:
        return VALUE_ROOM
    if not words:
        raise UserError(
            "The length of the answers is not known.",
            where=f"dataset={dataset['name']}",
            remedy="set dataset.max_target_length=N (tokens)",
        )
    return max(len(word.encode()) for word in words) + (1 if uses_bytes(backbone) else 2)


def source_length(dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> int:
    """Longest input in tokens: `dataset.max_source_length`, less where the backbone has fewer positions."""
    architecture = backbone.get("architecture") or {}
    text = architecture.get("text_config") or architecture
    room = text.get("max_position_embeddings") or text.get("n_positions")
    if room and "roberta" in str(text.get("model_type", "")):
        room -= text.get("pad_token_id", 1) + 1  # RoBERTa counts positions from the padding id on
    if not room or family_of(backbone).relative_positions:
        return int(dataset["max_source_length"])
    return min(int(dataset["max_source_length"]), int(room))


def cut_lengths(dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> list[str]:
    """Says where texts are shorter than the words ask for; nothing where they are not."""
    asked = dataset.get("max_source_length")
    if asked is None or (room := source_length(dataset, backbone)) >= int(asked):
        return []
    return [f"texts are cut at {room} tokens, not at dataset.max_source_length={asked}: {backbone.get('name')} has no "
            "more positions"]  # fmt: skip


def span_sizes(length: int, density: float, mean: float) -> tuple[int, int]:
    """Tokens to hide among `length`, and the number of spans they fall into (T5's `random_spans_noise_mask`)."""
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean), 1), noise, length - noise)


def corrupted_lengths(dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of text in a span-corrupted example, and the length of its target.

    The text is as long as can be for its corrupted form (kept tokens, one sentinel a span, the end) to fit into
    `max_source_length`; the target holds the hidden tokens, the same sentinels and the end.
    """
    room, density, mean = source_length(dataset, backbone), dataset["noise_density"], dataset["mean_span"]

    def corrupted(length: int) -> int:
        noise, spans = span_sizes(length, density, mean)
        return length - noise + spans + 1

    length = 2
    while corrupted(length + 1) <= room:
        length += 1
    return length, sum(span_sizes(length, density, mean)) + 1


def uses_token_types(backbone: Mapping[str, Any]) -> bool:
    """Does the model tell the first text of a pair from the second by `token_type_ids`? (BERT does.)"""
    architecture = backbone.get("architecture") or {}
    return architecture.get("type_vocab_size", 0) > 1 and not uses_bytes(backbone)
