"""How near a text that was written is to the right one: as a string, as a number, by the words that both have."""

from __future__ import annotations

import re
from collections.abc import Callable

_SAID = re.compile(r"#### *(\$?-?\$?[0-9][0-9.,]*)")
_NUMBER = re.compile(r"-?\$?[0-9][0-9.,]*")


def equal(written: str, right: str) -> float:
    """1 where the two are the same string."""
    return float(written == right)


def number_of(text: str) -> str | None:
    """The number that a text answers, by the rule of GSM8K (Cobbe et al. 2021): that behind `####`, else the last
    one there is; without thousands' commas, currency and the end of a sentence. None: there is none."""
    said = _SAID.search(text)
    found = said[1] if said else next(iter(_NUMBER.findall(text)[::-1]), None)
    return None if found is None else found.replace(",", "").replace("$", "").rstrip(".")


def same_number(written: str, right: str) -> float:
    """1 where both answer the same number, compared as GSM8K does: as a string."""
    number = number_of(written)
    return float(number is not None and number == number_of(right))


def rouge(key: str) -> Callable[[str, str], float]:
    """The F measure of ROUGE (Lin 2004) by torchmetrics, without a stemmer: `rouge1`, `rouge2` or `rougeL`."""

    def score(written: str, right: str) -> float:
        from torchmetrics.functional.text.rouge import rouge_score

        return float(rouge_score(written, right, rouge_keys=key)[f"{key}_fmeasure"])

    return score


COMPARED: dict[str, Callable[[str, str], float]] = {
    "exact_match": equal,
    "number_match": same_number,
    "rouge1": rouge("rouge1"),
    "rouge2": rouge("rouge2"),
    "rougeL": rouge("rougeL"),
}
"""What a metric of texts makes of one answer and the right one, 0 to 1."""
