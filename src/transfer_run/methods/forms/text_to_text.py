"""Text in, text out: logits (B, T, V) of an encoder-decoder, token labels (B, T) with -100 ignored.

A classification is posed like this to models that write words (T5, Raffel et al. 2020, section 2.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.data.base import DataModule
from transfer_run.methods.answers import Answer, named, shown
from transfer_run.methods.form import Answering, Form, draw
from transfer_run.methods.generation import written


class TextToText(Form):
    """The decoder's pretrained language head answers; predictions are generated ids (B, <= max_target_length)."""

    speaks = True
    writes = True
    reader = "language head"

    def stacks(self, backbone: Backbone) -> tuple[str, ...]:
        return backbone.stacks

    def pretrained_heads(self, backbone: Backbone) -> Sequence[nn.Module]:
        return (backbone.untie_language_head(),)

    def logits(self, method: Answering, batch: Batch) -> Tensor:
        batch = with_decoder_inputs(method.backbone, batch)
        return method.decode(batch, method.encode(batch))

    def loss(self, method: Answering, logits: Tensor, labels: Tensor) -> Tensor:
        return self.entropy(method, logits, labels)

    def predict(self, method: Answering, batch: Batch) -> Tensor:
        return self.generate(method, batch, method.task.max_target_length)

    def generate(self, method: Answering, batch: Batch, max_length: int, use_cache: bool = True) -> Tensor:
        return written(method, batch, max_length, use_cache)

    def answers(self, data: DataModule, predictions: Tensor, batch: Batch, logits: Tensor | None) -> Sequence[Answer]:
        """Texts; what is right is a class's word, a number, or the answer as far as it can be written."""
        reader = getattr(data, "answers", None)  # what reads texts has one
        if reader is None:
            return ()
        if "targets" not in batch:
            right = reader.texts(batch["labels"])
        elif batch["targets"].is_floating_point():
            right = [shown(value) for value in batch["targets"].tolist()]
        else:
            right = named(batch["targets"], data.task.label_names)
        return [Answer(*each) for each in zip(right, reader.texts(predictions), strict=True)]

    # ---- likelihoods
    def class_likelihoods(self, method: Answering, batch: Batch, answers: Sequence[Sequence[int]] = ()) -> Tensor:
        """With label words it is a classifier over them: p(y|x) is proportional to the probability that it writes the
        word; the encoder is run once."""
        if not answers:
            return super().class_likelihoods(method, batch, answers)
        memory = method.encode(batch)
        device = batch["input_ids"].device
        words = []
        for ids in answers:
            word = torch.tensor([list(ids)], device=device)
            logits = method.decode({**batch, "decoder_input_ids": method.backbone.shift_right(word)}, memory)
            words.append(F.log_softmax(logits.float(), -1).gather(-1, word.unsqueeze(-1)).sum())
        return F.log_softmax(torch.stack(words).unsqueeze(0), dim=-1)

    def has_list(self, answers: Sequence[Sequence[int]]) -> bool:
        return bool(answers)

    def sampled_likelihood(self, method: Answering, batch: Batch, generator: torch.Generator) -> Tensor:
        config = method.backbone.model.config
        start = torch.full((1, 1), config.decoder_start_token_id, device=batch["input_ids"].device)
        ids, memory = start, method.encode(batch)
        with torch.no_grad():
            for _ in range(method.task.max_target_length):
                row = method.decode({**batch, "decoder_input_ids": ids}, memory)[0, -1]
                ids = torch.cat([ids, start.new_tensor([[draw(row, generator)]])], dim=1)
                if int(ids[0, -1]) == config.eos_token_id:
                    break
        logs = F.log_softmax(method.decode({**batch, "decoder_input_ids": ids[:, :-1]}, memory).float(), -1)
        return logs.gather(-1, ids[:, 1:].unsqueeze(-1)).sum()


def with_decoder_inputs(backbone: Backbone, batch: Batch) -> Batch:
    """The batch with `decoder_input_ids` (B, T): the labels, shifted, where there are none."""
    if "decoder_input_ids" in batch:
        return batch
    return {**batch, "decoder_input_ids": backbone.shift_right(batch["labels"])}
