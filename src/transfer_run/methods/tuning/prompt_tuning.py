"""Prompt tuning: trained tokens before the text (Lester et al. 2021) or an image's patches (VPT, Jia et al. 2022).

    shallow   P, x_1 ... x_n -> all blocks
    deep      every block reads prompts of its own in the place of the last block's answers to the prompts (VPT-deep)

The tokens come after position embeddings have been added to the text: they get none, and text positions do not shift.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from peft import PromptEncoderConfig
from peft.tuners.p_tuning import PromptEncoder
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.inside.precision import trained_type
from transfer_run.run_folder import HEAD_PREFIX
from transfer_run.task import Task


class PromptTuning(Method):
    """Prompt tokens are trained, and the head.

    Args:
        length: l tokens (in an encoder-decoder: before the encoder's text).
        depth: `shallow` or `deep`.
        init: `vocabulary`: the first rows of the token table; `random`: as VPT, uniform within
            sqrt(6 / (3 * patch^2 + d)), or within 0.5 for text; `auto`: vocabulary for text, random for images.
        dropout: of the prompt tokens.
        head_lr: learning rate of the head, which the prompts' large one would ruin; None: the same.

    Raises:
        UserError: a vocabulary is asked for where there is none, or is too small.
    """

    beside_half = True

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        length: int = 100,
        depth: Literal["shallow", "deep"] = "shallow",
        init: Literal["auto", "vocabulary", "random"] = "auto",
        dropout: float = 0.1,
        head_lr: float | None = 1e-3,
    ) -> None:
        super().__init__(backbone, task)
        self.freeze_backbone()
        self.head_lr = head_lr
        self.stack, self.deep = backbone.stacks[0], depth == "deep"
        self.length, self.dropout = length, dropout
        table = token_table(backbone, self.stack)
        if init == "auto":
            init = "random" if table is None else "vocabulary"
        like = next(backbone.model.parameters()).detach()
        count = backbone.depth(self.stack) if self.deep else 1
        shape = (count, length, backbone.width(self.stack, -1))
        self.prompts = nn.Parameter(like.new_empty(shape, dtype=trained_type(like)))
        with torch.no_grad():
            if init == "random":
                self.prompts.uniform_(*_range(backbone, table))
            else:
                self.prompts.copy_(_first_rows(backbone, table, length))

    def parameter_groups(self) -> list[dict[str, Any]]:
        head = list(self.backbone.head.parameters())
        if self.head_lr is None or not head:
            return super().parameter_groups()
        own = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith(HEAD_PREFIX)]
        return [{"params": own}, {"params": head, "lr": self.head_lr}]

    def rows(self, index: int) -> Tensor:
        """Prompt tokens (length, D) of block `index`."""
        return self.prompts[index]

    def _tokens(self, index: int, rows: int) -> Tensor:
        tokens = self.rows(index).expand(rows, -1, -1)
        return F.dropout(tokens, self.dropout, self.training)

    def embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        state = super().embed(batch, stack, memory)
        if state.stack != self.stack:
            return state
        return self.backbone.prepend(state, self._tokens(0, state.hidden.shape[0]))

    def run(self, state: State) -> State:
        if not self.deep or state.stack != self.stack:
            return super().run(state)
        while state.index < self.backbone.depth(state.stack):
            if state.index:
                tokens = self._tokens(state.index, state.hidden.shape[0]).to(state.hidden.dtype)
                state = state.with_hidden(torch.cat([tokens, state.hidden[:, state.prefix :]], dim=1))
            state = self.backbone.step(state)
        return state


class PTuning(PromptTuning):
    """P-tuning (Liu et al. 2021, arXiv 2103.10385): the prompt tokens come from peft's prompt encoder.

    Args:
        length: l tokens before the text.
        encoder: `MLP` or `LSTM`, what makes the tokens out of trained embeddings while training.
        hidden: its width; None: the model's.
        layers: of the LSTM; dropout: of the prompt tokens.
        head_lr: learning rate of the head; None: the same.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        length: int = 20,
        encoder: Literal["MLP", "LSTM"] = "MLP",
        hidden: int | None = None,
        layers: int = 2,
        dropout: float = 0.0,
        head_lr: float | None = None,
    ) -> None:
        super().__init__(backbone, task, length=length, init="random", dropout=dropout, head_lr=head_lr)
        like, width = self.prompts.detach(), self.prompts.shape[-1]
        config = PromptEncoderConfig(
            num_virtual_tokens=length,
            token_dim=width,
            num_transformer_submodules=1,
            encoder_hidden_size=width if hidden is None else hidden,
            encoder_reparameterization_type=encoder,
            encoder_num_layers=layers,
            encoder_dropout=0.0,
        )
        with torch.device(like.device):
            self.encoder: nn.Module | None = PromptEncoder(config).to(like.dtype)
        self.prompts.requires_grad_(False)

    def rows(self, index: int) -> Tensor:
        if self.encoder is None:
            return self.prompts[index]
        ids = torch.arange(self.length, device=self.prompts.device)
        made: Tensor = self.encoder(ids[None])[0]
        return made

    @torch.no_grad()
    def settle(self) -> None:
        """Keep the tokens, drop the encoder that made them."""
        if self.encoder is not None:
            self.prompts.copy_(self.rows(0))
            self.encoder = None
        self.prompts.requires_grad_(True)

    def counted_parameters(self) -> int:
        made = 0 if self.encoder is None else sum(p.numel() for p in self.encoder.parameters())
        return super().counted_parameters() - made + (self.prompts.numel() if made else 0)


def token_table(backbone: Backbone, stack: str) -> Tensor | None:
    """The token embedding's weight (V, D) where the stack reads tokens as wide as its hidden state."""
    if stack == "image" or not isinstance(backbone.model, PreTrainedModel):
        return None
    owner: Any = getattr(backbone.model, "text_model", backbone.model)
    table = owner.get_input_embeddings().weight.detach()
    return table if table.shape[1] == backbone.width(stack, -1) else None


def _first_rows(backbone: Backbone, table: Tensor | None, length: int) -> Tensor:
    if table is None or len(table) < length:
        has = "has no token table" if table is None else f"has {len(table)} tokens, fewer than {length}"
        raise UserError(
            f"{backbone.config.get('name')} {has} to take prompts from.",
            where="method.init=vocabulary",
            remedy="set method.init=random",
        )
    return table[:length]


def _range(backbone: Backbone, table: Tensor | None) -> tuple[float, float]:
    """Bounds of the uniform draw: VPT's for images (Xavier over patch and prompt), 0.5 for text (the LST paper's)."""
    if table is not None:
        return -0.5, 0.5
    patches = [m for m in backbone.model.modules() if isinstance(m, nn.Conv2d)]
    area = patches[0].kernel_size[0] * patches[0].kernel_size[1] if patches else 256
    bound = math.sqrt(6 / (3 * area + backbone.width(backbone.stacks[0], -1)))
    return -bound, bound
