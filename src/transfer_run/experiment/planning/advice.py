"""What would lower the peak: every change is planned as the run is, and what it saves is what the plans differ by.

    the run's plan ──> changes that could save a twentieth of the peak ──> a plan of each ──> + lines, - lines

Nothing is estimated. A change that the method or the backbone refuses is not mentioned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transfer_run.backbones.declared import family_of, takes
from transfer_run.data.load import build_task
from transfer_run.data.text.lengths import source_length
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.composed import Run
from transfer_run.memory.report import amount
from transfer_run.methods.form import find_form

CHUNK = 1024
LOSS_CHUNK = f"hardware.loss_chunk={CHUNK}"
"""Tokens whose logits over a vocabulary are made at once: a matrix product of this height keeps a GPU busy."""
WORTH = 0.05
"""Share of the peak from which on a saving is worth a line."""


@dataclass(frozen=True)
class Change:
    """One change of a run's words.

    Attributes:
        words: as on the command line.
        run: the run with it.
        at_most: bytes of what it could touch at the peak.
        price: what it costs, if not memory.
    """

    words: str
    run: Run
    at_most: int
    price: str = ""


def advise(run: Run, memory: Mapping[str, Any], through_backbone: bool, peak_of: Callable[[Run], int]) -> list[str]:
    """Lines for the report, what saves most first, then what would not help.

    Args:
        memory: the run's own plan.
        through_backbone: does backward visit the backbone's blocks?
        peak_of: bytes of a changed run; UserError where it cannot be.
    """
    peak, paper = int(memory["peak"]), run.config["plan"]["profile"] == "paper"
    found = []
    for change in changes(run, memory["by_kind"], through_backbone):
        if change.at_most < WORTH * peak:
            continue
        try:
            found.append((peak - peak_of(change.run), change))
        except UserError:
            continue  # not for this method, or not on this backbone
    found.sort(key=lambda each: -each[0])
    lines = []
    for saved, change in found:
        needs = amount(peak - saved, paper)
        if saved >= WORTH * peak:
            price = f", {change.price}" if change.price else ""
            lines.append(f"+ {change.words}: {needs}, {amount(saved, paper)} less{price}")
        else:
            lines.append(f"- {change.words} would not help: {needs}")
    return lines


def changes(run: Run, kinds: Mapping[str, int], through_backbone: bool) -> Iterator[Change]:
    """Changes that users try, each with the most that it could save at the peak."""
    config = run.config
    hardware, backbone, batch = config["hardware"], config["backbone"], int(config["dataset"]["batch_size"])
    growing = kinds["activations"] + kinds["inputs"] + kinds["other"]
    states = kinds["gradients"] + kinds["optimizer"]
    if batch > 1:
        half = run.changed(dataset={"batch_size": batch // 2})
        yield Change(f"dataset.batch_size={batch // 2}", half, growing)
    if not hardware["activation_checkpointing"]:
        again = run.changed(hardware={"activation_checkpointing": True})
        yield Change("hardware.activation_checkpointing=true", again, kinds["activations"], "for more time")
    if hardware.get("loss_chunk") is None and _words_of_a_loss(config) > CHUNK:
        chunked = run.changed(hardware={"loss_chunk": CHUNK})
        yield Change(LOSS_CHUNK, chunked, kinds["activations"] + kinds["other"], "for more time")
    for precision in {"32-true": ("bf16-mixed", "bf16-true")}.get(str(hardware["precision"]), ("bf16-true",)):
        if precision != hardware["precision"]:
            price = "with trained weights in half precision" if precision == "bf16-true" else ""
            shorter = run.changed(hardware={"precision": precision})
            yield Change(f"hardware.precision={precision}", shorter, sum(kinds.values()), price)
    yield from _kept_smaller(run, kinds, backbone)
    if not config["trainer"]["grads_to_none"]:
        yield Change("trainer.grads_to_none=true", run.changed(trainer={"grads_to_none": True}), kinds["gradients"])
    if config["optimizer"]["name"] == "adamw":
        yield Change("optimizer=adamw_fused", _other(run, "optimizer", "adamw_fused"), kinds["other"])
    if config["optimizer"]["name"] != "adafactor":
        yield Change("optimizer=adafactor", _other(run, "optimizer", "adafactor"), kinds["optimizer"])
    if config["method"]["about"]["shape"] == "tune" and config["method"]["about"].get("pretrained", True):
        if through_backbone:
            for name in _methods_that_save("activations", run)[:1]:
                yield Change(f"method={name}", _other(run, "method", name), kinds["activations"])
        for name in _methods_that_save("states", run)[:1]:
            yield Change(f"method={name}", _other(run, "method", name), states)


def _words_of_a_loss(config: Mapping[str, Any]) -> int:
    """Places whose logits over a vocabulary one loss is of; 0 where a fresh head answers."""
    dataset, backbone = config["dataset"], config["backbone"]
    form = find_form(family_of(backbone).form(dataset))
    if not form.speaks:
        return 0
    length = build_task(dataset, backbone).max_target_length if form.writes else source_length(dataset, backbone)
    return int(dataset["batch_size"]) * int(length)


def _kept_smaller(run: Run, kinds: Mapping[str, int], backbone: Mapping[str, Any]) -> Iterator[Change]:
    """The frozen weights in fewer bits, or elsewhere."""
    weights = kinds["parameters"] + kinds["activations"]  # mixed precision keeps half copies of them
    if not backbone.get("load"):
        yield Change("backbone.load=bf16", run.changed(backbone={"load": "bf16"}), weights)
    if backbone.get("load") in (None, "bf16") and not backbone.get("offload"):
        yield Change("backbone.load=nf4", run.changed(backbone={"load": "nf4"}), weights, "with 4-bit weights")
    if not backbone.get("offload"):
        away = run.changed(backbone={"offload": "cpu"})
        yield Change("backbone.offload=cpu", away, kinds["parameters"], "for more time")


def _other(run: Run, group: str, name: str) -> Run:
    """The run with another method or optimizer as its file has it; a rate of the optimizer's own goes on."""
    node = dict(registry.entry(group, name, run.search_path).content[group]) | {"name": name}
    return replace(run, config={**run.config, group: {**run.config[group], **node} if group == "optimizer" else node})


def _methods_that_save(what: str, run: Run) -> list[str]:
    """Other methods on the run's backbone that are well known to save this (`about.saves`)."""
    backbone = family_of(run.config["backbone"])
    about = {e.name: e.content["method"]["about"] for e in registry.entries("method", run.search_path)}
    fits = (name for name, says in about.items() if says.get("saves") == what and takes(says, backbone))
    return [name for name in fits if name != run.chosen("method")]
