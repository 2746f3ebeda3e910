"""What a task asks of a method: how its head looks, what the logits, the loss and the predictions are.

    batch ──logits──> (B, ...) ──loss──> scalar
                              └─predict──> what the scores compare

A form is one file in `methods/forms` with one class. It holds nothing of a run: the method at work is handed to it.
The base is the form of a fresh head on the pooled features of one stack; a form says what is otherwise.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.backbones.later import Later
from transfer_run.backbones.precise import as_head
from transfer_run.data.base import DataModule
from transfer_run.errors import UserError
from transfer_run.methods.answers import Answer
from transfer_run.methods.entropy import IGNORED, cross_entropy, in_chunks
from transfer_run.methods.known_forms import check_form, target_of
from transfer_run.targets import load_class
from transfer_run.task import Task

if TYPE_CHECKING:
    from transfer_run.data.scores.labels import Scores


class Answering(Protocol):
    """A method as its form sees it (`methods/base.py` says what each of these is)."""

    @property
    def backbone(self) -> Any: ...
    @property
    def task(self) -> Task: ...
    @property
    def training(self) -> bool: ...
    @property
    def form(self) -> Form: ...
    def __call__(self, batch: Batch, /) -> Tensor: ...
    def features(self, batch: Batch) -> Tensor: ...
    def embedding(self, batch: Batch, stack: str) -> Tensor: ...
    def language(self, batch: Batch) -> Tensor: ...
    def encode(self, batch: Batch) -> Any: ...
    def decode(self, batch: Batch, memory: Any) -> Tensor: ...
    def new_cache(self) -> Any: ...
    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor: ...


class Form(ABC):
    """One form of task; see the module. A subclass gives at least `loss` and `predict`."""

    classes: ClassVar[bool] = False
    """Are the logits those of classes that exclude each other?"""
    speaks: ClassVar[bool] = False
    """Does the pretrained language head answer, with logits (B, T, V)?"""
    writes: ClassVar[bool] = False
    """Is the answer written token by token, by a decoder that reads an encoder?"""
    gaussian: ClassVar[bool] = False
    """Is the output the mean of a Gaussian of variance one?"""
    paired: ClassVar[bool] = False
    """Do two towers answer in the space of both, where each row is compared with all rows of its batch?"""
    reader: ClassVar[str] = ""
    """The pretrained module that reads the last hidden state, whose width is then given; "": a fresh head reads it."""

    # ---- the model
    def check(self, method: Any) -> None:  # noqa: B027 - a hook
        """Raises UserError where a method, or its backbone, has no way to answer this form."""

    def stacks(self, backbone: Backbone) -> tuple[str, ...]:
        """The stacks that a batch runs through, in order."""
        return backbone.stacks[:1]

    def read(self, backbone: Backbone) -> tuple[str, ...]:
        """Those of them whose own output is read for the answer; an encoder's is read by its decoder."""
        return self.stacks(backbone)[-1:]

    def head(self, backbone: Backbone, task: Task) -> nn.Module:
        """A fresh head, (B, feature_width) -> (B, num_labels); the identity where a pretrained module answers."""
        if self.reader:
            return nn.Identity()
        with next(backbone.model.parameters()).device:
            head = backbone.new_head(task.num_labels)
        if backbone.in_bf16:
            head.register_forward_pre_hook(as_head)
        return head

    def pretrained_heads(self, backbone: Backbone) -> Sequence[nn.Module]:
        """What stands in the place of a fresh head, with weights of its own: a linear probe trains these."""
        return ()

    def idle_parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Parameters of the model that nothing runs: nothing trains them, whatever the method."""
        return backbone.idle_parameters(self.stacks(backbone), speaks=self.speaks)

    # ---- a batch
    def logits(self, method: Answering, batch: Batch) -> Tensor:
        """What the loss is of; (B, num_labels) of a fresh head."""
        logits: Tensor = method.backbone.head(method.features(batch))
        return logits

    @abstractmethod
    def loss(self, method: Answering, logits: Tensor, labels: Tensor) -> Tensor:
        """The task's own loss, a scalar, in float32."""

    @abstractmethod
    def predict(self, method: Answering, batch: Batch) -> Tensor:
        """What the scores compare with the labels."""

    def counted(self, labels: Tensor) -> Tensor:
        """The labels that the loss is a mean over; those of -100 are passed over."""
        return labels

    def answers(self, data: DataModule, predictions: Tensor, batch: Batch, logits: Tensor | None) -> Sequence[Answer]:
        """A batch's predictions as words beside what is right, a row each (`predictions.csv`); none by default.

        Args:
            logits: what the method's forward pass made for them; None where it was not run.
        """
        return ()

    def scores(self, data: DataModule, split: str) -> Scores:
        """Fresh scores of one split: `update`, `compute`, `reset`, `better`; the data set's own by default."""
        return data.metrics(split)

    def picture(self, method: Answering, data: DataModule, folder: Path) -> None:  # noqa: B027 - a hook
        """Leave a picture of some answers to the test in the run's folder (FOLDER/NAME.png); none by default.

        Called once, on the model as it is shipped, in eval mode.
        """

    def example(self, batch: Batch, row: int) -> Batch:
        """One row of a batch, as a batch of one; what belongs to no row stays."""
        return one_row(batch, row)

    def generate(self, method: Answering, batch: Batch, max_length: int, use_cache: bool = True) -> Tensor:
        """Greedy answers (B, <= max_length) in tokens.

        Raises:
            UserError: this form writes nothing.
        """
        raise self._lacks("writes no answer")

    @staticmethod
    def entropy(method: Answering, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of labels (...) under logits (..., classes), weighted and smoothed as the data set asks."""
        if isinstance(logits, Later):
            return in_chunks(logits, labels, method.task, method.training, method.backbone.loss_chunk)
        return cross_entropy(logits.flatten(0, -2), labels.flatten(), method.task, method.training)

    # ---- likelihoods of one example (Fisher information)
    def class_likelihoods(self, method: Answering, batch: Batch, answers: Sequence[Sequence[int]] = ()) -> Tensor:
        """log p(y | x) (1, C) of all C labels that there are.

        Args:
            answers: token ids of each label word, the end included.

        Raises:
            UserError: there is no list of labels.
        """
        raise self._lacks("has no list of labels to take an exact expectation over")

    def has_list(self, answers: Sequence[Sequence[int]]) -> bool:
        """Can `class_likelihoods` be had?"""
        return False

    def sampled_likelihood(self, method: Answering, batch: Batch, generator: torch.Generator) -> Tensor:
        """log p(y | x), a scalar, of one answer drawn from the model."""
        raise self._lacks("has no answers to draw from")

    def labelled_likelihood(self, method: Answering, batch: Batch) -> Tensor:
        """log p(y | x), a scalar, of the label in the data; a loss that is a mean over tokens is summed again."""
        loss = method.task_loss(method(batch), batch["labels"])
        return -loss * (self.counted(batch["labels"]) != IGNORED).sum()

    def _lacks(self, what: str) -> UserError:
        return UserError(
            f"A task of {type(self).__name__} {what}.",
            where="method, dataset",
            remedy="choose a data set of another form, or another method or option",
        )


def one_row(batch: Batch, row: int) -> Batch:
    """Row `row` of every tensor that has rows, as a batch of one."""
    return {name: tensor if tensor.ndim == 0 else tensor[row : row + 1] for name, tensor in batch.items()}


def draw(logs: Tensor, generator: torch.Generator) -> int:
    """A number drawn by its log-probability (N,)."""
    return int(torch.multinomial(logs.detach().float().softmax(-1).cpu(), 1, generator=generator))


@cache
def find_form(form: str) -> Form:
    """The form that `task.form` names.

    Raises:
        UserError: there is no such form, or the class that is named is none.
    """
    check_form(form)
    module_name, class_name = target_of(form)
    found: type[Form] = load_class(f"{module_name}.{class_name}", Form, f"dataset.form={form}", "form")
    if inspect.isabstract(found):
        raise UserError(
            f"The form {class_name!r} lacks {', '.join(sorted(found.__abstractmethods__))}.",
            where=f"dataset.form={form}",
            remedy="a form inherits transfer_run.methods.form.Form and gives its loss and predict",
        )
    return found()
