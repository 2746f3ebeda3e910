"""Double fine-tuning: a pretrained encoder learns a large task of the target's domain first, then the small target.

    BERT ── question-answer pairs ──> encoder ── new head ── question-question pairs ──> model
            does this answer belong to this question?        do these two ask the same?

McCreery, Katariya, Kannan, Chablani, Amatriain 2020 (arXiv 2008.13546). Both stages train everything, with cross
entropy on the pooled pair. A stage is a run of its own (`stages=[...]`, experiment/stages.py); what the first one
learns from is a dataset (`dataset=qa_pairs`, data/qa_pairs.py). This class adds what the two stages share. The use that
the paper makes of the result, matching a user's question with a list of answered ones, is `transfer-run run=FOLDER
match=QUESTION among=FILE` (experiment/models/matching.py).
"""

from __future__ import annotations

from typing import Any

from transfer_run.backbones.base import Backbone
from transfer_run.methods.base import Context, Method
from transfer_run.run_folder import read_result
from transfer_run.task import Task


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
