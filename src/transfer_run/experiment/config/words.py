"""The words of a command line: KEY=VALUE, GROUP=CHOICE, and where the user's own configs are."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import registry
from transfer_run.files import user_path
from transfer_run.words import quoted_lists

SEARCH_PATH = "hydra.searchpath"


def separate(words: Sequence[str], config_dir: str | None, search_path: Iterable[str]) -> tuple[list[str], list[Path]]:
    """Words without those that name folders of configs, and all such folders, absolute, each once.

    Args:
        config_dir: what `--config-dir` names.
        search_path: folders, or `file://FOLDER` and `pkg://MODULE` as in `hydra.searchpath=[...]`.

    Raises:
        UserError: a folder does not exist.
    """
    others: list[str] = []
    found: list[object] = [*([config_dir] if config_dir else []), *search_path]
    for word in words:
        if word.lstrip("+").startswith(f"{SEARCH_PATH}="):
            value = parse(word).value()
            found += value if isinstance(value, list) else [value]
        else:
            others.append(word)
    return others, list(dict.fromkeys(_folder(str(named)) for named in found))


def _folder(named: str) -> Path:
    if named.startswith("pkg://"):
        module = named.removeprefix("pkg://").replace("/", ".")
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"There is no package {module!r}.", where=f"{SEARCH_PATH}: {named}", remedy="install it")
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = user_path(named.removeprefix("file://"), f"--config-dir or {SEARCH_PATH}").resolve()
    if not folder.is_dir():
        beside = [str(path) for path in folder.parent.glob("*") if path.is_dir()]
        raise UserError(
            f"The folder of configs {named} does not exist.",
            where=f"--config-dir or {SEARCH_PATH}",
            nearest=nearest_names(str(folder), beside),
            remedy="name a folder that holds method/, dataset/ and so on",
        )
    return folder


def parse(word: str) -> Override:
    """One word as Hydra reads it; a value that is not in its grammar (`sources.a=method=full seed=1`) is taken as text.

    Raises:
        UserError: the word is no KEY=VALUE.
    """
    key, equals, value = word.partition("=")
    if not key.lstrip("+") or (not equals and not key.startswith("~")):
        raise _no_key(word)
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except OverrideParseException as error:
        with suppress(OverrideParseException):
            return OverridesParser.create().parse_overrides([quoted_lists(word)])[0]
        if re.fullmatch(r"[+~]{0,2}[\w./@-]+", key) and not re.match(r"[\[{'\"]", value):
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            with suppress(OverrideParseException):  # else its key is none (`a..b`), which is said below
                return OverridesParser.create().parse_overrides([f"{key}='{escaped}'"])[0]
        problem = str(error).partition("\nSee ")[0].replace("\n", ": ")
        raise UserError(
            f"{word!r} cannot be read: {problem}.",
            where=word,
            remedy="write KEY=VALUE, KEY=[1,2] for a list, and quote text that holds brackets, commas or quotes",
        ) from error


def _no_key(word: str) -> UserError:
    groups = [group for group in registry.KINDS.values() if word in registry.names(group)]
    near = [f"{group}={word}" for group in groups]
    if word.startswith("-"):
        return UserError(f"There is no flag {word!r}.", where=word, remedy="`transfer-run --help` names the flags")
    return UserError(
        f"{word!r} is not KEY=VALUE.", where=word, nearest=near, remedy="`transfer-run --help` explains the keys"
    )
