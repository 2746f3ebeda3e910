"""Measure the peak memory of training steps on a GPU and compare it with the plan of the same words.

    python scripts/validate_memory.py                     on CUDA: one JSON, a table, a picture; some minutes
    python scripts/validate_memory.py --list              the configurations with their plans; no GPU needed
    python scripts/validate_memory.py --device cpu --tiny the same code on tiny backbones, measured by the tracker
    python scripts/validate_memory.py --device cpu --real on the two real backbones that a laptop trains in seconds

Weights are random, batches are made up, nothing is read from the network. Plans are made in processes of their own,
measurements one after the other in this one. Exit code 1: something broke, or the time ran out (`complete` is then
false in the JSON); 2: there is no CUDA device.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

TEXT, TEXT_TO_TEXT, IMAGES = "dataset=glue/rte dataset.answers=head", "dataset=glue/rte", "dataset=vtab/cifar100"
SHORT = "dataset=python_docs dataset.max_source_length=32"
PAIRS = (
    ("t5-base", TEXT_TO_TEXT, (8, 16, 32), ("lst", "unipt", "sherl", "lora", "adapter", "full")),
    ("t5-large", TEXT_TO_TEXT, (4, 8, 16), ("lst", "unipt", "sherl", "lora", "adapter")),
    ("bert-base-uncased", TEXT, (8, 16, 32), ("lst", "unipt", "sherl", "lora", "adapter", "full")),
    ("vit_base_patch16_224", IMAGES, (16, 32, 64), ("lst", "unipt", "sherl", "hst", "vqt", "lora", "adapter", "full")),
    ("openai/clip-vit-base-patch32", IMAGES, (32, 64, 128), ("unipt", "sherl", "hst", "vqt", "lora", "full")),
    ("sentence-transformers/all-MiniLM-L6-v2", SHORT, (8, 16), ("lst", "unipt", "vqt", "lora", "full")),
    ("mobilenetv2_100", IMAGES, (4, 8), ("linear_probe", "unipt", "full")),
)
"""Backbone, data, two or three batch sizes, methods."""
REAL = ("sentence-transformers/all-MiniLM-L6-v2", "mobilenetv2_100")
"""Real ones that are small enough for a CPU as they are."""
TINY = {
    "t5-base": "backbone=t5_tiny dataset=python_docs dataset.answers=digits",
    "t5-large": "backbone=t5_tiny dataset=python_docs dataset.answers=names",
    "bert-base-uncased": "backbone=bert_tiny dataset=python_docs",
    "vit_base_patch16_224": "backbone=vit_tiny dataset=digits",
    "openai/clip-vit-base-patch32": "backbone=clip_tiny dataset=digits",
}
TINY_BATCHES = (2, 4, 8)
PRECISIONS = ("32-true", "bf16-mixed")
STEPS = 3
"""Optimizer states exist from the second step on, kept blocks have settled by the third."""


@dataclass
class Point:
    """One configuration: what the plan says and what was measured, in bytes, as a whole and by phase."""

    words: list[str]
    predicted: int | None = None
    predicted_phases: dict[str, int] = field(default_factory=dict)
    measured: int | None = None
    measured_phases: dict[str, int] | None = None
    difference: float | None = None
    error: str = ""


def configurations(tiny: bool = False, real: bool = False) -> Iterator[list[str]]:
    """Words of every configuration: each method and backbone at its batch sizes, the precisions taking turns.

    Args:
        tiny: those that have a tiny backbone, on it; real: those that a CPU carries out as they are.
    """
    for backbone, data, batches, methods in PAIRS:
        if (tiny and backbone not in TINY) or (real and backbone not in REAL):
            continue
        place = TINY[backbone] if tiny else f"backbone={backbone} {data}"
        for number, method in enumerate(methods):
            for size, batch in enumerate(TINY_BATCHES if tiny else batches):
                yield [f"method={method}", *place.split(), f"dataset.batch_size={batch}",
                       f"hardware.precision={PRECISIONS[(number + size) % 2]}", "backbone.weights=random",
                       "plan.profile=modern"]  # fmt: skip


def measure(words: Sequence[str], device: str) -> dict[str, Any]:
    """Train `STEPS` steps and predict once on `device`, as the runner does; the memory node of the last step."""
    import torch

    from transfer_run.backbones.load import backbone_class
    from transfer_run.data.load import batch_spec, build_task
    from transfer_run.experiment.config.compose import compose
    from transfer_run.hardware.optimization import build_optimizer
    from transfer_run.methods.build import build_method

    config: dict[str, Any] = dict(compose(list(words)).config)
    torch.manual_seed(0)
    with torch.device(device):
        backbone = backbone_class(config["backbone"]).from_architecture(config["backbone"])
        method = build_method(config["method"], backbone, build_task(config["dataset"], config["backbone"]))
        spec = batch_spec(config["dataset"], config["backbone"], config["dataset"]["batch_size"])
        batch = {name: _made_up(name, *entry) for name, entry in spec.items()}
    method.to(device)
    optimizer = build_optimizer(method.parameter_groups(), config["optimizer"]) if method.trains else None
    return _steps(method, optimizer, batch, config, device)


def _made_up(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """A tensor of a batch: one position is padding (masks are made of it), tokens and labels 0 or 1, pixels random."""
    import torch

    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype)
    if "mask" not in name:
        return torch.randint(0, 2, shape).to(dtype)
    mask = torch.ones(shape, dtype=dtype)
    mask[0, -1] = 0
    return mask


def _steps(method: Any, optimizer: Any, batch: Any, config: dict[str, Any], device: str) -> dict[str, Any]:
    import torch

    from transfer_run.memory.meters import CudaMeter, Meter, TrackerMeter

    half = config["hardware"]["precision"] == "bf16-mixed"

    def autocast() -> Any:
        return torch.autocast(device, dtype=torch.bfloat16) if half else nullcontext()

    parameters = [p for p in method.parameters() if p.requires_grad]
    gauge: Meter | None = None
    for step in range(STEPS if optimizer is not None else 0):
        method.train()
        if step == STEPS - 1:
            gauge = CudaMeter(method) if device == "cuda" else TrackerMeter(method)
            gauge.open("forward", batch.values(), [optimizer])
        with autocast():
            loss = method.training_loss(batch)
        if gauge:
            gauge.mark("backward")
        loss.backward()
        if gauge:
            gauge.mark("step")
        if config["trainer"]["gradient_clip"] is not None:
            torch.nn.utils.clip_grad_norm_(parameters, config["trainer"]["gradient_clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del loss
    assert gauge is not None
    gauge.close()
    gauge.open("evaluation", batch.values(), [optimizer])
    method.eval()
    with torch.inference_mode(), autocast():
        method.predict(batch)
    gauge.close()
    return gauge.report().as_dict(gauge.source)


def plan(words: Sequence[str], device: str) -> Point:
    """The configuration with its plan alone; what breaks it stands in `error`."""
    from transfer_run.experiment.config.compose import compose
    from transfer_run.experiment.planning.plan import plan_run

    try:
        memory = plan_run(compose(list(words)), target="cuda" if device == "cuda" else "cpu").memory
    except Exception as error:
        return Point(list(words), error=_said(error))
    phases = _phases(memory)
    return Point(list(words), max(phases.values()), phases)


def plans(chosen: Sequence[Sequence[str]], device: str) -> Iterator[Point]:
    """Every configuration's plan, in their order; a few of them are made here, many in processes of their own."""
    if len(chosen) < 4:
        yield from map(plan, chosen, repeat(device))
        return
    pool = ProcessPoolExecutor(max(2, os.cpu_count() or 2), multiprocessing.get_context("spawn"), _one_thread)
    try:
        yield from pool.map(plan, chosen, repeat(device))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _phases(memory: dict[str, Any]) -> dict[str, int]:
    """Peaks of the phases that `measure` goes through: what a method does before its first step is not among them."""
    wanted = ("forward", "backward", "step", "evaluation")
    return {name: memory["phases"][name]["peak"] for name in wanted if name in memory["phases"]}


