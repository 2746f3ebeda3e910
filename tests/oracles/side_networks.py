"""One variant of a file of side-network oracles (UniPT, SHERL): its arrays by group, and how ours are compared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

BOUND = {"atol": 1e-9, "rtol": 1e-9}
Group = dict[str, Tensor]
Rename = Callable[[str], str]


class Case:
    """One variant of a file: `config/*`, `input/*`, `weight/*`, `mid/*`, `grad/*`, each by name."""

    def __init__(self, arrays: dict[str, np.ndarray], variant: str) -> None:
        def group(name: str) -> Group:
            here = f"{variant}/{name}/"
            return {k.removeprefix(here): torch.from_numpy(a) for k, a in arrays.items() if k.startswith(here)}

        self.config = {name: value.tolist() for name, value in group("config").items()}
        self.input, self.weight, self.mid, self.grad = (group(n) for n in ("input", "weight", "mid", "grad"))
        self.output, self.loss = (torch.from_numpy(arrays[f"{variant}/{n}"]) for n in ("output", "loss"))

    def taps(self, prefix: str = "hidden_") -> list[Tensor]:
        count = sum(name.startswith(prefix) for name in self.input)
        return [self.input[f"{prefix}{index}"] for index in range(count)]

    def load(self, module: nn.Module, rename: Rename) -> None:
        """Every tensor of ours comes from the file, and every one of the file goes somewhere."""
        given = {rename(name): tensor for name, tensor in self.weight.items()}
        ours = {n for n in module.state_dict() if not n.endswith("num_batches_tracked")}
        assert set(given) == ours
        module.double().load_state_dict(given, strict=False)
        module.eval()

    def check(self, output: Tensor, module: nn.Module, rename: Rename) -> None:
        torch.testing.assert_close(output, self.output, **BOUND)
        loss = output.square().sum()
        torch.testing.assert_close(loss, self.loss, **BOUND)
        loss.backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        assert {rename(name) for name in self.grad} == set(gradients)
        for name, theirs in self.grad.items():
            ours = gradients[rename(name)]
            assert ours is not None, name
            bound = {"atol": 1e-9 * max(1.0, float(theirs.abs().max())), "rtol": 1e-9}
            torch.testing.assert_close(ours, theirs, **bound, msg=lambda m, n=name: f"{n}: {m}")
