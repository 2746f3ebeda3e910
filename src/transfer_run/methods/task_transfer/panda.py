"""PANDA: a prompt learns a target task from its labels and from a teacher that began with another task's prompt.

    prompt tuning   source prompt P_s   <- random, on the source task           transfer=none
    PoT             P_st, head          <- P_s, on the target task              transfer=pot        (SPoT's transfer)
    PANDA           P_t, head           <- random, on the target task, by       transfer=panda
                        CE(student, y) + weight * sim(s, t) * MSE(student's logits, those of the frozen P_st)

Zhong, Ding, Liu, Du, Tao 2022 (arXiv 2208.10160). A prompt is deep (P-tuning v2): one key and one value for each token
and layer before those of self-attention; the pretrained model is frozen, its pooler too. Text positions do not shift
here; the released code's, which fills the key/value cache, shift by the prompt's length.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError
from transfer_run.memory.tracker import followed_in_part
from transfer_run.methods.base import Context, Method
from transfer_run.methods.inside.prefix import Prefixes, PrefixTable
from transfer_run.methods.inside.prefixed import attach_prefixes, keep_prefixes_visible
from transfer_run.methods.task_transfer.combining.taking import refuse_another_start
from transfer_run.methods.task_transfer.prompts.similarity import METRICS, readings, similarities
from transfer_run.task import Task

PROMPT = {"length": 20, "dropout": 0.1}
KD = {
    "weight": 0.1, "similarity": "auto", "metric": "task_embedding", "inputs": 100, "extra_batch_division": True,
    "teacher_dropout": False,
}  # fmt: skip
JUDGED = ("source", "target")
"""Sources whose prompts are compared; both were trained on their own task alone."""


class Panda(Method):
    """A deep prompt is trained, and the head.

    Args:
        transfer: where the prompt begins and what else it learns from; see the module. `pot` reads `sources.source`,
            `panda` `sources.teacher`, and for the similarity `sources.source` and `sources.target`.
        prompt: `length`, tokens; `dropout` of the prompt's entries, for each example by itself.
        kd: `weight` of the teacher; `similarity`, a number in its place, or `auto`: measured by `metric`, a name of
            `prompts/similarity.py`, on `inputs` training rows of either task, clipped to 0..1;
            `extra_batch_division`: divide the mean squared error by the batch's rows once more, as the released code
            does; `teacher_dropout`: the teacher keeps its dropout, as there.
        source_task: what an experiment's sources are trained on, for their words (`dataset=${method.source_task}`).

    Raises:
        UserError: the similarity is no number and not `auto`.
    """

    beside_half = True

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        transfer: Literal["none", "pot", "panda"] = "none",
        prompt: Mapping[str, Any] = PROMPT,
        kd: Mapping[str, Any] = KD,
        source_task: str | None = None,
        backbone_dropout: bool = True,
    ) -> None:
        super().__init__(backbone, task, backbone_dropout=backbone_dropout)
        self.transfer, self.prompt, self.kd = transfer, {**PROMPT, **prompt}, {**KD, **kd}
        self.source_task = source_task
        given = self.kd["similarity"]
        if given != "auto" and not isinstance(given, int | float):
            raise UserError(
                f"A similarity is a number, or auto, not {given!r}.",
                where="method.kd.similarity",
                remedy="method.kd.similarity=auto",
            )
        self.freeze_backbone()
        length, dropout = self.prompt["length"], self.prompt["dropout"]
        self.prefixes = Prefixes()
        if length:
            self.prefixes = attach_prefixes(backbone, length, None, cross_attention=False, dropout=dropout)
        if transfer == "panda":
            like = next(backbone.model.parameters())
            start = 0.0 if given == "auto" else float(given)
            self.register_buffer("similarity", torch.tensor(start, device=like.device))
            self.register_buffer("judged", torch.zeros(len(METRICS) if given == "auto" else 0, device=like.device))

    @property
    def judges(self) -> bool:
        """Is the similarity measured?"""
        return self.transfer == "panda" and self.kd["similarity"] == "auto"

    def rows(self) -> Tensor:
        """The prompt, (length, width): a token's keys and values of all layers side by side."""
        tables = [table.rows.flatten(0, 1) for table in self.prefixes.values() if isinstance(table, PrefixTable)]
        return torch.cat([table.transpose(0, 1).flatten(1) for table in tables], -1)

    # ---- the sources
    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        """Begin with the source's prompt (`pot`), or hold the teacher and the prompts that are compared (`panda`).

        Raises:
            UserError: a source has no such prompt, or the teacher answers another question.
        """
        if self.transfer == "pot":
            source = self._fitting("source", load_source("source"))
            with torch.no_grad():
                for mine, theirs in zip(self.prefixes.parameters(), source.prefixes.parameters(), strict=True):
                    mine.copy_(theirs)
        if self.transfer == "panda":
            teacher = self._fitting("teacher", load_source("teacher"))
            own, other = self.task, teacher.task
            if (own.form, own.num_labels, own.label_names) != (other.form, other.num_labels, other.label_names):
                raise UserError(
                    "The teacher does not answer the target's question: its head has other classes.",
                    where="sources.teacher",
                    remedy="a run of method=panda method.transfer=pot on the target's data set",
                )
            self.hold("teacher", teacher)
            for name in JUDGED if self.judges else ():
                self.hold(name, self._fitting(name, load_source(name)))

    def _fitting(self, name: str, source: Method) -> Panda:
        if not isinstance(source, Panda) or [p.shape for p in source.prefixes.parameters()] != [
            p.shape for p in self.prefixes.parameters()
        ]:
            raise UserError(
                f"The source {name!r} has no prompt of {self.prompt['length']} tokens for this backbone.",
                where=f"sources.{name}",
                remedy="name a run of method=panda with the same backbone and method.prompt.length",
            )
        refuse_another_start(name, source.backbone, self.backbone)
        _share_weights(source.backbone, self.backbone)
        return source

    def the_teacher(self) -> Panda | None:
        """None in a model that was loaded to be used."""
        return self._modules.get("teacher")  # type: ignore[return-value]

    def train(self, mode: bool = True) -> Panda:
        super().train(mode)
        teacher = self.the_teacher()
        if teacher is not None and mode and self.kd["teacher_dropout"]:
            teacher.train()
        return self

    # ---- the similarity
    @property
    def measured(self) -> dict[str, float]:
        """Every metric's similarity; empty where one was given."""
        judged = self.get_buffer("judged").tolist() if self.transfer == "panda" else []
        return {name: round(value, 6) for name, value in zip(METRICS, judged, strict=False)}

    def prepare(self, context: Context) -> None:
        if not self.judges:
            return
        device = next(self.parameters()).device
        pool = [*first_rows(context.batches("train", context.batch_size), self.kd["inputs"])]
        data = context.load_data("source")
        pool += first_rows(
            followed_in_part(data.loader("train", batch_size=context.batch_size, shuffle=False)), self.kd["inputs"]
        )
        self._judge(pool, device)
        told = ", ".join(f"{name} {value:.3f}" for name, value in self.measured.items())
        context.log(f"similarity of the two tasks: {told}; {self.kd['metric']} weighs the teacher")

    def _judge(self, pool: Sequence[Batch], device: torch.device) -> None:
        given = {}
        for name in JUDGED:
            model = self._modules[name]
            assert isinstance(model, Panda)
            state, active = readings(model, pool, device)
            given[name] = (model.rows().cpu(), state.cpu(), active.cpu())
        found = similarities(given["source"], given["target"])
        self.get_buffer("judged").copy_(torch.tensor([found[name] for name in METRICS]))
        self.get_buffer("similarity").fill_(min(1.0, max(0.0, found[self.kd["metric"]])))
        self._let_go()

    def _let_go(self) -> None:
        """The compared prompts' models have done their part."""
        for name in JUDGED:
            self._modules.pop(name, None)
        self.held -= set(JUDGED)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """The rows of both tasks that either prompt is put before, and both prompts."""
        if self.judges:
            size, rows = len(batch["labels"]), self.kd["inputs"]
            pool = [{name: torch.empty_like(t) for name, t in batch.items()} for _ in range(2 * -(-rows // size) - 1)]
            seen = list(first_rows(itertools.repeat(batch), min(rows, 2 * size + rows % size)))
            prompts = []
            for name in JUDGED:
                model = self._modules[name]
                assert isinstance(model, Panda)
                readings(model, [*seen, *seen], next(self.parameters()).device)
                prompts.append(model.rows())
            del pool
            self._let_go()
        return []

    def resume(self, context: Context) -> None:
        self._let_go()

    # ---- the loss
    def embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        if self.prefixes:
            keep_prefixes_visible(self.backbone)
        return super().embed(batch, stack, memory)

    def loss(self, batch: Batch) -> Tensor:
        """The labels' term; in training of `panda` the teacher's beside it."""
        teacher, logits = self.the_teacher(), self(batch)
        loss = self.task_loss(logits, batch["labels"])
        if teacher is None or not self.training or not self.kd["weight"]:
            return loss
        with torch.no_grad():
            taught = teacher(batch)
        apart = F.mse_loss(logits.float(), taught.float())
        if self.kd["extra_batch_division"]:
            apart = apart / len(logits)
        return loss + self.kd["weight"] * self.get_buffer("similarity") * apart

    def settle(self) -> None:
        """Drop the teacher: the student alone is used."""
        for name in ("teacher", *JUDGED):
            self._modules.pop(name, None)
        self.held = frozenset()

    def conclude(self, context: Context) -> dict[str, Any]:
        """The similarity that weighed the teacher, and what every metric said."""
        if self.transfer != "panda":
            return {"transfer": self.transfer}
        told = {"transfer": self.transfer, "similarity": float(self.get_buffer("similarity"))}
        return {**told, "metrics_of_similarity": self.measured} if self.measured else told


def _share_weights(other: Backbone, own: Backbone) -> None:
    """Let a model that holds the same frozen values hold the very tensors: only its prompt and its head are more."""
    known = dict(own.model.named_parameters())
    for path, module in other.model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = known[f"{path}.{name}" if path else name]


def first_rows(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """Batches of so many rows in all without their labels, the last one cut."""
    for batch in batches:
        taken = min(rows, len(batch["labels"]))
        yield {name: tensor[:taken] for name, tensor in batch.items() if name != "labels"}
        rows -= taken
        if not rows:
            return
