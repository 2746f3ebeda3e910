"""Does a teacher fit a student? The same task, the same tokens, images prepared alike."""

from __future__ import annotations

from typing import Any

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.teacher import refuse_other_task

WHERE = "sources.teacher"


def refuse_stranger(student: Method, teacher: Method) -> None:
    """Compare what configs tell; tokenizers are compared when training starts (`shared_tokenizer`).

    Raises:
        UserError: another task, another kind of input, another vocabulary or another image size.
    """
    refuse_other_task(student, teacher, WHERE)
    for name, a, b in _inputs(student.backbone, teacher.backbone):
        if a != b:
            raise UserError(
                f"Student and teacher read other inputs: {name} is {a} and {b}, and a batch is made once for both.",
                where=WHERE,
                remedy="a teacher of the same tokenizer or image transform",
            )


def _inputs(student: Backbone, teacher: Backbone) -> list[tuple[str, Any, Any]]:
    texts = ["image" in backbone.config for backbone in (student, teacher)]
    sizes = [(backbone.config.get("architecture") or {}).get("vocab_size") for backbone in (student, teacher)]
    images = [_plain(backbone.config.get("image")) for backbone in (student, teacher)]
    return [("images", *texts), ("the vocabulary's size", *sizes), ("the image transform", *images)]


def _plain(image: Any) -> Any:
    return {key: list(value) if isinstance(value, list | tuple) else value for key, value in (image or {}).items()}


def shared_tokenizer(student: Backbone, teacher: Backbone) -> Any:
    """The tokenizer of both; reads tokenizer files.

    Raises:
        UserError: the two tokenizers give words other numbers.
    """
    from transfer_run.backbones.tokenizer import build_tokenizer

    own, keys = build_tokenizer(student.config), ("tokenizer", "hub", "revision")
    same = all(student.config.get(key) == teacher.config.get(key) for key in keys)
    if not same and own.get_vocab() != build_tokenizer(teacher.config).get_vocab():
        raise UserError(
            "The teacher's tokenizer gives words other numbers than the student's.",
            where=WHERE,
            remedy="a teacher and a student of one tokenizer (BERT and BERT, RoBERTa and RoBERTa)",
        )
    return own
