"""A finished run's model in the form that the ecosystem loads.

    everything trained (full, pretrain, merged)   a folder of the backbone's own library, the head beside it
    anything else (side networks, prompts, ...)   the trained tensors with what describes them, and a loader

`transfer-run ... export=DIR` does it at the end of a run, or at once for a run that is finished.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from transfer_run.errors import UserError
from transfer_run.experiment.saved import load_model, read_description
from transfer_run.experiment.sources import model_folder
from transfer_run.methods.base import Method

HOW = """# {method} on {backbone}

Written by transfer-run. `model.safetensors` holds the {count} tensors that were trained; the frozen backbone is named
in `model.json` ({provenance}).

```python
from pathlib import Path
from transfer_run.experiment.saved import load_model

method = load_model(Path("{folder}"))  # backbone_weights=PATH where they lie elsewhere
logits = method(batch)
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
    out.mkdir(parents=True, exist_ok=True)
    method = load_model(source)
    library = method.export(out)
    if not library and about["complete"]:
        _as_library_folder(method, out)
        library = True
    if not library:
        shutil.copy2(source / "model.safetensors", out / "model.safetensors")
        text = HOW.format(
            method=about["method"]["name"],
            backbone=about["backbone"]["name"],
            count=about["tensors"],
            provenance=about["provenance"].get("weights"),
            folder=out,
        )
        (out / "README.md").write_text(text, encoding="utf-8")
    (out / "model.json").write_text(json.dumps({**about, "library": library}, indent=1), encoding="utf-8")
    return out


def _as_library_folder(method: Method, out: Path) -> None:
    """`from_pretrained` (transformers) or `create_model('local-dir:...')` (timm) loads it."""
    method.backbone.save_library(out)
    head = {f"head.{name}": tensor.detach().contiguous() for name, tensor in method.backbone.head.state_dict().items()}
    if head:
        save_file(head, out / "head.safetensors")
