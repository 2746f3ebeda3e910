"""No key of an account gets into a run's config, which is written to its folder, its logs and the sweep's tables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from transfer_run.errors import UserError
from transfer_run.experiment.config.schema import flatten

_NAMED = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
"""What the names of environment variables that hold secrets hold."""
_SHAPED = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})\b")
"""Keys of the hub, of services and clouds, which their beginnings tell."""
_SHORTEST = 12
"""Characters from which on a variable's value is a secret and not a setting."""


def check_secrets(values: Mapping[str, Any]) -> None:
    """Refuse a value that is, or holds, a key of an account.

    Raises:
        UserError: naming the key of the config, never the value.
    """
    secrets = {v: name for name, v in os.environ.items() if _NAMED.search(name) and len(v) >= _SHORTEST}
    for key, value in flatten(values).items():
        text = str(value)
        name = next((name for secret, name in secrets.items() if secret in text), "")
        if name or _SHAPED.search(text):
            what = f"the value of the environment's {name}" if name else "a key of an account"
            raise UserError(
                f"{key} holds {what}, which would be written to the run's records and logs.",
                where=key,
                remedy="take it out: libraries read their keys from the environment or their own login files",
            )
