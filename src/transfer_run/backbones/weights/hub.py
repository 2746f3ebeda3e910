"""Weights and tokenizer files from the hub: what is cached is used without asking, what is missing is fetched once.

Offline means offline: with HF_HUB_OFFLINE=1 no request is made, and without a network the first one fails at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from transfer_run.backbones.weights.files import tokenizer_files, weight_files
from transfer_run.errors import UserError

SAFE = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
PICKLED = ["config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"]
TOKENIZER = ["*token*.json", "*.model", "vocab.*", "merges.txt", "config.json"]


def fetch_weights(hub: str, revision: str | None) -> Path:
    """The local snapshot of `hub` at `revision`, downloaded with a progress bar when it is not cached.

    Safetensors where the repository has them; else `pytorch_model.bin`, which is later read by PyTorch's restricted
    loader (tensors only, no code).

    Raises:
        UserError: no network, no access, no such repository or revision, or no weights in it.
    """
    folder = cached_weights(hub, revision)
    if folder is not None:
        return folder
    _refuse_offline(hub, revision)
    files = _files(hub, revision)
    for patterns in (SAFE, PICKLED):
        if any(fnmatch(file, pattern) for file in files for pattern in patterns[1:]):
            return _download(hub, revision, patterns)
    raise UserError(
        f"The hub's {hub} holds neither model.safetensors nor pytorch_model.bin.",
        where=f"backbone.hub={hub}, backbone.revision={revision}",
        remedy="choose another revision, or give a folder: backbone.weights=PATH",
    )


def cached_weights(hub: str, revision: str | None) -> Path | None:
    """The snapshot with the weights of `hub` if it is on this machine already."""
    for patterns in (SAFE, PICKLED):
        folder = _cached(hub, revision, patterns)
        with suppress(UserError):  # a part of them: the rest is fetched
            if folder is not None and weight_files(folder):
                return folder
    return None


def fetch_tokenizer(hub: str, revision: str | None) -> Path:
    """The local snapshot with the tokenizer files of `hub` at `revision`.

    Raises:
        UserError: as `fetch_weights`.
    """
    folder = _cached(hub, revision, TOKENIZER)
    if folder is not None and tokenizer_files(folder):
        return folder
    _refuse_offline(hub, revision)
    _files(hub, revision)
    return _download(hub, revision, TOKENIZER)


def commit_of(folder: Path) -> str | None:
    """The commit hash of a hub snapshot, which is the name of its folder."""
    return folder.name if len(folder.name) == 40 and folder.parent.name == "snapshots" else None


def _cached(hub: str, revision: str | None, patterns: list[str]) -> Path | None:
    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=patterns, local_files_only=True))
    except OSError:  # not cached: the caller decides whether to fetch or to refuse
        return None


def _files(hub: str, revision: str | None) -> list[str]:
    """What the repository holds. One request and no second try: without a network the answer comes at once."""
    with _explained(hub, revision):
        return [file.rfilename for file in HfApi().model_info(hub, revision=revision, timeout=10).siblings or ()]


def _download(hub: str, revision: str | None, patterns: list[str]) -> Path:
    with _explained(hub, revision):
        return Path(snapshot_download(hub, revision=revision, allow_patterns=patterns))


@contextmanager
def _explained(hub: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's and the network's errors into one that says what to do."""
    where = f"backbone.hub={hub}, backbone.revision={revision}"
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{hub} is only given to users who accepted its licence.",
            where=where,
            remedy="accept it on the model's page and log in (hf auth login), or give a folder: backbone.weights=PATH",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"The hub's {hub} has no revision {revision!r}.", where=where, remedy="backbone.revision=main, or a commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"The hub has no model {hub!r}, or it is private.",
            where=where,
            remedy="check backbone.hub, log in (hf auth login), or give a folder: backbone.weights=PATH",
        ) from error
    except Exception as error:  # the network's many errors have no base class in common
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{hub} is not on this machine and could not be fetched: {reason}",
            where=where,
            remedy=_remedy(hub, revision),
        ) from error


def _refuse_offline(hub: str, revision: str | None) -> None:
    offline = constants.is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")
    if offline:
        raise UserError(
            f"{hub} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it.",
            where=f"backbone.hub={hub}, backbone.revision={revision}",
            remedy=_remedy(hub, revision),
        )


def _remedy(hub: str, revision: str | None) -> str:
    at = f" --revision {revision}" if revision and revision != "main" else ""
    return (
        "backbone.weights=PATH for a folder that holds the model, backbone.weights=random for untrained weights, "
        f"or fetch it where there is a network: hf download {hub}{at}"
    )
