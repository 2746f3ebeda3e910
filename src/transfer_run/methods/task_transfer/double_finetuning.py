"""Double fine-tuning: a pretrained encoder learns a large task of the target's domain first, then the small target.

    BERT ── question-answer pairs ──> encoder ── new head ── question-question pairs ──> model
            does this answer belong to this question?        do these two ask the same?

McCreery, Katariya, Kannan, Chablani, Amatriain 2020 (arXiv 2008.13546). Both stages train everything, with cross
entropy on the pooled pair. A stage is a run of its own (`stages=[...]`, experiment/stages.py); what the first one
learns from is a dataset (`dataset=qa_pairs`, data/qa_pairs.py). This class adds what the two stages share, and the
use that the paper makes of the result: matching a user's question with a list of answered ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.data.text.tokens import padded, pair_ids
from transfer_run.methods.base import Context, Method
from transfer_run.methods.work import alone
from transfer_run.run_folder import read_result
from transfer_run.task import Task

Pairs = Sequence[tuple[str, str]]


class DoubleFineTuning(Method):
    """Everything is trained; the next stage begins with a new head.

    Args:
        reset_head: a stage makes its head anew even where the stage before had the same label set; False keeps it
            wherever the number of classes is the same, for "belongs" and "similar" mean much alike.
    """

    ships = "all"  # so that the next stage can start from it

    def __init__(self, backbone: Backbone, task: Task, *, reset_head: bool = True) -> None:
        super().__init__(backbone, task)
        self.reset_head = reset_head
        self.train_backbone()

    def keeps_head(self, before: Task) -> bool:
        same = (before.form, before.num_labels) == (self.task.form, self.task.num_labels)
        return same and not self.reset_head

    def conclude(self, context: Context) -> dict[str, Any]:
        """What is to be known of the data of the stages before (a substitution, questions left out)."""
        before = read_result(context.sources["backbone"]) if "backbone" in context.sources else None
        if before is None:
            return {}
        extra = before.get("extra", {})
        lines = [*extra.get("before", ()), *(f"{before['dataset']}: {note}" for note in extra.get("notes", ()))]
        for line in lines:
            context.log(f"the stage before learned from {line}")
        return {"before": lines} if lines else {}


class FaqMatcher:
    """Finds the answered question that a user's question asks again (the paper's live system).

    Args:
        score: pairs of texts -> the probability (K,) of each that they ask the same; see `pair_scorer`.
        questions: the answered ones, F_1 ... F_K; K forward passes a user's question.
        threshold: the least probability of a match.
    """

    def __init__(self, score: Callable[[Pairs], Tensor], questions: Sequence[str], threshold: float = 0.5) -> None:
        self.score, self.questions, self.threshold = score, list(questions), threshold

    def __call__(self, question: str) -> int | None:
        """The number of the most probable match; None where none passes the threshold."""
        if not self.questions:
            return None
        scores = self.score([(question, known) for known in self.questions])
        best = int(scores.argmax())
        return best if float(scores[best]) >= self.threshold else None


def pair_scorer(method: Method, tokenizer: Any, limit: int = 200, batch_size: int = 32) -> Callable[[Pairs], Tensor]:
    """The probability of the last class (`similar`) that a finished model gives to pairs of texts.

    Args:
        tokenizer: the backbone's (`backbones.tokenizer.build_tokenizer`).
        limit: tokens of a pair.
    """
    method.eval()
    device = next(method.parameters()).device

    @torch.no_grad()
    def score(pairs: Pairs) -> Tensor:
        found = []
        for start in range(0, len(pairs), batch_size):
            rows = [pair_ids(tokenizer, pair, limit) for pair in pairs[start : start + batch_size]]
            batch = {name: padded([row[name] for row in rows], 0).to(device) for name in rows[0]}
            lengths = torch.tensor([len(row["input_ids"]) for row in rows], device=device)
            places = torch.arange(batch["input_ids"].shape[1], device=device)
            batch["attention_mask"] = (places < lengths[:, None]).long()
            found.append(alone(method(batch).float().softmax(-1)[:, -1]))
        return torch.cat(found)

    return score
