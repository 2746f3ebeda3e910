"""Tied matrices (shared embeddings, language heads) that a file may hold under several names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from transfer_run.backbones.weights.files import stored_config
from transfer_run.backbones.weights.settings import TIED, ties_head
from transfer_run.errors import UserError
from transfer_run.files import write_json
from transfer_run.methods.merging.engine.checkpoint import Checkpoint

HEAD = re.compile(r"(^|\.)(lm_head|lm_head\.decoder|predictions\.decoder|embed_out)\.weight$")
"""Language heads, which a model may have of its own or take from its table of tokens."""
VOCABULARY = re.compile(r"shared|embed_tokens|word_embeddings|wte|lm_head|embed_(in|out)\b")
"""Matrices with a row a token: fine-tuned ones may have lost the padding rows of the base."""
SPEAKS = re.compile(r"CausalLM|ConditionalGeneration|LMHead|MaskedLM")
"""In the name of a library's class: it has a language head."""
UNTIE = (
    "untie it: load the tied model with transformers, give lm_head.weight a copy of the table of tokens, set "
    "config.tie_word_embeddings=False, save_pretrained"
)
_FIRST = 1024  # elements whose equality makes two matrices candidates
_STEP = 1 << 20  # elements compared at a time
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tied_names(checkpoints: Sequence[Checkpoint], names: Collection[str]) -> dict[str, list[str]]:
    """The further names of every tied matrix, by the one name under which it is merged and counted.

    Two names are tied when every checkpoint that has both holds the same values under them, not all of one constant.
    A checkpoint may lack the further name: versions of a library keep different names of a tied matrix.
    """
    found: dict[str, list[str]] = {}
    for group in sorted({group for checkpoint in checkpoints for group in _candidates(checkpoint, names)}):
        left = [name for name in group if not any(name in others for others in found.values())]
        for name in left:
            if all(name in c.entries for c in checkpoints):
                same = [other for other in left if other != name and _tied(checkpoints, name, other)]
                if same:
                    found[name] = sorted({*found.get(name, []), *same})
                    break
    return found


def refuse_some_tied(checkpoints: Sequence[Checkpoint], names: Collection[str]) -> None:
    """A head of its own and a head that is the table of tokens have no mean: the settings beside the result could say
    either, and both would load another model.

    Raises:
        UserError: some of the checkpoints have a language head of their own and others are tied.
    """
    for head in sorted(name for name in names if HEAD.search(name)):
        has = {c.where: _has_own(c, head) for c in checkpoints}
        own, tied = ([where for where, is_own in has.items() if is_own is wanted] for wanted in (True, False))
        if own and tied:
            raise UserError(
                f"Some of the models have a language head of their own ({head}), others take their table of tokens.",
                where=f"of its own: {', '.join(own)}; tied: {', '.join(tied)}",
                remedy=f"{UNTIE}; or leave the head out, method.exclude=['{re.escape(head)}'], and have that of the "
                "base or the first model",
            )


def speaks_by_its_table(folder: Path, task_type: str | None) -> bool:
    """Is the model in a folder a language model whose head is its table of tokens?

    Args:
        task_type: of an adapter that stands on it; None: the folder's own class says whether the head is used.
    """
    if not ties_head(folder):
        return False
    classes = stored_config(folder).get("architectures") or ()
    return any(map(SPEAKS.search, classes)) if task_type is None else task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM")


def tie_as(out: Path, first: Checkpoint) -> None:
    """A head that is left out is that of the base or the first model: so the settings beside the result say it, too."""
    here, there = ties_head(out), ties_head(Path(first.where))
    if here is not None and there is not None and here != there:
        stored = stored_config(out)
        scaled = {"scale_decoder_outputs": there} if "scale_decoder_outputs" in stored else {}
        write_json(out / "config.json", {**stored, TIED: there, **scaled})


def _has_own(checkpoint: Checkpoint, head: str) -> bool | None:
    """Is the head more than the table of tokens? None where nothing tells, and of an adapter, which has its base's."""
    if checkpoint.changed is not None:
        return None
    by_settings = ties_head(Path(checkpoint.where))
    if by_settings or head not in checkpoint.entries:
        return False if by_settings else None
    same = (other for group in _candidates(checkpoint, checkpoint.entries) if head in group for other in group)
    twins = by_settings is None and any(_equal(checkpoint, head, other) for other in same if other != head)
    return None if twins else True


def _candidates(checkpoint: Checkpoint, names: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Groups of matrices of one shape that begin alike."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name in sorted(checkpoint.entries.keys() & set(names)):
        entry = checkpoint.entries[name]
        if len(entry.shape) == 2 and entry.numel > 1 and entry.dtype.is_floating_point:
            beginning = _bits(checkpoint.read(name, 0, min(entry.numel, _FIRST)))
            groups[entry.shape, entry.dtype, beginning.numpy().tobytes()].append(name)
    return (tuple(group) for group in groups.values() if len(group) > 1)


def _tied(checkpoints: Sequence[Checkpoint], one: str, other: str) -> bool:
    return all(other not in c.entries or _equal(c, one, other) for c in checkpoints)


def _equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Are two tensors of a checkpoint equal to the bit, and not one constant?"""
    entry = checkpoint.entries[one]
    if entry != checkpoint.entries[other]:
        return False
    varied = False
    for start in range(0, entry.numel, _STEP):
        stop = min(entry.numel, start + _STEP)
        left, right = _bits(checkpoint.read(one, start, stop)), _bits(checkpoint.read(other, start, stop))
        if not torch.equal(left, right):
            return False
        varied = varied or bool((left != left[0]).any())
    return varied


def _bits(values: Tensor) -> Tensor:
    return values.view(_INTEGERS[values.dtype.itemsize])
