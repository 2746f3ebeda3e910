"""Merge random checkpoints by streaming and by a plain in-memory merge; print memory and time of both.

    python scripts/bench_merging.py                       # TIES: 8 models of about 220 million parameters, float32
    python scripts/bench_merging.py --layers 4 --models 4 # smaller
    python scripts/bench_merging.py --rule diff_vector    # the change of one model added to another one, bfloat16

Memory is what each merge adds to the resident memory of its own fresh process, the interpreter and PyTorch loaded.
Checkpoints are written into a temporary folder and removed at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from transfer_run.methods.merging.diff_vector import DiffVectorRule
from transfer_run.methods.merging.engine.checkpoint import Entry, open_checkpoint
from transfer_run.methods.merging.engine.stream import Job, merge_to_folder
from transfer_run.methods.merging.engine.writer import CheckpointWriter
from transfer_run.methods.merging.ties import TiesRule

KEEP, SCALE = 0.2, 1.0
TIES, DIFF = "ties", "diff_vector"
OF_DIFF = 2
"""Models of a diff vector beside the base that it is added to: the tuned one, and that it was tuned from."""


def shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """A T5-like model: one embedding, `layers` blocks of eight width x width and two width x 4 width matrices."""
    found: dict[str, tuple[int, ...]] = {"shared.weight": (32128, width)}
    for layer in range(layers):
        for part in ("q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o"):
            found[f"block.{layer}.{part}.weight"] = (width, width)
        found[f"block.{layer}.wi.weight"] = (4 * width, width)
        found[f"block.{layer}.wo.weight"] = (width, 4 * width)
        found[f"block.{layer}.norm.weight"] = (width,)
    return found


def write_models(folder: Path, models: int, layers: int, width: int, dtype: torch.dtype) -> int:
    """A base and its changed copies, a tensor at a time; scalars of one model."""
    entries = {name: Entry(dtype, shape) for name, shape in shapes(layers, width).items()}
    writers = [CheckpointWriter(folder / name, entries) for name in ("base", *(f"model{i}" for i in range(models)))]
    generator = torch.Generator().manual_seed(0)
    for name, entry in entries.items():
        base = torch.randn(entry.numel, generator=generator) * 0.02
        writers[0].write(name, 0, base.to(dtype))
        for writer in writers[1:]:
            writer.write(name, 0, (base + torch.randn(entry.numel, generator=generator) * 0.001).to(dtype))
    for writer in writers:
        writer.__exit__(None, None, None)
    return sum(entry.numel for entry in entries.values())


def merge_streaming(rule: str, folder: Path, models: int, out: Path, chunk_bytes: float) -> None:
    paths = [folder / f"model{i}" for i in range(models)]
    job = Job([open_checkpoint(path) for path in paths], open_checkpoint(folder / "base"), chunk_bytes=chunk_bytes)
    merge_to_folder(job, TiesRule(SCALE, KEEP) if rule == TIES else DiffVectorRule(SCALE), out)


def add_plainly(folder: Path, out: Path) -> None:
    """A diff vector as one writes it down: three whole models, the sum in float64, a tensor at a time."""
    tuned, start, target = (load_file(folder / name / "model.safetensors") for name in ("model0", "model1", "base"))
    for name, tensor in target.items():
        change = tuned[name].double() - start[name].double()
        target[name] = (tensor.double() + SCALE * change).to(tensor.dtype)
    out.mkdir()
    save_file(target, out / "model.safetensors")


def merge_plainly(folder: Path, models: int, out: Path) -> None:
    """TIES as one writes it down: all models flattened into one matrix, one selection a row."""
    base = load_file(folder / "base" / "model.safetensors")
    names = sorted(base)
    flat = torch.cat([base[name].flatten() for name in names])
    vectors = torch.empty(models, flat.numel())
    for row, i in zip(vectors, range(models), strict=True):
        with safe_open(folder / f"model{i}" / "model.safetensors", framework="pt") as file:
            torch.cat([file.get_tensor(name).flatten() for name in names], out=row)
        row -= flat
        rank = flat.numel() - int(flat.numel() * KEEP)
        row.masked_fill_(row.abs() < row.abs().kthvalue(rank).values, 0)
    signs = vectors.sum(0).sign_()
    signs[signs == 0] = signs.sum().sign()
    total, count = torch.zeros_like(flat), torch.zeros_like(flat)
    for row in vectors:
        agrees = torch.where(signs > 0, row > 0, row < 0)
        total += row * agrees
        count += agrees
    merged = flat + SCALE * (total / count.clamp(min=1))
    pieces = merged.split([base[name].numel() for name in names])
    out.mkdir()
    tensors = {name: piece.view(base[name].shape) for name, piece in zip(names, pieces, strict=True)}
    save_file(tensors, out / "model.safetensors")


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measured(kind: str, rule: str, folder: Path, models: int, chunk_bytes: float) -> None:
    """In a process of its own: merge, print seconds and added bytes as JSON."""
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begin, worked = time.perf_counter(), time.process_time()
    if kind == "streaming":
        merge_streaming(rule, folder, models, folder / kind, chunk_bytes)
    elif rule == DIFF:
        add_plainly(folder, folder / kind)
    else:
        merge_plainly(folder, models, folder / kind)
    seconds, worked = time.perf_counter() - begin, time.process_time() - worked
    done.set()
    watcher.join()
    print(
        json.dumps({"seconds": seconds, "work": worked, "interpreter": before, "added": max(peak[0], before) - before})
    )


def compare(folder: Path) -> bool:
    """Do both merges hold the same bits?"""
    paths = [folder / kind / "model.safetensors" for kind in ("streaming", "plain")]
    with safe_open(paths[0], framework="pt") as one, safe_open(paths[1], framework="pt") as other:
        return all(torch.equal(one.get_tensor(name), other.get_tensor(name)) for name in one.keys())  # noqa: SIM118


def runs(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    for kind in ("streaming",) if arguments.streaming_only else ("streaming", "plain"):
        words = [sys.executable, __file__, "--measure", kind, "--rule", arguments.rule, "--folder", str(folder)]
        words += ["--models", str(arguments.models), "--chunk-bytes", str(arguments.chunk_bytes)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        yield kind, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rule", choices=[TIES, DIFF], default=TIES)
    parser.add_argument("--models", type=int, default=8, help="of TIES; a diff vector has two beside its base")
    parser.add_argument("--layers", type=int, default=21)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--chunk-bytes", type=float, default=2e6)
    parser.add_argument("--folder", type=Path, help="where to put the temporary folder")
    parser.add_argument("--streaming-only", action="store_true", help="leave the in-memory merge out")
    parser.add_argument("--measure", choices=["streaming", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measured(arguments.measure, arguments.rule, arguments.folder, arguments.models, arguments.chunk_bytes)
        return
    ties = arguments.rule == TIES
    arguments.models = arguments.models if ties else OF_DIFF
    dtype = torch.float32 if ties else torch.bfloat16  # as these models are published
    folder = Path(tempfile.mkdtemp(prefix="merging-", dir=arguments.folder))
    try:
        numel = write_models(folder, arguments.models, arguments.layers, arguments.width, dtype)
        of = f"{numel / 1e6:.1f} million {str(dtype).removeprefix('torch.')} parameters"
        print(f"TIES of {arguments.models} models of {of} and their base" if ties else f"a diff vector of {of}")
        print(f"{'':12}{'added memory':>16}{'interpreter':>16}{'seconds':>10}{'of work':>10}")
        for kind, found in runs(arguments, folder):
            added, own = found["added"] / 2**20, found["interpreter"] / 2**20
            print(f"{kind:12}{added:>12.0f} MiB{own:>12.0f} MiB{found['seconds']:>10.1f}{found['work']:>10.1f}")
        if not arguments.streaming_only:
            print("same bits" if compare(folder) else "DIFFERENT values")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
