"""The baselines of the LST paper (arXiv 2206.06522, table 1): exact trainable parameters on T5-base.

The figures are counts of the official modules with 32100 tokens; the paper prints their percentages.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from transfer_run.backbones.load import build_backbone
from transfer_run.experiment.config.registry import config_root
from transfer_run.methods.build import build_method
from transfer_run.task import Task

FULL = 222_882_048
TRAINED = {"full": FULL, "adapter": 3_625_728, "lora": 3_820_644, "bitfit": 280_932, "prompt_tuning": 76_800}
PERCENT = {"full": 100.0, "adapter": 1.63, "lora": 1.71, "bitfit": 0.13, "prompt_tuning": 0.03}


def node(group: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((config_root() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", TRAINED)
def test_trainable_parameters_under_the_paper_profile(name: str) -> None:
    backbone = node("backbone", "t5-base")
    backbone["architecture"] = {**backbone["architecture"], "vocab_size": 32100}
    method = node("method", name)["method"]
    settings = {**method, **method["about"].get("paper_profile", {})}
    tuned = build_method(settings, build_backbone(backbone, device="meta"), Task("text_to_text", 2, ("2", "3")))
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert trained == TRAINED[name] == tuned.counted_parameters()
    assert 100 * trained / FULL == pytest.approx(PERCENT[name], abs=0.006)
