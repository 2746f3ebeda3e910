"""Bias terms: which there are, and zero ones where a model has none."""

from __future__ import annotations

from torch import Tensor, nn

from transfer_run.backbones.base import Backbone
from transfer_run.methods.inside.targets import Layers, chosen_blocks, norms


class ShiftedNorm(nn.Module):
    """A norm without bias, followed by a trained shift that starts at zero: y = norm(x) + b."""

    def __init__(self, norm: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.bias = nn.Parameter(weight.new_zeros(weight.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.bias


def add_zero_biases(backbone: Backbone, *, language_head: bool, layers: Layers | None = None) -> None:
    """Give every linear and norm of the chosen blocks, and the language head, a bias of zeros where it has none.

    The model's function does not change. So the LST paper's BitFit baseline made T5 tunable by biases; the norms
    after the last blocks stay as they are there, too.
    """
    for stack, index in chosen_blocks(backbone, layers):
        block = backbone.blocks(stack)[index]
        for module in block.modules():
            if isinstance(module, nn.Linear) and module.bias is None:
                module.bias = _zero_bias(module.weight, module.out_features)
        shiftless = {id(norm) for norm in norms(block) if getattr(norm, "bias", None) is None}
        for path, module in list(block.named_modules()):
            if id(module) in shiftless and not isinstance(module, ShiftedNorm):
                weight = next(module.parameters(recurse=False))
                block.set_submodule(path, ShiftedNorm(module, weight.detach()))
    head = backbone.model.get_output_embeddings() if language_head else None
    if isinstance(head, nn.Linear) and head.bias is None:
        head.bias = _zero_bias(head.weight, head.out_features)


def _zero_bias(weight: Tensor, width: int) -> nn.Parameter:
    return nn.Parameter(weight.detach().new_zeros(width))


def bias_names(module: nn.Module) -> list[str]:
    """Names of the bias vectors below `module`; tables of relative position biases are not among them."""
    return [name for name, _ in module.named_parameters() if name.rpartition(".")[2].endswith("bias")]
