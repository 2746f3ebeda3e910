"""The encoder of BART: post-norm blocks whose sentence is read at the last end-of-text token.

    LN(token + position) ─▶ block ─▶ ... ─▶ state at the last </s> ─▶ dropout ─ dense ─ tanh ─ dropout ─ out

The encoder alone, as LST and Y-tuning use it (LST, table 2): the decoder is neither built nor read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.bart.modeling_bart import BartClassificationHead
from transformers.models.bart.modeling_bart import BartEncoder as Model

from transfer_run.backbones.attention import attend, split_heads
from transfer_run.backbones.base import Batch, State
from transfer_run.backbones.families.encoder import Encoder, check_pooling
from transfer_run.backbones.weights.checkpoints import new_transformer, read_transformer

_PARTS = {"attention": "self_attn", "norm1": "self_attn_layer_norm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
          "v": "self_attn.v_proj", "out": "self_attn.out_proj", "norm2": "final_layer_norm", "mlp_in": "fc1",
          "mlp_out": "fc2"}  # fmt: skip
_OF_WHOLE_MODEL = {r"^(model\.)?shared\.": "embed_tokens.", r"^(model\.)?encoder\.": ""}
"""The encoder's names in a checkpoint of the whole model -> its own."""


class BartEncoder(Encoder):
    """BART's encoder. `config['pooling']` is `eos` (the last end-of-text token), `cls` (the first one) or `mean`.

    The head is BART's own: dense D -> D, tanh, out D -> labels, with dropout `classifier_dropout` before each of the
    two; all of it is new and trained. LayerDrop is not applied: blocks are run one by one, and every one is.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        check_pooling("bart", config.get("pooling", "cls"), ("eos", "cls", "mean"))
        super().__init__(model, config)

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> BartEncoder:
        return cls(new_transformer(Model, config.get("architecture")), config)

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> BartEncoder:
        """From the encoder alone (an export), or out of a whole BART."""
        model = read_transformer(Model, folder, config.get("architecture"), key_mapping=_OF_WHOLE_MODEL)
        return cls(model, config)

    def save_library(self, folder: Path) -> None:
        """Under the names that the encoder has in a whole BART: what lacks there is the decoder."""
        tensors = {f"encoder.{name}": tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        tensors["shared.weight"] = tensors.pop("encoder.embed_tokens.weight")
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    @property
    def class_of_export(self) -> tuple[str, str]:
        return "BartModel", ".encoder"

    # ---- architecture
    def blocks(self, stack: str) -> Sequence[nn.Module]:
        return self.model.layers

    def parts(self, stack: str, index: int) -> dict[str, str]:
        return {name: f"model.layers.{index}.{path}" for name, path in _PARTS.items()}

    # ---- running
    def _embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        ids, mask, model = batch["input_ids"], batch.get("attention_mask"), self.model
        self._refuse_long(ids)
        hidden = model.layernorm_embedding(model.embed_tokens(ids) + model.embed_positions(ids))
        hidden = nn.functional.dropout(hidden, model.dropout, model.training)
        context = {"end": self._ends(ids, mask)} if self.pooling == "eos" else {}
        return self._with_masks(State(hidden, "encoder", mask=mask, context=context))

    def _ends(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """(B,) place of the last end-of-text token; of the last real token in a text without one."""
        places = torch.arange(ids.shape[1], device=ids.device)
        ends = torch.where(ids == self.model.config.eos_token_id, places, -1).amax(1)
        last = places[-1] if mask is None else (mask * places).amax(1)
        return torch.where(ends < 0, last, ends)

    def attend_queries(self, state: State, queries: Tensor) -> Tensor:
        block: Any = self.blocks(state.stack)[state.index]
        attention = block.self_attn
        dropout = attention.dropout if attention.training else 0.0
        q, k, v = (
            split_heads(project(hidden), attention.head_dim)
            for project, hidden in (
                (attention.q_proj, queries), (attention.k_proj, state.hidden), (attention.v_proj, state.hidden)
            )
        )  # fmt: skip
        read = attend(q, k, v, state.mask, dropout=dropout, eager=self.attends_eagerly(state.stack))
        drop = nn.functional.dropout
        read = drop(attention.out_proj(read), block.dropout, block.training)
        hidden = block.self_attn_layer_norm(queries + read)
        inner = drop(block.activation_fn(block.fc1(hidden)), block.activation_dropout, block.training)
        return block.final_layer_norm(hidden + drop(block.fc2(inner), block.dropout, block.training))

    # ---- head
    def pool(self, last: Tensor, state: State) -> Tensor:
        if self.pooling != "eos":
            return super().pool(last, state)
        rows = torch.arange(len(last), device=last.device)
        return last[rows, state.prefix + state.context["end"]]

    def new_head(self, outputs: int) -> nn.Module:
        """BART's classification head, by the library's rule for new layers."""
        width, rate = self.feature_width, self.model.config.classifier_dropout
        head = BartClassificationHead(width, width, outputs, rate)
        return head.apply(self.model._init_weights)
