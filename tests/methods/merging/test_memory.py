"""Check 12: what a merge adds to the resident memory does not grow with the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, threading
from pathlib import Path
import torch
from transfer_run.methods.merging.engine.checkpoint import Entry, open_checkpoint
from transfer_run.methods.merging.engine.stream import Job, merge_to_folder
from transfer_run.methods.merging.ties import TiesRule
from transfer_run.methods.merging.engine.writer import CheckpointWriter

folder, chunk, shard = Path(sys.argv[1]), 1_048_576, 9e6

def write(place, layers, seed):
    entries = {f"block.{i}.weight": Entry(torch.float32, (1024, 1024)) for i in range(layers)}
    generator = torch.Generator().manual_seed(seed)
    with CheckpointWriter(place, entries, max_shard_bytes=shard) as writer:
        for name in entries:
            for start in range(0, 1 << 20, 1 << 16):
                writer.write(name, start, torch.randn(1 << 16, generator=generator))

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def merge(layers):
    models = [open_checkpoint(folder / f"{layers}-{i}") for i in range(1, 5)]
    job = Job(models, open_checkpoint(folder / f"{layers}-0"), chunk_bytes=chunk)
    merge_to_folder(job, TiesRule(), folder / f"{layers}-out", max_shard_bytes=shard)

for layers in (1, 4, 8):
    for i in range(5):
        write(folder / f"{layers}-{i}", layers, i)
merge(1)  # what is allocated once, whatever is merged
added = {}
for layers in (4, 8):
    before, peak, done = resident(), 0, threading.Event()
    def watch():
        global peak
        while not done.wait(0.002):
            peak = max(peak, resident())
    watcher = threading.Thread(target=watch)
    watcher.start()
    merge(layers)
    done.set()
    watcher.join()
    added[layers] = peak - before
print(json.dumps(added))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    added = json.loads(done.stdout.splitlines()[-1])
    assert len(list((tmp_path / "8-out").glob("*.safetensors"))) == 4
    models, chunk = 4, 1 << 20
    for layers in ("4", "8"):  # 5 models of 16 and 32 MiB: well under one of the larger
        assert added[layers] < (models + 3) * chunk + 12e6
