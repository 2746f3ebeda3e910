"""What stands in the files that a config names, as digests: part of the run's identity, so that an edited checkpoint
or table is another run.

    {"backbone.weights": "9f2c...", "dataset.path": "1b77..."}     in config.yaml under `contents`; empty without files

Checkpoints (weights, tokenizers, files of a method, folders among the sources): names and bytes of the folder's own
weights and settings; of a run its model. Data: names and bytes of tables, pictures and all else, through links, hidden
files left out, and of the files that tables name, wherever they lie (`about.elsewhere`); of more than `MANY` their
names, sizes and times. Models of the hub are told by the revision in the config; a branch that moves is not seen
(`model.json` says which commit was read).

Bytes of large files, and of a folder's pictures, are read once: their digests are kept by path, size, times and inode.
Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_run.backbones.weights.names import Weights
from transfer_run.errors import UserError
from transfer_run.experiment.config.reads import DATASET, DATASETS, PATHS, keys
from transfer_run.experiment.config.references import Backbones, found_runs
from transfer_run.files import cache_folder, fixed_part, user_path, write_json
from transfer_run.run_folder import MODEL, is_run

MANY = 20_000
"""Files whose bytes are read; of more than these each one's size and the time of its last change are told instead."""

PARTLY = "+sizes"
"""Ends the digest of files that were not all read: where they lie then stays in the identity."""

LARGE = 8 * 2**20
"""Bytes from which on a file's digest is cached."""

WEIGHTS = (".safetensors",)
PICKLED = (".bin", ".pt", ".pth")
SETTINGS = (".json", ".txt", ".model", ".npz", ".npy")
COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt", ".yaml")


def digests(values: Mapping[str, Any], backbones: Backbones) -> dict[str, str]:
    """Digests of the files and folders that a composed config names, by the key that names them.

    Args:
        values: the config as plain containers, paths absolute.
        backbones: those that the method's keys name, by key and words.
    """
    found = {}
    for key, named_path, node in _named_files(values, backbones):
        named = [str(each) for each in (named_path if isinstance(named_path, list) else [named_path])]
        read = [_digest(each, key.startswith("dataset."), values.get("output_dir")) for each in named]
        if any(read):
            parts = [digest or words for digest, words in zip(read, named, strict=True)]  # a model of the hub: its name
            if node is not None and (node.get("about") or {}).get("elsewhere"):
                parts += filter(None, (_elsewhere(node, Path(each)) for each in named))
            partly = any(part.endswith(PARTLY) for part in parts)
            whole = parts[0].removesuffix(PARTLY) if len(parts) == 1 else _short("\n".join(parts))
            found[key] = whole + PARTLY * partly
    for name, runs in found_runs(values).items():
        if runs:
            found[f"method.{name}"] = " ".join(identity[:8] for _, identity in runs)
    return dict(sorted(found.items()))


def refuse_changed(values: Mapping[str, Any], backbones: Backbones) -> None:
    """What the config's keys name must still be what it was when the run was composed: its identity says so.

    Runs that a method finds by itself were chosen then; others may have finished since.

    Raises:
        UserError: naming the keys.
    """
    found = {f"method.{name}" for name in found_runs(values)}
    before = {key: said for key, said in values["contents"].items() if key not in found}
    now = digests(values, backbones) if before else {}
    changed = [key for key, said in before.items() if now.get(key) != said]
    if changed:
        raise UserError(
            f"What {', '.join(changed)} names has changed since this run was composed.",
            where=changed[0],
            remedy="give the command again: other contents are another run",
        )


def told_by_contents(contents: Mapping[str, str]) -> list[str]:
    """The keys whose files are told by all of their bytes: where they lie cannot change a result."""
    return [key for key, digest in contents.items() if not digest.endswith(PARTLY)]


def _names_run(named_path: Any) -> bool:
    """Is this the folder of a run? A run is told by its own identity."""
    return is_run(user_path(str(named_path), str(named_path)))


