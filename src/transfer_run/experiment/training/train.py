"""Carry out one run in this process: build, prepare, fit, test, record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from transfer_run.backbones.base import Batch
from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.quantised import pack
from transfer_run.data.base import DataModule
from transfer_run.data.load import build_beside, build_data, build_tests
from transfer_run.data.scores.direction import Better
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import make_importable
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.references import Backbones, recorded_runs
from transfer_run.experiment.models.handover import hand_over, resolved_backbone, starting_backbone
from transfer_run.experiment.planning.plan import prepared_on_cpu
from transfer_run.experiment.record.log import LOG
from transfer_run.experiment.record.loggers import build_loggers
from transfer_run.experiment.record.metrics_csv import MetricsCsv, StepRows
from transfer_run.experiment.record.progress import progress_callback
from transfer_run.experiment.sources.combine import combine_files, on_first_source
from transfer_run.experiment.sources.models import source_model
from transfer_run.experiment.sources.resolve import config_with_data, read_back
from transfer_run.experiment.training.checkpoints import Checkpoints, Interrupted, Selection
from transfer_run.experiment.training.divergence import SkipNan, StopOnNan
from transfer_run.experiment.training.last_batch import check_last_batch
from transfer_run.experiment.training.ledger import Ledger
from transfer_run.experiment.training.module import TransferModule
from transfer_run.experiment.training.parts import check_halving
from transfer_run.experiment.training.result import _record
from transfer_run.experiment.training.saved import check_saved, read_saved
from transfer_run.experiment.training.taps import open_replay
from transfer_run.experiment.training.watch import watching
from transfer_run.experiment.training.work import ResumedWork
from transfer_run.hardware.devices import device_of
from transfer_run.hardware.sharded import whole_again
from transfer_run.hardware.steps import check_own_steps
from transfer_run.hardware.trainer import build_trainer
from transfer_run.memory.callback import MemoryCallback
from transfer_run.memory.tracker import followed_in_part
from transfer_run.methods.base import Candidate, Context, Method
from transfer_run.methods.build import build_method
from transfer_run.run_folder import CHECKPOINTS, LOG_FILE, METRICS, is_run

AGAIN = "delete it, or give force=true, to start the run again from the beginning"


def train(run: Run, folder: Path, sources: dict[str, Path]) -> None:
    """Build, prepare, fit, test and record a run in its `folder`; goes on from a checkpoint that is there.

    Args:
        sources: folders of the finished source runs by name.
    """
    if not run.has_data:
        found = on_first_source(run, sources)
        if found is None:
            LOG.info("run %s", folder)
            combine_files(run, folder, sources)
            return
        run = found
    config = read_back(run, sources)
    make_importable(run)
    pl.seed_everything(config["seed"], verbose=False)
    data, tests = _read(config, folder)
    method = _build(config, sources, data)
    check_own_steps(method, config["method"]["name"], config["hardware"])
    check_halving(method, config)
    checkpoints, memory, metrics = _witnesses(config, folder, method.form.scores(data, "validation").better)
    settings = config["trainer"]
    rows, progress = StepRows(settings["log_every"]), progress_callback(settings["progress"])
    skips = SkipNan(settings["skip_nan"], folder / LOG_FILE) if settings["skip_nan"] else None
    watches = settings["stop_on_nan"] and skips is None
    finite = StopOnNan(settings["log_every"], folder / LOG_FILE) if watches else skips
    ledger = Ledger(metrics)
    callbacks: list[Callback] = [
        c for c in (memory, rows, finite, ledger, checkpoints, progress, watching(folder)) if c
    ]
    loggers = [metrics, *build_loggers(config, folder)]
    trainer = build_trainer(config, folder, callbacks, loggers, _block_classes(method), method.own_steps)
    others = _beside(config)
    module = TransferModule(method, data, config, tests, others)

    device, prepared_on = device_of(config["hardware"]), _prepared_on(config)
    context = _context(config, run.backbones, folder, sources, data)
    context.batches = _batches(config, data, prepared_on)
    context.endless = _endless(config, data, prepared_on)
    context.work = work = ResumedWork(folder, config["seed"], settings, memory)
    context.beside = {name: _batches(config, other, prepared_on) for name, other in others.items()}
    method.take_sources(context.load_source)
    resume = checkpoints.last if checkpoints.last.is_file() else None
    if resume is not None:
        check_saved(resume, "The checkpoint that this run would go on from", AGAIN)
    if resume is None:
        _prepare(method.to(prepared_on), context, prepared_on, memory)
        hand_over(method, config, sources, context.log)
    else:
        LOG.info("going on from %s", resume)
        method.to(prepared_on).resume(context)
    pack(method.backbone)
    method.to(device)
    if method.trains and resume is None:
        check_last_batch(method, data, config, trainer.world_size)
    context.batches = _batches(config, data, device)
    if config["cache"]["taps"] != "none":
        method.backbone.answer_from(open_replay(config, method, data))
    seconds = _fit(trainer, module, ledger, resume)
    whole_again(trainer, module)
    if checkpoints.keep_best and checkpoints.best_path.is_file():
        _load_weights(module, checkpoints.best_path)
    method.settle()
    if method.tests and module.tested:
        trainer.test(module, verbose=False)
        whole_again(trainer, module)
    if trainer.is_global_zero:
        data.notes += skips.notes() if skips else []
        _record(run, config, folder, module, trainer, context, seconds, memory)
        work.close()


def _read(config: dict[str, Any], folder: Path) -> tuple[DataModule, dict[str, DataModule]]:
    """The run's data set and its further test sets, read."""
    data = build_data(config["dataset"], config["backbone"], config["seed"])
    data.setup()
    chooses = config["trainer"]["select"] == "best" or config["trainer"]["patience"]
    if chooses and "validation" not in data.sizes:
        raise UserError(
            "There is no validation split to choose by.",
            where="trainer.select, trainer.patience",
            remedy="trainer.select=last trainer.patience=null, or give the data one (dataset.split_shares.validation)",
        )
    tests = build_tests(data)
    data.notes += [f"{name}: {note}" for name, test in tests.items() for note in test.notes]
    LOG.info("run %s", folder)  # data that are refused begin none
    for note in data.notes:
        LOG.info("%s", note)
    return data, tests


