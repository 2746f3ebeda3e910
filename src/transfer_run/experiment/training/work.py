"""Long work of `Method.prepare` in a run: saved, gone on with, watched, told of.

    checkpoints/prepare/NAME.ckpt   step and state, every `trainer.checkpoint_minutes`, at a signal and at the end

A loop that has ended is not repeated as long as the run is not finished, in whatever of its later parts it is killed.
"""

from __future__ import annotations

import hashlib
import math
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from transfer_run.backbones.weights.checkpoints import not_finite
from transfer_run.experiment.record.log import LOG
from transfer_run.experiment.training.divergence import diverged
from transfer_run.experiment.training.saved import read_saved
from transfer_run.experiment.training.signals import Signals
from transfer_run.files import written_whole
from transfer_run.memory.callback import MemoryCallback
from transfer_run.memory.tracker import followed_at_first
from transfer_run.methods.work import Item, State, Work
from transfer_run.run_folder import CHECKPOINTS, LOG_FILE

REMEDY = "delete it, or give force=true, to begin it again"
SECONDS = 20.0
"""Between two lines of progress."""


class ResumedWork(Work):
    """The long work of one run. Every process does all of it; the first one saves.

    Args:
        folder: the run's.
        seed: the run's.
        settings: the composed `trainer` node.
        memory: what measures the preparation; its books are saved with the work.
    """

    def __init__(
        self, folder: Path, seed: int, settings: Mapping[str, Any], memory: MemoryCallback | None = None
    ) -> None:
        self.memory = memory
        self.folder, self.seed, self.settings = folder / CHECKPOINTS / "prepare", seed, settings
        self.run_log = folder / LOG_FILE
        self._names: set[str] = set()

    def loop(self, name: str, step: Callable[[int], Tensor | None], steps: int, state: State) -> None:
        if name in self._names:
            raise ValueError(f"two loops are called {name!r}")
        self._names.add(name)
        path, signals = self.folder / f"{name}.ckpt", Signals()
        done, saved_at, loss = self._load(path, state), time.monotonic(), None
        progress = self._progress(name, steps, done)
        signals.take()
        try:
            with _random_numbers_kept():
                for number in followed_at_first(range(done, steps)):
                    seed_all(loop_seed(self.seed, name, number))
                    loss = step(number)
                    last = number + 1 == steps
                    if last or (number + 1) % self.settings["log_every"] == 0:
                        self._watch(name, number + 1, loss)
                    late = time.monotonic() - saved_at > 60 * self.settings["checkpoint_minutes"]
                    if last or late or signals.asked is not None:
                        self._save(path, name, number + 1, state)
                        saved_at = time.monotonic()
                    progress(number + 1, loss)
                    if signals.asked is not None:
                        raise signals.error(path)
        finally:
            signals.give_back()

    def follow(self, name: str, items: Iterable[Item], total: int | None = None) -> Iterator[Item]:
        progress = self._progress(name, total, 0)
        for number, item in enumerate(items, start=1):
            yield item
            progress(number, None)

    @rank_zero_only
    def forget(self, name: str) -> None:
        (self.folder / f"{name}.ckpt").unlink(missing_ok=True)

    @rank_zero_only
    def close(self) -> None:
        """The run is finished: its loops are not gone on with."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _watch(self, name: str, number: int, loss: Tensor | None) -> None:
        value = 0.0 if loss is None else float(loss)
        if self.settings["stop_on_nan"] and not math.isfinite(value):
            raise diverged(f"The loss of {name} is {value} at step {number}.", self.run_log)

    def _save(self, path: Path, name: str, number: int, state: State) -> None:
        content = {key: one if isinstance(one, Tensor) else one.state_dict() for key, one in state.items()}
        tensors = {f"{key}.{leaf}": value for key, one in content.items() for leaf, value in _leaves(one)}
        if self.settings["stop_on_nan"] and (broken := not_finite(tensors)):
            what = f"What {name} trains is not finite at step {number} ({', '.join(broken[:3])})."
            raise diverged(what, self.run_log)
        books = {} if self.memory is None else {"memory": self.memory.state_dict()}
        _write(path, {"step": number, "state": content, **books})

    def _load(self, path: Path, state: State) -> int:
        """The steps done; `state` is then as it was after the last of them."""
        if not path.is_file():
            return 0
        found = read_saved(path, "What this run's preparation would go on from", REMEDY)
        for key, one in state.items():
            if isinstance(one, Tensor):
                with torch.no_grad():
                    one.copy_(found["state"][key])
            else:
                one.load_state_dict(found["state"][key])
        if self.memory is not None and "memory" in found:
            self.memory.load_state_dict(found["memory"])
        return int(found["step"])

    def _progress(self, name: str, total: int | None, first: int) -> Callable[[int, Tensor | None], None]:
        """Tells of a step, if it is time to."""
        begin = last = time.monotonic()
        silent = self.settings["progress"] == "none"
        if first and not silent:
            LOG.info("%s goes on from step %d", name, first)

        def tell(number: int, loss: Tensor | None) -> None:
            nonlocal last
            now = time.monotonic()
            if silent or now - last < SECONDS:
                return
            last = now
            value = "" if loss is None else f"  loss {float(loss):.4g}"
            if total is None:
                LOG.info("%s: %d%s", name, number, value)
            else:
                left = (now - begin) / (number - first) * (total - number)
                LOG.info("%s: %d/%d%s  about %.0f s left", name, number, total, value, left)

        return tell


@rank_zero_only
def _write(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as partial:
        torch.save(content, partial)


def loop_seed(seed: int, name: str, step: int) -> int:
    """The seed of one step of a loop, another one in every loop."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name} {step}".encode()).digest()[:4], "big")


def seed_all(seed: int) -> None:
    """Every generator that a step may draw from. `torch.manual_seed` would, for each kind of device that is not in use,
    note the call and the whole stack it came from: milliseconds a step, and memory that grows with the steps."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Random numbers go on afterwards as if nothing had been drawn: a resumed loop leaves them as a whole one does."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def _leaves(content: Any) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors of nested plain containers."""
    if isinstance(content, Tensor):
        yield "", content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from ((f"{key}.{leaf}".rstrip("."), tensor) for leaf, tensor in _leaves(value))