def _named_files(
    values: Mapping[str, Any], backbones: Backbones
) -> Iterator[tuple[str, Any, Mapping[str, Any] | None]]:
    """Every key that may name files, what it says, and of a data set's path its node."""
    dataset, method = values["dataset"], values["method"]
    yield "dataset.path", dataset.get("path"), dataset
    if not _names_run(dataset.get("rows")):
        yield "dataset.rows", dataset.get("rows"), None
    for name, node in (dataset.get("tests") or {}).items():
        yield f"dataset.tests.{name}.path", node.get("path"), node
    for name, node in members(dataset):
        yield f"dataset.nodes.{name}.path", node.get("path"), node
    for name, node in (dataset.get("beside") or {}).items():
        yield f"dataset.beside.{name}.path", node.get("path"), node
    weights = Weights.of(values["backbone"])
    is_place = weights.of_run and "=" not in weights.words  # `run:` and the folder of an export
    folder = Path(weights.words).expanduser() if is_place else None
    exported = folder is not None and folder.is_dir() and not is_run(folder)
    yield "backbone.weights", str(folder.resolve()) if folder and exported else values["backbone"].get("weights"), None
    yield "backbone.tokenizer", values["backbone"].get("tokenizer"), None
    for key, named in backbones.items():
        for words, backbone in named.items():
            yield f"method.{key}.{words}", backbone.get("weights"), None
    for group, owner in (("method", method), ("dataset", dataset)):
        for entry, value in keys(owner, PATHS):
            yield f"{group}.{entry.name}", value, None
    for name, words in (values.get("sources") or {}).items():
        if "=" in str(words):
            continue
        folder = user_path(str(words), f"sources.{name}")
        if folder.is_dir() and not _names_run(words):
            yield f"sources.{name}", str(folder.resolve()), None


