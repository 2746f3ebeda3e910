"""What stands beside the weights of a new version: settings, tokenizer, chat template, generation settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transfer_run.backbones.weights.files import ADAPTER_SETTINGS, adapter_config, tokenizer_files
from transfer_run.backbones.weights.settings import differences, folder_computing
from transfer_run.files import write_json
from transfer_run.methods.merging.engine.writer import copy_companions

CONFIG = "config.json"


def copy_of_tuned(tuned: Path, start: Path, target: Path, out: Path, *, settings_of_target: bool) -> list[str]:
    """Tokenizer, chat template, generation settings and `config.json` of the tuned model; the names of the files.

    Args:
        start: the tuned model's base, which has the settings where the tuned one is an adapter.
        settings_of_target: `config.json` is the target's instead, with the tuned model's vocabulary and token ids.
    """
    adapter = adapter_config(tuned) is not None
    copied = set(copy_companions(start, out)) if adapter else set()
    copied |= set(copy_companions(tuned, out)) - {ADAPTER_SETTINGS}
    (out / ADAPTER_SETTINGS).unlink(missing_ok=True)
    if settings_of_target and (target / CONFIG).is_file():
        theirs = json.loads((out / CONFIG).read_text(encoding="utf-8")) if CONFIG in copied else {}
        shutil.copyfile(target / CONFIG, out / CONFIG)
        ours = json.loads((target / CONFIG).read_text(encoding="utf-8"))
        ours |= {key: value for key, value in theirs.items() if key == "vocab_size" or key.endswith("_token_id")}
        write_json(out / CONFIG, ours)
        copied.add(CONFIG)
    return sorted(copied)


def said_of(tuned: Path, start: Path, target: Path, *, settings_of_target: bool) -> list[str]:
    """Where the versions compute different things by their config.json, and which way the result goes, in lines."""
    lines = []
    if not tokenizer_files(tuned) and not (adapter_config(tuned) is not None and tokenizer_files(start)):
        lines.append(f"{tuned} holds no tokenizer: put the tuned model's beside the result")
    source, own = folder_computing(start), folder_computing(target)
    if source and own and (differing := differences(own, source)):
        named = "; ".join(f"{name} is {ours!r} and {theirs!r}" for name, ours, theirs in differing)
        lines.append(
            f"target and source compute different things: {named}. The result has the "
            + ("target's settings (method.settings=target)" if settings_of_target else "tuned model's settings")
        )
    return lines
