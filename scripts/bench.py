"""Benchmarks, printed with the machine they ran on: the command line, the runner over a bare loop, planning,
side-tuning as released and lean, LST's preparation beside its training, stored taps.

python scripts/bench.py [cli|runner|plan|modes|prepare|taps ...]        all by default
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


def cli() -> None:
    """Wall time of answers that need no torch; median of five."""
    for words in (["transfer-run", "--help"], ["transfer-list", "methods"], ["transfer-run", "method=lts"]):
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            subprocess.run([str(BIN / words[0]), *words[1:]], capture_output=True, check=False)
            times.append(time.perf_counter() - begin)
        print(f"{' '.join(words):28} {statistics.median(times):6.2f} s")


def runner(steps: int = 60, rounds: int = 5) -> None:
    """Training steps through the runner and through a bare PyTorch loop, alternating; the cheapest round of each.

    The third line adds what a run does by default beside its steps: two steps followed tensor by tensor, a checkpoint
    an epoch. (Validation is left out of all three: a bare loop has none.)
    """
    from transfer_run.experiment.config.compose import compose

    words = [
        "method=full",
        "backbone=t5_tiny",
        "backbone.weights=random:0",
        "dataset=python_docs",
        "dataset.batch_size=64",
    ]
    cfg = compose([*words, f"trainer.max_steps={steps}", "trainer.progress=none", "hardware=cpu", "profiler=none"])
    bare_times, our_times, whole_times = [], [], []
    for _ in range(rounds):
        bare_times.append(_timed(lambda: _bare(cfg, steps)))
        our_times.append(_timed(lambda: _through_runner(cfg)))
        whole_times.append(_timed(lambda: _through_runner(cfg, defaults=True)))
    bare, ours, extra = min(bare_times) / steps, min(our_times) / steps, min(whole_times) - min(our_times)
    print(f"bare loop   {1e3 * bare:8.2f} ms a step")
    print(f"the runner  {1e3 * ours:8.2f} ms a step  ({100 * (ours / bare - 1):+.1f} %)")
    print(f"by default  {extra:8.2f} s more in all: memory followed for two steps, checkpoints ({steps} steps)")


def _timed(work: Callable[[], Callable[[], None]]) -> float:
    """Seconds of the prepared work, its preparation left out."""
    run = work()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _built(cfg: Any) -> tuple[Any, Any, dict[str, Any]]:
    import torch

    from transfer_run.backbones.load import build_backbone
    from transfer_run.data.load import build_data
    from transfer_run.methods.build import build_method

    config: dict[str, Any] = dict(cfg.config)
    torch.manual_seed(0)
    data = build_data(config["dataset"], config["backbone"], 0)
    data.setup()
    return build_method(config["method"], build_backbone(config["backbone"]), data.task), data, config


def _bare(cfg: Any, steps: int) -> Callable[[], None]:
    import torch

    from transfer_run.hardware.optimization import build_optimizer, build_schedule

    method, data, config = _built(cfg)
    optimizer = build_optimizer(method.parameter_groups(), config["optimizer"])
    schedule = build_schedule(optimizer, config["optimizer"], steps)
    loader = data.loader("train", batch_size=config["dataset"]["batch_size"])
    parameters = [p for p in method.parameters() if p.requires_grad]

    def loop() -> None:
        method.train()
        done = 0
        while done < steps:
            for batch in loader:
                optimizer.zero_grad()
                method.loss(batch).backward()
                torch.nn.utils.clip_grad_norm_(parameters, config["trainer"]["gradient_clip"])
                optimizer.step()
                schedule.step()
                done += 1
                if done == steps:
                    break

    return loop


def _through_runner(cfg: Any, *, defaults: bool = False) -> Callable[[], None]:
    from transfer_run.experiment.record.metrics_csv import MetricsCsv, StepRows
    from transfer_run.experiment.training.checkpoints import Checkpoints, Selection
    from transfer_run.experiment.training.module import TransferModule
    from transfer_run.hardware.trainer import build_trainer
    from transfer_run.memory.callback import MemoryCallback

    method, data, config = _built(cfg)
    settings = config["trainer"]
    settings["validate_every"] = 10**6
    folder, every = Path(tempfile.mkdtemp()), settings["checkpoint_every"] if defaults else 10**6
    callbacks: list[Any] = [StepRows(settings["log_every"]), Checkpoints(folder, every, 60, Selection(operator.gt))]
    callbacks += [MemoryCallback(settings["tracked_steps"])] * defaults
    trainer = build_trainer(config, folder, callbacks, [MetricsCsv(folder / "metrics.csv")])
    module = TransferModule(method, data, config)
    return lambda: trainer.fit(module)


def plan() -> None:
    """Time and resident memory of a plan, each in its own process."""
    for backbone in ("t5-base", "t5-3b", "vit_base_patch16_224"):
        dataset = "vtab/cifar100" if backbone.startswith("vit") else "glue/rte"
        words = ["transfer-plan", "method=lst", f"backbone={backbone}", f"dataset={dataset}", "plan.format=json"]
        code = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, str(BIN / words[0]), *words[1:]], capture_output=True, text=True, check=True
        )
        spent, resident = time.perf_counter() - begin, int(done.stdout) / 2**20
        print(f"{' '.join(words[:3]):55} {spent:6.1f} s  {resident:5.2f} GiB resident")


def modes(steps: int = 3) -> None:
    """Official against efficient, ViT-B/16: planned peak on a GPU, bytes kept and time of a step on a CPU.

    The batch is of 32 images in the plan, of 8 in what is kept and timed.
    """
    from transfer_run.experiment.config.compose import compose
    from transfer_run.experiment.planning.plan import plan_run

    common = ["backbone=vit_base_patch16_224", "dataset=vtab/cifar100", "backbone.weights=random"]
    for method in ("lst", "unipt", "sherl", "hst", "vqt"):
        for mode in ("official", "efficient"):
            words = [f"method={method}", f"method.memory_mode={mode}", *common]
            peak = plan_run(compose([*words, "dataset.batch_size=32"])).memory["peak"] / 2**30
            here = compose([*words, "dataset.batch_size=8", "hardware=cpu"])
            kept = plan_run(here).memory["kept"] / 2**20
            each = _step_seconds(here, steps)
            print(
                f"{method:6} {mode:9}  plan {peak:6.2f} GiB   kept {kept:7.1f} MiB   {each:6.2f} s a step", flush=True
            )


def _step_seconds(cfg: Any, steps: int) -> float:
    """The cheapest of some training steps on random images, the first one left out."""
    import torch

    from transfer_run.backbones.load import backbone_class
    from transfer_run.data.load import batch_spec, build_task
    from transfer_run.hardware.optimization import build_optimizer
    from transfer_run.methods.build import build_method

    config: dict[str, Any] = dict(cfg.config)
    backbone = backbone_class(config["backbone"]).from_architecture(config["backbone"])
    method = build_method(config["method"], backbone, build_task(config["dataset"], config["backbone"]))
    spec = batch_spec(config["dataset"], config["backbone"], config["dataset"]["batch_size"])
    batch = {name: torch.rand(shape).to(dtype) for name, (shape, dtype) in spec.items()}
    optimizer = build_optimizer(method.parameter_groups(), config["optimizer"])
    method.train()
    times = []
    for _ in range(1 + steps):
        begin = time.perf_counter()
        method.training_loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def prepare() -> None:
    """LST's Fisher pass and cutting beside its training: planned peaks, and on MiniLM measured ones; MiB."""
    from transfer_run.experiment.config.compose import compose
    from transfer_run.experiment.planning.plan import plan_run

    minilm = "sentence-transformers/all-MiniLM-L6-v2"
    for backbone, data in ((minilm, "python_docs"), ("bert-base-uncased", "glue/rte"), ("t5-base", "glue/rte")):
        words = ["method=lst", f"backbone={backbone}", f"dataset={data}"]
        words += ["dataset.answers=head"] * (backbone == "bert-base-uncased")
        for hardware in ("cpu", "1gpu"):
            cfg = compose([*words, f"hardware={hardware}"])
            _print_phases(
                f"{backbone:40} {hardware:4} batch {cfg.config['dataset']['batch_size']:3} plan", plan_run(cfg)
            )
    few = ["method.init_samples=4", "trainer.max_steps=2"]
    measured = _result_of(["method=lst", f"backbone={minilm}", "dataset=python_docs", *few])["memory"]
    _print_phases(f"{minilm:40} cpu  batch  16 measured", measured)


def _print_phases(name: str, memory: Any) -> None:
    phases = {phase: node["peak"] / 2**20 for phase, node in getattr(memory, "memory", memory)["phases"].items()}
    training = max(phases[phase] for phase in ("forward", "backward", "step"))
    print(f"{name:68} prepare {phases['prepare']:7.1f}   training {training:7.1f}", flush=True)


def taps(epochs: int = 2) -> None:
    """Without stored taps, while they are stored, and when another seed reads them: seconds of an epoch of training on
    the clock, and of the processor for the whole run, its evaluations included."""
    real = ["backbone=sentence-transformers/all-MiniLM-L6-v2", "backbone.weights=hub", "dataset=python_docs"]
    real += ["dataset.max_source_length=48"]
    with tempfile.TemporaryDirectory() as folder:
        for method, data in (("linear_probe", []), ("lst", []), ("unipt", []), ("unipt", real)):
            words = [f"method={method}", f"trainer.max_epochs={epochs}", "profiler=none", *data]
            words += ["method.backbone_dropout=false"] * (method != "linear_probe")
            words += ["method.init=random"] * (method == "lst")
            cached = [*words, "cache.taps=disk", f"cache.folder={folder}"]
            print(f"{method} on {'MiniLM' if data else 'vit_tiny'}", flush=True)
            for name, more in (("none", words), ("storing", cached), ("stored", [*cached, "seed=1"])):
                before = time.process_time()
                spent = _result_of(more)["time"]["fit_seconds"] / epochs
                print(
                    f"  {name:8} {spent:7.2f} s an epoch   {time.process_time() - before:7.1f} processor s in all",
                    flush=True,
                )