def members(dataset: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The data sets that this one is made of, by name: what its keys name stands in `dataset.nodes`."""
    nodes = dataset.get("nodes") or {}
    for entry, _ in keys(dataset, DATASETS):
        yield from (nodes.get(entry.name.rpartition(".")[2]) or {}).items()
    for entry, _ in keys(dataset, DATASET):
        name = entry.name.rpartition(".")[2]
        yield name, nodes.get(name) or {}


def _digest(named_path: str, data: bool, output_dir: str | None) -> str | None:
    """The digest of a file, of a folder, or of the data files that a pattern fits; None of what is no path.

    Args:
        output_dir: where runs write: it may lie in a folder of data, and is none.
    """
    path = Path(named_path)
    if not path.is_absolute():  # composed configs have no other paths: this is `hub`, `random`, `run:WORDS`, `null`
        return None
    if path.is_file():  # its ending says how it is read
        return _short(f"{path.suffix} {_bytes(path)}")
    if path.is_dir():
        return _tree(path, output_dir) if data else _model(path / MODEL if (path / MODEL).is_dir() else path)
    if data and glob.has_magic(named_path):
        fitting = sorted(glob.glob(named_path, recursive=True))
        return _lines([(Path(file), _fitting(Path(file), named_path)) for file in fitting])
    return None


def _fitting(file: Path, pattern: str) -> str:
    """What a file of a pattern is called in its digest: a table by its path behind the fixed part, a picture at least
    by the folders that say its class and its split, wherever these lie."""
    behind = len(file.relative_to(fixed_part(pattern)).parts)
    table = file.suffix.lower() in (*TABLES, *COMPRESSED)
    return "/".join(file.parts[-(behind if table else max(3, behind)) :])


def _model(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    read = WEIGHTS if any(path.suffix in WEIGHTS for path in files) else PICKLED
    digest = _lines([(path, path.name) for path in files if path.suffix in (*read, *SETTINGS)])
    return digest + PARTLY * (not any(path.suffix in read for path in files))  # a folder of something else


def _elsewhere(dataset: Mapping[str, Any], path: Path) -> str:
    """The digest of what the tables of a data set name; not all of it where a file is missing or there are too many.
    Empty where they name nothing."""
    from transfer_run.data.reading.named_files import named_files  # with pyarrow, which other words do without

    named = named_files(dataset, path)
    if named == []:
        return ""
    files: list[tuple[Path, str]] = []
    for name, found in named or []:
        files += _below(found, name) if found.is_dir() else [(found, name)]
    missing = named is None or any(not file.is_file() for file, _ in files)
    return _lines(files, f"{path.resolve()}, named") + PARTLY * missing


def _tree(folder: Path, output_dir: str | None = None) -> str:
    return _lines(_below(folder, "", output_dir), f"{folder.resolve()}/")


def _below(folder: Path, name: str, output_dir: str | None = None) -> list[tuple[Path, str]]:
    """All files below a folder, through links, with their names: these begin with the folder's own."""
    found: list[tuple[Path, str]] = []
    seen: set[str] = set()
    runs = os.path.realpath(output_dir) if output_dir else None
    for parent, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real == runs and Path(parent) != folder:
            below.clear()
            continue
        if real in seen:  # a circle of links, or a folder that is linked twice: told once, by its first name
            below.clear()
            found.append((Path(parent), f"{os.path.relpath(parent, folder)} -> {real}"))
            continue
        seen.add(real)
        below[:] = sorted(each for each in below if not each.startswith("."))
        shown = sorted(each for each in names if not each.startswith("."))
        found += [
            (Path(parent) / each, os.path.join(name, os.path.relpath(f"{parent}/{each}", folder))) for each in shown
        ]
    return found


def _lines(files: Sequence[tuple[Path, str]], kept_as: str = "") -> str:
    """The digest of a list of names, each with what its file holds.

    Args:
        kept_as: the name that the digest of its pictures is kept by; empty: it is not kept.
    """
    if len(files) > MANY:
        return _short("\n".join(f"{name} {_touched(path)}" for path, name in files)) + PARTLY
    known, lines, others = (*WEIGHTS, *PICKLED, *SETTINGS, *TABLES), [], []
    for path, name in files:
        if path.is_dir():
            lines.append(name)
        elif path.is_file() and (path.suffix.lower() in known or not kept_as):
            lines.append(f"{name} {_bytes(path)}")
        elif path.is_file():
            others.append((path, name))
    if others:
        lines.append(_together(kept_as, others))
    return _short("\n".join(lines))


def _touched(path: Path) -> str:
    try:
        about = path.stat()
    except OSError:
        return "missing"
    return f"{about.st_size} {about.st_mtime_ns}"


def _together(kept_as: str, files: list[tuple[Path, str]]) -> str:
    """The digest of many small files' bytes; as long as none of them was touched, the one that is kept."""
    stats = [(name, path.stat()) for path, name in files]
    stamp = _short("\n".join(f"{n} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for n, s in stats))
    kept = _cached().get(kept_as, [None])
    if kept[0] == stamp:
        return str(kept[-1])
    size = sum(stat.st_size for _, stat in stats)
    if size > 100 * LARGE:
        print(f"reading {Path(kept_as)} ({size / 1e9:.1f} GB) once, to know it again", file=sys.stderr, flush=True)
    digest = _short("\n".join(f"{name} {_read(path)}" for path, name in files))
    if time.time() - max(max(stat.st_mtime, stat.st_ctime) for _, stat in stats) > 2:
        with contextlib.suppress(OSError):  # nowhere to keep it: they are read again
            write_json(_file(), {**_cached(), kept_as: [stamp, digest]})
    return digest


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _bytes(path: Path) -> str:
    """SHA-256 of a file; of a large one that has not been touched since it was last read, the one that is cached."""
    about = path.stat()
    stamp = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
    if about.st_size < LARGE:
        return _read(path)
    cached, name = _cached(), str(path.resolve())
    if cached.get(name, [None])[:-1] == stamp:
        return str(cached[name][-1])
    if about.st_size > 100 * LARGE:
        print(f"reading {path} ({about.st_size / 1e9:.1f} GB) once, to know it again", file=sys.stderr, flush=True)
    digest = _read(path)
    if time.time() - max(about.st_mtime, about.st_ctime) > 2:  # else a change within a clock's tick could be missed
        with contextlib.suppress(OSError):  # nowhere to keep it: it is read again
            write_json(_file(), {**_cached(), name: [*stamp, digest]})
    return digest


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _file() -> Path:
    return cache_folder() / "digests.json"


def _cached() -> dict[str, list[Any]]:
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
