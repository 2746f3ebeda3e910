"""Runs on several processes under faults: one folder, one record, the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

METHOD = """# @package _global_
# A linear probe that something happens to.
method:
  name: disturbed
  about: {title: A disturbed one, target: disturbed.Disturbed, family: tuning, shape: tune, backbones: [vit]}
"""
MODULE = """
import os, signal, time
from transfer_run.methods.tuning.linear_probe import LinearProbe

class Disturbed(LinearProbe):
    def after_step(self, step):
        fault = os.environ.get("FAULT", "").split()
        if fault and step == int(fault[0]) and os.environ.get("RANK", "0") == fault[1]:
            if fault[2] == "raise":
                raise ArithmeticError("it broke")
            os.kill(os.getppid() if fault[2] == "parent" else os.getpid(), int(fault[3]))
            while fault[3] == "9" or signal.getsignal(signal.SIGTERM).__self__.asked is None:
                time.sleep(0.05)  # until what was sent has come by way of the parent: no step is taken meanwhile
"""
WORDS = ("method=disturbed", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=ddp",
         "hardware.accelerator=cpu", "profiler=none", "trainer.progress=none", "trainer.log_every=1",
         "trainer.max_steps=12", "trainer.checkpoint_minutes=1e-9")  # fmt: skip
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "method").mkdir()
    (folder / "method" / "disturbed.yaml").write_text(METHOD)
    (folder / "disturbed.py").write_text(MODULE)
    return folder


def command(own: Path, out: Path, *words: str) -> list[str]:
    return [str(BIN / "transfer-run"), "--config-dir", str(own), *WORDS, f"output_dir={out}", *words]


def go(own: Path, out: Path, fault: str = "", *words: str) -> tuple[int, str]:
    """The exit code and what stood on stderr."""
    environment = {**os.environ, "FAULT": fault, "MASTER_PORT": "1"}  # a port that cannot be had, and need not
    done = subprocess.run(
        command(own, out, *words),
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stderr


def run_of(out: Path) -> Path:
    (folder,) = out.glob("runs/*/*")
    return folder


@pytest.fixture(scope="module")
def whole(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    code, said = go(own, out)
    assert code == 0, said
    return run_of(out)


def same(folder: Path, whole: Path) -> None:
    for file in ("metrics.csv", "checkpoints/model/model.safetensors"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    metrics = [json.loads((each / "result.json").read_text())["metrics"] for each in (folder, whole)]
    assert metrics[0] == metrics[1]


@pytest.mark.long
@pytest.mark.xdist_group("ddp")
def test_whoever_dies_first(own: Path, whole: Path, tmp_path: Path) -> None:
    """The same command each time; a killed parent's workers are gone before another start writes."""
    ends = [
        ("2 0 parent 9", -9, ""),
        ("4 1 self 9", 1, "process 1 was killed by SIGKILL"),
        ("6 1 raise", 1, "ArithmeticError: it broke"),
        ("8 0 parent 2", 130, "Interrupted"),
        ("10 1 parent 15", 75, "stopped by SIGTERM; it goes on from"),
        ("", 0, "going on from"),
    ]
    for fault, wanted, message in ends:
        code, said = go(own, tmp_path, fault)
        assert code == wanted, (fault, said)
        assert message in said, (fault, said)
        assert (run_of(tmp_path) / "result.json").exists() == (wanted == 0)
    folder = run_of(tmp_path)
    same(folder, whole)
    assert "Traceback" in (folder / "run.log").read_text(), "of what broke"
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "checkpoints", "config.yaml", "metrics.csv", "predictions.csv", "result.json", "run.log",
        "run.rank1.log",
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.xdist_group("ddp")
def test_shards_go_on_to_the_same_bytes(own: Path, whole: Path, tmp_path: Path) -> None:
    """Stopped, killed and gone on with, also by two devices that each hold the whole model."""
    sharded = ("hardware=fsdp", "hardware.accelerator=cpu")
    code, said = go(own, tmp_path / "whole", "", *sharded)
    assert code == 0, said
    for fault, wanted in (("5 0 parent 15", 75), ("8 1 self 9", 1), ("", 0)):
        code, said = go(own, tmp_path / "stopped", fault, *sharded)
        assert code == wanted, (fault, said)
    same(run_of(tmp_path / "stopped"), run_of(tmp_path / "whole"))
    assert go(own, tmp_path / "both", "5 0 parent 15", *sharded)[0] == 75
    code, said = go(own, tmp_path / "both")
    assert code == 0, said
    one, other = (
        load_file(run_of(out) / "checkpoints/model/model.safetensors") for out in (tmp_path / "both", whole.parents[2])
    )
    for name, tensor in one.items():
        assert tensor.sub(other[name]).abs().max() < 1e-5, name


@pytest.mark.long
@pytest.mark.xdist_group("ddp")
def test_a_loss_that_is_no_number_is_one_message(own: Path, tmp_path: Path) -> None:
    code, said = go(own, tmp_path, "", "optimizer=sgd", "optimizer.lr=1e38", "trainer.gradient_clip=null")
    assert code == 1
    assert said.count("has diverged") == 1


@pytest.mark.long
@pytest.mark.xdist_group("ddp")
def test_two_machines_by_torchrun_on_one_folder(own: Path, whole: Path, tmp_path: Path) -> None:
    """Two simulated machines: one run, one record, the same bytes as two devices of one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = command(own, tmp_path, "hardware.devices=1", "hardware.nodes=2")
    machines = [
        subprocess.Popen(
            [str(BIN / "torchrun"), "--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}",
             "--master-addr=127.0.0.1", f"--master-port={port}", "--no-python", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
        )
        for node in (0, 1)
    ]  # fmt: skip
    said = [machine.communicate(timeout=600)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    same(run_of(tmp_path), whole)
    assert "test/accuracy" in said[0]
    assert "test/accuracy" not in said[1]


@pytest.mark.long
@pytest.mark.xdist_group("ddp")
def test_two_machines_by_hand_and_one_dies(own: Path, tmp_path: Path) -> None:
    """The run fails on both, nobody waits for ever; and started without the other machine it says what it lacks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = command(own, tmp_path, "hardware.devices=1", "hardware.nodes=2")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "FAULT": "3 1 parent 9"}
    machines = [
        subprocess.Popen(
            words, env={**os.environ, **meeting, "NODE_RANK": str(node)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node in (0, 1)
    ]  # fmt: skip
    said = [machine.communicate(timeout=600)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [1, -signal.SIGKILL], said
    assert "has died" in said[0]
    assert "Traceback" not in said[0]
    alone, message = go(own, tmp_path, "", "hardware.devices=1", "hardware.nodes=2")
    assert alone == 2
    assert "nothing has started it on the others" in message
