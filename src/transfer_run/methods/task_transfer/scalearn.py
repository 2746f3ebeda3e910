"""ScaLearn: transfer from T source tasks by learning nothing but how much of each task's adapter to add.

    z = LN(h + u)       o_t = W_up ReLU(W_down z + b_down) + b_up, the adapter of task t

    stage 1, a run a task       y = LN(o_t + h + u)                 the adapter and a head are trained
    stage 2, this method        y = LN(sum_t w_t * o_t + h + u)     all adapters are frozen; w and a head are trained

    h  output of the feed-forward's last linear        u  residual of that sub-layer        LN  its pretrained norm

Frohmann, Holtermann, Masoudian, Lauscher, Rekabsaz 2023 (arXiv 2310.01217), section 3. The variants differ in what w_t
is: a vector a layer (`scalearn`), a number a layer (`uniform`), either of them one for all layers (`plusplus`,
`uniform_plusplus`, T parameters in all), or what attention over the adapters says (`fusion`, AdapterFusion).

The paper's models normalise behind the sum. Where a block normalises first (T5, GPT, ViT) it defines nothing: here the
adapters read the feed-forward's output h and are added to it, as `method=adapter method.placement=pfeiffer` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.inside.precision import in_type_of
from transfer_run.methods.inside.targets import Target, find_targets, out_features
from transfer_run.methods.task_transfer.combining.adapters import SourceAdapters
from transfer_run.methods.task_transfer.combining.attention import Attention
from transfer_run.methods.task_transfer.combining.head import make_dense
from transfer_run.methods.task_transfer.combining.scaling import Constraint, Scaling, new_omega
from transfer_run.methods.task_transfer.combining.taking import adapters_of, refuse_another_start
from transfer_run.run_folder import read_result
from transfer_run.task import Task

Variant = Literal["scalearn", "uniform", "plusplus", "uniform_plusplus", "fusion"]
OMEGA = {"init_scale": 2.0, "init_std": 0.001, "dropout": None, "penalty": 0.0}
FUSION = {"penalty": 0.01, "dropout": 0.1}
DROPOUT = 0.3
"""Of the coefficients in all of the paper's runs but those of `uniform_plusplus`."""


