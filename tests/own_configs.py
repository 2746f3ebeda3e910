"""Folders of a user's own configs and modules, made for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from transfer_run.experiment.config import registry


def own(folder: Path, group: str, name: str, like: str, *, about: dict[str, Any] | None = None, **keys: Any) -> Path:
    """A user's file GROUP/NAME.yaml: that of `like`, with other facts and keys; returns the folder."""
    node = dict(registry.entry(group, like).content[group])
    node |= {"name": name, "about": {**(node.get("about") or {}), **(about or {})}, **keys}
    package = "_global_" if group in ("method", "dataset") else group
    content = {group: node} if package == "_global_" else node
    (folder / group).mkdir(parents=True, exist_ok=True)
    text = f"# @package {package}\n{yaml.safe_dump(content)}"
    (folder / group / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder
