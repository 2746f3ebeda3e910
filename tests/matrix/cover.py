"""A cover of pairs over method, backbone, form, precision and memory mode: every pair of two of them is in some case.

The product of all five is thousands; what breaks, breaks where two of them meet. A method of peft's layers meets one
backbone of each family, every other one all small backbones (`tests/small.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import torch

from tests import small
from transfer_run.backbones.declared import family_of, takes
from transfer_run.experiment.config import registry
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method

PRECISIONS = ("32-true", "bf16-mixed")
SMALL: dict[str, dict[str, Any]] = {
    "adapter": {"reduction": 8},
    "bitfit": {"add_biases": True},
    "hst": {"side_dims": [8, 12], "side_heads": [2, 3]},
    "lst": {"reduction_factor": 2, "init": "random"},
    "qst": {"reduction_factor": 2},
    "mam_adapter": {"length": 3, "hidden": 8, "bottleneck": 6},
    "parallel_adapter": {"bottleneck": 6},
    "prefix_tuning": {"length": 3, "hidden": 8},
    "prompt_tuning": {"length": 3},
    "peft/boft": {"settings": {"boft_block_size": 4}},
    "peft/c3a": {"settings": {"block_size": 4}},
    "peft/fourierft": {"settings": {"n_frequency": 100, "init_weights": True}},
    "peft/oft": {"settings": {"r": 0, "oft_block_size": 4}},
    "peft/psoft": {"settings": {"r": 4}},
    "peft/road": {"settings": {"group_size": 4}},
    "peft/vblora": {"settings": {"r": 4, "num_vectors": 32, "vector_length": 4}},
    "peft/waveft": {"settings": {"n_frequency": 100}},
}
"""What the defaults are too large for."""


@dataclass(frozen=True)
class Case:
    """One method on one small backbone under one form of task."""

    method: str
    backbone: str
    form: str
    precision: str
    memory_mode: str | None

    def __str__(self) -> str:
        return "-".join(str(part) for part in vars(self).values() if part is not None)

    def build(self, draw: int = 1, device: str = "cpu") -> Method:
        """The method on the same backbone weights every time; `draw` seeds what it adds."""
        config = {**node(self.method), **SMALL.get(self.method, {})}
        if self.memory_mode is not None:
            config["memory_mode"] = self.memory_mode
        backbone = small.backbone(self.backbone, device=device)
        torch.manual_seed(draw)
        return build_method(config, backbone, small.task(self.backbone, self.form))  # type: ignore[arg-type]

    def batch(self) -> dict[str, torch.Tensor]:
        return small.batch(self.backbone, self.form)  # type: ignore[arg-type]


@cache
def node(method: str) -> dict[str, Any]:
    """The packaged config of a method."""
    return dict(registry.entry("method", method, ()).content["method"])


def methods() -> list[str]:
    """Those that are fitted on any data; a method with words of its own for the matrix needs sources or a sequence."""
    about = {name: node(name)["about"] for name in registry.names("method", ())}
    return [name for name, said in about.items() if said["shape"] in ("tune", "stage") and "matrix" not in said]


def possible(method: str) -> list[Case]:
    """All cases of a method, as its config allows them."""
    said = node(method)["about"]
    modes: tuple[str | None, ...] = ("efficient", "official") if "memory_mode" in node(method) else (None,)
    one = {"t5": "t5", "encoder": "bert", "decoder": "llama", "vit": "vit", "cnn": "cnn", "clip": "clip"}
    names = one.values() if method.startswith("peft/") else small.CONFIGS
    return [
        Case(method, name, form, precision, mode)
        for name in names
        if takes(said, family_of(small.CONFIGS[name]))
        for form in small.forms(name)
        if form in (said.get("tasks") or (form,)) and (method, name) not in REFUSED and (method, form) not in REFUSED
        for precision in PRECISIONS
        for mode in modes
    ]


def pairs(case: Case) -> set[tuple[Any, ...]]:
    """Every two of the case's five choices."""
    return set(combinations(vars(case).items(), 2))


@cache
def cover() -> list[Case]:
    """Cases in which every possible pair occurs, few of them: the one that brings most new pairs is taken next."""
    found: list[Case] = []
    seen: set[tuple[Any, ...]] = set()
    for method in methods():
        left = {case: pairs(case) for case in possible(method)}
        while left and (best := max(left, key=lambda case: len(left[case] - seen))) and left[best] - seen:
            found.append(best)
            seen |= left.pop(best)
    return found


def refusals() -> Iterator[Case]:
    """A case of each pair that a method must refuse."""
    for method, other in REFUSED:
        name = other if other in small.CONFIGS else next(n for n in small.CONFIGS if other in small.forms(n))
        form = small.forms(name)[0] if other == name else other
        yield Case(method, name, form, PRECISIONS[0], None)


REFUSED: dict[tuple[str, str], str] = {
    ("prefix_tuning", "deberta"): "cannot take a prefix",
    ("mam_adapter", "deberta"): "cannot take a prefix",
    ("vqt", "deberta"): "takes no separate queries",
}
"""(method, backbone or form) -> what the method says when it refuses it."""
