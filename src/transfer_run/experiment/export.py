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

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment import registry
from transfer_run.experiment.handover import HEAD, MODEL, as_full
from transfer_run.experiment.record import write_json
from transfer_run.experiment.saved import backbone_config, load_model, read_description
from transfer_run.experiment.sources import model_folder
from transfer_run.methods.base import Method

PEFT, TRANSFORMERS, TIMM = "peft", "transformers", "timm"

HOW = {
    PEFT: """`adapter_model.safetensors` is what peft's layers learned. Put it onto the library's own model:

```python
from peft import PeftModel
from transformers import {model}

model = PeftModel.from_pretrained({model}.from_pretrained({base!r}), {folder!r})
```
""",
    TRANSFORMERS: """The whole model, as transformers writes it:

```python
from transformers import {model}

model = {model}.from_pretrained({folder!r})
```
""",
    TIMM: """The whole model, as timm writes it:

```python
import timm

model = timm.create_model({local!r}, pretrained=True, num_classes=0)
```
""",
    "": """`model.safetensors` holds the {count} tensors that were trained. Of peft's and the backbone's library's forms
neither holds it{why}. The frozen backbone is named in `model.json` ({base}).
""",
}
WHOLE = """
With the task's head, as it was trained:

```python
import transfer_run

model = transfer_run.load({folder!r})  # backbone_weights=PATH where a frozen backbone lies elsewhere
logits = model(batch)
```
"""


def export_run(run: Path, out: Path) -> Path:
    """Write the model of the finished run in `run` to the folder `out`.

    Raises:
        UserError: the run made no model, or `out` holds other things already.
    """
    source = model_folder(run)
    if not (source / "model.json").is_file() and any(source.glob("*.safetensors")):
        shutil.copytree(source, out, dirs_exist_ok=True)  # merged files are in their library's form already
        return out
    about = read_description(source)
    if out.exists() and any(out.iterdir()) and not (out / "model.json").is_file():
        raise UserError(
            f"The folder {out} is not empty.", where=f"export={out}", remedy="name a new folder, or empty this one"
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    library, about, words = _written(load_model(source), about, source, out)
    write_json(out / "model.json", {**about, "library": library})
    names = {"folder": str(out), "local": f"local-dir:{out}", "count": about["tensors"], **words}
    title = f"# {about['method']['name']} on {about['backbone']['name']}\n\nWritten by transfer-run. "
    (out / "README.md").write_text(title + (HOW[library] + WHOLE).format(**names), encoding="utf-8")
    return out


def _written(
    method: Method, about: dict[str, Any], source: Path, out: Path
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Write the model in the first form that holds it; which one, the description, and words for the page."""
    words: dict[str, Any] = {"model": type(method.backbone.model).__name__, "why": ""}
    if method.export(out):
        _save_head(method, out)
        shutil.copy2(source / "model.safetensors", out / "model.safetensors")
        return PEFT, about, {**words, "base": _base(about, out)}
    try:
        if not about["complete"] or any(not name.startswith((MODEL, HEAD)) for name in method.shipped()):
            method = as_full(method, about, where=str(source))
            about = {**about, "method": dict(registry.entry("method", "full").content["method"])}
    except UserError as error:
        shutil.copy2(source / "model.safetensors", out / "model.safetensors")
        why = f": {error.where.partition(': ')[2]} cannot be folded into the backbone"
        return "", about, {**words, "why": why, "base": about["provenance"].get("weights")}
    method.backbone.save_library(out)
    _save_head(method, out)
    library = TRANSFORMERS if hasattr(method.backbone.model, "save_pretrained") else TIMM
    return library, {**about, "complete": True}, words


def _save_head(method: Method, out: Path) -> None:
    head = {f"head.{name}": tensor.detach().contiguous() for name, tensor in method.backbone.head.state_dict().items()}
    if head:
        save_file(head, out / "head.safetensors")


def _base(about: Mapping[str, Any], out: Path) -> str:
    """The model that an adapter goes onto: the hub's or a folder's; one that no library has is written beside it."""
    provenance = about["provenance"]
    if provenance["source"] in ("hub", "folder"):
        return str(provenance["weights"])
    build_backbone(backbone_config(about)).save_library(out / "base")
    return str(out / "base")