def _result_of(words: list[str]) -> dict[str, Any]:
    """`result.json` of a run, by default of a tiny ViT on the digits, made in a folder of its own."""
    import json

    from transfer_run.experiment.config.compose import compose
    from transfer_run.experiment.run import carry_out

    common = ["hardware=cpu"]
    for word in ("backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0"):
        common += [word] * (not any(given.startswith(word.partition("=")[0] + "=") for given in words))
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            done = carry_out(compose([*words, *common, f"output_dir={folder}", "trainer.progress=none"]))
        result: dict[str, Any] = json.loads((done / "result.json").read_text(encoding="utf-8"))
    return result


def sweep(count: int = 500) -> None:
    """A sweep beyond its runs: what one costs that does nothing, what a finished one costs, and the memory of all."""
    with tempfile.TemporaryDirectory() as folder:
        for runs in (count // 10, count):
            for label in ("begun", "finished"):
                done = subprocess.run(
                    [sys.executable, __file__, "one_sweep", str(runs), f"{folder}/{runs}"],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                here, children, resident = map(float, done.stdout.splitlines()[-1].split())
                print(
                    f"{runs:4} runs, {label:8}  {1e3 * (here + children) / runs:6.1f} ms of processor time each "
                    f"({here:.1f} s in the sweep's process)  {resident:6.0f} MiB resident"
                )


def one_sweep(count: str, folder: str) -> None:
    """A sweep of runs that only write their result; prints its processor time beyond imports, and its memory."""
    import json
    import resource

    import transfer_run.experiment.run as product
    import transfer_run.experiment.training.train  # noqa: F401  what any run imports
    from transfer_run.cli.run import run
    from transfer_run.experiment.record.state import held

    def carry_out(asked: Any) -> Path:
        with held(asked.folder):
            result = {"status": "finished", "metrics": {"test/accuracy": 0.5}}
            (asked.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return Path(asked.folder)

    product.carry_out = carry_out  # type: ignore[assignment]
    before = time.process_time()
    words = ["method=linear_probe", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu"]
    run(["-m", *words, f"seed=range(0,{count})", "trainer.max_steps=1", f"output_dir={folder}"])
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(time.process_time() - before, children.ru_utime + children.ru_stime, resident)


PARTS = {"cli": cli, "runner": runner, "plan": plan, "modes": modes, "prepare": prepare, "taps": taps, "sweep": sweep}


def main(*parts: str) -> None:
    """Run the parts that are named, or all."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in parts or PARTS:
        print(f"\n{name}: {(PARTS[name].__doc__ or '').splitlines()[0]}")
        PARTS[name]()


if __name__ == "__main__":
    if sys.argv[1:2] == ["one_sweep"]:  # a process of the benchmark's own
        one_sweep(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
