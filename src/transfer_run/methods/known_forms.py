"""The forms of task there are, by their names; no torch, so that a word that is none is refused before anything heavy.

A form is a word of `dataset.form`. `classification` is the class `Classification` in `methods/forms/classification.py`;
`module:Class` is a class of your own, in a file on the search path.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from transfer_run.errors import UserError, nearest_names
from transfer_run.targets import check_target

FOLDER = Path(__file__).parent / "forms"
OWN = ":"
"""Stands between module and class of a form that is not packaged."""


def packaged_forms() -> list[str]:
    """The names of the forms that come with the package: every file of `methods/forms` is one."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def target_of(form: str) -> tuple[str, str]:
    """Module and class of a form."""
    module, colon, name = form.partition(OWN)
    if colon:  # a class of the user's own
        return module, name
    return f"transfer_run.methods.forms.{form}", "".join(part.title() for part in form.split("_"))


def check_form(form: str, also: Collection[str] = (), folders: Sequence[Path] = ()) -> None:
    """Refuse a word that is no form.

    Args:
        also: words that are posed as one of the forms (`span_corruption`), or that ask for none.
        folders: where modules of your own are, besides what can be imported.

    Raises:
        UserError: with the nearest of them; of a form of your own, that there is no such module.
    """
    module, colon, name = form.partition(OWN)
    known = sorted({*packaged_forms(), *also})
    if not colon and form not in known:
        raise UserError(
            f"There is no form of task {form!r}.",
            where=f"dataset.form={form}",
            nearest=nearest_names(form, known),
            remedy=f"choose among {', '.join(known)}, or name your own as module:Class",
        )
    if colon:
        check_target(f"{module}.{name}", f"dataset.form={form}", folders)
