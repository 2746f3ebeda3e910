"""The Lightning module around a method: the training step, the metrics, the optimizers, what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from transfer_run.backbones.base import Batch
from transfer_run.backbones.weights.checkpoints import not_finite
from transfer_run.data.base import DataModule
from transfer_run.data.load import others
from transfer_run.data.rows.beside import Beside, with_beside
from transfer_run.data.scores.by_class import OF_A_CLASS
from transfer_run.experiment.record.predictions import Predictions
from transfer_run.experiment.training.divergence import diverged
from transfer_run.experiment.training.own_steps import TrainerSteps
from transfer_run.experiment.training.parts import Parts
from transfer_run.experiment.training.taps import first_row, numbered
from transfer_run.hardware.optimization import Optimization, build_optimizers, build_schedule
from transfer_run.hardware.sharded import sharded
from transfer_run.methods.base import Method
from transfer_run.methods.means import of_all_processes
from transfer_run.run_folder import LOG_FILE, predictions_file
from transfer_run.task import ROWS


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one training step: dropout is a function of (seed, step, rank), so a resumed run repeats it."""
    return (seed * 1_000_003 + step) * 1_009 + rank


def average_statistics(model: nn.Module) -> None:
    """Running statistics of trained batch norms become their mean over the processes, each of which saw its own rows.

    Frozen ones are the pretrained weights' and stay as they are.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not (module.affine and not module.weight.requires_grad):
            for statistic in (module.running_mean, module.running_var):
                if statistic is not None:
                    dist.all_reduce(statistic)
                    statistic /= dist.get_world_size()


class TransferModule(pl.LightningModule):
    """Fits and tests one method on one dataset.

    Args:
        method: built and prepared.
        data: set up; gives loaders and metrics.
        tests: further data sets to test on, by name.
        others: further data sets that every training step reads (`dataset.beside`), by name, set up.
        answers: the file of the answers to the test rows; None: that of the run's folder.
        config: the composed config as plain containers (`optimizer`, `trainer`, `dataset`, `hardware`, `seed`).
    """

    def __init__(
        self,
        method: Method,
        data: DataModule,
        config: Mapping[str, Any],
        tests: Mapping[str, DataModule] | None = None,
        others: Mapping[str, DataModule] | None = None,
        answers: Path | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.data, self.others = data, dict(others or {})
        self.config = config
        self.tests, self.answers = tests or {}, answers
        self.tested = [*(["test"] if "test" in data.sizes else []), *(f"test/{name}" for name in self.tests)]
        self.scores = {split: method.form.scores(data, split) for split in ("validation", "test")}
        self.scores |= {f"test/{name}": method.form.scores(other, "test") for name, other in self.tests.items()}
        self.headline: float | None = None  # of the last validation
        self.predictions: dict[str, Predictions] = {}  # of the sets that are tested
        self.reported: dict[str, float] = {}  # the last value of every score
        self.samples = 0  # rows trained on by this process
        self.optimizations: dict[str, Optimization] = {}
        self.intervals: dict[str, str] = {}  # how often the schedule of each moves: step, epoch
        self.steps: TrainerSteps | None = None  # where the method takes its steps itself
        self.automatic_optimization = not method.own_steps
        self.parts = Parts(config["trainer"]["oom"] == "halve")
        self._batch_rows = 0  # of the batch at hand
        self._kept: set[str] = set()
        self.strict_loading = False  # frozen weights are in no checkpoint; see `load_state_dict`
        self._rows: Tensor | None = None  # of the batch at hand, where taps are kept

    # ---- data
    def _loader(self, split: str) -> Any:
        """Batches of `train`, `validation`, `test`, or of `test/NAME`, a further test set."""
        world, total = self.trainer.world_size, self.config["dataset"]["batch_size"]
        split, _, name = split.partition("/")
        data = self.tests[name] if name else self.data
        loader = data.loader(
            split,
            batch_size=total // world,
            seed=self.config["seed"],
            num_workers=self.config["hardware"]["num_workers"],
            world_size=world,
            rank=self.trainer.global_rank,
            augment=split == "train",
            drop_last=split == "train" and bool(self.config["trainer"].get("drop_last")),
        )
        if split == "train" and self.method.reads_row_numbers:
            loader = numbered(loader, 0)
        if split == "train":
            loader = with_beside(loader, self._beside(total, world))
        if name or self.method.backbone.replay is None:
            return loader
        return numbered(loader, first_row(data, split))

    def _beside(self, total: int, world: int) -> dict[str, Beside]:
        """The other data sets' part of every step; without a batch size of their own as many rows as the run's."""
        sizes = {name: node["batch_size"] or total for name, node in others(self.config["dataset"]).items()}
        return {name: data.beside(sizes[name] // world) for name, data in self.others.items()}

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self.method.backbone.replay is not None:
            self._rows = batch.pop(ROWS, None)  # they stay on the CPU
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self._rows is not None and self.method.backbone.replay is not None:
            self.method.backbone.replay.serve(self._rows, batch)
        return batch

    def train_dataloader(self) -> Any:
        loader = self._loader("train")
        self._go_on(loader)
        return loader

    def _go_on(self, loader: Any) -> None:
        """Let the loader begin where the run is: in a resumed run behind the last batch before the checkpoint."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        loader.batch_sampler.set_epoch(self.trainer.current_epoch)
        if self.trainer.fit_loop.restarting and 0 < progress.ready < len(loader):
            loader.batch_sampler.start_at(progress.ready)

    def val_dataloader(self) -> Any:
        return self._loader("validation") if "validation" in self.data.sizes else []

    def test_dataloader(self) -> Any:
        return [self._loader(split) for split in self.tested]

    # ---- training
    def on_train_start(self) -> None:
        self._go_on(self.trainer.train_dataloader)  # made before the checkpoint was read, where steps were counted
        self.method.train()  # Lightning leaves modes as they are: loaded models are in eval mode, probes stay there
        if self.method.own_steps:
            named = dict(zip(self.optimizations, self.trainer.optimizers, strict=True))
            self.steps = TrainerSteps(self, named, self.config["trainer"], self.intervals.values())
        self.method.start_fit(self.total_steps)

    def on_train_epoch_start(self) -> None:
        loader: Any = self.trainer.train_dataloader
        loader.batch_sampler.set_epoch(self.current_epoch)
        self.method.start_epoch(self.current_epoch, self.trainer.max_epochs or 0)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._seed_step()
        self._batch_rows = len(next(iter(batch.values())))
        self.samples += self._batch_rows

    def _seed_step(self) -> None:
        torch.manual_seed(step_seed(self.config["seed"], self.global_step, self.global_rank))

    def _begin_again(self) -> None:
        """A step that ran out of memory: nothing of it is left."""
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()
        self._seed_step()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with of_all_processes(self.trainer.world_size > 1):
            return self._in_parts(batch) if self.automatic_optimization else self._own_step(batch, batch_idx)

    def _in_parts(self, batch: Batch) -> Tensor:
        """The loss of a batch (scalar); of one that is trained on in parts, the gradients of all but the last are there
        already, and its graph is that of the last."""
        cache = self.config["trainer"]["use_cache_in_training"]
        if self.parts.count == 1:
            return self.method.training_loss(batch, use_cache=cache)
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()
        before, parts = torch.zeros((), device=self.device), list(self.parts.of(batch))
        for part, share in parts[:-1]:
            loss = self.method.training_loss(part, use_cache=cache) * share
            self.trainer.strategy.backward(loss, None)
            before += loss.detach()
        part, share = parts[-1]
        return self.method.training_loss(part, use_cache=cache) * share + before

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Behind all callbacks: what Lightning keeps of a logged value is no part of the step that is measured."""
        several = self.trainer.world_size > 1
        self.log("train/loss", outputs["loss"].detach(), prog_bar=True, logger=False, sync_dist=several)

    def _own_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A step of the method's own; an update counts as one, whatever optimizers take part."""
        assert self.steps is not None
        due = (batch_idx + 1) % self.steps.accumulate == 0 or self.trainer.is_last_batch
        loss = self.steps.carry_out(self.method, batch, last=due)
        if due:
            self._after_step(self.global_step)
        return loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Lightning lets go of gradients behind the loss: of a batch in parts, its first parts' are there by then."""
        if self.parts.count == 1:
            optimizer.zero_grad(set_to_none=self.config["trainer"]["grads_to_none"])

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        closure = self.parts.careful(optimizer_closure, self._begin_again, self._batch_rows)
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        self._after_step(self.global_step + 1)
        if self.config["trainer"]["grads_to_none"]:
            optimizer.zero_grad()  # gradients are not alive during the next forward pass

    def _after_step(self, step: int) -> None:
        """Here, and not in a hook after the batch, so that a checkpoint of this step holds what it changes."""
        self.method.after_step(step)
        for optimizer, made in zip(self.trainer.optimizers, self.optimizations.values(), strict=True):
            if made.restart_every and step % made.restart_every == 0:
                optimizer.state.clear()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if (model := sharded(self.trainer)) is None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val is not None:
            model.clip_grad_norm_(gradient_clip_val)  # the norm over all parts

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.steps is not None:  # else Lightning clips
            self.steps.clip_gradients(optimizer)

    def configure_optimizers(self) -> Any:
        config, steps = self.config["optimizer"], self._epoch_steps()
        self.optimizations = self.method.optimizers(config, steps)
        optimizers = build_optimizers(self.optimizations, config)
        schedules = []
        for name, made in self.optimizations.items():
            node = made.node(config)
            self.intervals[name] = interval = "step" if made.factor else node["interval"]
            total = self.total_steps if interval == "step" else self.trainer.max_epochs
            schedules.append(build_schedule(optimizers[name], node, total or 1, made.factor))
        if self.method.own_steps:
            return list(optimizers.values()), schedules
        (optimizer,), (schedule,), (interval,) = optimizers.values(), schedules, self.intervals.values()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    def _epoch_steps(self) -> int:
        """Updates of a whole epoch."""
        return -(-len(self._loader("train")) // self.config["trainer"]["accumulate"])

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.config["trainer"]["max_steps"] or self._epoch_steps() * self.config["trainer"]["max_epochs"]

    # ---- evaluation
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.method.score(batch, self.scores["validation"])

    def on_test_start(self) -> None:
        if not self.config["trainer"].get("predictions"):
            return
        loaders: Any = self.trainer.test_dataloaders
        for split, loader in zip(self.tested, loaders, strict=True):
            name = split.partition("/")[2]
            data = self.tests[name] if name else self.data
            self.predictions[split] = Predictions(self.method, data, "test", list(loader.batch_sampler))

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        split = self.tested[dataloader_idx]
        if split not in self.predictions:
            self.method.score(batch, self.scores[split])
            return
        with self.predictions[split].watching() as take:
            take(self.method.score(batch, self.scores[split]), batch)

    def _report(self, split: str) -> None:
        """Log the scores here, not through Lightning, which logs only after the checkpoint of this step is written.

        Those of `test/NAME` are called `test/METRIC/NAME`.
        """
        kind, _, name = split.partition("/")
        found = self.scores[split].compute()
        if kind != "test":  # many numbers, told once
            found = {metric: value for metric, value in found.items() if not metric.startswith(OF_A_CLASS)}
        values = {f"{kind}/{metric}{name and f'/{name}'}": float(value) for metric, value in found.items()}
        self.scores[split].reset()
        self.log_dict(values, logger=False)
        self.reported |= values
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)
        if split == "validation":
            self.headline = values.get(f"validation/{self.data.task.headline}")

    def on_validation_start(self) -> None:
        self._share_statistics()

    def on_train_epoch_end(self) -> None:
        if self.steps is not None:
            self.steps.move_schedules("epoch")
        self._share_statistics()

    def _share_statistics(self) -> None:
        if self.trainer.world_size > 1:
            average_statistics(self.method)

    def on_validation_epoch_end(self) -> None:
        self._report("validation")

    def on_test_epoch_end(self) -> None:
        for split in self.tested:
            self._report(split)
        for split, answers in self.predictions.items():
            file = Path(self.trainer.default_root_dir) / predictions_file(split.partition("/")[2])
            answers.write(self.answers or file)

    # ---- checkpoints: frozen weights are not saved, they are named
    def setup(self, stage: str) -> None:
        self._kept = self._names_to_keep()  # before the model may be sharded, which gives its parts other names

    def _names_to_keep(self) -> set[str]:
        trained = {name for name, p in self.method.named_parameters() if p.requires_grad}
        return {f"method.{name}" for name in trained | set(self.method.shipped())}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep = set(self._kept if sharded(self.trainer) else self._names_to_keep())
        keep |= {k for k in checkpoint["state_dict"] if k.split(".")[1] in self.method.changing}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keep}
        broken = not_finite(checkpoint["state_dict"]) if self.config["trainer"]["stop_on_nan"] else []
        if broken:  # the checkpoint before this one stays
            what = f"The trained weights are not finite at step {self.global_step} ({', '.join(broken[:3])})."
            raise diverged(what, Path(self.trainer.default_root_dir) / LOG_FILE)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `on_save_checkpoint` kept; frozen weights stay as they were built."""
        expected = {name for name, p in self.named_parameters() if p.requires_grad}
        missing = sorted(expected - set(state_dict))
        outcome = super().load_state_dict(state_dict, strict=False, assign=assign)
        if missing or outcome.unexpected_keys:
            raise RuntimeError(
                f"checkpoint does not fit: missing {missing[:5]}, unexpected {outcome.unexpected_keys[:5]}"
            )
        return outcome
