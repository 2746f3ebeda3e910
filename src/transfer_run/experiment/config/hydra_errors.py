"""What Hydra, OmegaConf and YAML say against a config, as one message of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import registry

CONFIG_NAME = "run"
"""The file that every composition begins with."""


@contextmanager
def user_errors(words: Sequence[str], folders: Sequence[Path]) -> Iterator[None]:
    """What Hydra, OmegaConf and YAML say against a config, as one short message."""
    try:
        yield
    except MissingConfigException as error:
        raise _missing(error, words, folders) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f"{mark.name}, line {mark.line + 1}" if mark else ""
        raise UserError(f"A config is not valid YAML: {getattr(error, 'problem', error)}.", where=position) from error
    except (HydraException, OmegaConfBaseException, ValueError, KeyError, AssertionError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        text = str(cause).strip().splitlines()[0].rstrip(".")
        line = str(error).partition("Error merging override ")[2].splitlines()
        sweep = next((word for word in words if text.startswith("Ambiguous value") and word in text), "")
        if sweep:
            word = sweep.lstrip("+")
            key, _, value = word.partition("=")
            raise UserError(
                f"{word} names several values, but this is one run.",
                where=word,
                remedy=f"add -m for a run of each, write {key}=[{value}] for a list, quote it for text",
            ) from error
        where = line[0].lstrip("+") if line else ""
        if text.startswith("Cannot merge DictConfig with"):
            key, _, value = where.partition("=")
            raise UserError(
                f"{key} is a group of keys, not a list.", where=where, remedy=f"set them one by one: {key}.KEY={value}"
            ) from error
        if isinstance(error, AssertionError):  # Hydra's own, of a key below one of its that holds nothing
            where = where or next((word for word in words if word.startswith("hydra.")), "")
        if unknown := re.match(r"Key '(\w+)' not in '\w+'", text):  # below `hydra`, where Hydra checks its own keys
            where = next((word for word in words if word.partition("=")[0].endswith(f".{unknown[1]}")), where)
        raise UserError(f"The config cannot be composed: {text}.", where=where) from error


def _missing(error: MissingConfigException, words: Sequence[str], folders: Sequence[Path]) -> UserError:
    path = str(error.missing_cfg_file or "")
    group, _, name = path.partition("/")
    if group == "hydra":
        group, _, name = path.rpartition("/")
    word = next((word for word in words if word.endswith(f"={name}") and group in word), "")
    inside = str(error).partition("In '")[2].partition("'")[0]
    experiment = next((word for word in words if word.startswith("experiment=")), "").replace("=", "/")
    parent_group, _, parent = (inside if "/" in inside else experiment).partition("/")
    file = next(iter(registry.find(parent_group, parent, folders)), CONFIG_NAME)
    if group in registry.KINDS.values():
        return registry.unknown_choice(group, name, folders, where=word or f"{file}: {group}={name}")
    return UserError(
        f"There is no {group} {name!r}.", where=word or str(file), nearest=nearest_names(name, error.options or [])
    )
