"""Rows of text as examples: token ids with a label, or windows of running text with or without hidden spans.

An example is a dict of lists and numbers; `TextData.collate` pads and stacks them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from transfer_run.data.reading.labels import is_unlabelled
from transfer_run.data.rows.sampling import Draw
from transfer_run.data.text.answers import Answers
from transfer_run.data.text.lengths import span_sizes
from transfer_run.data.text.tokens import is_bytes, is_longer, pair_ids, token_ids, written_out
from transfer_run.errors import UserError

Example = dict[str, Any]


class Encoder(Protocol):
    """What makes the examples of one split."""

    def __len__(self) -> int: ...

    def __call__(self, draw: Draw) -> Example: ...


@dataclass(frozen=True)
class TextRows:
    """One split of a text dataset before tokenizing.

    Attributes:
        rows: the text columns by name.
        labels: class numbers (-1: none), tuples of them (None: none), values (NaN: none), answer texts; None for
            running text.
    """

    rows: Sequence[Mapping[str, Any]]
    labels: Sequence[Any] | np.ndarray | None

    def __len__(self) -> int:
        return len(self.rows)


class Labelled:
    """Examples of classification, regression and text-to-text; each row is tokenized once and kept.

    Args:
        answers: how labels are written for a text-to-text model; None: labels stay numbers.
        prompt: template over the columns, for models that read one text; None: `column: value` pairs.
        pairs: give two columns to the tokenizer as a pair (encoders), without a prompt.
        several: number of classes, of which a row may have several; 0: it has one label.

    Raises:
        UserError: `limit` leaves no token to each text beside the marks that the model reads around them.
    """

    def __init__(
        self,
        rows: TextRows,
        tokenizer: Any,
        *,
        columns: Sequence[str],
        limit: int,
        answers: Answers | None = None,
        prompt: str | None = None,
        pairs: bool = False,
        several: int = 0,
    ) -> None:
        self.rows, self.tokenizer, self.columns, self.limit = rows, tokenizer, list(columns), limit
        self.answers, self.prompt, self.pairs, self.several = answers, prompt, pairs, several
        self.values = isinstance(rows.labels, np.ndarray) and rows.labels.dtype.kind == "f"
        self._read: dict[int, Example] = {}
        self._check_room()

    def _check_room(self) -> None:
        texts = len(self.columns) if self._paired else 1
        if self.answers is not None or is_bytes(self.tokenizer):
            marks = texts
        else:
            marks = self.tokenizer.num_special_tokens_to_add(texts > 1)
        if self.limit < texts + marks:
            raise UserError(
                f"{self.limit} tokens leave no room for {'two texts' if texts > 1 else 'a text'}: the marks that the"
                f" model reads around it are {marks}.",
                where="dataset.max_source_length",
                remedy=f"dataset.max_source_length={texts + marks} at the very least",
            )

    @property
    def _paired(self) -> bool:
        return self.pairs and len(self.columns) <= 2

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, draw: Draw) -> Example:
        if draw.row not in self._read:
            self._read[draw.row] = self._tokens(self.rows.rows[draw.row])
        assert self.rows.labels is not None
        label = self.rows.labels[draw.row] if draw.scored else None
        return self._read[draw.row] | self._label(label)

    def _tokens(self, row: Mapping[str, Any]) -> Example:
        if self._paired:
            return pair_ids(self.tokenizer, [str(row[c]) for c in self.columns], self.limit)
        text = written_out(row, self.columns, self.prompt)
        if self.answers is None:
            return pair_ids(self.tokenizer, [text], self.limit)
        return {"input_ids": token_ids(self.tokenizer, text, end=True, limit=self.limit)}

    def cut(self, most: int) -> tuple[int, int]:
        """How many of the first `most` rows have more tokens than are read; and how many rows were looked at."""
        looked = min(most, len(self))
        return sum(self._is_cut(self.rows.rows[row]) for row in range(looked)), looked

    def _is_cut(self, row: Mapping[str, Any]) -> bool:
        texts = [str(row[c]) for c in self.columns] if self._paired else [written_out(row, self.columns, self.prompt)]
        return is_longer(self.tokenizer, texts, self.limit)

    def _label(self, label: Any) -> Example:
        if self.answers is not None:
            ids, target = self.answers.encode(label)
            return {"labels": ids} if target is None else {"labels": ids, "targets": target}
        if self.several:
            return {"labels": [-100.0 if label is None else float(n in label) for n in range(self.several)]}
        if self.values:
            return {"labels": math.nan if label is None else float(label)}
        return {"labels": -100 if is_unlabelled(label) else int(label)}


class Windows:
    """Running text cut into windows of `length` tokens, all of them full: for language modelling.

    The last, short window is left out. Labels are the inputs themselves; the loss shifts them.
    """

    def __init__(self, rows: TextRows, tokenizer: Any, *, column: str, length: int) -> None:
        stream: list[int] = []
        size = 0
        for row in rows.rows:
            text = f"{row[column]}\n"
            stream += token_ids(tokenizer, text)
            size += len(text.encode())
        self.bytes_a_token = size / max(1, len(stream))
        count = len(stream) // length
        self.left_out = len(stream) - count * length
        # 32 bit: half the memory of what a batch will hold
        self.tokens = np.array(stream[: count * length], dtype=np.int32).reshape(count, length)

    def __len__(self) -> int:
        return len(self.tokens)

    def __call__(self, draw: Draw) -> Example:
        ids = self.tokens[draw.row].tolist()
        return {"input_ids": ids, "labels": ids if draw.scored else [-100] * len(ids)}


class Corrupted:
    """T5's span corruption (Raffel et al. 2020, section 3.1.4) of windows of running text.

    `a b c d e f` with `b c` and `e` hidden is read as `a <0> d <1> f` and answered by `<0> b c <1> e`. Which tokens
    are hidden is a function of (seed, epoch, row): new ones every epoch, the same in every run.
    """

    def __init__(self, windows: Windows, tokenizer: Any, *, density: float, mean: float, seed: int) -> None:
        self.windows, self.density, self.mean, self.seed = windows, density, mean, seed
        self.end = tokenizer.eos_token_id
        spans = span_sizes(windows.tokens.shape[1], density, mean)[1]
        self.sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(spans)])
        if len({*self.sentinels, tokenizer.unk_token_id}) <= spans:
            raise ValueError(f"the tokenizer has fewer than {spans} sentinels")

    def __len__(self) -> int:
        return len(self.windows)

    def __call__(self, draw: Draw) -> Example:
        ids = self.windows.tokens[draw.row].tolist()
        random = np.random.default_rng((self.seed, draw.epoch, draw.row))
        noise, spans = span_sizes(len(ids), self.density, self.mean)
        kept, hidden = _cut(len(ids) - noise, spans, random), _cut(noise, spans, random)
        source: list[int] = []
        target: list[int] = []
        at = 0
        for sentinel, keep, hide in zip(self.sentinels, kept, hidden, strict=True):
            source += [*ids[at : at + keep], sentinel]
            target += [sentinel, *ids[at + keep : at + keep + hide]]
            at += keep + hide
        target.append(self.end)
        return {"input_ids": [*source, self.end], "labels": target if draw.scored else [-100] * len(target)}


def _cut(total: int, parts: int, random: np.random.Generator) -> list[int]:
    """`total` as `parts` positive summands, every way of cutting equally likely."""
    cuts = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff([0, *cuts, total]).tolist()
