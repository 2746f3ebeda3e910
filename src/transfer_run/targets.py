"""The classes that configs name (`about.target`, `dataset.form=module:Class`), and whose modules are imported for them.
Imports nothing heavy.

A config is data, and data may come from anybody: a model's folder, the record of a run, a word on a command line. So a
name is looked up only in this package, in the libraries below, and in folders that the user names (`--config-dir`,
`hydra.searchpath`, PYTHONPATH); and what is found must be a class of the kind that is asked for before anything of it
is called.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from transfer_run.errors import UserError, nearest_names

LIBRARIES = ("transfer_run", "torch.optim", "transformers", "timm", "peft", "bitsandbytes")
"""Modules, and all below them, that any config may name classes of."""

_named: list[Path] = []
"""Folders of the user's own modules, named since this process began."""


def make_importable(folders: Iterable[str | Path]) -> None:
    """Let modules in the user's folders be imported, after everything that is installed."""
    for folder in map(Path, folders):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        if folder not in _named:
            _named.append(folder)


def check_target(target: str, where: str, folders: Sequence[Path] = ()) -> None:
    """Refuse the name of a class whose module is nobody's that the user trusts; nothing is imported.

    Args:
        target: `module.Class`.
        folders: the user's own, besides those that are importable already.

    Raises:
        UserError: it is no such name, or its module is not there, or somewhere else.
    """
    module, _, name = target.rpartition(".")
    if not (module and all(part.isidentifier() for part in (*module.split("."), name))):
        raise UserError(f"{target!r} is no module.Class.", where=where, remedy="write the class with its module")
    if any(module == known or module.startswith(f"{known}.") for known in LIBRARIES):
        return
    root, mine = module.partition(".")[0], [*folders, *_named, *_python_path()]
    found = None if root in sys.builtin_module_names else PathFinder.find_spec(root, [*sys.path, *map(str, folders)])
    if found is None and root not in sys.builtin_module_names:
        raise _not_there(module, where, mine)
    if found is None or root in sys.stdlib_module_names or not _lies_in(found, mine):
        raise UserError(
            f"The module {root!r} of {target} lies in no folder that you have named: nothing of it is called.",
            where=where,
            remedy=f"a class of your own is named by its folder, --config-dir FOLDER or PYTHONPATH; else one of "
            f"{', '.join(LIBRARIES)}",
        )


def load_class(target: str, kind: type, where: str, what: str) -> type:
    """The class that a config names.

    Args:
        kind: what it must inherit.
        what: that in a word, for messages.

    Raises:
        UserError: see `check_target`; or the module has no such class.
    """
    check_target(target, where)
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise _not_there(module_name, where, _named) from error
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, kind):
        return found
    classes = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, kind) and v is not kind]
    raise UserError(
        f"{module_name} has no {what} {name!r}.",
        where=where,
        nearest=nearest_names(name, classes) or classes,
        remedy=f"name a class that inherits {kind.__module__}.{kind.__name__}",
    )


def _not_there(module: str, where: str, folders: Sequence[Path]) -> UserError:
    beside = [path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.py")]
    return UserError(
        f"The module {module!r} cannot be imported.",
        where=where,
        nearest=nearest_names(module, beside),
        remedy="put the file beside the folder that holds method/NAME.yaml, dataset/NAME.yaml, ..., or on PYTHONPATH",
    )


def _python_path() -> list[Path]:
    return [Path(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def _lies_in(found: ModuleSpec, folders: Iterable[Path]) -> bool:
    """Is the module in one of the folders, or is one of them a part of it (`hydra.searchpath=[pkg://MODULE.conf]`)?"""
    roots = [Path(place).resolve() for place in found.submodule_search_locations or ()]
    roots = roots or [Path(str(found.origin)).resolve()]
    named = [folder.resolve() for folder in folders]
    return all(any(folder in root.parents or root in (folder, *folder.parents) for folder in named) for root in roots)
