"""What a method is: a backbone, what the paper adds to it, which of both is trained, and how a batch becomes a loss.

A method is one file with one class and one config `configs/method/KEY.yaml`. The keyword arguments of the class
are the config's keys, so the signature is the schema:

    class LinearProbe(Method):
        def __init__(self, backbone, task, *, train_norm: bool = False): ...

Six shapes exist (`about.shape`); all run through the same runner. `tune`, `stage` and `distil` are fitted and tested;
`combine`, `score` and `reshape` do their work in `prepare` and set `trains = False` when they take no step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Size, Tensor, nn

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.data.base import DataModule
from transfer_run.errors import UserError
from transfer_run.hardware.optimization import Optimization
from transfer_run.hardware.steps import Steps
from transfer_run.methods.form import find_form
from transfer_run.methods.work import Work
from transfer_run.task import Task

if TYPE_CHECKING:
    from transfer_run.data.scores.labels import Scores


@dataclass
class Candidate:
    """One of several backbones that a method compares, with the data set as that backbone reads it.

    Attributes:
        backbone: built, with its weights.
        batches: as in `Context`, through this backbone's tokenizer or image transform.
    """

    backbone: Backbone
    batches: Callable[[str, int], Iterator[Batch]]


class _NoData:
    """Stands where a context was made without a data set."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError("this run has no data set")


def _no_source(name: str) -> Any:
    raise KeyError(f"this run has no source {name!r}")


def _no_batches(split: str, batch_size: int, first: int) -> Iterator[Batch]:
    raise KeyError(f"there is no data set to read {split} of")


