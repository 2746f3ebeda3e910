"""More examples for the teacher to answer: each batch is doubled, and the new rows carry the teacher's answer alone.

    mixup        convex combinations of two examples' embeddings (ids cannot be mixed), padding masks joined
    random       tokens deleted and swapped, as EDA does to words (synonyms would need a thesaurus, which ids have not)
    contextual   tokens replaced by what a masked language model finds likely in their place

Everything works on token ids where it stands, and is a function of the step's random state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Batch
from transfer_run.backbones.weights.files import tokenizer_files
from transfer_run.errors import UserError

OPERATIONS = ("delete", "swap")
TEXT = ("random", "contextual")
TEXTS = ("input_ids", "attention_mask", "token_type_ids")


def refuse_impossible(policy: str, operations: Sequence[str], family: str) -> None:
    """Say at once what cannot be done here.

    Raises:
        UserError: back-translation, synonyms, or token operations on images.
    """
    if policy == "backtranslation":
        raise UserError(
            "Back-translation needs two translation models and their tokenizers in every step, which no run here has.",
            where="method.augment=backtranslation",
            remedy="translate beforehand, add the rows to dataset.path; or method.augment=contextual, random, mixup",
        )
    unknown = [name for name in operations if name not in OPERATIONS]
    if policy == "random" and unknown:
        raise UserError(
            f"Tokens cannot be augmented by {unknown[0]!r}: that needs words and a thesaurus, and a batch holds ids."
            if unknown[0] == "synonym"
            else f"There is no operation {unknown[0]!r} on tokens.",
            where="method.augmentation.operations",
            nearest=OPERATIONS,
        )
    if policy in TEXT and family == "vit":
        raise UserError(
            f"method.augment={policy} changes tokens of a text, and this backbone reads images.",
            where="method.augment, backbone",
            remedy="method.augment=mixup",
        )


def doubled(batch: Batch, changed: Batch) -> Batch:
    """The batch with the changed rows below it; labels stay those of the original rows alone."""
    return {
        name: torch.cat([tensor, changed.get(name, tensor)]) if name not in ("labels", "targets") else tensor
        for name, tensor in batch.items()
    }


# ---- mixup ---------------------------------------------------------------------------------------------------------
def mixup(batch: Batch, alpha: float) -> tuple[Batch, Callable[[Tensor], Tensor]]:
    """The doubled batch, and what makes mixtures of the second half of its embeddings.

    Row b becomes lambda_b * row b + (1 - lambda_b) * another row, lambda ~ Beta(alpha, alpha).
    """
    first = next(tensor for name, tensor in batch.items() if name in ("input_ids", "pixel_values"))
    rows, device = len(first), first.device
    partner = torch.randperm(rows, device=device)
    shape = torch.full((rows,), alpha, device=device)
    share = torch.distributions.Beta(shape, shape, validate_args=False).sample()
    changed = dict(batch)
    if "attention_mask" in batch:
        mask = batch["attention_mask"]
        changed["attention_mask"] = mask | mask[partner]

    def change(hidden: Tensor) -> Tensor:
        own = hidden[rows:]
        weight = share.to(hidden.dtype).reshape(-1, *[1] * (hidden.ndim - 1))
        return torch.cat([hidden[:rows], weight * own + (1 - weight) * own[partner]])

    return doubled(batch, changed), change


# ---- tokens --------------------------------------------------------------------------------------------------------
def free_tokens(batch: Batch, special: Sequence[int]) -> Tensor:
    """(B, S): the tokens that may change, neither padding nor special."""
    ids = batch["input_ids"]
    free = batch["attention_mask"].bool()
    if special:
        free = free & ~torch.isin(ids, torch.tensor(list(special), device=ids.device))
    return free


def swap(batch: Batch, special: Sequence[int], share: float) -> Batch:
    """A share of each row's tokens, drawn at random, change places among themselves."""
    ids = batch["input_ids"]
    place = _places(ids)
    chosen = free_tokens(batch, special) & (torch.rand(ids.shape, device=ids.device) < share)
    there = torch.where(chosen, place, place + ids.shape[1]).argsort(1)
    drawn = torch.rand(ids.shape, device=ids.device)
    here = torch.where(chosen, drawn, place + 1.0).argsort(1)
    return {**batch, "input_ids": ids.scatter(1, there, ids.gather(1, here))}


