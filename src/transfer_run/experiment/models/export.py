"""A finished run's model in the form that the ecosystem loads.

    tuners of peft                     a peft folder                          PeftModel.from_pretrained(model, DIR)
    all of the backbone trained,
    or changes that fold into it       a folder of the backbone's library     AutoModel.from_pretrained(DIR), timm
    anything else (side networks,
    prompts, adapters)                 the trained tensors                    transfer_run.load(DIR)

Each has the task's head beside it (head.safetensors), is described by model.json and README.md, and is loaded whole
by `transfer_run.load(DIR)`. `transfer-run ... export=DIR` does it at the end of a run, or at once for a run that is
finished; `transfer-run run=FOLDER export=DIR` for a run's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.weights.names import BYTES, tokenizer_words
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.models.export_folder import check_target, replaced
from transfer_run.experiment.models.handover import as_full
from transfer_run.experiment.models.model_files import backbone_config, load_model, tasks_of
from transfer_run.files import write_json
from transfer_run.methods.base import Method
from transfer_run.methods.build import WHOLE_BACKBONE
from transfer_run.run_folder import (
    BODY_PREFIX,
    DESCRIPTION,
    HEAD_PREFIX,
    HEADS,
    WEIGHTS,
    has_model,
    model_folder,
    read_description,
)

PEFT, TRANSFORMERS, TIMM = "peft", "transformers", "timm"

HOW = {
    PEFT: """`adapter_model.safetensors` is what peft's layers learned. Put it onto the library's own model:

```python
from peft import PeftModel
from transformers import {model}

folder = "."  # the folder of this file
base = {model}.from_pretrained({base}){part}{note}
model = PeftModel.from_pretrained(base, folder)
```
""",
    TRANSFORMERS: """The whole model, as transformers writes it:

```python
from transformers import {model}

model = {model}.from_pretrained("."){part}  # the folder of this file
```
""",
    TIMM: """The whole model, as timm writes it:

```python
import timm

model = timm.create_model("local-dir:.", pretrained=True, num_classes=0)  # the folder of this file
```
""",
    "": """`model.safetensors` holds the {count} tensors that were trained. Of peft's and the backbone's library's forms
neither holds it{why}. A frozen backbone is named in `model.json`.
""",
}
WHOLE = """
With the task's head, as it was trained:

```python
import transfer_run

model = transfer_run.load(".")  # the folder of this file; backbone_weights=PATH where a frozen backbone lies elsewhere
logits = model(batch)
```
"""


OTHER_TASKS = """
`heads/` has the heads of all tasks that were merged ({names}):

```python
model = transfer_run.load(folder, task="NAME")
```
"""


def export_run(run: Path, out: Path) -> Path:
    """Write the model of the finished run in `run` to the folder `out`.

    Raises:
        UserError: the run made no model, or `out` holds other things already or belongs to a run.
    """
    check_target(run, out)
    source = model_folder(run)
    if not has_model(source) and any(source.glob("*.safetensors")):
        with replaced(run, out) as folder:  # merged files are in their library's form already
            shutil.copytree(source, folder, dirs_exist_ok=True)
        return out
    about = read_description(source)
    method = load_model(source, packed=False)
    with replaced(run, out) as folder:
        library, about, words = _written(method, about, source, folder)
        _save_tokenizer(about["backbone"], folder)
        if (source / HEADS).is_dir():
            shutil.copytree(source / HEADS, folder / HEADS)
        if library in (TRANSFORMERS, TIMM):  # other files than the run's
            about = {key: value for key, value in about.items() if key != "sha256"}
        write_json(folder / DESCRIPTION, {**about, "library": library})
        title = f"# {about['method']['name']} on {about['backbone']['name']}\n\nWritten by transfer-run. "
        page = (HOW[library] + WHOLE).format(count=about["tensors"], **words)
        page += OTHER_TASKS.format(names=", ".join(tasks_of(source))) if tasks_of(source) else ""
        (folder / "README.md").write_text(title + page, encoding="utf-8")
    return out


def _written(
    method: Method, about: dict[str, Any], source: Path, out: Path
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Write the model in the first form that holds it; which one, the description, and words for the page."""
    model, part = method.backbone.class_of_export
    words: dict[str, Any] = {"model": model, "part": part, "why": ""}
    if method.export(out):
        _save_head(method, out)
        shutil.copy2(source / WEIGHTS, out / WEIGHTS)
        base, note = _base(about, out)
        return PEFT, about, {**words, "base": base, "note": note}
    try:
        if not about["complete"] or any(not name.startswith((BODY_PREFIX, HEAD_PREFIX)) for name in method.shipped()):
            method = as_full(method, about, where=str(source))
            about = {**about, "method": dict(registry.entry("method", WHOLE_BACKBONE).content["method"])}
    except UserError as error:
        shutil.copy2(source / WEIGHTS, out / WEIGHTS)
        why = f": {error.where.partition(': ')[2]} cannot be folded into the backbone"
        return "", about, {**words, "why": why}
    if not method.backbone.library:
        shutil.copy2(source / WEIGHTS, out / WEIGHTS)
        return "", about, {**words, "why": ": the backbone is of none"}
    method.backbone.save_library(out)
    _save_head(method, out)
    return method.backbone.library, {**about, "complete": True}, words


def _save_head(method: Method, out: Path) -> None:
    head = {f"head.{name}": tensor.detach().contiguous() for name, tensor in method.backbone.head.state_dict().items()}
    if head:
        save_file(head, out / "head.safetensors")


def _save_tokenizer(backbone: Mapping[str, Any], out: Path) -> None:
    """What turned texts into the numbers that the model has learned, beside it, where that is files."""
    if tokenizer_words(backbone) not in (None, BYTES):
        from transfer_run.backbones.tokenizer import build_tokenizer

        build_tokenizer(dict(backbone)).save_pretrained(out)


def _base(about: Mapping[str, Any], out: Path) -> tuple[str, str]:
    """The argument of `from_pretrained` for the model that an adapter goes onto, and a remark on it.

    The hub's model at its commit, which peft's own config then names too; one that no library has is written beside
    the adapter; a folder is the reader's to name.
    """
    provenance = about["provenance"]
    if provenance["source"] == "folder":
        return '"PATH"', "  # the folder that model.json names: provenance, weights"
    if provenance["source"] != "hub" or not provenance["weights"]:  # on no hub: a package carries it
        build_backbone(backbone_config(about)).save_library(out / "base")
        return 'f"{folder}/base"', ""
    name, revision = provenance["weights"], provenance["commit"] or provenance["revision"]
    file = out / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, {**config, "base_model_name_or_path": name, "revision": revision})
    return f'"{name}", revision="{revision}"' if revision else f'"{name}"', ""
