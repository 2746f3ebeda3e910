"""The forms of task there are, by their names; no torch, so that a word that is none is refused before anything heavy.

A form is a word of `dataset.form`. `classification` is the class `Classification` in `methods/forms/classification.py`;
`module:Class` is a class of your own, in a file on the search path.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from transfer_run.errors import UserError, nearest_names

FOLDER = Path(__file__).parent / "forms"
OWN = ":"
"""Stands between module and class of a form that is not packaged."""


def packaged_forms() -> list[str]:
    """The names of the forms that come with the package: every file of `methods/forms` is one."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def target_of(form: str) -> tuple[str, str]:
    """Module and class of a form."""
    module, colon, name = form.partition(OWN)
    if colon:
        return module, name
    return f"transfer_run.methods.forms.{form}", "".join(part.title() for part in form.split("_"))


def check_form(form: str, also: frozenset[str] = frozenset(), where: str = "dataset.form") -> None:
    """Refuse a word that is no form.

    Args:
        also: words that are posed as one of the forms (`span_corruption`), or that ask for none.

    Raises:
        UserError: with the nearest of them; of a form of your own, that there is no such module.
    """
    known = [*packaged_forms(), *also]
    module, colon, _ = form.partition(OWN)
    try:
        found = find_spec(module) is not None if colon else form in known
    except (ModuleNotFoundError, ValueError):
        found = False
    if not found:
        raise UserError(
            f"There is no module {module!r} with a form." if colon else f"There is no form of task {form!r}.",
            where=f"{where}={form}",
            nearest=nearest_names(form, known),
            remedy="put the file beside the folder that holds dataset/NAME.yaml, or on PYTHONPATH"
            if colon
            else f"choose among {', '.join(sorted(known))}, or name your own as module:Class",
        )