def delete(batch: Batch, special: Sequence[int], share: float, pad: int) -> Batch:
    """A share of each row's tokens, drawn at random, is taken out; the rest moves up, padding follows."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    gone = free_tokens(batch, special) & (torch.rand(ids.shape, device=ids.device) < share)
    kept = mask.bool() & ~gone
    place = _places(ids)
    order = torch.where(kept, place, place + ids.shape[1]).argsort(1)
    shorter = (place < kept.sum(1, keepdim=True)).to(mask)
    changed = {**batch, "attention_mask": shorter, "input_ids": ids.gather(1, order).where(shorter.bool(), pad)}
    if "token_type_ids" in batch:
        changed["token_type_ids"] = batch["token_type_ids"].gather(1, order) * shorter
    return changed


def _places(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)


# ---- masked language model -----------------------------------------------------------------------------------------
def substitute(batch: Batch, special: Sequence[int], share: float, model: nn.Module, mask_id: int) -> Batch:
    """A share of each row's tokens is masked, and drawn anew from what the model expects there, all at once.

    Args:
        model: a masked language model of transformers over the same vocabulary; its logits are (B, S, V), in memory
            for the moment of the draw.
    """
    ids = batch["input_ids"]
    chosen = free_tokens(batch, special) & (torch.rand(ids.shape, device=ids.device) < share)
    words = {name: batch[name] for name in TEXTS if name in batch}
    with torch.no_grad():
        logits = model(**{**words, "input_ids": ids.masked_fill(chosen, mask_id)}).logits.float()
    for token in special:
        logits[..., token] = -torch.inf
    drawn = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)  # Gumbel: one draw a position
    return {**batch, "input_ids": torch.where(chosen, drawn, ids)}


def masked_language_model(folder: str | None, *, meta: bool) -> nn.Module:
    """The model in a local folder; on meta its architecture alone.

    Raises:
        UserError: no folder is given, or it holds no such model.
    """
    import transformers

    if not folder or not Path(folder).is_dir():
        raise UserError(
            "Contextual augmentation asks a masked language model, and none is given.",
            where=f"method.augmentation.model={folder}",
            remedy="method.augmentation.model=FOLDER, as transformers saves one, of the student's vocabulary",
        )
    library: Any = transformers.AutoModelForMaskedLM
    try:
        if meta:
            with torch.device("meta"):
                return library.from_config(transformers.AutoConfig.from_pretrained(folder, local_files_only=True))
        return library.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The folder holds no masked language model: {str(error).splitlines()[0]}",
            where=f"method.augmentation.model={folder}",
            remedy="name a folder with config.json and weights, as save_pretrained writes them",
        ) from error


def mask_token(folder: str, vocabulary: Mapping[str, int]) -> int:
    """The id that stands for a hidden token in the tokenizer beside the model.

    Args:
        vocabulary: of the student, which the model must share.

    Raises:
        UserError: there is no tokenizer, it has no such token, or it gives words other numbers.
    """
    from transformers import AutoTokenizer

    tokenizer = None
    if tokenizer_files(Path(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer is None or tokenizer.mask_token_id is None:
        raise UserError(
            "No tokenizer beside the masked language model names a mask token.",
            where=f"method.augmentation.model={folder}",
            remedy="method.augmentation.mask_id=NUMBER, if the model's vocabulary is the student's",
        )
    if tokenizer.get_vocab() != vocabulary:
        raise UserError(
            "The masked language model's tokenizer gives words other numbers than the student's.",
            where=f"method.augmentation.model={folder}",
            remedy="a masked language model of the student's tokenizer",
        )
    return int(tokenizer.mask_token_id)
