"""BitFit: only bias terms are trained. Ben Zaken, Ravfogel, Goldberg 2022 (arXiv 2106.10199)."""

from __future__ import annotations

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.inside.targets import Layers, chosen_blocks
from transfer_run.methods.tuning.attach.biases import add_zero_biases, bias_names
from transfer_run.task import Task


class BitFit(Method):
    """Every existing bias term is trained, norms' biases included, and the head.

    Args:
        add_biases: give linears, norms and the language head zero biases where they have none (what the LST paper's
            baseline did to T5, which has no bias at all).
        layers: blocks whose biases are trained, by stack; a stack that is not named: all. None: all biases of the
            model, also those outside the blocks.

    Raises:
        UserError: the blocks have no bias and none is added.
    """

    def __init__(
        self, backbone: Backbone, task: Task, *, add_biases: bool = False, layers: Layers | None = None
    ) -> None:
        super().__init__(backbone, task)
        self.freeze_backbone()
        if add_biases:
            add_zero_biases(backbone, language_head=self.form.speaks, layers=layers)
        blocks = [backbone.blocks(stack)[index] for stack, index in chosen_blocks(backbone, layers)]
        if not any(bias_names(block) for block in blocks):
            raise UserError(
                f"{backbone.config.get('name')} has no bias terms in its blocks: BitFit would train nothing there.",
                where="method=bitfit",
                remedy="set method.add_biases=true to give every linear and norm a zero bias, or choose another method",
            )
        idle = {id(p) for p in self.idle_parameters()}
        for module in blocks if layers else [backbone.model]:
            for parameter in (module.get_parameter(name) for name in bias_names(module)):
                parameter.requires_grad_(id(parameter) not in idle)
