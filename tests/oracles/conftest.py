"""Numbers that the papers' own code produced: every file of a method, in the folder that TRANSFER_RUN_ORACLES names.

A module says `ORACLE = "lst_t5_*.npz"`; its tests that take `arrays` (or `tensors`) run on each such file.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(os.environ.get("TRANSFER_RUN_ORACLES", Path(__file__).parent / "data"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "arrays" in metafunc.fixturenames:
        files = sorted(FOLDER.glob(metafunc.module.ORACLE))
        metafunc.parametrize("arrays", files, indirect=True, ids=lambda path: path.stem, scope="module")


@pytest.fixture(scope="module")
def arrays(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    with np.load(request.param) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
