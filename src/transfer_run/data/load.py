"""From a composed `dataset` node to its task, its batch shapes and its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transfer_run.data.asked import asked
from transfer_run.data.base import DataModule
from transfer_run.data.long_tail import with_counts
from transfer_run.data.loss import with_loss
from transfer_run.errors import UserError, nearest_names
from transfer_run.targets import load_class
from transfer_run.task import BatchSpec, Task, named_beside


def data_class(dataset: Mapping[str, Any]) -> type[DataModule]:
    """The class that `dataset.about.target` names.

    Raises:
        UserError: there is no such module or class (a user's own dataset, misspelt).
    """
    target = str(dataset["about"]["target"])
    found: type[DataModule] = load_class(
        target, DataModule, f"about.target={target} of dataset={dataset['name']}", "data set's class"
    )
    return found


class _Node(dict[str, Any]):
    """A `dataset` node that says what its file lacks: a class reads its keys when it needs them."""

    def __missing__(self, key: str) -> Any:
        raise UserError(
            f"The class {self['about']['target']} reads dataset.{key}, which the file does not have.",
            where=f"the file of dataset={self['name']}",
            nearest=nearest_names(key, [known for known in self if known != "about"]),
            remedy="write it below `dataset:`, as the file of a data set of the same class has it",
        )


def build_task(dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
    """What `dataset` asks of `backbone`, from the configs alone: no data, network or tokenizer files."""
    kind, dataset = data_class(dataset), _Node(dataset)
    kind.refuse_augment(dataset)
    return with_counts(with_loss(kind.describe(dataset, backbone), dataset), dataset)


def batch_spec(dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int, devices: int = 1) -> BatchSpec:
    """Shape and type of each tensor of a training batch of `batch_size` rows, all padded to the maximum length.

    Args:
        devices: among which a data set beside the run's own divides its batch, where that has a size of its own.
    """
    spec = dict(data_class(dataset).batch_spec(_Node(dataset), backbone, batch_size))
    for name, node in others(dataset).items():
        size = -(-node["batch_size"] // devices) if node["batch_size"] else batch_size
        spec |= named_beside(name, data_class(node).batch_spec(_Node(node), backbone, size))
    return spec


def others(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nodes of the data sets beside the run's own, by name; `batch_size` null: as many rows as that."""
    return dataset.get("beside") or {}


def build_beside(dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> dict[str, DataModule]:
    """The data sets beside the run's own, by name, not read yet."""
    return {name: build_data(node, backbone, seed) for name, node in others(dataset).items()}


def build_tests(data: DataModule) -> dict[str, DataModule]:
    """The further test sets of `dataset.tests` by name, read; classes have the names and numbers of the run's own.

    Args:
        data: the run's own data set, read.

    Raises:
        UserError: a test set has no rows to test on, or asks something else than `data`.
    """
    return {name: _test_of(data, name, node) for name, node in (data.dataset.get("tests") or {}).items()}


def _test_of(data: DataModule, name: str, node: Mapping[str, Any]) -> DataModule:
    own = data.described
    of_files = node.get("path") is not None  # what needs none knows what its classes are called
    if asked(data.dataset).named and of_files and "label_names" in node and node.get("label_names") is None:
        node = {**node, "label_names": list(data.label_names)}
    found = build_data(node, data.backbone, data.seed)
    found.setup()
    found.split("test")
    other, where = found.described, f"dataset.tests.{name}"
    for fact, mine, theirs in (
        ("is answered as", own.form, other.form),
        ("has the classes", data.label_names, found.label_names),
        ("has batches of", _tensors(data), _tensors(found)),
    ):
        if mine != theirs:
            raise UserError(
                f"The test set {fact} {_listed(theirs)}, dataset={data.dataset['name']} {_listed(mine)}.",
                where=where,
                remedy="test on data of the same task, its labels named alike and in the same order",
            )
    return found


def _tensors(data: DataModule) -> set[str]:
    """What a batch is made of."""
    return set(data.collate([data.split(next(iter(data.sizes)))[0]]))


def _listed(fact: Any) -> str:
    return fact if isinstance(fact, str) else ", ".join(sorted(fact) if isinstance(fact, set) else fact) or "none"


def build_data(dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> DataModule:
    """The dataset, not read yet: `setup()` reads it."""
    return data_class(dataset)(_Node(dataset), backbone, seed)
