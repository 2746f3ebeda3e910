"""Can Weights & Biases be logged to? Asked without importing it, before a run begins: its own answers take minutes.

WANDB_API_KEY, or the entry of its host in ~/.netrc      as `wandb login` leaves it
WANDB_BASE_URL, WANDB_MODE                               a server of one's own; offline or disabled
"""

from __future__ import annotations

import netrc
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from transfer_run.errors import UserError

HERE = ("offline", "dryrun", "disabled")
SECONDS = 5.0
"""That a server may take to answer."""
PORTS = {"http": 80, "https": 443}


def base_url() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def is_here(settings: Mapping[str, Any]) -> bool:
    """Does the run ask for no server?

    Args:
        settings: the config's `logger` node.
    """
    return bool(settings["offline"]) or os.environ.get("WANDB_MODE", "") in HERE


def check_key(settings: Mapping[str, Any]) -> None:
    """Refuse a run that would log to a server without a key for it.

    Args:
        settings: the config's `logger` node, of any logger.

    Raises:
        UserError: there is no key.
    """
    if settings["name"] != "wandb" or is_here(settings) or _has_key():
        return
    raise UserError(
        f"Weights & Biases has no key for {urlsplit(base_url()).hostname} on this machine.",
        where="logger=wandb",
        remedy="`wandb login`, or set WANDB_API_KEY; logger.offline=true logs here (`wandb sync` sends it later)",
    )


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(urlsplit(base_url()).hostname or ""):
                return True
    return False


def is_reached() -> bool:
    """Does the server, or the proxy before it, answer within seconds?"""
    url = urlsplit(base_url())
    proxy = getproxies().get(url.scheme)
    asked = urlsplit(proxy if proxy and "//" in proxy else f"//{proxy}") if proxy else url
    answered = threading.Event()

    def ask() -> None:
        with (
            suppress(OSError),
            socket.create_connection((asked.hostname or "", asked.port or PORTS.get(url.scheme, 443)), timeout=SECONDS),
        ):
            answered.set()

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no timeout of its own
    asking.start()
    asking.join(SECONDS)
    return answered.is_set()
