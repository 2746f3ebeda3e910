"""Texts beside the right ones: GSM8K's rule for numbers, ROUGE worked by hand, bits a byte."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import ByT5Tokenizer

from transfer_run.data.scores.labels import Scores, better_by
from transfer_run.data.scores.texts import COMPARED, number_of, same_number
from transfer_run.data.text.answers import Answers
from transfer_run.errors import UserError
from transfer_run.task import Task


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 5 + 3 = 8 eggs. #### 8", "8"),
        ("#### 1,250\nand 3 more", "1250"),  # what stands behind the mark goes before the last one
        ("so the total is $1,080.", "1080"),
        ("it is -3.50 degrees", "-3.50"),
        ("The answer is 42.", "42"),
        ("12 apples, 7 of them red", "7"),
        ("#### $72", "72"),
        ("none at all...", None),
        ("", None),
    ],
)
def test_the_number_that_a_text_answers(text: str, number: str | None) -> None:
    assert number_of(text) == number


def test_numbers_are_compared_as_strings() -> None:
    assert same_number("2 and 3 make 5.", "#### 5") == 1
    assert same_number("6", "#### 5") == 0
    assert same_number("five", "#### 5") == 0
    assert same_number("none", "none") == 0  # no number answers nothing
    assert same_number("5.0", "#### 5") == 0


def test_rouge_by_hand() -> None:
    """4 of 6 words are in both; of 5 pairs `cat sat` and `sat on`; in order stand `cat sat on mat`."""
    pair = ("a cat sat on a mat", "The cat sat on the mat.")
    assert COMPARED["rouge1"](*pair) == pytest.approx(4 / 6)
    assert COMPARED["rouge2"](*pair) == pytest.approx(2 / 5)
    assert COMPARED["rougeL"](*pair) == pytest.approx(4 / 6)
    # the longer answer: 3 of 3 words right of 6 written: precision 1/2, recall 1
    assert COMPARED["rouge1"]("x y z the red fox", "the red fox") == pytest.approx(2 * 0.5 / 1.5)
    assert COMPARED["rougeL"]("fox red the", "the red fox") == pytest.approx(1 / 3)
    assert COMPARED["rouge1"]("", "the fox") == 0


def test_each_metric_scores_its_own_way_in_one_task() -> None:
    tokenizer = ByT5Tokenizer()
    task = Task("text_to_text", 0, metrics=("number_match", "exact_match", "rouge1"), max_target_length=24)
    answers = Answers(task, tokenizer)
    scores = Scores(task, answers)
    right = ["the sum: #### 5", "the sum: #### 6", "the sum: #### 7"]
    said = ["it is 5", "the sum: #### 6", "no idea"]
    ids = [[tokenizer(text)["input_ids"] for text in texts] for texts in (said, right)]
    wide = [torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], True, -100) for rows in ids]
    scores.update(wide[0], {"labels": wide[1]})
    found = scores.compute()
    assert found["number_match"] == pytest.approx(2 / 3)
    assert found["exact_match"] == pytest.approx(1 / 3)
    words = [COMPARED["rouge1"](*pair) for pair in zip(said, right, strict=True)]
    assert found["rouge1"] == pytest.approx(sum(words) / 3)


def test_bits_a_byte_do_not_depend_on_how_long_tokens_are() -> None:
    """Two bytes a token at 2 ln 2 nats are the same as one byte at ln 2: one bit."""
    labels = torch.zeros(2, 5, dtype=torch.int64)
    for size, loss in ((2.0, 2 * math.log(2)), (1.0, math.log(2))):
        task = Task("language_modeling", 0, metrics=("perplexity", "bits_per_byte"))
        scores = Scores(task, bytes_a_token=size)
        scores.update(None, {"labels": labels}, torch.tensor(loss))
        assert scores.compute() == pytest.approx({"perplexity": math.exp(loss), "bits_per_byte": 1.0})
    assert better_by("bits_per_byte")(1.0, 2.0)
    with pytest.raises(UserError, match="does not score"):
        Scores(Task("text_to_text", 0, metrics=("bits_per_byte",)))
