"""No data: what `dataset=none` stands for where a data set would be needed after all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from transfer_run.data.base import DataModule, Example
from transfer_run.data.rows.sampling import Draw
from transfer_run.errors import UserError
from transfer_run.task import Batch, BatchSpec, Task


def _missing() -> NoReturn:
    raise UserError(
        "There is no data set, so there is no batch to train, test or plan with.",
        where="dataset=none",
        remedy="choose one (transfer-list datasets); only merging works on checkpoints alone",
    )


class NoData(DataModule):
    """Every question about the data is refused with one message."""

    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        _missing()

    @classmethod
    def batch_spec(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int) -> BatchSpec:
        _missing()

    def read(self) -> dict[str, int]:
        _missing()

    def example(self, split: str, draw: Draw) -> Example:
        _missing()

    def collate(self, examples: Sequence[Example]) -> Batch:
        _missing()

    @property
    def label_names(self) -> tuple[str, ...]:
        return ()

    @property
    def transform_description(self) -> dict[str, Any]:
        return {}
