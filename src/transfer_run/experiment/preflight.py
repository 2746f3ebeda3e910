"""What can be known of a run before anything is carried out for it: said in seconds, not after its sources' hours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import UserError
from transfer_run.experiment.fit import without_data


def check_before(cfg: DictConfig, *, sources_missing: bool) -> None:
    """Refuse a run that cannot be carried out on this machine, with these data and these weights.

    Args:
        sources_missing: must other runs be carried out first? Then local data are read now, too; else the run itself
            reads them at once.

    Raises:
        UserError: what the devices, the data or the weights lack; data and weights in one message.
    """
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    if without_data(cfg):
        return
    check_shares(config)
    dataset = config["dataset"]
    if dataset["about"].get("needs_path") and not dataset.get("path"):
        raise UserError(
            "The dataset has no path.",
            where=f"dataset={dataset['name']}",
            remedy="dataset.path=FILE, or a folder with files or folders named train, validation, test",
        )
    from transfer_run.hardware.devices import check_devices

    check_devices(config["hardware"], config["backbone"])
    _check_files(config, sources_missing)


def check_shares(config: Mapping[str, Any]) -> None:
    """The batch divides among the devices."""
    size, hardware = config["dataset"]["batch_size"], config["hardware"]
    count = int(hardware["devices"]) * int(hardware["nodes"])
    if size % count:
        raise UserError(
            f"dataset.batch_size={size} is the total over devices and does not divide among {count}.",
            where="dataset.batch_size, hardware.devices",
            remedy=f"choose a multiple of {count}",
        )


def _check_files(config: Mapping[str, Any], sources_missing: bool) -> None:
    """Weights and data of the hub are fetched, local data are read; what is missing of both is said together."""
    dataset, backbone = config["dataset"], dict(config["backbone"])
    weights = None
    if str(backbone["weights"]) == "hub" and backbone.get("hub"):
        weights = _error_of(lambda: _fetch(backbone))
    if weights is not None:
        backbone["tokenizer"] = "bytes"  # the model's own is missing with it; only the data are asked for now
    data = None
    if (sources_missing and dataset.get("path")) or (dataset.get("hub") and not dataset.get("path")):
        data = _error_of(lambda: _read({**dataset, "rows": None}, backbone, config["seed"]))
    if data and weights:
        first, second = data.what.rstrip("."), weights.what
        raise UserError(
            f"The data and the weights are missing. {first}. {second}",
            where="; ".join(error.where for error in (data, weights) if error.where),
            remedy=f"data: {data.remedy}; weights: {weights.remedy}",
        ) from data
    if data or weights:
        raise data or weights  # type: ignore[misc]


def _error_of(work: Callable[[], Any]) -> UserError | None:
    try:
        work()
    except UserError as error:
        return error
    return None


def _fetch(backbone: Mapping[str, Any]) -> None:
    from transfer_run.backbones.hub import fetch_weights

    fetch_weights(backbone["hub"], backbone.get("revision"))


def _read(dataset: dict[str, Any], backbone: dict[str, Any], seed: int) -> None:
    from transfer_run.data.load import build_data

    build_data(dataset, backbone, seed).setup()