def _build(config: dict[str, Any], sources: dict[str, Path], data: DataModule) -> Method:
    backbone = build_backbone(
        starting_backbone(config, sources),
        weights=method_needs_weights(config),
        checkpointing=config["hardware"]["activation_checkpointing"],
        loss_chunk=config["hardware"].get("loss_chunk"),
    )
    return build_method(config["method"], backbone, data.task)


def _beside(config: dict[str, Any]) -> dict[str, DataModule]:
    """The data sets that every training step reads beside the run's own, by name."""
    found = build_beside(config["dataset"], config["backbone"], config["seed"])
    for name, data in found.items():
        data.setup()
        for note in data.notes:
            LOG.info("%s: %s", name, note)
    return found


def _prepare(method: Method, context: Context, device: torch.device, memory: MemoryCallback | None) -> None:
    """What the method does before the first step, followed where it does anything."""
    followed = memory is not None and type(method).prepare is not Method.prepare
    with memory.preparing(method, device) if followed and memory else nullcontext():
        method.prepare(context)


def _block_classes(method: Method) -> set[type[nn.Module]]:
    backbone = method.backbone
    return {type(block) for stack in backbone.stacks for block in backbone.blocks(stack)}


def _witnesses(
    config: dict[str, Any], folder: Path, better: Better
) -> tuple[Checkpoints, MemoryCallback | None, MetricsCsv]:
    """What watches the training and writes it down."""
    settings = config["trainer"]
    checkpoints = Checkpoints(
        folder / CHECKPOINTS,
        settings["checkpoint_every"],
        settings["checkpoint_minutes"],
        Selection(better, settings["patience"]),
        keep_best=settings["select"] == "best",
        validate_steps=settings["validate_steps"],
    )
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    memory = MemoryCallback(settings["tracked_steps"]) if config["profiler"]["memory"] else None
    return checkpoints, memory, MetricsCsv(folder / METRICS)


def method_needs_weights(config: dict[str, Any]) -> bool:
    """Pretraining starts from random weights, whatever the backbone's config names."""
    return bool(config["method"]["about"].get("pretrained", True))


def _context(
    config: dict[str, Any],
    backbones: Backbones,
    folder: Path,
    sources: dict[str, Path],
    data: DataModule,
) -> Context:
    return Context(
        config["seed"],
        folder,
        _batches(config, data, device_of(config["hardware"])),
        sources,
        partial(LOG.info, "%s"),
        batch_size=config["dataset"]["batch_size"],
        candidates={
            words: partial(_candidate, config, resolved_backbone(dict(backbone), sources, f"{key}.{words}"))
            for key, nodes in backbones.items()
            for words, backbone in nodes.items()
        },
        load_source=lambda name: source_model(name, sources, config, data.task).to(device_of(config["hardware"])),
        load_data=partial(_source_data, sources),
        source_config=lambda name: config_with_data(sources[name]),
        sizes=data.sizes,
        data=data,
        found=recorded_runs(config),
    )