def compare(point: Point, device: str) -> None:
    """Measure a planned configuration; what breaks it stands in `error`."""
    if point.predicted is None:
        return
    try:
        _clean(device)
        before = _allocated(device)
        memory = measure(point.words, device)
    except Exception as error:  # one configuration too large, or broken, is no reason to lose the others
        point.error = _said(error)
        return
    point.measured_phases = {name: peak - before for name, peak in _phases(memory).items()}
    point.measured = max(point.measured_phases.values())
    point.difference = point.predicted / point.measured - 1


def _clean(device: str) -> None:
    """Let go of the configuration before, its cuBLAS workspaces included: every one begins as a new process would."""
    import torch

    gc.collect()
    if device == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def _allocated(device: str) -> int:
    import torch

    return int(torch.cuda.memory_allocated()) if device == "cuda" else 0


def summary(points: Sequence[Point]) -> dict[str, Any]:
    """Median and worst absolute difference of the measured points."""
    measured = [point for point in points if point.difference is not None]
    if not measured:
        return {"points": 0}
    worst = max(measured, key=lambda point: abs(point.difference or 0.0))
    return {
        "points": len(measured),
        "median": statistics.median(abs(point.difference or 0.0) for point in measured),
        "worst": worst.difference,
        "worst_words": worst.words,
    }