@dataclass
class Context:
    """What a real run hands to `Method.prepare` and `Method.conclude`; the memory plan never calls either.

    Attributes:
        seed: the run's seed.
        folder: the run's folder, for artifacts.
        batches: (split, batch_size) -> batches of one pass over `train`, `validation` or `test`, in a fixed
            shuffled order for train, on the model's device; `data=` names another one than `data`, a part of it.
        sources: finished source runs by name.
        log: writes one line to the run's log.
        batch_size: the run's `dataset.batch_size`.
        candidates: the backbones that keys of the method name (`about.reads: {KEY: backbones}`), by their words;
            each is built when it is called.
        found: the finished runs that the method looks for (`about.reads: {NAME: finished METHOD}`), by name.
        load_source: name of a source run -> its finished model, complete and in eval mode, on the run's device.
        load_data: name of a source run -> the whole data set that it was fitted on, as its backbone reads it.
        source_config: name of a source run -> its config, with the files of its data where a run made them.
        sizes: rows of the data set by split.
        endless: (split, batch_size, first) -> endless batches as of `batches`, every pass in another order, from the
            batch of this number on: what a loop of `work` reads; `augment=True` varies them as training does.
        work: carries out long work so that it survives the run's end (`methods/work.py`).
        beside: as `batches`, of each data set beside the run's own (`dataset.beside`), by name.
        scores: the run's own scores (`test/accuracy`), known when `conclude` is called.
        data: the data set itself, read: its rows by split, `labels`, `class_counts`.
    """

    seed: int
    folder: Path
    batches: Callable[..., Iterator[Batch]]
    sources: dict[str, Path] = field(default_factory=dict)
    log: Callable[[str], None] = print
    batch_size: int = 32
    candidates: dict[str, Callable[[], Candidate]] = field(default_factory=dict)
    found: dict[str, list[Path]] = field(default_factory=dict)
    load_source: Callable[[str], Method] = field(default=_no_source)
    load_data: Callable[[str], DataModule] = field(default=_no_source)
    source_config: Callable[[str], Mapping[str, Any]] = field(default=_no_source)
    sizes: dict[str, int] = field(default_factory=dict)
    endless: Callable[..., Iterator[Batch]] = field(default=_no_batches)
    work: Work = field(default_factory=Work)
    beside: dict[str, Callable[[str, int], Iterator[Batch]]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    data: DataModule = field(default_factory=_NoData)  # type: ignore[assignment]


class Method(nn.Module):
    """Base of all methods. By itself it trains nothing: a subclass marks what is trained.

    Args:
        backbone: any family; a subclass restricts it in its config (`about.backbones`).
        task: what the dataset asks for.
        head: None: a fresh one, as the task's form makes it.

    Attributes:
        form: what the task asks of any method: the head, the logits, the loss, the predictions (`methods/forms`).
        backbone: the one that is given under this method's own head, `backbone.head`: other methods on it keep theirs.
    """

    trains: bool = True
    one_feature: ClassVar[bool] = False
    """Does it make one feature of a batch (`features`), whatever stacks there are? It cannot answer two towers then."""
    tests: ClassVar[bool] = True
    """Is there a model to test at the end? False where a ranking or an artifact is all that a run makes."""
    ships: Literal["trained", "all", "nothing"] = "trained"
    """What a finished run stores and exports; `all` of the model where it is to serve as a backbone."""
    needs_backbone_gradient: bool = True
    """Does backward visit the backbone's blocks? False for side networks and probes: frozen taps then serve."""
    own_steps: ClassVar[bool] = False
    """Does it take its steps itself? Follows from overriding `step`; then neither FSDP nor 16-mixed is possible."""
    asks_inside: bool = False
    """Does it run parts of blocks by itself (VQT's queries)? Blocks must then all be on the device."""
    beside_half: bool = False
    """Does it train float32 weights beside frozen ones of fewer bits, though backward visits the blocks?"""
    reads_weights: bool = False
    """Does it compute with the blocks' frozen matrices themselves? Packed ones are only applied."""
    reads_row_numbers: bool = False
    """Does every training batch carry the numbers of its rows, (B,) under `task.ROWS` (a memory of each of them)?"""
    couples_rows: bool = False
    """Does the loss compare the rows of a batch with each other, so that a part of the batch has another one?"""
    held: frozenset[str] = frozenset()
    """Names of the frozen copies that `hold` keeps; `changing` ones of them are written into checkpoints."""
    changing: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.own_steps = cls.step is not Method.step
        if "features" in vars(cls):
            cls.one_feature = "stack_features" not in vars(cls)
        elif "stack_features" in vars(cls):
            cls.one_feature = False

    def __init__(
        self, backbone: Backbone, task: Task, *, backbone_dropout: bool = True, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.form = find_form(task.form)
        self.form.check(self)
        self.backbone = backbone.with_head(self.form.head(backbone, task) if head is None else head)
        if backbone.loss_chunk is not None and not self.form.speaks:
            raise UserError(
                f"A task of {task.form} has no words, whose logits could be made a chunk at a time.",
                where=f"hardware.loss_chunk={backbone.loss_chunk}",
                remedy="hardware.loss_chunk=null",
            )
        self.task = task
        self.backbone_dropout = backbone_dropout

    def plain(self) -> Method:
        """The backbone alone under this method's head: the same weights, without what the method adds."""
        return Method(self.backbone, self.task, head=self.backbone.head)

    # ---- what is trained
    def idle_parameters(self) -> list[nn.Parameter]:
        """Parameters of the model that nothing runs for this task."""
        return self.form.idle_parameters(self.backbone)

    def freeze_backbone(self, *, head: bool = True) -> None:
        """Freeze the pretrained model; the task's head stays trainable unless `head` is False."""
        self.backbone.requires_grad_(False)
        if head:
            self.backbone.head.requires_grad_(True)

    def train_backbone(self) -> None:
        """Train all of the pretrained model and the head, but what the task does not run."""
        self.requires_grad_(True)
        self.freeze_idle()

    def freeze_idle(self) -> None:
        """Freeze what the task does not run (CLIP's other tower): weight decay alone would move it."""
        for parameter in self.idle_parameters():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Method:
        """Train mode; with `backbone_dropout` False a frozen pretrained model stays in eval mode."""
        super().train(mode)
        if mode and not self.backbone_dropout:
            self.backbone.model.eval()
        for name in self.held:
            self.get_submodule(name).eval()
        return self

    def hold(self, name: str, model: nn.Module, *, changes: bool = False) -> None:
        """Keep a whole model beside the trained one as `self.NAME` (teacher, initial, anchor, average): frozen, in
        eval mode, counted by the memory plan, neither shipped nor exported.

        Args:
            changes: the method itself changes it while it trains (an average), so a resumed run needs it.
        """
        self.add_module(name, model.requires_grad_(False).eval())
        self.held |= {name}
        self.changing |= {name} if changes else set()

    def shipped(self) -> dict[str, Tensor]:
        """The tensors that `ships` names, with all persistent buffers; tied parameters once, what is held never.

        A method that owns modules it does not ship (critics, projectors) leaves them out here.
        """
        if self.ships == "nothing":
            return {}
        state = self.state_dict()
        names = {name for name, p in self.named_parameters() if p.requires_grad or self.ships == "all"}
        names |= {name for name, _ in self.named_buffers() if name in state}
        return {name: state[name] for name in sorted(names) if name.split(".")[0] not in self.held}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups; override for separate rates (keys as in torch.optim, e.g. `lr`)."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def optimizers(self, config: Mapping[str, Any], epoch_steps: int) -> dict[str, Optimization]:
        """What each optimizer moves, by name; one, as the run's words say, unless a method takes its `step` itself.

        Args:
            config: the composed `optimizer` node, which every one starts from.
            epoch_steps: updates of one epoch (1 in the memory plan).
        """
        return {"main": Optimization(self.parameter_groups())}

    def counted_parameters(self) -> int:
        """Trained parameters as papers count them: the task's fresh head left out."""
        head = {id(p) for p in self.backbone.head.parameters()}
        return sum(p.numel() for p in self.parameters() if p.requires_grad and id(p) not in head)

    # ---- before and after training
    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        """Keep the models of source runs that training looks at (`self.hold("teacher", load_source("teacher"))`).

        Called before `prepare`, in a resumed run too; by the memory plan with models of the same shapes on meta. It is
        not called when a finished run's model is loaded: what is used or exported then does without them.
        """

    def prepare(self, context: Context) -> None:
        """Work that needs data or real weights before the first step (Fisher passes, pruning, merging, scoring).

        What takes long goes through `context.work`: a small training as `fit`, other steps as `loop`, a pass over data
        as `follow`; it is then saved and gone on with, watched, and told of.
        """

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """For the memory plan: what `prepare` needs most at once, on the tensors of one batch without values.

        Trainings of `prepare` are rehearsed by the same code, with `Rehearsed()` in the place of `context.work`. A
        method that overrides `prepare` and not this has a plan without that phase, which says so.

        Returns:
            What of `prepare` it leaves out, a line each.
        """
        return ["all of it"]

    def resume(self, context: Context) -> None:
        """Called instead of `prepare` where a run goes on from a checkpoint: take hold of the data, work nothing."""

    def start_fit(self, total_steps: int) -> None:
        """Called before the first optimizer step with the number of steps there will be (rank and mask schedules)."""

    def settle(self) -> None:
        """Take the form that ships: fold in what only training needed. Called before saving, and before loading into
        a freshly built method; training cannot go on afterwards. Outputs stay the same."""

    def fit_stored(self, shapes: Mapping[str, Size]) -> None:
        """Take the sizes of a stored model's tensors, by name, where a freshly built method has others (a pruned one).
        Called after `settle`, before they are loaded."""

    def conclude(self, context: Context) -> dict[str, Any]:
        """Results beyond those of the test: into `result.json` under `extra`; its `metrics` join the run's own."""
        return {}

    def fold(self) -> None:
        """Fold what was trained beside the backbone's own weights into them; methods that train only these need not.

        What cannot be folded stays where it is: whoever asks sees that from what is left to ship.
        """

    def has_whole_backbone(self) -> bool:
        """Do the tensors that it ships hold all of the backbone as a later run reads it? Else that one folds first."""
        return {f"backbone.{name}" for name, _ in self.backbone.named_parameters()} <= self.shipped().keys()

    def keeps_head(self, before: Task) -> bool:
        """Does the head that an earlier stage made for the task `before` go on? Where the label set is the same."""
        mine, other = ((task.form, task.num_labels, task.label_names) for task in (self.task, before))
        return mine == other

    def export(self, folder: Path) -> bool:
        """Write the model in another library's adapter format (peft); False where it has none of its own."""
        return False

    # ---- batch to prediction
    def embed(self, batch: Batch, stack: str | None = None, memory: State | None = None) -> State:
        """Tap zero as this method feeds it to the blocks (prompt methods put their tokens in here)."""
        return self.backbone.embed(batch, stack, memory)

    def run(self, state: State) -> State:
        """All blocks of the state's stack, as this method runs them."""
        return self.backbone.run(state)

    def features(self, batch: Batch) -> Tensor:
        """The head's input (B, feature_width)."""
        return self.stack_features(batch, self.backbone.stacks[0])

    def stack_features(self, batch: Batch, stack: str) -> Tensor:
        """The pooled output of one stack (B, width): what its head, or in retrieval its projection, reads."""
        state = self.run(self.embed(batch, stack))
        return self.backbone.pool(self.backbone.finish(state), state)

    def embedding(self, batch: Batch, stack: str) -> Tensor:
        """Two towers: what one of them makes of its part of the batch in the space of both, of any length: (B, E)."""
        embedding: Tensor = self.backbone.projection(stack)(self.stack_features(batch, stack))
        return embedding

    def encode(self, batch: Batch) -> Any:
        """Encoder-decoders: all that `decode` needs to know of the source; by default the finished encoder state."""
        return self.backbone.finished_state(self.run(self.embed(batch, "encoder")))

    def decode(self, batch: Batch, memory: Any) -> Tensor:
        """Encoder-decoders: vocabulary logits (B, T, V) for `batch['decoder_input_ids']` (B, T)."""
        state = self.run(self.embed(batch, "decoder", memory))
        return self.backbone.language_logits(self.backbone.finish(state)[:, state.prefix :])

    def language(self, batch: Batch) -> Tensor:
        """Decoders alone: vocabulary logits (B, T, V) behind each token of `batch['input_ids']` (B, T)."""
        state = self.run(self.embed(batch))
        return self.backbone.language_logits(self.backbone.finish(state)[:, state.prefix :])

    def forward(self, batch: Batch) -> Tensor:
        """Logits, of the shape that the task's form says: (B, num_labels) of a head, (B, T, V) of words."""
        return self.form.logits(self, batch)

    def loss(self, batch: Batch) -> Tensor:
        """The training loss, a scalar; the task's own unless a method adds to it."""
        return self.task_loss(self(batch), batch["labels"])

    def training_loss(self, batch: Batch, use_cache: bool = False) -> Tensor:
        """`loss`; with `use_cache` decoder keys and values are kept until it is there (the paper profile's setting)."""
        if use_cache and self.form.writes:
            batch = {**batch, "cache": self.new_cache()}
        return self._loss_in_chunks(batch)

    def _loss_in_chunks(self, batch: Batch) -> Tensor:
        """`loss`; of vocabulary logits `hardware.loss_chunk` tokens at a time, where that is set."""
        self.backbone.words_later = self.backbone.loss_chunk is not None
        try:
            return self.loss(batch)
        finally:
            self.backbone.words_later = False

    def step(self, batch: Batch, steps: Steps) -> Tensor:
        """One training step: losses, gradients and updates. Override it for several optimizers, for losses in turn, for
        gradients of gradients, for work on a gradient; the loss that is returned is logged and watched.

        REINFORCE beside a classifier, each with an optimizer of its own:

            reward, log_prob = self.play(batch)
            steps.backward(self.loss(batch) - (reward.detach() * log_prob).mean())
            steps.step()                                       # both; steps.step("policy") moves one

        Bilevel: `torch.autograd.grad(inner, weights, create_graph=True)`, and `steps.backward` of the outer loss.
        """
        loss = self.training_loss(batch, use_cache=steps.use_cache)
        steps.backward(loss)
        steps.step()
        return loss

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Called before epoch `epoch` of `epochs` (schedules of gates, losses, temperatures)."""

    def after_step(self, step: int) -> None:
        """Called after optimizer step number `step` (rank allocation, weight averages, momentum teachers)."""

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of the task's form, a scalar, in float32; labels of -100 are ignored."""
        return self.form.loss(self, logits, labels)

    def predict(self, batch: Batch) -> Tensor:
        """What the scores compare with the labels: class numbers or values (B,), token ids, pairs; see the form."""
        return self.form.predict(self, batch)

    def score(self, batch: Batch, scores: Scores) -> Tensor | None:
        """Count one batch of a split in its scores; returns the predictions, where these need them."""
        predictions = self.predict(batch) if scores.needs_predictions else None
        loss = self._loss_in_chunks(batch) if scores.needs_loss else None
        scores.update(predictions, batch, loss, self.form.counted(batch["labels"]) if scores.needs_loss else None)
        return predictions

    # ---- generation
    def new_cache(self) -> Any:
        """Key/value caches of everything that decodes; a side network adds its own."""
        return self.backbone.new_cache()

    def generate(self, batch: Batch, max_length: int, use_cache: bool = True) -> Tensor:
        """Greedy answers in tokens (B, <= max_length)."""
        return self.form.generate(self, batch, max_length, use_cache)
