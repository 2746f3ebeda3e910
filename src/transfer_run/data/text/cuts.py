"""What of a text data set is cut, counted: said when a run begins, and kept in its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transfer_run.data.reading.labels import is_unlabelled
from transfer_run.data.text.answers import Answers
from transfer_run.data.text.encoding import Corrupted, Encoder, Labelled, Windows
from transfer_run.data.text.tokens import is_longer, token_ids
from transfer_run.errors import UserError

COUNTED = 20_000
"""Rows of a split that are counted: with a slow tokenizer some seconds."""


def said_of_cuts(split: str, encoder: Encoder) -> list[str]:
    """Which sources are longer than is read, and what of running text fills no window."""
    if isinstance(encoder, Labelled):
        cut, looked = encoder.cut(COUNTED)
        of = f"{looked} rows" if looked == len(encoder) else f"the first {looked} of {len(encoder)} rows"
        return [f"{split}: {cut} of {of} are cut at {encoder.limit} tokens"] if cut else []
    windows = encoder.windows if isinstance(encoder, Corrupted) else encoder
    if isinstance(windows, Windows) and windows.left_out:
        length = windows.tokens.shape[1]
        return [f"{split}: the last {windows.left_out} tokens fill no window of {length} and are left out"]
    return []


def said_of_captions(
    split: str, captions: Sequence[str], tokenizer: Any, limit: int, called: str = "captions"
) -> list[str]:
    """Which captions are longer than is read."""
    looked = captions[:COUNTED]
    cut = sum(is_longer(tokenizer, [caption], limit) for caption in looked)
    of = f"{len(looked)} {called}" if len(looked) == len(captions) else f"the first {len(looked)} {called}"
    return [f"{split}: {cut} of {of} are cut at {limit} tokens"] if cut else []


def said_of_answers(split: str, labels: Sequence[Any], answers: Answers) -> list[str]:
    """Which free answers are longer than a model writes.

    Raises:
        UserError: a number is; a part of it is another number.
    """
    if answers.values:
        for row, value in enumerate(labels):
            if not is_unlabelled(value) and len(ids := answers.number_ids(value)) > answers.length:
                raise UserError(
                    f"The value {value:g} is written in {len(ids)} tokens.",
                    where=f"{split}, row {row + 1}; dataset.max_target_length={answers.length}",
                    remedy=f"dataset.max_target_length={longest_number(labels, answers)}, or null: as the data need",
                )
    if answers.values or answers.words:
        return []
    looked = list(labels[:COUNTED])
    cut = sum(
        len(token_ids(answers.tokenizer, str(label), end=True)) > answers.length
        for label in looked
        if not is_unlabelled(label)
    )
    of = f"{len(looked)} answers" if len(looked) == len(labels) else f"the first {len(looked)} of {len(labels)} answers"
    if not cut:
        return []
    how = "learned from their beginning" if split == "train" else "counted as wrong, whatever is written"
    return [f"{split}: {cut} of {of} are longer than dataset.max_target_length={answers.length}: {how}"]


def longest_number(labels: Sequence[Any], answers: Answers) -> int:
    """Tokens of the longest value, end included; 1 without any."""
    values = {float(value) for value in labels if not is_unlabelled(value)}
    return max((len(answers.number_ids(value)) for value in values), default=1)
