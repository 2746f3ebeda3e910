"""What a backbone's config says of its weights and its tokenizer, before a file or the hub is asked. Imports nothing
heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError
from transfer_run.run_folder import has_model

BYTES = "bytes"
"""`backbone.tokenizer=bytes`: 256 bytes and 128 special ids, no files."""


def hub_name(backbone: Mapping[str, Any]) -> str:
    """`backbone.hub`.

    Raises:
        UserError: the backbone is on no hub; nobody is asked.
    """
    hub = backbone.get("hub")
    if not hub:
        raise UserError(
            f"The backbone {backbone.get('name')!r} is on no hub: its weights and tokenizer must be given.",
            where="backbone.weights=hub, backbone.hub=null",
            remedy="backbone.weights=PATH for a folder that holds the model, or backbone.weights=random",
        )
    return str(hub)


def uses_bytes(backbone: Mapping[str, Any]) -> bool:
    """Does the backbone read bytes? So say its config, or weights that come with no tokenizer: random ones, and those
    of an earlier run of ours."""
    words, weights = backbone.get("tokenizer"), str(backbone.get("weights") or "random")
    if words:
        return str(words) == BYTES
    return weights.split(":")[0] in ("random", "run", "stage") or has_model(Path(weights).expanduser())