def _source_data(sources: dict[str, Path], name: str) -> DataModule:
    """The whole data set that the source run `name` was fitted on, as its backbone reads it."""
    folder = sources.get(name)
    if folder is None or not is_run(folder):
        raise UserError(
            f"The run needs a source {name!r}."
            if folder is None
            else f"The source {name!r} is no run, so it says nothing of the data it was fitted on.",
            where=f"sources.{name}",
            remedy=f'sources.{name}="method=pretrain dataset=..."',
        )
    values = config_with_data(folder)
    data = build_data({**values["dataset"], "rows": None}, values["backbone"], values["seed"])
    data.setup()
    return data


def _prepared_on(config: dict[str, Any]) -> torch.device:
    """A backbone that the GPU need not hold whole is not there while the method is prepared, either."""
    return torch.device("cpu") if prepared_on_cpu(config["backbone"]) else device_of(config["hardware"])


def _batches(config: dict[str, Any], own: DataModule, device: torch.device) -> Callable[..., Iterator[Batch]]:
    """(split, batch_size) -> one pass over the split, on `device`; of `own` unless `data` is another one."""

    def batches(split: str, batch_size: int, data: DataModule = own) -> Iterator[Batch]:
        for batch in followed_in_part(data.loader(split, batch_size=batch_size, seed=config["seed"])):
            yield {name: tensor.to(device) for name, tensor in batch.items()}

    return batches


def _read_quietly(batches: Iterator[Batch]) -> Batch | None:
    """The next batch: a loader draws a number when it begins, which must not move those of the step that reads it."""
    with torch.random.fork_rng(devices=[]):
        return next(batches, None)


def _endless(config: dict[str, Any], own: DataModule, device: torch.device) -> Callable[..., Iterator[Batch]]:
    """(split, batch_size, first) -> endless passes over the split from a batch on, each in its own order."""

    def drawn(split: str, batch_size: int, first: int, data: DataModule, augment: bool) -> Iterator[Batch]:
        loader = data.loader(split, batch_size=batch_size, seed=config["seed"], shuffle=True, augment=augment)
        while True:
            loader.set_epoch(first // len(loader))
            loader.start_at(first % len(loader))
            reading = iter(loader)
            while (batch := _read_quietly(reading)) is not None:
                yield {name: tensor.to(device) for name, tensor in batch.items()}
                first += 1

    def endless(
        split: str, batch_size: int, first: int, data: DataModule = own, augment: bool = False
    ) -> Iterator[Batch]:
        return followed_in_part(drawn(split, batch_size, first, data, augment))

    return endless


def _candidate(config: dict[str, Any], backbone: dict[str, Any]) -> Candidate:
    """A backbone of the pool, and the run's dataset through its tokenizer or image transform."""
    data = build_data(config["dataset"], backbone, config["seed"])
    return Candidate(build_backbone(backbone), _batches(config, data, device_of(config["hardware"])))


def _fit(trainer: pl.Trainer, module: TransferModule, ledger: Ledger, resume: Path | None) -> dict[str, float]:
    """Fit; seconds of training over all starts; samples a second."""
    if not module.method.trains:
        return {"fit_seconds": 0.0, "samples_per_second": 0.0}
    _note_unvalidated(module)
    ledger.begin()
    try:
        trainer.fit(module, ckpt_path=resume, weights_only=True if resume else None)
    except Interrupted as error:
        raise KeyboardInterrupt from error
    spent = ledger.seconds
    samples = module.samples * trainer.world_size  # every process reads as many rows as the others
    return {"fit_seconds": round(spent, 3), "samples_per_second": round(samples / max(spent, 1e-9), 3)}


def _note_unvalidated(module: TransferModule) -> None:
    """Say where training ends before its first validation, and there will be nothing to choose by."""
    settings, rows = module.config["trainer"], module.data.sizes["train"]
    if settings["select"] != "best" and settings["patience"] is None:
        return
    steps = -(-rows // (module.config["dataset"]["batch_size"] * settings["accumulate"]))  # of an epoch, at most
    first = settings["validate_steps"] or settings["validate_every"] * steps
    last = settings["max_steps"] or settings["max_epochs"] * steps
    if last < first:
        LOG.info(
            "training ends after step %s, before its first validation after step %s: the last weights are kept "
            "(trainer.validate_steps=N validates earlier)",
            last,
            first,
        )


def _load_weights(module: TransferModule, checkpoint: Path) -> None:
    module.load_state_dict(read_saved(checkpoint, "The best checkpoint of this run", AGAIN)["state_dict"])
