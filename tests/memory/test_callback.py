"""The callback follows the first steps, first evaluations and larger batches, and leaves the rest alone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from tests.memory import small
from tests.memory.test_planner import fit
from transfer_run.memory.account import KINDS
from transfer_run.memory.callback import MemoryCallback
from transfer_run.memory.meters import CudaMeter
from transfer_run.methods.tuning.full import Full


class Watch(Callback):
    """Notes in which steps operators are followed; placed after the memory callback."""

    def __init__(self) -> None:
        self.followed: list[bool] = []
        self.hooked: list[bool] = []

    def on_before_backward(self, *args: Any) -> None:
        self.followed.append(torch._C._len_torch_dispatch_stack() > 0)
        self.hooked.append(bool(nn.modules.module._global_forward_hooks))


class Both(Callback):
    """The memory callback with the watch behind it, in this order."""

    def __init__(self, steps: int) -> None:
        self.memory, self.watch = MemoryCallback(steps), Watch()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith(("on_", "setup")):
            return super().__getattribute__(name)

        def both(*args: Any, **kwargs: Any) -> None:
            getattr(self.memory, name)(*args, **kwargs)
            getattr(self.watch, name)(*args, **kwargs)

        return both


def followed(sizes: list[int], steps: int, accumulate: int = 1) -> tuple[list[bool], MemoryCallback]:
    callback = Both(steps)
    method = Full(small.backbone("vit"), small.task("vit"))
    fit(method, [small.batch("vit", size) for size in sizes], callback, accumulate=accumulate)
    assert callback.watch.hooked == callback.watch.followed
    assert torch._C._len_torch_dispatch_stack() == 0
    return callback.watch.followed, callback.memory


def test_the_first_steps_are_followed_and_no_others() -> None:
    assert followed([4] * 6, steps=2)[0] == [True, True, False, False, False, False]


def test_steps_are_optimizer_steps() -> None:
    assert followed([4] * 6, steps=2, accumulate=2)[0] == [True, True, True, True, False, False]


def test_no_step_need_be_followed() -> None:
    seen, memory = followed([4, 8], steps=0)
    assert seen == [False, False]
    assert memory.result()["peak_phase"] == "evaluation"


def test_a_larger_batch_is_followed_whenever_it_comes() -> None:
    seen, memory = followed([4, 4, 4, 6, 6, 2], steps=1)
    assert seen == [True, False, False, True, False, False]
    assert memory.shapes["train"]["pixel_values"][0] == 6
    assert memory.result()["phases"]["forward"]["peak"] > 0


def test_the_result_is_that_of_the_contract() -> None:
    _, memory = followed([8] * 3, steps=2)
    result = memory.result()
    assert (result["unit"], result["source"]) == ("bytes", "tracker")
    assert set(result["by_kind"]) == set(KINDS)
    assert sum(result["by_kind"].values()) == result["peak"] == result["phases"][result["peak_phase"]]["peak"]
    assert {"forward", "backward", "step", "evaluation"} <= set(result["phases"])
    assert all(phase["by_kind"]["parameters"] == result["by_kind"]["parameters"] for phase in result["phases"].values())
    assert result["phases"]["step"]["by_kind"]["optimizer"] > 0
    assert result["largest"][0]["bytes"] >= result["largest"][-1]["bytes"]


def test_nothing_is_left_behind_by_a_run_that_breaks() -> None:
    class Breaks(Both):
        def __init__(self) -> None:
            super().__init__(2)
            self.watch.on_before_backward = self.stop  # type: ignore[method-assign]

        def stop(self, *args: Any) -> None:
            raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="broken on purpose"):
        fit(Full(small.backbone("vit"), small.task("vit")), [small.batch("vit", 4)], Breaks())
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not nn.modules.module._global_forward_hooks


def test_without_a_run_there_is_no_result() -> None:
    assert MemoryCallback().result() == {}


# ---- the allocator's counters
class Allocator:
    """Stands in for `torch.cuda`: what is allocated is set by hand, the peak is kept until it is reset."""

    def __init__(self, allocated: int) -> None:
        self.allocated = self.peak = allocated

    def use(self, *amounts: int) -> None:
        for amount in amounts:
            self.allocated = amount
            self.peak = max(self.peak, amount)

    def max_memory_allocated(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated


def test_counters_are_read_at_the_end_of_every_phase() -> None:
    model = nn.Linear(128, 128, bias=False)
    weight = 128 * 128 * 4
    model.requires_grad_(True)
    cuda = Allocator(weight)
    meter = CudaMeter(model, cuda)
    batch = torch.zeros(128)
    meter.open("forward", [batch], [])
    cuda.use(500_000, 400_000)
    meter.mark("backward")
    cuda.use(600_000, 300_000)
    model.weight.grad = torch.zeros_like(model.weight)
    meter.mark("step")
    cuda.use(350_000, 200_000)
    meter.close()
    cuda.use(550_000, 100_000)
    report = meter.report()
    assert (report.peak, report.phase) == (600_000, "backward")
    assert {name: phase.bytes for name, phase in report.phases.items()} == {
        "forward": 500_000, "backward": 600_000, "step": 350_000, "between": 550_000,
    }  # fmt: skip
    forward, step = report.phases["forward"].by_kind, report.phases["step"].by_kind
    assert forward == dict.fromkeys(KINDS, 0) | {
        "parameters": weight,
        "inputs": 512,
        "activations": 500_000 - weight - 512,
    }
    assert step["gradients"] == weight
    assert report.as_dict("cuda")["source"] == "cuda"


def test_a_later_episode_raises_a_phase_but_never_lowers_it() -> None:
    cuda = Allocator(1000)
    meter = CudaMeter(nn.Linear(1, 1), cuda)
    for peak in (5000, 9000, 7000):
        meter.open("evaluation", [], [])
        cuda.use(peak, 1000)
        meter.close()
    assert meter.report().phases["evaluation"].bytes == 9000


def test_the_meter_is_chosen_by_the_device() -> None:
    callback = MemoryCallback()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False)  # fmt: skip
    module = pl.LightningModule()
    callback.setup(trainer, module, "fit")
    assert callback.result()["source"] == "tracker"
