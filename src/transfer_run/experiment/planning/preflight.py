"""What can be known of a run before anything is carried out for it: said in seconds, not after its sources' hours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transfer_run.backbones.weights.names import Weights
from transfer_run.backbones.weights.published import find_weights, refuse_nowhere
from transfer_run.errors import UserError
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.digests import members
from transfer_run.experiment.config.references import ROWS, TOKENIZER
from transfer_run.experiment.record.wandb_access import check_key


def check_before(run: Run, *, sources_missing: bool) -> None:
    """Refuse a run that cannot be carried out on this machine, with these data and these weights.

    Args:
        sources_missing: must other runs be carried out first? Then local data are read now, too; else the run itself
            reads them at once.

    Raises:
        UserError: what the devices, the data and the weights lack, in one message.
    """
    config = run.config
    if not run.has_data:
        return
    check_key(config["logger"])
    check_shares(config)
    if config["method"]["about"].get("pretrained", True) and run.weights.kind == "hub":
        refuse_nowhere(config["backbone"])
    _check_steps(run)
    _check_paths(config["dataset"])
    from transfer_run.hardware.devices import check_devices

    devices = _error_of(lambda: check_devices(config["hardware"], config["backbone"]))
    devices = devices or _error_of(lambda: _check_load(config["backbone"]))
    missing = [error for error in (devices, *_missing_files(run, sources_missing)) if error]
    if len(missing) == 1:
        raise missing[0]
    if missing:
        raise UserError(
            " ".join(f"{error.what.rstrip('.')}." for error in missing),
            where="; ".join(error.where for error in missing if error.where),
            remedy="; ".join(error.remedy for error in missing if error.remedy),
        )


def check_shares(config: Mapping[str, Any]) -> None:
    """The batch divides among the devices, and so does that of every data set beside the run's own."""
    dataset, hardware = config["dataset"], config["hardware"]
    count = int(hardware["devices"]) * int(hardware["nodes"])
    sizes = {"dataset.batch_size": dataset["batch_size"]}
    for name, node in (dataset.get("beside") or {}).items():
        sizes[f"dataset.beside.{name}"] = node["batch_size"] or dataset["batch_size"]
    for key, size in sizes.items():
        if size % count:
            raise UserError(
                f"{key.removesuffix('.batch_size')}.batch_size={size} is the total over devices and does not divide "
                f"among {count}.",
                where=f"{key}, hardware.devices",
                remedy=f"choose a multiple of {count}",
            )


def _check_paths(dataset: Mapping[str, Any]) -> None:
    """The data set has the path that it cannot do without, and so has each that it is made of, beside or tested on."""
    nodes = {"": dataset, **{f"dataset.nodes.{name}": node for name, node in members(dataset) if node}}
    nodes |= {f"dataset.{key}.{name}": node for key in ("beside", "tests") for name, node in dataset[key].items()}
    for key, node in nodes.items():
        if node["about"].get("needs_path"):
            from transfer_run.data.reading.table import path_of

            try:
                path_of(node)
            except UserError as error:
                if not key:
                    raise
                needs = node["about"]["needs_path"]
                remedy = f'{key}="{node["name"]} path={needs}"'
                raise UserError(error.what, where=f"{key}: {node['name']}", remedy=remedy) from error


def _check_steps(run: Run) -> None:
    """Shards and scaled losses do not suit every method; the method is asked where there are any."""
    hardware, method = run.config["hardware"], run.config["method"]
    clips = run.config["trainer"]["gradient_clip"] is not None
    if hardware["precision"] == "16-mixed" and clips and run.config["optimizer"].get("fused"):
        raise UserError(
            "A fused optimizer takes the scale of 16-mixed away by itself, so its gradients cannot be clipped before.",
            where="hardware.precision=16-mixed, trainer.gradient_clip, optimizer.fused=true",
            remedy="hardware.precision=bf16-mixed, or optimizer=adamw, or trainer.gradient_clip=null",
        )
    if hardware["strategy"] == "fsdp" or hardware["precision"] == "16-mixed":
        from transfer_run.experiment.config.compose import make_importable
        from transfer_run.hardware.steps import check_own_steps
        from transfer_run.methods.build import method_class

        make_importable(run)
        check_own_steps(method_class(method["about"]["target"]), method["name"], hardware)


def _missing_files(run: Run, sources_missing: bool) -> tuple[UserError | None, UserError | None]:
    """Data and weights of the hub are fetched, local data are read: what is wrong with the data, with the weights."""
    config, weights, data = run.config, None, None
    dataset, backbone = config["dataset"], dict(config["backbone"])
    read = config["method"]["about"].get("pretrained", True)
    if read and Weights.of(backbone).kind == "hub":
        weights = _error_of(lambda: find_weights(backbone))
    if weights is not None:
        backbone["tokenizer"] = "bytes"  # the model's own is missing with it; only the data are asked for now
    named = {each.key for each in run.references if each.of_run}  # what a run will make is not there yet
    if TOKENIZER in named:
        backbone |= {"tokenizer": "bytes", "architecture": {**(backbone.get("architecture") or {}), "vocab_size": None}}
    made = any(key.startswith("dataset.") for key in named - {ROWS})
    if (sources_missing and not made) or (dataset.get("hub") and not dataset.get("path")):
        rows = None if ROWS in named else dataset["rows"]
        data = _error_of(lambda: _read({**dataset, "rows": rows}, backbone, config["seed"]))
    return data, weights


def _check_load(backbone: Mapping[str, Any]) -> None:
    if backbone.get("load"):
        from transfer_run.backbones.quantised import check_quantised

        check_quantised(backbone)


def _error_of(work: Callable[[], Any]) -> UserError | None:
    try:
        work()
    except UserError as error:
        return error
    return None


def _read(dataset: dict[str, Any], backbone: dict[str, Any], seed: int) -> None:
    from transfer_run.data.load import build_data, build_tests
    from transfer_run.methods.form import find_form

    data = build_data(dataset, backbone, seed)
    data.setup()
    build_tests(data)
    find_form(data.task.form).scores(data, next(iter(data.sizes)))
