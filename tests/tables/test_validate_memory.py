"""scripts/validate_memory.py: what it would measure on a GPU, and its code carried out on a CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "validate_memory.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    name = "validate_memory"
    found = importlib.util.spec_from_file_location(name, SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def values(words: list[list[str]], key: str) -> set[str]:
    return {word.partition("=")[2] for line in words for word in line if word.startswith(f"{key}=")}


def test_what_is_measured_on_a_gpu(script: ModuleType) -> None:
    every = list(script.configurations())
    assert len(every) >= 40
    assert len({tuple(words) for words in every}) == len(every)
    assert values(every, "method") >= {"lst", "unipt", "sherl", "hst", "vqt", "lora", "adapter", "full"}
    assert values(every, "hardware.precision") == {"32-true", "bf16-mixed"}
    for backbone in values(every, "backbone"):
        here = [words for words in every if f"backbone={backbone}" in words]
        assert len(values(here, "dataset.batch_size")) == 3


def test_without_cuda_it_says_so(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert script.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_the_list_shows_plans(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--list", "--tiny", "--only", "method=lora", "--only", "vit_tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("plan" in line and "MiB" in line for line in lines)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        ("full", "vit_tiny"),
        pytest.param("lora", "t5_tiny", marks=pytest.mark.slow),
        pytest.param("lst", "bert_tiny", marks=pytest.mark.slow),
        pytest.param("vqt", "clip_tiny", marks=pytest.mark.slow),
    ],
)
def test_its_code_on_a_cpu(script: ModuleType, tmp_path: Path, method: str, backbone: str) -> None:
    out = tmp_path / "memory.json"
    chosen = ["--only", f"method={method}", "--only", f"backbone={backbone}", "--first", "2"]
    assert script.main(["--device", "cpu", "--tiny", *chosen, "--out", str(out)]) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
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
