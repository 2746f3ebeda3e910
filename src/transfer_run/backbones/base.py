"""The one interface that every pretrained model stands behind.

    embed(batch, stack) -> State ── run(state, stop) ──> State ── finish(state) -> (B, T, D) ── pool ── head
          tap zero             block i, i+1, ...             final norm

A method never knows which model it stands on: it embeds, runs blocks from i to j with or without gradient, looks
at the hidden state between them (a *tap*), replaces it, adds tokens to it, and finishes. A block's parts are found
under the same names in every family (see `PARTS`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from transfer_run.backbones.declared import HAS
from transfer_run.backbones.later import later
from transfer_run.backbones.precise import in_half, precise, restore
from transfer_run.backbones.stream import BlockStream, all_but_streamed
from transfer_run.backbones.taps.replay import Replay
from transfer_run.backbones.weights.checkpoints import save_timm
from transfer_run.errors import UserError

Batch = dict[str, Tensor]

PARTS = (
    "attention", "norm1", "q", "k", "v", "qkv", "out",  # self-attention; a fused projection is `qkv` alone
    "cross_attention", "cross_norm", "cross_q", "cross_k", "cross_v", "cross_out",  # decoder blocks only
    "mlp", "norm2", "mlp_in", "mlp_gate", "mlp_out",  # feed-forward; `mlp_gate` in gated ones
)  # fmt: skip


@dataclass
class State:
    """Hidden states on their way through one stack.

    Attributes:
        hidden: (B, T, D), or (B, C, H, W) in CNNs, (B, C, T, D) of series.
        stack: `encoder`, `decoder`, `image`, `text` or `series`.
        index: the next block to run.
        mask: (B, T), 1 = real token, 0 = padding; None where every position is real (images).
        prefix: tokens that a method has put in front; `pool` passes over them.
        context: what the stack's blocks need besides the hidden state (masks in the library's own form, position
            bias, rotary angles, the encoder's memory, a key/value cache). Only the backbone reads it.
    """

    hidden: Tensor
    stack: str
    index: int = 0
    mask: Tensor | None = None
    prefix: int = 0
    context: dict[str, Any] = field(default_factory=dict)

    def with_hidden(self, hidden: Tensor) -> State:
        """The same place in the stack with another hidden state (what SHERL's late route and DTL need)."""
        return replace(self, hidden=hidden)


class Backbone(nn.Module, ABC):
    """A pretrained model as stacks of blocks between an embedding and a finish.

    Args:
        model: the library's own module (transformers or timm); weights keep their names there, and peft injects there.
        config: the backbone's composed config (name, architecture, ...), kept for export.

    A family sets `stacks` and implements `from_architecture`, `from_folder`, `width`, `_embed` and `finish`. All else
    (blocks and their parts, features for a head, extra tokens, separate queries, a language head, a second tower) it
    has where it overrides it, and says so in its declaration (`Family.has`); what it has not refuses with a UserError.
    """

    family: ClassVar[str]
    stacks: tuple[str, ...]
    model: Any
    pre_norm: bool = True  # does a block normalise what it reads (T5, ViT, GPT) or what it has summed (BERT)?

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.provenance: dict[str, Any] = {"source": "random"}  # what was loaded; `build_backbone` writes it
        self.head: nn.Module = nn.Identity()
        # The weights' own classifier, weight (source classes, feature_width) and bias: scores such as LEEP ask it.
        self.source_head: tuple[Tensor, Tensor] | None = None
        self.source_labels: tuple[str, ...] = ()  # its classes' names, where the weights tell them
        self.activation_checkpointing = False
        self.loss_chunk: int | None = None  # tokens whose vocabulary logits a loss makes at once; None: all
        self.words_later = False  # `language_logits` are made when the loss asks for them (`later.py`)
        self.replay: Replay | None = None  # answers a frozen stream from stored taps
        self.in_bf16 = False  # weights and stream in bfloat16 (`backbone.load`)
        self.stream: BlockStream | None = None  # brings blocks from CPU memory (`backbone.offload`)

    @classmethod
    @abstractmethod
    def from_architecture(cls, config: dict[str, Any]) -> Backbone:
        """Random weights from `config['architecture']`; no network, and no memory under `torch.device("meta")`."""

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> Backbone:
        """Weights from a folder as the library writes it; UserError where they do not fit the architecture."""

    @property
    def library(self) -> str:
        """Whose form `save_library` writes: `transformers`, `timm`, or "" where the model is no library's."""
        if hasattr(self.model, "save_pretrained"):
            return "transformers"
        return "timm" if hasattr(self.model, "pretrained_cfg") else ""

    def save_library(self, folder: Path) -> None:
        """Write the model as its own library does (config and safetensors): what that library's loader reads."""
        if self.library == "transformers":
            self.model.save_pretrained(folder)
        else:
            save_timm(self.model, self.config["architecture"], folder)

    @property
    def class_of_export(self) -> tuple[str, str]:
        """The library's class that reads what `save_library` wrote, and where in it this model is: "" or ".encoder"."""
        return type(self.model).__name__, ""

    def answer_from(self, replay: Replay | None) -> None:
        """From now on a frozen stream is answered from stored taps, or watched by what stores them; None: computed."""
        self.replay = replay

    def train(self, mode: bool = True) -> Backbone:
        """Train mode, but for frozen batch norms: their running statistics are part of the frozen weights."""
        super().train(mode)
        for module in self.modules() if mode else ():
            if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self

    def set_attention(self, implementation: str) -> None:
        """`sdpa` (fused kernels, the default) or `eager` (the whole attention matrix, as older code kept it)."""
        if hasattr(self.model, "set_attn_implementation"):  # else there is nothing to choose
            self.model.set_attn_implementation(implementation)

    def attends_eagerly(self, stack: str) -> bool:
        """Does `set_attention` say `eager`?"""
        return getattr(self.model.config, "_attn_implementation", None) == "eager"

    def _lacks(self, what: str) -> UserError:
        """The refusal of what this family of models does not have, a word of `HAS`."""
        return UserError(
            f"{self.config.get('name', 'The backbone')} (family {self.family}) does not have {HAS[what]}.",
            where="method, backbone",
            remedy="choose another backbone, or another method: `transfer-list methods` says what works on which",
        )

    # ---- architecture -------------------------------------------------------------------------------------------
    def blocks(self, stack: str) -> Sequence[nn.Module]:
        """The blocks of `stack` in order; none where the model runs in one piece, in `finish`."""
        return ()

    def depth(self, stack: str) -> int:
        return len(self.blocks(stack))

    @abstractmethod
    def width(self, stack: str, index: int | None = None) -> int:
        """Channels of the hidden state after block `index` (-1 = tap zero, the embedding); None: of the last one."""

    def heads(self, stack: str) -> int:
        """Attention heads of a block."""
        raise self._lacks("attention")

    def parts(self, stack: str, index: int) -> dict[str, str]:
        """Dotted paths (from the backbone) of the block's parts, by the names of `PARTS`; absent parts are left out.

        Read one with `backbone.get_submodule(path)`, replace one with `backbone.set_submodule(path, module)`.
        """
        raise self._lacks("parts")

    def part(self, stack: str, index: int, name: str) -> nn.Module:
        """One part of a block; UserError where it has none of that name."""
        parts = self.parts(stack, index)
        if name not in parts:
            raise UserError(
                f"The blocks of {self.config.get('name')} have no part {name!r}.",
                where="method, backbone",
                remedy=f"they have {', '.join(parts)}",
            )
        return self.get_submodule(parts[name])

    def project(self, stack: str, index: int, name: str, hidden: Tensor) -> Tensor:
        """The block's `q`, `k` or `v` projection of `hidden` (normalised where the block normalises first).

        (B, T, D) -> (B, T, heads * head width). Where the three are fused, only the one asked for is computed.
        """
        parts = self.parts(stack, index)
        if name in parts:
            return self.get_submodule(parts[name])(hidden)
        fused, place = self.get_submodule(parts["qkv"]), "qkv".index(name)
        if type(fused) is nn.Linear:  # a wrapped one (LoRA) must run as a whole
            bias = None if fused.bias is None else fused.bias.chunk(3)[place]
            return F.linear(hidden, fused.weight.chunk(3)[place], bias)
        return fused(hidden).chunk(3, dim=-1)[place]

    def finish_modules(self, stack: str) -> list[nn.Module]:
        """The modules with weights that `finish` applies after the last block."""
        norm = self.final_norm(stack)
        return [] if norm is None else [norm]

    def final_norm(self, stack: str) -> nn.Module | None:
        """The norm that `finish` applies after the last block, if the stack has one."""
        return None

    @property
    def feature_width(self) -> int:
        """Width of the head's input, what `pool` returns."""
        return self.width(self.stacks[-1])

    # ---- running ------------------------------------------------------------------------------------------------
    def embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        """Tap zero: the embedding's output, dropout included, with everything the blocks need.

        Args:
            batch: `input_ids` (B, S) and `attention_mask` (B, S), `pixel_values` (B, 3, H, W), or `past_values`
                (B, T, C); for a decoder that reads an encoder `decoder_input_ids` (B, T).
            stack: default: the first one.
            memory: for a decoder: the encoder's finished state (`finished_state`).
        """
        given = in_half(batch) if self.in_bf16 else batch
        state = self._embed(given, stack, memory)
        if self.replay is not None and (self.replay.in_training or not self.model.training):
            labels = self.replay.served_labels(batch) if len(self.stacks) > 1 and state.stack == "decoder" else None
            answers = None if labels is None else self.shift_right(labels)
            self.replay.begin(state.stack, batch, state.hidden, answers)
        return state

    @abstractmethod
    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        """What `embed` returns, as the model itself computes it."""

    def step(self, state: State) -> State:
        """Run block `state.index`. Families implement `_step`; this adds stored taps and activation checkpointing."""
        if self.replay is None:
            return self._computed(state)
        found = self.replay.read(state.stack, state.index, state.hidden)
        if found is not None:
            return replace(state, hidden=found, index=state.index + 1)
        after = self._computed(state)
        self.replay.write(state.stack, state.index, state.hidden, after.hidden)
        return after

    def _computed(self, state: State) -> State:
        if self.activation_checkpointing and torch.is_grad_enabled() and self.training:
            context = dict(state.context)

            def block(hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
                after = self._step_on_device(replace(state, hidden=hidden, context=dict(context)))
                return after.hidden, after.context

            hidden, after = checkpoint(block, state.hidden, use_reentrant=False)
            return replace(state, hidden=hidden, index=state.index + 1, context=after)
        return replace(self._step_on_device(state), index=state.index + 1)

    def _step_on_device(self, state: State) -> State:
        if self.stream is None or self.stream.differentiated(state.stack, state.index):
            return self._step(state)
        with self.stream.on_device((state.stack, state.index), state.hidden.device):
            return self._step(state)

    def _apply(self, fn: Any, recurse: bool = True) -> Backbone:
        """Streamed blocks stay in CPU memory, wherever the rest is moved; what needs its type keeps it."""
        kept = list(precise(self))
        super()._apply(fn if self.stream is None else all_but_streamed(self.stream, fn), recurse)
        restore(kept)
        return self

    def _step(self, state: State) -> State:
        """The state after block `state.index`, its index as before: the library's own block on `state.hidden`."""
        raise self._lacks("blocks")

    def run(self, state: State, stop: int | None = None) -> State:
        """Run blocks `state.index` to `stop` (exclusive; default: all that are left)."""
        for after in self.taps(state, stop):
            state = after
        return state

    def taps(self, state: State, stop: int | None = None) -> Iterator[State]:
        """Yield the state after each block from `state.index` to `stop`; a consumer keeps only what it needs."""
        for _ in range(state.index, self.depth(state.stack) if stop is None else stop):
            state = self.step(state)
            yield state

    @abstractmethod
    def finish(self, state: State) -> Tensor:
        """What follows the last block (final norm, dropout): (B, T, D)."""

    def finished_state(self, state: State) -> State:
        """`finish`, kept as a state with its mask: what a decoder takes as memory."""
        return replace(state, hidden=self.finish(state))

    def prepend(self, state: State, tokens: Tensor) -> State:
        """Put visible tokens (B, R, D) in front of the sequence; masks and position bias grow along."""
        raise self._lacks("prefix")

    def drop_prefix(self, state: State, count: int) -> State:
        """Take the first `count` tokens (put there by `prepend`) out again."""
        raise self._lacks("prefix")

    def attend_queries(self, state: State, queries: Tensor) -> Tensor:
        """Run extra query tokens through block `state.index`: they see the state's tokens, nobody sees them.

        The keys and values come from `state.hidden` alone, so the state itself is left exactly as it was, and a
        frozen block keeps nothing of it for backward (VQT, CVPR 2023, section 3.2). Queries do not see each other.

        Args:
            state: where the block is about to run, as `embed` or `taps` gave it; no key/value cache.
            queries: (B, R, D).

        Returns:
            (B, R, D): the block's output at the queries, both residuals and the feed-forward part included.
        """
        raise self._lacks("queries")

    def check_queries(self, stack: str) -> None:
        """Raises UserError with the reason where `attend_queries` is not defined on this model's blocks."""
        if type(self).attend_queries is Backbone.attend_queries:
            raise self._lacks("queries")

    def with_memory(self, state: State, memory: State) -> State:
        """The decoder state reading another encoder memory from here on (SHERL's last decoder block)."""
        raise self._lacks("memory")

    def grid(self, state: State) -> tuple[int, int] | None:
        """Height and width of the patch grid of an image state; None for text."""
        return None

    def special_tokens(self, state: State) -> int:
        """Tokens (CLS, registers, prefix) that stand before the patches of an image state."""
        return state.prefix

    # ---- head ---------------------------------------------------------------------------------------------------
    def pool(self, last: Tensor, state: State) -> Tensor:
        """The head's input from the finished hidden state: (B, T, D) -> (B, D)."""
        raise self._lacks("pool")

    def with_head(self, head: nn.Module) -> Self:
        """This backbone under a head, which takes (B, feature_width): the same model, and no weight is copied.

        The backbone itself stays as it is, so that several methods can stand on one.
        """
        view = copy(self)
        view._modules = {**self._modules, "head": head}
        return view

    def new_head(self, outputs: int) -> nn.Module:
        """A fresh head: (B, feature_width) -> (B, outputs)."""
        return nn.Linear(self.feature_width, outputs)

    def idle_parameters(self, stacks: Sequence[str], *, speaks: bool) -> list[nn.Parameter]:
        """Parameters of the model that nothing runs where these stacks answer.

        Args:
            speaks: through the pretrained language head.
        """
        return []

    def projection(self, stack: str) -> nn.Module:
        """The map of a tower's pooled features (B, width) into the space that two towers share: (B, E)."""
        raise self._lacks("projection")

    @property
    def similarity_scale(self) -> Tensor:
        """What cosines in that space are multiplied by, (); it is not trained here."""
        raise self._lacks("projection")

    def forecast(self, features: Tensor, batch: Batch, horizon: int, targets: Sequence[int]) -> Tensor:
        """The next steps of a series (B, horizon, targets) from the features of its channels (see `forecaster.py`)."""
        raise self._lacks("forecast")

    def language_logits(self, last: Tensor) -> Tensor:
        """Vocabulary logits (B, T, V) from the finished hidden state, through the pretrained language head."""
        return later(last, self._words) if self.words_later else self._words(last)

    def _words(self, last: Tensor) -> Tensor:
        """The language head (..., D) -> (..., V)."""
        raise self._lacks("language_head")

    def untie_language_head(self) -> nn.Module:
        """Give the language head weights of its own where it shares the token table's; returns the head."""
        head, table = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        if head is None:
            raise self._lacks("language_head")
        if head.weight is table.weight:
            head.weight = nn.Parameter(head.weight.detach().clone())
            self.model.config.tie_word_embeddings = False
        return head

    def shift_right(self, labels: Tensor) -> Tensor:
        """Decoder inputs (B, T) that go with the labels (B, T)."""
        raise self._lacks("memory")

    def new_cache(self) -> Any:
        """An empty key/value cache for step-by-step decoding; put into `embed` as `batch['cache']`."""
        raise self._lacks("cache")
