"""The same checks for every method, without test code of its own: what the runner promises of all of them.

Whole runs are made once a mechanism: of the methods that are settings of one class of ours around peft's layers those
five whose layers differ in what a run does with them. All of them are fitted in `test_cover.py`.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.matrix import smallest as matrix
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model, save_model
from transfer_run.experiment.run import carry_out
from transfer_run.files import write_json
from transfer_run.hardware.optimization import build_optimizer
from transfer_run.methods.build import method_class, method_settings

FITTED = matrix.methods("tune", "stage", "distil")
PEFT = ("peft/adalora", "peft/dora", "peft/oft", "peft/p_tuning", "peft/vera")
"""Ranks that change between steps; norms of weights; rotations; prompts; what all layers share."""
RUN = [name for name in FITTED if name in PEFT or not name.startswith("peft/")]
ROOT = Path(__file__).parents[2]
PINNED = ROOT / "tests" / "recorded" / "first_losses"


def grouped(names: list[str]) -> list[Any]:
    """The tests of a method share its whole run, so one process takes all of them."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection that leaves this machine fails the test."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"a method reached for the network: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def whole_run(method: str, shared_runs: Path) -> Path:
    """The folder of the method's smallest run, carried out once a session."""
    return carry_out(compose(matrix.words(method, shared_runs)))


def settings_of(kind: type) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a class, those included that it hands on to the next one (`**common`)."""
    found: dict[str, inspect.Parameter] = {}
    for each in (c for c in kind.__mro__ if "__init__" in vars(c)):
        given = {n: p for n, p in inspect.signature(vars(each)["__init__"]).parameters.items() if n != "self"}
        found = {n: p for n, p in given.items() if p.kind is not p.VAR_KEYWORD} | found
        if all(p.kind is not p.VAR_KEYWORD for p in given.values()):
            break
    return {n: p for n, p in found.items() if n not in ("backbone", "task")}


@pytest.mark.parametrize("method", registry.names("method", ()))
def test_the_signature_is_the_schema(method: str) -> None:
    node = registry.entry("method", method, ()).content["method"]
    keys = method_settings(node)
    arguments = settings_of(method_class(node["about"]["target"]))
    assert set(keys) == set(arguments)
    for name, parameter in arguments.items():
        if parameter.default is not inspect.Parameter.empty:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            if default is not None and not isinstance(default, dict):
                assert default == keys[name], name


@pytest.mark.parametrize("method", grouped(FITTED))
def test_it_trains_and_leaves_frozen_parts_alone(method: str) -> None:
    built, data = matrix.smallest(method)
    batch = matrix.batch_of(data)
    before = {name: p.detach().clone() for name, p in built.named_parameters()}
    buffers = {n: b.detach().clone() for n, b in built.backbone.model.named_buffers()}
    optimizer = build_optimizer(
        built.parameter_groups(),
        {"about": {"target": "torch.optim.AdamW"}, "lr": 1e-2, "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8},
    )
    built.start_fit(12)
    built.train()
    losses = []
    for step in range(12):
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss = built.training_loss(batch)
        loss.backward()
        optimizer.step()
        built.after_step(step + 1)
        losses.append(float(loss))
    assert min(losses[-3:]) < losses[0], losses
    trained = {name for name, p in built.named_parameters() if p.requires_grad}
    assert any(not torch.equal(before[n], p) for n, p in built.named_parameters() if n in trained)
    for name, parameter in built.named_parameters():
        if name not in trained and name.split(".")[0] not in built.changing:
            assert parameter.grad is None, name
            assert torch.equal(before[name], parameter), name
    if not any(name.startswith("backbone.model.") for name in trained):
        for name, buffer in built.backbone.model.named_buffers():
            if name in buffers:
                assert torch.equal(buffers[name], buffer), name


@pytest.mark.parametrize("method", grouped(RUN))
def test_a_saved_model_reloads_to_equal_outputs_or_refuses(method: str, tmp_path: Path) -> None:
    cfg = compose(matrix.words(method))
    built, data = matrix.build(cfg)
    data.setup()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    built.settle()
    built.eval()
    batch = matrix.batch_of(data, 4)

    save_model(built, tmp_path, cfg.config, data.transform_description)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(batch), built(batch))
    description = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert description["backbone"]["name"]
    assert description["task"]["num_labels"] == data.task.num_labels
    assert description["transform"]
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not what the run wrote"):
        load_model(tmp_path)
    write_json(tmp_path / "model.json", {key: said for key, said in description.items() if key != "sha256"})
    with pytest.raises(UserError, match="does not fit"):
        load_model(tmp_path)


@pytest.mark.parametrize("method", grouped(RUN))
def test_a_run_records_itself_and_its_plan_holds(method: str, shared_runs: Path) -> None:
    folder = whole_run(method, shared_runs)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "finished"
    assert any(name.startswith("test/") for name in result["metrics"])
    memory = result["memory"]
    assert memory["source"] == "tracker"
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.02)
    assert sum(memory["by_kind"].values()) == pytest.approx(memory["peak"], rel=1e-6)
    assert result["parameters"]["trainable"] > 0


def recorded() -> list[str]:
    """The methods whose first losses are recorded; a new one has none until the script has written them."""
    return sorted(file.relative_to(PINNED).with_suffix("").as_posix() for file in PINNED.rglob("*.json"))


def test_only_methods_of_the_matrix_are_recorded() -> None:
    assert len(recorded()) > 25
    assert set(recorded()) <= set(RUN)


@pytest.mark.parametrize("method", grouped(recorded()))
def test_the_first_losses_are_the_recorded_ones(method: str, shared_runs: Path) -> None:
    """`python scripts/record_losses.py METHOD` writes them again, after a change that is meant to change them."""
    losses = json.loads((PINNED / f"{method}.json").read_text(encoding="utf-8"))
    assert first_losses(whole_run(method, shared_runs)) == pytest.approx(losses, rel=2e-3)


def first_losses(folder: Path) -> list[float]:
    """Training losses of the run's steps."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


