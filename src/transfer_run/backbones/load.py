"""From a backbone's config to the backbone: random weights, a folder, or the hub.

    backbone.weights=random      the architecture of the config, untrained; `random:SEED` for the weights of that seed
    backbone.weights=PATH        a transformers folder, a timm folder or file, or the model of an earlier run
    backbone.weights=hub         `backbone.hub` at `backbone.revision`: in a package, in the cache, or downloaded
                                 (`weights/published.py`)

Only the module of the family asked for is imported: a text model never waits for timm.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.declared import family_of
from transfer_run.backbones.quantised import check_quantised
from transfer_run.backbones.stream import BlockStream
from transfer_run.backbones.weights.checkpoints import checksum, fill, read_tensors, refuse_not_finite
from transfer_run.backbones.weights.files import stored_config
from transfer_run.backbones.weights.names import Weights
from transfer_run.backbones.weights.published import find_weights
from transfer_run.errors import UserError, nearest_names
from transfer_run.run_folder import BODY_PREFIX, HEAD_PREFIX, WEIGHTS, has_model, model_folder, read_description
from transfer_run.targets import load_class

LOG = logging.getLogger("transfer_run")
RANDOM: Literal["random"] = "random"


def backbone_class(config: Mapping[str, Any], folder: Path | None = None) -> type[Backbone]:
    """The class of a backbone: that of its family, or of its kind within it.

    Args:
        config: the composed `backbone` node.
        folder: of the weights; its config.json tells the kind where `architecture` does not.

    Raises:
        UserError: there is no such family, or its module or class does not exist.
    """
    family = family_of(config)
    kind = (config.get("architecture") or {}).get("model_type")
    if family.targets and kind is None and folder is not None and (folder / "config.json").is_file():
        kind = stored_config(folder).get("model_type")
    target = family.targets.get(str(kind), family.target)
    where = f"backbone.about.target: {target} (family {family.name})"
    found: type[Backbone] = load_class(target, Backbone, where, "class of backbones")
    return found


def build_backbone(
    config: dict[str, Any],
    *,
    weights: bool = True,
    device: str = "cpu",
    checkpointing: bool = False,
    loss_chunk: int | None = None,
) -> Backbone:
    """The backbone that `config` describes, kept as its `load` and `offload` say.

    Args:
        config: the composed `backbone` node as plain containers: name, family, weights, hub, revision, architecture.
        weights: False builds the architecture with random weights, whatever `config` says.
        device: where it shall be; on `meta` it takes no memory and no weights are read.
        checkpointing: keep one hidden state a block for backward, and compute the rest again.
        loss_chunk: make the vocabulary logits of so many tokens at once in a loss, and again in backward; None: of all.

    Returns:
        The backbone in train mode, its `provenance` telling what was loaded: `source` (random, folder, run, hub),
        `weights`, and off the meta device the `checksum` of all its tensors; for the hub also `revision`, `commit` and
        where on this machine they were `found`.

    Raises:
        UserError: the weights cannot be had, or do not fit the architecture.
    """
    source = Weights.of(config) if weights else Weights(RANDOM)
    if device == "meta":
        with torch.device("meta"):
            backbone = backbone_class(config).from_architecture(config)
    else:
        check_quantised(config)
        if source.kind == RANDOM:
            backbone, provenance = _random(config, source.words)
        elif source.kind == "hub":
            backbone, provenance = _from_hub(config)
        else:
            backbone, provenance = _from_path(config, str(source))
        if source.kind != RANDOM:
            refuse_not_finite(backbone.model.state_dict(), str(provenance["weights"]))
        backbone.provenance = {**provenance, "checksum": checksum(backbone.model)}
    backbone.activation_checkpointing, backbone.loss_chunk = checkpointing, loss_chunk
    if config.get("load"):
        backbone.to(torch.bfloat16)
        backbone.in_bf16 = True
    if config.get("offload"):
        blocks = {(stack, i): block for stack in backbone.stacks for i, block in enumerate(backbone.blocks(stack))}
        backbone.stream = BlockStream(blocks)
    return backbone if device == "meta" else backbone.to(device)


Loaded = tuple[Backbone, dict[str, Any]]
"""A backbone and where its weights come from."""


def _random(config: dict[str, Any], words: str) -> Loaded:
    """Weights that depend on the seed alone, not on what was drawn before, so that a recorded seed gives them again."""
    seed, kind = int(words) if words else torch.initial_seed(), backbone_class(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = kind.from_architecture(config)
    return backbone, {"source": RANDOM, "weights": f"{RANDOM}:{seed}"}


def _from_hub(config: dict[str, Any]) -> Loaded:
    """The weights are looked for before the library is imported: what is not there is said at once."""
    found = find_weights(config)
    LOG.info("weights of %s: from %s", config["name"], found.place)
    backbone = backbone_class(config, found.folder).from_folder(found.folder, config)
    names = {"weights": config.get("hub"), "revision": config.get("revision"), "commit": found.commit}
    return backbone, {"source": "hub", **names, "found": found.place}


def _from_path(config: dict[str, Any], source: str) -> Loaded:
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(
            f"The weights {source!r} are neither a folder nor a file.",
            where="backbone.weights",
            nearest=nearest_names(source, ("hub", RANDOM)),
            remedy="hub, random, or the path of a folder with config.json and model.safetensors",
        )
    path = model_folder(path)
    if has_model(path) and read_description(path).get("library") not in ("transformers", "timm"):
        return _from_run(config, path)
    return backbone_class(config, path).from_folder(path, config), {"source": "folder", "weights": source}


def _from_run(config: dict[str, Any], folder: Path) -> Loaded:
    """The backbone inside the model that an earlier run saved: its tensors are named `backbone.model.*`."""
    about = read_description(folder)
    if not about.get("complete", False):
        raise UserError(
            "That run kept its backbone frozen and stored only what it trained: there is no whole backbone in it.",
            where=str(folder),
            remedy="name the run by its words or its folder (run:WORDS, run:FOLDER), and its changes are merged where "
            "they can be; or export it",
        )
    backbone = backbone_class(config).from_architecture(config)
    tensors = read_tensors(folder / WEIGHTS)
    body = {n.removeprefix(BODY_PREFIX): t for n, t in tensors.items() if n.startswith(BODY_PREFIX)}
    fill(backbone.model, body, folder)
    weight, bias = tensors.get(f"{HEAD_PREFIX}weight"), tensors.get(f"{HEAD_PREFIX}bias")
    if weight is not None and bias is not None:
        backbone.source_head = (weight, bias)
        backbone.source_labels = tuple((about.get("task") or {}).get("label_names") or ())
    return backbone, {"source": "run", "weights": str(folder)}
