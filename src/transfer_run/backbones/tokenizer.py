"""The tokenizer that goes with a backbone's weights, or bytes, which need no files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from transfer_run.backbones.weights.files import tokenizer_files
from transfer_run.backbones.weights.names import BYTES, Weights, uses_bytes
from transfer_run.backbones.weights.published import find_tokenizer
from transfer_run.errors import UserError


def build_tokenizer(backbone: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a composed `backbone` node: padding on the right, and always a padding token.

    `backbone.tokenizer` is `bytes` (256 bytes and 128 special ids: pad 0, end 1, unknown 2), a folder, a hub id (NAME
    or NAME@REVISION), or null for that of the weights: the hub's, the folder's, bytes where the weights are random or
    of an earlier run.

    Raises:
        UserError: there is no tokenizer where one is expected, or the backbone's vocabulary is too small for it.
    """
    source, where = _source(backbone)
    if source == BYTES:
        tokenizer: PreTrainedTokenizerBase = ByT5Tokenizer()
    else:
        folder = Path(source)
        if not tokenizer_files(folder):
            raise UserError(
                "The folder holds no tokenizer.", where=f"{where}: {folder}",
                remedy="backbone.tokenizer=bytes, or a folder with tokenizer files: backbone.tokenizer=PATH",
            )  # fmt: skip
        tokenizer = _read(folder, where)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    _refuse_small_vocabulary(tokenizer, backbone)
    return tokenizer


def _read(folder: Path, where: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        UserError: a file of it is damaged; readers of its kinds of files say so by errors of any class.
    """
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"The tokenizer cannot be read: {reason}",
            where=f"{where}: {folder}",
            remedy="fetch its files again, or name another: backbone.tokenizer=PATH",
        ) from error
    return found


def _source(backbone: dict[str, Any]) -> tuple[str, str]:
    """`bytes` or a folder, and the key it came from."""
    words, weights = backbone.get("tokenizer"), Weights.of(backbone)
    if uses_bytes(backbone):
        return BYTES, "backbone.tokenizer"
    if words:
        if Path(words).expanduser().is_dir():
            return str(Path(words).expanduser()), "backbone.tokenizer"
        if words.startswith((".", "/", "~")):
            raise UserError(
                "The folder of the tokenizer is not there.",
                where=f"backbone.tokenizer: {words}",
                remedy="backbone.tokenizer=PATH, where it lies now; an export carries its own",
            )
        return str(find_tokenizer(backbone, str(words)).folder), "backbone.tokenizer"
    if weights.kind == "hub":
        return str(find_tokenizer(backbone).folder), "backbone.hub"
    return str(weights.path), "backbone.weights"


def _refuse_small_vocabulary(tokenizer: PreTrainedTokenizerBase, backbone: dict[str, Any]) -> None:
    architecture = backbone.get("architecture") or {}
    text = architecture.get("text_config") or architecture
    size = text.get("vocab_size")
    if size is not None and len(tokenizer) > size:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens, the backbone {backbone.get('name')!r} embeds {size}.",
            where="backbone.tokenizer",
            remedy="choose the tokenizer that goes with the backbone's weights",
        )
