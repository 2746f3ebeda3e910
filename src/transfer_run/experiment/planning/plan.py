"""The plan of a run: how much memory it will need, without GPU, weights, data or network."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from rich.console import Group
from torch import Tensor

from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.quantised import QUANTISED, pack
from transfer_run.data.load import batch_spec, build_task
from transfer_run.data.text.lengths import cut_lengths
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.planning.advice import advise
from transfer_run.experiment.planning.least import Least, least_change
from transfer_run.experiment.record.parameters import count_parameters
from transfer_run.experiment.sources.combine import memory_of_files, planned_on_first_source
from transfer_run.experiment.sources.models import source_on_meta
from transfer_run.hardware.optimization import build_optimizers
from transfer_run.hardware.steps import check_own_steps
from transfer_run.memory.budget import Budget, Room, largest_batch, room
from transfer_run.memory.devices import one_of_many
from transfer_run.memory.fake import AnswersNo, fake_mode, make_fake
from transfer_run.memory.meters import PREPARE
from transfer_run.memory.paper import attend_eagerly
from transfer_run.memory.planner import Rehearsal, Setting, Shapes
from transfer_run.memory.report import amount, memory_report
from transfer_run.memory.sharded import Units
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method, on_meta
from transfer_run.task import ROWS

Target = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        memory: as in `result.json`, source `plan`; of one device.
        report: tables and reasons, for `rich.console.Console.print`; of the largest batch that fits, if that was asked.
        seconds: what planning took.
        parameters: `total`, `trainable`, `trainable_pct`.
        shapes: the planned batch of one device, name -> (shape, dtype).
        batch_size: examples over all devices.
        left_out: what of `Method.prepare` is in no number, a line each.
        budget: the answer to `plan.budget` or `plan.card`, of one device; None when neither was asked.
        room: what that answer had to fit into.
        assumptions: what was planned otherwise than the run's words say, or taken for granted.
        advise: plans what would lower the peak, lines for people; takes a plan's time for each of them.
        least: plans the least change with which the batch asked for fits the room; None where it fits, or no room
            is given.
    """

    memory: dict[str, Any]
    report: Group
    seconds: float
    parameters: dict[str, float]
    shapes: Shapes
    batch_size: int
    budget: Budget | None = None
    room: Room | None = None
    left_out: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    advise: Callable[[], list[str]] = list
    least: Callable[[], Least | None] = lambda: None


