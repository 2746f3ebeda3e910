"""The next token of running text: logits (B, T, V) of a decoder, labels (B, T) that are the tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.methods.form import Answering, Form, draw
from transfer_run.methods.generation import continued


class LanguageModeling(Form):
    """The pretrained language head answers; the logits at one place are those of the label at the next."""

    speaks = True
    reader = "language head"

    def pretrained_heads(self, backbone: Backbone) -> Sequence[nn.Module]:
        return (backbone.untie_language_head(),)

    def logits(self, method: Answering, batch: Batch) -> Tensor:
        return method.language(batch)

    def counted(self, labels: Tensor) -> Tensor:
        return labels[:, 1:]

    def loss(self, method: Answering, logits: Tensor, labels: Tensor) -> Tensor:
        return self.entropy(method, logits[:, :-1], self.counted(labels))

    def predict(self, method: Answering, batch: Batch) -> Tensor:
        """The likeliest next token at each place (B, T)."""
        return method(batch).argmax(-1)

    def generate(self, method: Answering, batch: Batch, max_length: int, use_cache: bool = True) -> Tensor:
        return continued(method, batch, max_length, use_cache)

    def sampled_likelihood(self, method: Answering, batch: Batch, generator: torch.Generator) -> Tensor:
        logs = F.log_softmax(method(batch).float(), -1)[0]
        drawn = torch.stack([torch.tensor(draw(row, generator)) for row in logs])
        return logs.gather(-1, drawn.to(logs.device).unsqueeze(-1)).sum()
