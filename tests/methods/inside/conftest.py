"""Small backbones with random weights (`tests/small.py`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import small
from transfer_run.backbones.base import Backbone


@pytest.fixture
def build() -> Callable[..., Backbone]:
    """build("bert", seed=0): a backbone whose weights depend on the seed alone; any setting can be given."""
    return small.backbone
