"""scripts/validate_memory.py: what it would measure on a GPU, and its code carried out on a CPU."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "validate_memory.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """Imported from its folder, as the processes that make its plans do."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        yield importlib.import_module("validate_memory")
    finally:
        sys.path.remove(str(SCRIPT.parent))


def values(words: list[list[str]], key: str) -> set[str]:
    return {word.partition("=")[2] for line in words for word in line if word.startswith(f"{key}=")}


@pytest.mark.parametrize(("tiny", "count"), [(False, 109), (True, 93)])
def test_what_is_measured(script: ModuleType, tiny: bool, count: int) -> None:
    """Every method on every backbone at two or three batch sizes and in both precisions."""
    every = list(script.configurations(tiny))
    assert len(every) == count
    assert len({tuple(words) for words in every}) == len(every)
    assert values(every, "method") >= {"lst", "unipt", "sherl", "hst", "vqt", "lora", "adapter", "full"}
    groups: dict[str, list[list[str]]] = {}
    for words in every:
        pair = [word for word in words if not word.startswith(("dataset.batch_size", "hardware.precision"))]
        groups.setdefault(" ".join(pair), []).append(words)
    assert len(groups) == (31 if tiny else 39)
    for here in groups.values():
        assert len(values(here, "dataset.batch_size")) in (2, 3)
        assert values(here, "hardware.precision") == {"32-true", "bf16-mixed"}


def test_the_real_ones_are_those_that_a_cpu_carries_out(script: ModuleType) -> None:
    every = list(script.configurations(real=True))
    assert values(every, "backbone") == set(script.REAL)
    assert len(every) == 16
    assert all(words in list(script.configurations()) for words in every)


def test_without_cuda_it_says_so(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert script.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_the_list_shows_plans(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--list", "--tiny", "--only", "method=lora", "--only", "vit_tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("plan" in line and "MiB" in line for line in lines)


@pytest.mark.long
def test_many_plans_are_made_in_processes(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--list", "--tiny", "--only", "method=full", "--first", "4"]) == 0
    assert sum("MiB" in line for line in capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        ("full", "vit_tiny"),
        pytest.param("lora", "t5_tiny", marks=pytest.mark.long),
        pytest.param("lst", "bert_tiny", marks=pytest.mark.long),
        pytest.param("vqt", "clip_tiny", marks=pytest.mark.long),
        pytest.param("hst", "vit_tiny", marks=pytest.mark.long),
    ],
)
def test_its_code_on_a_cpu(script: ModuleType, tmp_path: Path, method: str, backbone: str) -> None:
    out = tmp_path / "memory.json"
    chosen = ["--only", f"method={method}", "--only", f"backbone={backbone}", "--first", "2"]
    assert script.main(["--device", "cpu", "--tiny", *chosen, "--out", str(out)]) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["complete"]
    assert [point["error"] for point in content["points"]] == ["", ""]
    assert content["summary"]["points"] == 2
    assert abs(content["summary"]["worst"]) < 0.05
    for point in content["points"]:
        assert point["measured"] == max(point["measured_phases"].values())
        assert set(point["measured_phases"]) == {"forward", "backward", "step", "evaluation"}
    assert out.with_suffix(".png").is_file()


def test_what_breaks_is_recorded_and_told(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(words: list[str], device: str) -> None:
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(script, "measure", out_of_memory)
    out = tmp_path / "memory.json"
    chosen = ["--only", "method=lora", "--only", "backbone=vit_tiny", "--first", "1"]
    assert script.main(["--device", "cpu", "--tiny", *chosen, "--out", str(out)]) == 1
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["points"][0]["error"] == "OutOfMemoryError: too large"
    assert content["summary"] == {"points": 0}


def test_a_broken_plan_is_told(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such shape")

    monkeypatch.setattr("transfer_run.experiment.planning.plan.plan_run", broken)
    out = tmp_path / "memory.json"
    chosen = ["--only", "method=lora", "--only", "backbone=vit_tiny", "--first", "1"]
    assert script.main(["--device", "cpu", "--tiny", *chosen, "--out", str(out)]) == 1
    (point,) = json.loads(out.read_text(encoding="utf-8"))["points"]
    assert (point["predicted"], point["measured"], point["error"]) == (None, None, "RuntimeError: no such shape")
    assert " - MiB   RuntimeError: no such shape" in capsys.readouterr().out


def test_when_the_time_runs_out(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has been measured is kept, and nobody can take it for the whole."""
    monkeypatch.setattr(script, "plan", lambda words, device: script.Point(list(words), 2**20))
    out = tmp_path / "memory.json"
    chosen = ["--only", "method=lora", "--only", "backbone=vit_tiny", "--minutes", "0"]
    assert script.main(["--device", "cpu", "--tiny", *chosen, "--out", str(out)]) == 1
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["complete"] is False
    assert content["points"] == []
    assert "0 of 3" in capsys.readouterr().err
