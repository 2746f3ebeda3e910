"""Small backbones with random weights, one or two a family, and a batch for each (`tests/small.py`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from tests import small
from transfer_run.backbones.base import Backbone
from transfer_run.task import Task


@pytest.fixture
def build() -> Callable[..., Backbone]:
    """build("bert", seed=0): a backbone whose weights depend on the seed alone; any setting can be given."""
    return small.backbone


@pytest.fixture
def task() -> Callable[[str], Task]:
    return small.task


@pytest.fixture
def batch() -> Callable[..., dict[str, Tensor]]:
    """batch("bert"): four examples; texts of ten tokens, the second one padded from the seventh on."""
    return lambda name, rows=4: small.batch(name, rows=rows)
