"""The folder that an export is written to: whole or not at all, and nobody else's files touched.

    written beside it (.NAME.PID.partial) ──> the earlier export's own files replaced ──> export.json last

`export.json` lists the files that were written. Only they are replaced by a later export; a folder that holds other
things and no such list is refused, and so is a place where a run lives. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from transfer_run.errors import UserError
from transfer_run.files import user_path, write_json
from transfer_run.run_folder import is_run

MANIFEST = "export.json"
SCHEMA = 1


def check_target(run: Path, out: Path) -> Path:
    """Where the export of `run` goes, absolute.

    Raises:
        UserError: `out` is, holds or lies in a run's folder, is a file, or holds things that no export wrote.
    """
    target, home = user_path(str(out), f"export={out}").resolve(), run.resolve()
    inside = next((folder for folder in (target, *target.parents) if folder == home or is_run(folder)), None)
    if inside is not None or target in home.parents:
        what = f"lies in the run {inside}" if inside else f"holds the run {home}"
        what = "is a run's folder" if inside == target else what
        raise _refused(f"The folder {out} {what}, where an export would mix with what the run has recorded.", out)
    if target.exists() and not target.is_dir():
        raise _refused(f"{out} is a file.", out)
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise _refused(f"The folder {out} is not empty, and no export wrote what is in it.", out)
    return target


def _refused(what: str, out: Path) -> UserError:
    return UserError(what, where=f"export={out}", remedy="name a new folder outside of all runs, or an empty one")


@contextmanager
def replaced(run: Path, out: Path) -> Iterator[Path]:
    """A new folder to write the export of `run` to, which takes the place of `out` when all of it is written.

    What breaks off while it is written leaves `out` as it was.

    Raises:
        UserError: see `check_target`; or a file of this export would overwrite one that no export wrote.
    """
    target = check_target(run, out)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _move(partial, target, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, target: Path, out: Path) -> None:
    """File by file; at every moment `export.json` lists all that is ours, so that a second try may go on."""
    new = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
    old = _listed(target)
    strange = [name for name in new if name not in old and os.path.lexists(target / name)]
    if strange:
        raise _refused(f"The export would overwrite {strange[0]}, which no export wrote.", out)
    _list(target, sorted({*new, *old}))
    for name in old:
        if name not in new:
            (target / name).unlink(missing_ok=True)
    for name in new:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).replace(target / name)
    within = {folder for name in old for folder in (target / name).parents if target in folder.parents}
    for folder in sorted(within, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    _list(target, new)


def _listed(target: Path) -> list[str]:
    """The files of the earlier export; names that lead out of the folder are nobody's."""
    file = target / MANIFEST
    if not file.is_file():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("schema") != SCHEMA:
        raise UserError(
            "This folder was exported by another version of transfer-run.",
            where=str(file),
            remedy="name a new folder, or empty this one",
        )
    names = [PurePosixPath(str(name)) for name in content["files"]]
    return [str(name) for name in names if not name.is_absolute() and ".." not in name.parts]


def _list(target: Path, names: list[str]) -> None:
    write_json(target / MANIFEST, {"schema": SCHEMA, "written_by": "transfer-run", "files": names})