class Combined(nn.Module):
    """The adapters at one place and how they are combined."""

    def __init__(self, adapters: SourceAdapters, combine: Scaling | Attention) -> None:
        super().__init__()
        self.adapters, self.combine = adapters, combine

    def forward(self, z: Tensor) -> Tensor:
        """Delta, (B, S, d) -> (B, S, d)."""
        return in_type_of(z, self.combine(self.adapters, in_type_of(self.adapters.down, z)))

    # ---- hooks: bound methods, so that a copy of the model has its own
    def after_norm(self, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Behind the last norm of a block that normalises sums: its input is h + u, its output z."""
        result: Tensor = norm.forward(self(output) + args[0])
        return result

    def after(self, linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Behind the feed-forward's last linear, elsewhere."""
        return output + self(output)


class ScaLearn(Method):
    """Coefficients of the source tasks' adapters are trained, and the head; backbone and adapters are frozen.

    Args:
        tasks: names of the sources, in the order of the coefficients; filled in with all that a run names.
        variant: what is learned; see the module.
        constraint: the ablations: coefficients divided by their sum (`mean`), or a softmax of them.
        omega: of all variants but `fusion`. The start, normal around `init_scale` / T with `init_std`; `dropout` of
            single coefficients, null: 0.3, and none for `uniform_plusplus` and under a constraint; `penalty`: weight of
            sum_t (1 - mean_d w_t)^2 / T of every trained tensor, none in the paper's runs.
        fusion: `penalty`: weight of ||I - W_V||^2 of every layer, in the loss itself (the released code adds its
            gradient one step late); `dropout` of the attention's scores.
        bottleneck, reduction: of the source adapters: r, or the width divided by `reduction`.
        activation: of the source adapters.
        head: `linear`, as all methods have it; `dense`: dense, tanh, out, RoBERTa's own, as in the paper.
        memory_mode: `efficient` scales the up-projections instead of their outputs, and makes no keys and values;
            `official` keeps what the released code keeps; equal numbers.

    Raises:
        UserError: there is no source, a width that the reduction brings to nothing, or words that have no meaning
            together.
    """

    beside_half = True

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        tasks: Sequence[str] | None = None,
        variant: Variant = "scalearn",
        constraint: Constraint = "none",
        omega: Mapping[str, Any] = OMEGA,
        fusion: Mapping[str, Any] = FUSION,
        bottleneck: int | None = None,
        reduction: int = 16,
        activation: str = "relu",
        head: Literal["linear", "dense"] = "linear",
        memory_mode: Literal["efficient", "official"] = "efficient",
        backbone_dropout: bool = True,
    ) -> None:
        super().__init__(backbone, task, backbone_dropout=backbone_dropout)
        self.tasks, self.variant, self.constraint = tuple(tasks or ()), variant, constraint
        self.omega, self.fusion = {**OMEGA, **omega}, {**FUSION, **fusion}
        self.activation, self.official = activation, memory_mode == "official"
        self._refuse_meaningless()
        if head == "dense":
            make_dense(self.backbone)
        self.freeze_backbone()
        self.layers = nn.ModuleDict()
        shared: dict[int, nn.Parameter] = {}
        for target in find_targets(backbone, ("mlp_out",)):
            self._attach(target, bottleneck, reduction, shared)

    def _refuse_meaningless(self) -> None:
        attends = self.variant == "fusion"
        if not self.tasks:
            raise UserError(
                "There is no source task to transfer from.",
                where="sources",
                remedy='sources.NAME="experiment=scalearn_source dataset=..." of every task, the target among them',
            )
        if attends and (self.omega != OMEGA or self.constraint != "none"):
            raise UserError(
                "Attention over adapters has no coefficients to set.",
                where="method.variant=fusion",
                remedy="leave method.omega and method.constraint out, or choose another method.variant",
            )
        if not attends and self.fusion != FUSION:
            raise UserError(
                f"method.variant={self.variant} has no attention to set.",
                where="method.fusion",
                remedy="method.variant=fusion",
            )
        if self.constraint != "none" and self.omega["dropout"]:
            raise UserError(
                "Coefficients under a constraint take no dropout: what is left of them would be constrained anew.",
                where=f"method.omega.dropout={self.omega['dropout']}",
                remedy="leave it out, or method.constraint=none",
            )

    def _attach(self, target: Target, bottleneck: int | None, reduction: int, shared: dict[int, nn.Parameter]) -> None:
        linear = self.backbone.get_submodule(target.path)
        width, like = out_features(linear), next(linear.parameters())
        size = bottleneck or width // reduction
        if size < 1:
            raise UserError(
                f"A width of {width} divided by {reduction} leaves no bottleneck.",
                where="method.reduction",
                remedy=f"choose at most {width}, or set method.bottleneck",
            )
        adapters = SourceAdapters(len(self.tasks), width, size, activation=self.activation, like=like)
        layer = Combined(adapters, self._combination(adapters, width, shared))
        self.layers[f"{target.stack}_{target.index}_mlp_out"] = layer
        if self.backbone.pre_norm:
            linear.register_forward_hook(layer.after)
        else:
            self.backbone.part(target.stack, target.index, "norm2").register_forward_hook(layer.after_norm)

    def _combination(
        self, adapters: SourceAdapters, width: int, shared: dict[int, nn.Parameter]
    ) -> Scaling | Attention:
        like = adapters.up
        if self.variant == "fusion":
            return Attention(width, dropout=self.fusion["dropout"], official=self.official, like=like)
        count, wide = len(self.tasks), 1 if self.variant.startswith("uniform") else width
        omega = shared.get(wide)
        if omega is None or not self.variant.endswith("plusplus"):
            if shared and self.variant.endswith("plusplus"):
                raise UserError(
                    f"One vector cannot scale layers of {next(iter(shared))} and of {wide} channels.",
                    where=f"method.variant={self.variant}",
                    remedy="method.variant=scalearn, or uniform_plusplus",
                )
            omega = new_omega(count, wide, self.omega["init_scale"], self.omega["init_std"], like)
            shared[wide] = omega
        return Scaling(omega, constraint=self.constraint, dropout=self.dropout, official=self.official)

    @property
    def dropout(self) -> float:
        """Of single coefficients, in training."""
        if self.omega["dropout"] is not None:
            return float(self.omega["dropout"])
        return 0.0 if self.variant == "uniform_plusplus" or self.constraint != "none" else DROPOUT

    # ---- the sources
    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        """Copy the adapters of the source runs, one source after the other.

        Raises:
            UserError: a source has no such adapters, or stands on other weights.
        """
        places = {place: layer.adapters for place, layer in self._layers().items()}
        for number, name in enumerate(self.tasks):
            source = load_source(name)
            found = adapters_of(name, source, places, self.activation)
            refuse_another_start(name, source.backbone, self.backbone)
            for place, unit in found.items():
                places[place].put(number, unit)

    def _layers(self) -> dict[str, Combined]:
        return dict(self.layers.items())  # type: ignore[arg-type]

    def shipped(self) -> dict[str, Tensor]:
        """What was trained, and the frozen adapters: nobody who uses the model has to have the sources."""
        frozen = {f"layers.{name}": p for name, p in self.layers.named_parameters() if not p.requires_grad}
        return super().shipped() | {name: p.detach() for name, p in frozen.items()}

    # ---- the loss
    def loss(self, batch: Batch) -> Tensor:
        """The task's; in training with the variant's penalty."""
        weight = (self.fusion if self.variant == "fusion" else self.omega)["penalty"]
        loss = super().loss(batch)
        return loss + weight * self.penalty() if weight and self.training else loss

    def penalty(self) -> Tensor:
        """The sum over the layers; of coefficients that all layers share once."""
        combining = [layer.combine for layer in self._layers().values()]
        once = combining[:1] if self.variant.endswith("plusplus") else combining
        total: Tensor = sum(each.penalty() for each in once)  # type: ignore[assignment]
        return total

    # ---- results
    def conclude(self, context: Context) -> dict[str, Any]:
        """How much of each task was taken (the mean coefficient a layer), and how each source did on its own data."""
        scores = {}
        for name in self.tasks:
            result = read_result(context.sources[name]) if name in context.sources else None
            if result is not None:
                scores[name] = {"dataset": result["dataset"], "metrics": result["metrics"]}
        return {"sources": scores, **({} if self.variant == "fusion" else {"omega": self.coefficients()})}

    def coefficients(self) -> dict[str, list[float]]:
        """Of every task the mean over the channels, layer by layer; one number where layers share theirs."""
        combining = [layer.combine for layer in self._layers().values()]
        once = combining[:1] if self.variant.endswith("plusplus") else combining
        rows = [each.coefficients().detach().mean(-1).tolist() for each in once if isinstance(each, Scaling)]
        return {name: [round(row[number], 6) for row in rows] for number, name in enumerate(self.tasks)}