def plan_run(run: Run, target: Target | None = None) -> Plan:
    """Plan a run.

    Args:
        target: whose memory is predicted; default: the CPU's for `hardware=cpu`, else a GPU's.

    Raises:
        UserError: the parts do not fit together, or `plan.budget` is no amount of memory.
    """
    begin = time.perf_counter()
    if not run.has_data:
        found = planned_on_first_source(run)
        if found is None:
            return _plan_of_files(run, begin)
        run = found
    config = run.config
    wanted = room(config["plan"], _setting(config, target).target)
    with torch.random.fork_rng(devices=[]):
        planned = _Planned(run, target)
        share = -(-config["dataset"]["batch_size"] // planned.devices)
        memory = planned.memory(share)
        fixed = memory["peak"] - memory["by_kind"]["activations"] - memory["by_kind"]["inputs"]
        budget = largest_batch(planned.peak, wanted.usable, share, fixed) if wanted else None
        shown = share if budget is None else max(1, budget.batch_size)
        reported = planned.memory(shown)
    assumed = tuple(line for line in (*planned.profile, *planned.given, *planned.assumptions) if line)
    notes = [f"* {line}" for line in (*planned.beside, *assumed, *planned.left_out)]
    if budget is not None and wanted is not None:
        notes += _budget_lines(budget, planned, wanted, share)
    report = Group(memory_report(reported, planned.title(shown), planned.setting.paper), *notes)
    seconds = round(time.perf_counter() - begin, 3)
    total = config["dataset"]["batch_size"]
    left_out = tuple(planned.left_out)
    return Plan(
        memory, report, seconds, planned.parameters, planned.shapes(share), total, budget, wanted, left_out, assumed,
        lambda: _advice(run.changed(dataset={"batch_size": shown * planned.devices}), planned, reported, target),
        lambda: _least(run, planned, memory, target, wanted),
    )  # fmt: skip


def _advice(run: Run, planned: _Planned, memory: Mapping[str, Any], target: Target | None) -> list[str]:
    """See `planning/advice.py`."""
    return advise(run, memory, planned.through_backbone, _peak_of(run, planned, target))


def _least(run: Run, planned: _Planned, memory: Mapping[str, Any], target: Target | None,
           wanted: Room | None) -> Least | None:  # fmt: skip
    """See `planning/least.py`."""
    if wanted is None or memory["peak"] <= wanted.usable:
        return None
    return least_change(run, memory, planned.through_backbone, _peak_of(run, planned, target), wanted.usable)


def _peak_of(run: Run, planned: _Planned, target: Target | None) -> Callable[[Run], int]:
    """Bytes of a change of the run, planned as the run is."""

    def peak_of(changed: Run) -> int:
        with torch.random.fork_rng(devices=[]):
            share = -(-changed.config["dataset"]["batch_size"] // planned.devices)
            other = any(changed.config[n] != run.config[n] for n in run.config if n != "dataset")
            return (_Planned(changed, target) if other else planned).peak(share)

    return peak_of


def _plan_of_files(run: Run, begin: float) -> Plan:
    """Checkpoints are merged as files: pieces of them are in memory, on the CPU, whatever the models' size."""
    memory, lines = memory_of_files(run)
    report = Group(*lines)
    counts = {"total": 0, "trainable": 0, "trainable_pct": 0.0}
    return Plan(
        memory, report, round(time.perf_counter() - begin, 3), counts, {}, int(run.config["dataset"]["batch_size"])
    )


def inference_memory(run: Run, batch_size: int = 1, target: Target | None = None) -> dict[str, Any]:
    """The memory of one prediction alone, weights included, as in `result.json` (papers' inference columns)."""
    with torch.random.fork_rng(devices=[]):
        return _Planned(run, target, trains=False).memory(batch_size)


def parameter_counts(run: Run) -> dict[str, float]:
    """How many parameters the run trains, from shapes alone; no step is rehearsed.

    `total` and `trainable` of the method on its backbone; `counted`: trainable without the task's fresh head, as
    papers count; `backbone`: the pretrained model by itself; in per cent: `trainable_pct` of the total, and
    `trainable_of_backbone`, `counted_of_backbone`.
    """
    with torch.random.fork_rng(devices=[]):
        method = _method_on_meta(run, paper=run.config["plan"]["profile"] == "paper")
        with torch.device("meta"):
            alone = build_backbone(run.config["backbone"], weights=False, device="meta")
    backbone = sum(p.numel() for p in alone.model.parameters())
    counts = count_parameters(method) | {"counted": method.counted_parameters(), "backbone": backbone}
    shares = {f"{name}_of_backbone": 100 * counts[name] / backbone for name in ("trainable", "counted")}
    return counts | shares


@contextmanager
def method_without_values(run: Run, shapes: Shapes) -> Iterator[tuple[Method, dict[str, Tensor]]]:
    """The method and a batch on fake tensors, attention written out, while the context lasts (for counting)."""
    method, mode = _method_on_meta(run, paper=False), fake_mode()
    make_fake(method, mode)
    attend_eagerly(method)
    with mode, AnswersNo():
        yield method, {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}


def prepared_on_cpu(backbone: Mapping[str, Any]) -> bool:
    """A backbone that the GPU need not hold whole is not there while the method is prepared, either."""
    return bool(backbone.get("offload") or backbone.get("load") in QUANTISED)


class _Planned:
    """A run's method, rehearsed on fake tensors.

    Args:
        target: as in `plan_run`.
        trains: False leaves training out.
    """

    def __init__(self, run: Run, target: Target | None, trains: bool = True) -> None:
        self.config = config = run.config
        self.setting = _setting(config, target)
        if self.setting.target == "cpu" and config["backbone"].get("load") in QUANTISED:
            raise UserError(
                "8- and 4-bit weights need a CUDA GPU, and the plan is asked for a CPU.",
                where=f"backbone.load={config['backbone']['load']}, hardware.accelerator=cpu",
                remedy="leave hardware=cpu out, or set backbone.load=bf16",
            )
        self.devices, self.strategy = _spread(config)
        self.given = [*cut_lengths(config["dataset"], config["backbone"]), *_shares(config, self.devices)]
        self.assumptions: list[str] = []
        self.profile = [_paper_line(config)] if self.setting.paper else []
        self.unplanned = ""
        self._known: dict[int, dict[str, Any]] = {}
        method = _method_on_meta(run, paper=self.setting.paper)
        check_own_steps(method, config["method"]["name"], {**config["hardware"], "strategy": self.strategy})
        node = config["optimizer"]
        blocks = [b for stack in method.backbone.stacks for b in method.backbone.blocks(stack)]
        self.parameters = count_parameters(method)
        pack(method.backbone, planned=True)
        self.numbered = method.reads_row_numbers
        rehearsed = trains and self._rehearses(method)
        official = config["method"].get("memory_mode") == "official"  # released code keeps the frozen blocks' graph
        self.through_backbone = method.needs_backbone_gradient or official
        self.rehearsal = Rehearsal(
            method, lambda: build_optimizers(method.optimizers(node, 1), node), self.shapes, self.setting,
            trains=trains and method.trains, prepares=rehearsed,
        )  # fmt: skip
        self.beside = beside_the_model(method)
        self.units = Units.of(method, blocks)

    def shapes(self, batch_size: int) -> Shapes:
        spec: Shapes = batch_spec(self.config["dataset"], self.config["backbone"], batch_size, self.devices)
        if self.config["plan"]["padded"] and "input_ids" in spec:
            spec = {"attention_mask": spec["input_ids"], **spec}
        return {**spec, ROWS: ((batch_size,), torch.int64)} if self.numbered else spec

    def memory(self, batch_size: int) -> dict[str, Any]:
        """The `memory` node at this batch on each device; one batch is rehearsed once."""
        if batch_size not in self._known:
            self._known[batch_size] = self._rehearsed(batch_size)
        return self._known[batch_size]

    def _rehearsed(self, batch_size: int) -> dict[str, Any]:
        memory = self.rehearsal.measure(batch_size).as_dict("plan")
        if self.devices > 1:
            memory, self.assumptions = one_of_many(
                memory, self.devices, self.strategy, self.units, self.rehearsal.tracker.allocations,
                ahead=self.setting.target == "cuda",
            )  # fmt: skip
        memory["predicted_peak"] = memory["peak"]
        if self.unplanned:
            memory["not_planned"] = [PREPARE]
        return memory

    def _rehearses(self, method: Method) -> bool:
        """Can the plan tell what the method needs before its first step? If not, `unplanned` says why."""
        if type(method).prepare is Method.prepare or self.setting.paper:  # the papers' counters begin at the first step
            return False
        backbone, half = self.config["backbone"], self.setting.dtype is not None and not self.setting.mixed
        if self.setting.target == "cuda" and prepared_on_cpu(backbone):
            return False
        if half:
            self.unplanned = f"method={self.config['method']['name']} prepares in single precision"
        elif type(method).rehearse is Method.rehearse:
            self.unplanned = f"method={self.config['method']['name']} works on data or weights before the first step"
        return not self.unplanned

    @property
    def left_out(self) -> list[str]:
        """What of `Method.prepare` is in no number."""
        lines = [f"{PREPARE} is in no number: {self.unplanned}"] if self.unplanned else []
        return lines + [f"{PREPARE}, in no number: {line}" for line in self.rehearsal.left_out]

    def peak(self, batch_size: int) -> int:
        return int(self.memory(batch_size)["peak"])

    def title(self, batch_size: int) -> str:
        names = (self.config[group]["name"] for group in ("method", "backbone", "dataset"))
        each = f" a device, one of {self.devices} ({self.strategy})" if self.devices > 1 else ""
        where = "a GPU" if self.setting.target == "cuda" else "the CPU"
        return f"{' / '.join(names)}: batch {batch_size}{each}, {self.setting.precision}, on {where}"


def _setting(config: Mapping[str, Any], target: Target | None) -> Setting:
    hardware, trainer = config["hardware"], config["trainer"]
    setting = Setting(
        target=target or ("cpu" if hardware["accelerator"] == "cpu" else "cuda"),
        precision=str(hardware["precision"]),
        gradient_clip=trainer["gradient_clip"],
        accumulate=trainer["accumulate"],
        grads_to_none=trainer["grads_to_none"],
        use_cache=trainer["use_cache_in_training"],
        expandable_segments=config["plan"]["expandable_segments"],
    )
    return setting.as_paper() if config["plan"]["profile"] == "paper" else setting


def _spread(config: Mapping[str, Any]) -> tuple[int, str]:
    """Devices and strategy: those of `plan`, else those of `hardware`."""
    plan, hardware = config["plan"], config["hardware"]
    devices = plan["devices"] if plan["devices"] > 1 else hardware["devices"] * hardware["nodes"]
    strategy = plan["strategy"] or hardware["strategy"]
    return int(devices), "fsdp" if strategy == "fsdp" else "ddp"


def _shares(config: Mapping[str, Any], devices: int) -> list[str]:
    """What becomes of words on devices that do not go together as given."""
    total, lines = int(config["dataset"]["batch_size"]), []
    if total % devices:
        share = -(-total // devices)
        lines.append(
            f"dataset.batch_size={total} does not divide among {devices} devices: planned are {share} on each, "
            f"{share * devices} in all; a run is refused"
        )
    if config["plan"]["strategy"] and devices == 1:
        lines.append(f"plan.strategy={config['plan']['strategy']} changes nothing on one device: set plan.devices=N")
    return lines


def _method_on_meta(run: Run, *, paper: bool) -> Method:
    """The method on its backbone, without memory; with the overrides of its own paper's memory setting if asked."""
    config, settings = run.config, dict(run.config["method"])
    if paper:
        own = _nested(paper_settings(config))
        settings = OmegaConf.to_container(OmegaConf.merge(settings, own))  # type: ignore[assignment]
    task = build_task(config["dataset"], config["backbone"])

    def build() -> Method:
        checkpointing = config["hardware"]["activation_checkpointing"]
        chunk = config["hardware"].get("loss_chunk")  # runs of earlier versions have none
        backbone = build_backbone(
            config["backbone"], weights=False, device="meta", checkpointing=checkpointing, loss_chunk=chunk
        )
        method = build_method(settings, backbone, task)
        method.take_sources(lambda name: source_on_meta(name, run, task))
        return method

    return on_meta(build)


def paper_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the paper profile sets of the method (`about.paper_profile`), by dotted key; what the run's words or its
    experiment have changed stays as they say."""
    method = config["method"]
    own = method["about"].get("paper_profile") or {} if config["plan"].get("paper_method", True) else {}
    entries = registry.entries("method", [Path(folder) for folder in config.get("search_path", [])])
    default = next((e.content["method"] for e in entries if e.name == method["name"]), method)
    return {key: value for key, value in own.items() if OmegaConf.select(OmegaConf.create(method), key)
            == OmegaConf.select(OmegaConf.create(default), key)}  # fmt: skip


def _paper_line(config: Mapping[str, Any]) -> str:
    """The settings that the paper profile plans with, which a run of the same words would not have."""
    words = ", ".join(f"method.{key}={str(value).lower()}" for key, value in paper_settings(config).items())
    return f"as in the paper's memory setting: {words} (plan.paper_method=false plans without)" if words else ""


def beside_the_model(method: Method) -> list[str]:
    """What a method keeps or trains beside the model that it ships, a line for each: copies, critics, projectors."""
    lines = []
    for name in sorted(method.held):
        tensors = [*method.get_submodule(name).parameters(), *method.get_submodule(name).buffers()]
        held = amount(sum(t.numel() * t.element_size() for t in tensors))
        lines.append(f"{name}: a frozen copy of {held}, counted as weights without gradients or optimizer states")
    shipped, extra = method.shipped().keys(), Counter[str]()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad and name not in shipped:
            extra[name.split(".")[0]] += parameter.numel()
    lines += [f"{name}: {count:,} parameters are trained and counted, not exported" for name, count in extra.items()]
    return lines


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{a.b: 1}` as `{a: {b: 1}}`."""
    nested = OmegaConf.create()
    for key, value in overrides.items():
        OmegaConf.update(nested, key, value)
    return OmegaConf.to_container(nested)  # type: ignore[return-value]


def _budget_lines(budget: Budget, planned: _Planned, wanted: Room, asked: int) -> list[str]:
    """The answer, and what the batch needs that the run's words ask for."""
    paper = planned.setting.paper
    if not budget.batch_size:
        return [f"> not even one example fits {wanted.words}: it needs {amount(budget.peak, paper)}"]
    more = "" if budget.next_peak is None else f"; one more needs {amount(budget.next_peak, paper)}"
    over = f" a device ({budget.batch_size * planned.devices} in all)" if planned.devices > 1 else ""
    found = f"{budget.batch_size}{over}, with {amount(budget.peak, paper)} allocated{more}"
    lines = [f"> the largest batch that fits {wanted.words}: {found}"]
    if asked != budget.batch_size:
        lines.append(f"> the batch of {asked} that was asked for needs {amount(planned.peak(asked), paper)}")
    return lines
