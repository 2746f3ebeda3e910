"""Labels as the words that a text-to-text model writes, and its words read back as labels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from transfer_run.data.reading.labels import UNLABELLED
from transfer_run.data.text.lengths import value_text
from transfer_run.data.text.tokens import token_ids
from transfer_run.errors import UserError
from transfer_run.task import Task

NO_NUMBER = -1.0
"""What an answer counts as that is no number where one is asked for: below every score, as in T5's evaluation; one less
than the smallest value trained on, where that lies lower."""


class Answers:
    """Between labels and token ids.

    Args:
        task: text-to-text; with label words they are the only right answers.
        tokenizer: the backbone's.
        values: the answers are numbers (STS-B).
        step: what these are rounded to; None: they are written as they stand.
        lowest: the smallest value in training.

    Raises:
        UserError: a label word is longer than `task.max_target_length`.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        *,
        values: bool = False,
        step: float | None = None,
        lowest: float = 0.0,
    ) -> None:
        self.words, self.values, self.length = task.label_names, values, task.max_target_length
        self.step, self.no_number = step, min(NO_NUMBER, lowest - 1)
        self.tokenizer = tokenizer
        self.ids = [token_ids(tokenizer, word, end=True) for word in self.words]
        longest = max(self.ids, key=len, default=[])
        if len(longest) > self.length:
            raise UserError(
                f"The answer '{self.words[self.ids.index(longest)]}' has {len(longest)} tokens.",
                where=f"dataset.max_target_length={self.length}",
                remedy=f"dataset.max_target_length={len(longest)}, or shorter words in dataset.label_names",
            )

    def encode(self, label: Any) -> tuple[list[int], float | int | None]:
        """Token ids of the answer, end included, and the label that metrics compare with (None: free text).

        An unlabelled row (-1, NaN, None) gives the ids [-100], which no loss counts.
        """
        if self.values:
            known = label is not None and not math.isnan(label)
            return (self.number_ids(label), float(label)) if known else ([-100], math.nan)
        if self.words:
            known = label is not None and label != UNLABELLED
            return (self.ids[label], int(label)) if known else ([-100], UNLABELLED)
        return (self._written(str(label)), None) if label is not None else ([-100], None)

    def number_ids(self, value: float) -> list[int]:
        """A value as token ids, end included."""
        return token_ids(self.tokenizer, value_text(float(value), self.step), end=True)

    def _written(self, text: str) -> list[int]:
        """A text as token ids. One that is too long loses its end: what is generated cannot be all of it."""
        return token_ids(self.tokenizer, text, end=True)[: self.length]

    def whole(self, ids: Tensor) -> Tensor:
        """Which of the right answers (B, T) are all there, (B,); a cut one has no end."""
        return (ids == self.tokenizer.eos_token_id).any(1)

    def texts(self, ids: Tensor) -> list[str]:
        """Answers (B,) as text; what stands behind the end, padding and -100 is left out."""
        end, rows = self.tokenizer.eos_token_id, ids.tolist()
        rows = [row[: row.index(end)] if end in row else row for row in rows]
        rows = [[token for token in row if token >= 0] for row in rows]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def read(self, ids: Tensor) -> Tensor:
        """Answers (B, T) as class numbers (B,) int64, -1 for what is no label; or as values (B,) float32."""
        texts = self.texts(ids)
        if self.values:
            return torch.tensor([self._number(text) for text in texts], dtype=torch.float32)
        numbers = {word: number for number, word in enumerate(self.words)}
        return torch.tensor([numbers.get(text, UNLABELLED) for text in texts])

    def _number(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            return self.no_number
        return value if math.isfinite(value) else self.no_number
