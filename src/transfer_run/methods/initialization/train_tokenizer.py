"""A tokenizer of one's own: trained on the run's text, read by later runs as `backbone.tokenizer=run:...`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.data.asked import asked
from transfer_run.data.text.text_data import TextData
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.judging import Judging
from transfer_run.task import Task

Kind = Literal["byte_bpe", "bpe", "unigram", "wordpiece"]
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
"""Numbers 0, 1 and 2, as the byte tokenizer has them."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
FOLDER = "tokenizer"


class TrainTokenizer(Judging):
    """Writes a tokenizer of the training rows' text to the run's folder; the backbone only says how data are read.

    Args:
        algorithm: byte_bpe (GPT-2's) | bpe (SentencePiece's, bytes for what it lacks) | unigram | wordpiece (BERT's).
        size: tokens at most, special ones included.
        lowercase: read all of it in lower case.
    """

    def __init__(
        self, backbone: Backbone, task: Task, *, algorithm: Kind = "byte_bpe", size: int = 1024, lowercase: bool = False
    ) -> None:
        super().__init__(backbone, task)
        if algorithm in ("byte_bpe", "bpe") and size < len(SPECIAL) + 256:
            raise UserError(
                f"{size} tokens have no room for 256 bytes and {len(SPECIAL)} special tokens.",
                where=f"method.size={size}, method.algorithm={algorithm}",
                remedy=f"method.size={len(SPECIAL) + 256} or more",
            )
        self.algorithm, self.size, self.lowercase = algorithm, size, lowercase

    def prepare(self, context: Context) -> None:
        """Train it and write it."""
        texts = _texts(context.data)
        from transformers import PreTrainedTokenizerFast

        followed = context.work.follow("texts", texts, len(texts))
        tokenizer = trained(self.algorithm, self.size, followed, lowercase=self.lowercase)
        made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
        made.save_pretrained(str(context.folder / FOLDER))
        count = sum(len(made(text, add_special_tokens=False)["input_ids"]) for text in texts)
        size = sum(len(text.encode()) for text in texts)
        self.results = {
            "tokens": len(made), "rows": max(made.get_vocab().values()) + 1,
            "metrics": {"train/bytes_a_token": size / max(1, count)},
        }  # fmt: skip
        context.log(f"{len(made)} tokens; a token of the text has {size / max(1, count):.2f} bytes")

    def rehearse(self, batch: Batch) -> Sequence[str]:
        return ["the texts and the counts of their pieces, in CPU memory"]


def _texts(data: Any) -> list[str]:
    """The training rows as they are written.

    Raises:
        UserError: they are no text, or a part of them is asked for.
    """
    if not isinstance(data, TextData):
        raise UserError(
            "A tokenizer is trained on text.", where=f"dataset={data.dataset['name']}", remedy="dataset=text_files"
        )
    rows, columns = data.read_rows()["train"].rows, data.dataset["text_columns"]
    kept = data.subset.get("train", range(len(rows)))
    if asked(data.dataset).running and "train" in data.subset:
        raise UserError(
            "Of running text dataset.rows numbers windows of tokens, not rows of text.",
            where="dataset.rows", remedy="dataset.rows=null",
        )  # fmt: skip
    return ["\n".join(str(rows[int(number)][column]) for column in columns) for number in kept]


def trained(kind: Kind, size: int, texts: Iterable[str], *, lowercase: bool = False) -> Any:
    """A tokenizer of the library `tokenizers`, trained on texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    unknown = SPECIAL["unk_token"]
    trainer: Any
    words: dict[str, Any] = {"vocab_size": size, "special_tokens": list(SPECIAL.values()), "show_progress": False}
    if kind == "byte_bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**words, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=unknown, byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        trainer = trainers.BpeTrainer(**{**words, "special_tokens": [*SPECIAL.values(), *BYTES]})
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**words, unk_token=unknown)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**words)
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.train_from_iterator(texts, trainer)
    # the trainer knows no other way to give bytes a number; as special tokens no text would hold them
    said = json.loads(tokenizer.to_str())
    said["added_tokens"] = [each for each in said["added_tokens"] if each["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(said))