def line(point: Point) -> str:
    """One configuration in one line, amounts in MiB."""
    name = " ".join(word.split("=")[1] for word in point.words if word.split("=")[0] in
                    ("method", "backbone", "dataset.batch_size", "hardware.precision"))  # fmt: skip
    planned = "-" if point.predicted is None else f"{point.predicted / 2**20:.1f}"
    text = f"{name:58} plan {planned:>9} MiB"
    if point.measured is not None and point.difference is not None:
        text += f"   measured {point.measured / 2**20:9.1f} MiB   {100 * point.difference:+6.1f} %"
    return text + (f"   {point.error}" if point.error else "")


def picture(points: Sequence[Point], path: Path) -> None:
    """Predicted against measured, a colour for each backbone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 6))
    unit, size = ("GiB", 2**30) if any((point.measured or 0) > 2**30 for point in points) else ("MiB", 2**20)
    backbones = list(dict.fromkeys(_word(point, "backbone") for point in points))
    for backbone in backbones:
        here = [point for point in points if _word(point, "backbone") == backbone and point.measured]
        x, y = [(p.measured or 0) / size for p in here], [(p.predicted or 0) / size for p in here]
        axis.scatter(x, y, s=26, alpha=0.8, label=backbone)
    low, high = axis.get_xlim()
    axis.plot([max(low, 0), high], [max(low, 0), high], color="0.6", linewidth=1, zorder=0)
    axis.set(
        xlabel=f"measured peak, {unit}",
        ylabel=f"predicted peak, {unit}",
        title="training memory: plan against measurement",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _word(point: Point, key: str) -> str:
    return next(word.partition("=")[2] for word in point.words if word.startswith(f"{key}="))


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 all measured, 1 some broke or the time ran out, 2 no CUDA device."""
    import torch

    flags = _read(arguments)
    every = list(configurations(flags.tiny, flags.real))
    chosen = [words for words in every if all(part in " ".join(words) for part in flags.only)][: flags.first]
    if flags.list:
        return _list(chosen, flags.device)
    if flags.device == "cuda" and not torch.cuda.is_available():
        print(f"There is no CUDA device: none of {len(chosen)} configurations was measured. --list shows their plans, "
              "--device cpu --tiny runs the same code on tiny backbones, --device cpu --real on real small ones.",
              file=sys.stderr)  # fmt: skip
        return 2
    begin = time.perf_counter()
    points: list[Point] = []
    for point in plans(chosen, flags.device):
        if time.perf_counter() - begin > 60 * flags.minutes:
            print(f"stopped after {flags.minutes} minutes: {len(points)} of {len(chosen)}", file=sys.stderr)
            break
        compare(point, flags.device)
        points.append(point)
        print(line(point), flush=True)
    complete = len(points) == len(chosen)
    _record(points, flags, time.perf_counter() - begin, complete)
    return 0 if complete and not any(point.error for point in points) else 1


def _list(chosen: Sequence[Sequence[str]], device: str) -> int:
    code = 0
    for point in plans(chosen, device):
        print(line(point), flush=True)
        code = 1 if point.error else code
    return code


def _record(points: Sequence[Point], flags: argparse.Namespace, seconds: float, complete: bool) -> None:
    from transfer_run.experiment.record.log import environment
    from transfer_run.files import write_json

    found = summary(points)
    out = Path(flags.out)
    content = {
        "schema": 1,
        "unit": "bytes",
        "device": flags.device,
        "tiny": flags.tiny,
        "real": flags.real,
        "complete": complete,
        "seconds": round(seconds, 1),
        "environment": environment(),
        "summary": found,
        "points": [asdict(point) for point in points],
    }
    write_json(out, content)
    if found["points"]:
        picture(points, out.with_suffix(".png"))
        print(f"{found['points']} points: median difference {100 * found['median']:.1f} %, "
              f"worst {100 * found['worst']:+.1f} % ({' '.join(found['worst_words'][:3])})")  # fmt: skip
    print(f"{out} ({seconds:.0f} s)")


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the configurations with their plans")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--tiny", action="store_true", help="tiny backbones and embedded data")
    which.add_argument("--real", action="store_true", help="MiniLM and MobileNetV2 alone, which a CPU carries out")
    parser.add_argument(
        "--only", action="append", default=[], help="part of the words, e.g. method=lst; may be repeated"
    )
    parser.add_argument("--first", type=int, default=None, help="so many configurations")
    parser.add_argument("--minutes", type=float, default=9.5, help="begin no configuration after this time")
    parser.add_argument("--out", default="outputs/validate_memory.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
