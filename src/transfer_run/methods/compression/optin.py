"""OPTIN: heads and neurons of a trained transformer are kept by how far the network moves without them.

    trained run ──> one batch ──> every unit masked alone ──> MD + KD ──> the best under a budget ──> smaller network
                                                  no retraining

Khaki, Plataniotis: "The Need for Speed: Pruning Transformers with One Recipe", ICLR 2024, arXiv 2403.17921.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.backbones.slicing import check_sliceable, head_width, keep_units
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.compression.units.masking import READERS, Kind, Masking, chunks
from transfer_run.methods.compression.units.selection import Costs, check_budget, select
from transfer_run.methods.compression.units.terms import Aggregation, factors, joined
from transfer_run.methods.work import as_loaded
from transfer_run.task import Task

TERMS = {"md": True, "kd": True, "tau": 4.0, "lambda_c": 0.1, "ratio": 10.0, "balance": "fixed", "aggregation": "sum"}
LAST = {f"{kind}s": 0.5 for kind in READERS}
INDEX_FROM = {"head": 10.0, "neuron": 100.0}
"""Where the released index factors begin."""


class Optin(Method):
    """A finished run's network with the heads and neurons that fit the budget; no step is taken.

    Args:
        budget: share of the multiply-accumulates of all heads and neurons.
        criterion: `trajectory` is the paper's; `wanda` (weights times activations), `magnitude` and `random` beside it.
        batch_size: training examples of the one batch.
        terms: `md` and `kd` on or off; `tau`, `lambda_c`, `ratio`, `balance` and `aggregation` as in `units/terms.py`.
        gram_rows: tokens that enter a Gram matrix; drawn once for all units; null: all.
        last_layer_factor: of the last layer's `heads` and `neurons`; its own features count there, too.
        head_factor, neuron_factor: of all scores of a kind.
        index_factor: `code` multiplies by the released geometric sequence over the number of the unit.
        reset_mask_between_layers: False keeps the last head of every earlier block masked while heads are scored.
        mean_length: tokens of a mean example in the costs; null: the batch's own real ones.
        at_once: masked variants side by side in one pass.
        physical: cut the units out; False leaves zeros in matrices of the old size.
    """

    trains = False
    ships = "all"
    needs_backbone_gradient = False
    head_scores: Tensor
    neuron_scores: Tensor

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        budget: float = 0.6,
        criterion: Literal["trajectory", "wanda", "magnitude", "random"] = "trajectory",
        batch_size: int = 128,
        terms: Mapping[str, Any] = TERMS,
        gram_rows: int | None = 768,
        last_layer_factor: Mapping[str, float] = LAST,
        head_factor: float = 0.5,
        neuron_factor: float = 1.0,
        index_factor: Literal["none", "code"] = "none",
        reset_mask_between_layers: bool = True,
        mean_length: float | None = None,
        at_once: int = 8,
        physical: bool = True,
    ) -> None:
        super().__init__(backbone, task, backbone_dropout=False)
        self.requires_grad_(False)
        self.budget, self.criterion, self.batch_size, self.terms = budget, criterion, batch_size, terms
        self.gram_rows, self.last_layer_factor, self.index_factor = gram_rows, last_layer_factor, index_factor
        self.all_of = {"head": head_factor, "neuron": neuron_factor}
        self.reset, self.mean_length, self.at_once, self.physical = (
            reset_mask_between_layers, mean_length, at_once, physical,
        )  # fmt: skip
        self.results: dict[str, Any] = {}
        if not terms["md"] and not terms["kd"]:
            raise UserError("No term is left to score by.", where="method.terms", remedy="method.terms.md=true")
        stack = backbone.stacks[0]
        if "mlp_gate" in backbone.parts(stack, 0):
            raise UserError(
                "Neurons of gated feed-forward parts are not scored.", where="backbone", nearest=("bert_tiny",)
            )
        if physical:
            check_sliceable(backbone, stack, "method.physical")
        depth = backbone.depth(stack)
        self.register_buffer("head_scores", self._zeros(depth, "head"))
        self.register_buffer("neuron_scores", self._zeros(depth, "neuron"))

    # ---- the work
    def prepare(self, context: Context) -> None:
        self._take(context.load_source("model"))
        batch = next(iter(context.batches("train", self.batch_size)))
        found = len(batch["labels"])
        if found < self.batch_size:
            context.log(f"scored on {found} examples: the training split has no {self.batch_size}")
        masking = self._masking(batch, context.seed)
        costs = self._costs(batch, masking)
        check_budget(costs, self.budget)  # before hours of masking
        if "scores" in context.sources:
            self._take_scores(context.load_source("scores"))
        else:
            self._score(masking, context)
        self._prune(costs)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """The finished run's network beside this one, then the dense pass and the largest of the masked ones, of the
        scoring batch's size; `sources.scores` spares the masked ones, which a plan does not know."""
        as_loaded(self)
        size = len(batch["labels"])
        rows = torch.arange(self.batch_size) % size
        masking = self._masking({name: tensor[rows] for name, tensor in batch.items()}, 0)
        kinds: tuple[Kind, ...] = ("head", "neuron")
        for kind in kinds if self.criterion == "trajectory" else ():
            masking.measure(chunks(kind, 1, masking.units(kind), self.at_once)[0])
        return ()

    def _take(self, source: Method) -> None:
        """The weights and the head of the finished run.

        Raises:
            UserError: it is of another backbone or of other classes, or keeps something beside the weights.
        """
        source.fold()
        own, theirs = self.backbone.state_dict(), source.backbone.state_dict()
        fits = own.keys() == theirs.keys() and all(own[name].shape == theirs[name].shape for name in own)
        if not fits or (source.task.form, source.task.num_labels) != (self.task.form, self.task.num_labels):
            raise UserError(
                "The finished run's network is not this one's: another backbone, other classes, or parts that cannot "
                "be folded in.",
                where="sources.model",
                remedy="a run of method=full on the same backbone and data set",
            )
        self.backbone.load_state_dict(theirs)
        self.eval()

    def _take_scores(self, source: Method) -> None:
        """Scores do not depend on the budget: an earlier run's serve again."""
        wanted = (self.head_scores.shape, self.neuron_scores.shape)
        if not isinstance(source, Optin) or (source.head_scores.shape, source.neuron_scores.shape) != wanted:
            raise UserError("That run has no scores of this network.", where="sources.scores",
                            remedy="a run of method=optin with the same backbone and sources.model")  # fmt: skip
        self.head_scores.copy_(source.head_scores)
        self.neuron_scores.copy_(source.neuron_scores)

    def _masking(self, batch: Batch, seed: int) -> Masking:
        stack = self.backbone.stacks[0]
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad():
            tokens = self.backbone.embed(inputs, stack).hidden
        count, rows = tokens.shape[0] * tokens.shape[1], None
        if self.gram_rows is not None and count > self.gram_rows:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            rows = order[: self.gram_rows].sort().values.to(tokens.device)
        return Masking(
            self.backbone, inputs, self._logits, rows=rows, tau=float(self.terms["tau"]), aggregation=self._aggregation,
            reset=self.reset,
        )  # fmt: skip

    @property
    def _aggregation(self) -> Aggregation:
        found: Aggregation = self.terms["aggregation"]
        return found

    def _logits(self, last: Tensor, state: State) -> Tensor:
        found: Tensor = self.backbone.head(self.backbone.pool(last, state))
        return found

    def _score(self, masking: Masking, context: Context) -> None:
        if self.criterion != "trajectory":
            self.head_scores.copy_(self._other("head", masking, context.seed))
            self.neuron_scores.copy_(self._other("neuron", masking, context.seed))
            return
        md = {"head": torch.zeros_like(self.head_scores), "neuron": torch.zeros_like(self.neuron_scores)}
        kd = {kind: torch.zeros_like(values) for kind, values in md.items()}
        self._mask("head", masking, md["head"], kd["head"], context)
        self._mask("neuron", masking, md["neuron"], kd["neuron"], context)
        self.head_scores.copy_(self._joined("head", md["head"], kd["head"]))
        self.neuron_scores.copy_(self._joined("neuron", md["neuron"], kd["neuron"]))

    def _mask(self, kind: Kind, masking: Masking, md: Tensor, kd: Tensor, context: Context) -> None:
        """Both terms of all units of a kind, written into md and kd (L, units)."""
        asked = chunks(kind, md.shape[0], md.shape[1], self.at_once)

        def step(number: int) -> None:
            chunk = asked[number]
            place = chunk.layer, slice(chunk.first, chunk.stop)
            md[place], kd[place] = masking.measure(chunk)

        context.work.loop(f"masking each {kind}", step, len(asked), {"md": md, "kd": kd})

    def _joined(self, kind: Kind, md: Tensor, kd: Tensor) -> Tensor:
        """The two terms as one score, times the factors."""
        terms, layers, units = self.terms, *md.shape
        first = md.double().flatten().tolist() if terms["md"] else [0.0] * md.numel()
        second = kd.double().flatten().tolist() if terms["kd"] else [0.0] * kd.numel()
        scores = joined(first, second, terms["balance"], lambda_c=terms["lambda_c"], ratio=terms["ratio"])
        factor = factors(layers, units, last=self.last_layer_factor[f"{kind}s"], all_of=self.all_of[kind],
                         index_from=INDEX_FROM[kind] if self.index_factor == "code" else None)  # fmt: skip
        return (torch.tensor(scores, dtype=torch.float64).view(layers, units) * factor).to(md)

    def _other(self, kind: Kind, masking: Masking, seed: int) -> Tensor:
        """Scores of the plain criteria: the size of what a unit writes, or chance; in units of the kind's mean."""
        wanted = self.head_scores if kind == "head" else self.neuron_scores
        if self.criterion == "random":
            drawn = torch.rand(wanted.shape, generator=torch.Generator().manual_seed(2 * seed + (kind == "head")))
            return drawn.to(wanted)
        layers = []
        for layer in range(len(wanted)):
            part: Any = self.backbone.part(self.backbone.stacks[0], layer, READERS[kind])
            weight: Tensor = part.weight.float()
            sizes = weight.abs() * masking.norms[kind][layer] if self.criterion == "wanda" else weight.square()
            layers.append(sizes.sum(0).view(wanted.shape[1], -1).sum(1))
        scores = torch.stack(layers)
        costs = Costs.of(1.0, 1, head_width(self.backbone, self.backbone.stacks[0], 0), 1, 1, 1)
        return scores / scores.mean() * (costs.head / costs.neuron if kind == "head" else 1.0)

    def _costs(self, batch: Batch, masking: Masking) -> Costs:
        mask, length = batch.get("attention_mask"), self.mean_length
        if length is None:
            length = float(masking.inputs[0].shape[1] if mask is None else mask.sum(1).float().mean())
        return self._costs_at(length)

    def _costs_at(self, length: float) -> Costs:
        stack, (layers, heads) = self.backbone.stacks[0], self.head_scores.shape
        width, head = self.backbone.width(stack), head_width(self.backbone, stack, 0)
        return Costs.of(length, width, head, layers, heads, self.neuron_scores.shape[1])

    def _prune(self, costs: Costs) -> None:
        stack, layers = self.backbone.stacks[0], len(self.head_scores)
        keep_heads, keep_neurons, objective = select(self.head_scores, self.neuron_scores, costs, self.budget)
        before = sum(p.numel() for p in self.backbone.parameters())
        for layer in range(layers):
            self._zero("head", layer, keep_heads[layer])
            self._zero("neuron", layer, keep_neurons[layer])
            if self.physical:
                keep_units(self.backbone, stack, layer, _numbers(keep_heads[layer]), _numbers(keep_neurons[layer]))
        self.results = {
            "macs": {"kept": costs.kept(keep_heads, keep_neurons), "of": costs.base, "mean_length": costs.length},
            "macs_share": costs.kept(keep_heads, keep_neurons) / costs.base,
            "heads_kept": keep_heads.sum(1).tolist(),
            "neurons_kept": keep_neurons.sum(1).tolist(),
            "objective": objective,
            "parameters": {"before": before, "after": sum(p.numel() for p in self.backbone.parameters())},
        }

    @torch.no_grad()
    def _zero(self, kind: Kind, layer: int, keep: Tensor) -> None:
        """Zeros in the columns that read masked units: the same function as with the masks."""
        weight: Any = self.backbone.part(self.backbone.stacks[0], layer, READERS[kind]).weight
        weight.mul_(keep.repeat_interleave(weight.shape[1] // len(keep)).to(weight))

    def _zeros(self, depth: int, kind: Kind) -> Tensor:
        stack = self.backbone.stacks[0]
        reader: Any = self.backbone.part(stack, 0, READERS[kind])
        units = reader.in_features // (head_width(self.backbone, stack, 0) if kind == "head" else 1)
        return torch.zeros(depth, units, device=reader.weight.device)

    # ---- afterwards
    def fit_stored(self, shapes: Mapping[str, torch.Size]) -> None:
        """The sizes that a stored model's matrices say."""
        stack = self.backbone.stacks[0]
        for layer in range(self.backbone.depth(stack)):
            parts = self.backbone.parts(stack, layer)
            kept = {kind: shapes[f"backbone.{parts[reader]}.weight"][1] for kind, reader in READERS.items()}
            heads = kept["head"] // head_width(self.backbone, stack, layer)
            keep_units(self.backbone, stack, layer, torch.arange(heads), torch.arange(kept["neuron"]))

    def conclude(self, context: Context) -> dict[str, Any]:
        return self.results

    def export(self, folder: Any) -> bool:
        if self.physical:
            raise UserError(
                "The blocks have different numbers of heads and neurons, which no config of the library can say.",
                where="export",
                remedy="method.physical=false exports matrices of the old size with zeros; transfer_run.load(RUN) "
                "reads the small model",
            )
        return False


def _numbers(keep: Tensor) -> Tensor:
    """Numbers of the units kept; of a layer that loses all of them the first one stays, with zeros behind it."""
    found = keep.nonzero().flatten()
    return found if len(found) else torch.zeros(1, dtype=torch.int64, device=keep.device)