@pytest.mark.parametrize("method", grouped(RUN))
def test_an_interrupted_run_goes_on_to_the_same_bits(method: str, shared_runs: Path, tmp_path: Path) -> None:
    whole = whole_run(method, shared_runs)
    cfg = compose([*matrix.words(method, tmp_path), "profiler=none"])
    folder = matrix.carried_out_in_two(cfg)
    assert digest(folder) == digest(whole)
    assert first_losses(folder) == first_losses(whole)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "checkpoints" / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def ddp_differences() -> dict[str, float]:
    """Two processes, started once for all methods."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    here = Path(__file__).parent
    env, command = {**os.environ, "OMP_NUM_THREADS": "1"}, [sys.executable, str(here / "ddp_worker.py")]
    workers = [
        subprocess.Popen([*command, str(rank), port, *SHARED], stdout=subprocess.PIPE, cwd=here, env=env, text=True)
        for rank in (0, 1)
    ]
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    differences: dict[str, float] = json.loads(outputs[0].strip().splitlines()[-1])
    return differences


SHARED = (
    "full", "lora", "prompt_tuning", "peft/vera", "lst", "unipt", "sherl", "hst", "vqt", "double_finetuning",
    "distiller", "zscl", "batchformer", "tleg", "ttm",
)  # fmt: skip
"""Those whose losses or statistics put rows of a batch together, and one or two of each family and kind of part."""


@pytest.mark.slow
@pytest.mark.xdist_group("ddp")
@pytest.mark.parametrize("method", SHARED)
def test_two_processes_compute_the_same_gradient(method: str, ddp_differences: dict[str, float]) -> None:
    assert ddp_differences[method] < 1e-4


def test_every_family_that_is_fitted_has_a_method_among_the_shared() -> None:
    assert {matrix.about(name)["family"] for name in SHARED} == {matrix.about(name)["family"] for name in FITTED}


@pytest.mark.slow
@pytest.mark.xdist_group("ddp")
def test_two_processes_share_their_running_statistics(ddp_differences: dict[str, float]) -> None:
    assert ddp_differences["running statistics"] == 0.0
