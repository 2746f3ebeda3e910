"""A run's identity is what it reads of models: adapters, exports, teachers, a zoo, another run.

Another byte of any of their files that makes other values is another run, or the read is refused.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.export import export_run
from transfer_run.experiment.models.handover import resolved_backbone
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.sources.models import source_model
from transfer_run.methods.merging.engine.opening import open_models
from transfer_run.methods.merging.engine.stream import Job, merge_in_memory
from transfer_run.methods.merging.runs.bodies import body_tensors
from transfer_run.methods.merging.task_arithmetic import TaskArithmeticRule
from transfer_run.run_folder import check_model, model_folder
from transfer_run.task import Task

SIZES: Any = {"vocab_size": 384, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 16, "max_position_embeddings": 32}  # fmt: skip
TINY = ("backbone=bert_tiny", "dataset=python_docs", "dataset.max_source_length=16",
        "backbone.architecture.hidden_size=8", "backbone.architecture.num_hidden_layers=1",
        "backbone.architecture.num_attention_heads=2", "backbone.architecture.intermediate_size=16",
        "backbone.architecture.max_position_embeddings=32")  # fmt: skip
LABELS = Task("classification", 8, tuple("abcdefgh"))
IDS = torch.arange(3, 12)[None]
Reader = tuple[tuple[str, ...], Callable[[], torch.Tensor]]


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensors[name].detach().double().flatten() for name in sorted(tensors)])


def answers(folder: Path) -> torch.Tensor:
    """What a source says to a text."""
    node = {"dataset": {"about": {"holds": "text"}}}
    method = source_model("teacher", {"teacher": folder}, node, LABELS)
    with torch.no_grad():
        return method({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})


def adapters(folder: Path, shared: Path) -> Reader:
    torch.manual_seed(0)
    model: Any = BertModel(BertConfig(**SIZES))
    model.save_pretrained(folder / "base")
    settings: Any = {"r": 2, "lora_alpha": 3, "target_modules": ["query", "value"], "init_lora_weights": False}
    peft.get_peft_model(model, peft.LoraConfig(**settings)).save_pretrained(folder / "lora")
    (folder / "lora" / "README.md").unlink(missing_ok=True)

    def read() -> torch.Tensor:
        models, base = open_models([folder / "lora"], str(folder / "base"))
        return flat(merge_in_memory(Job(models, base), TaskArithmeticRule(1.0)))

    return ("method=task_arithmetic", f"method.base={folder / 'base'}", f"method.models=[{folder / 'lora'}]",
            "dataset=none"), read  # fmt: skip


def teacher(folder: Path, shared: Path) -> Reader:
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**SIZES, num_labels=8)).save_pretrained(folder)
    words = ("method=distiller", *TINY, "backbone.weights=random:0", f"sources.teacher={folder}")
    return words, lambda: answers(folder)


def zoo(folder: Path, shared: Path) -> Reader:
    """Two folders of timm that teach a third."""
    import timm
    from timm.models import save_for_hf

    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 1, "num_heads": 2}
    for name in "ab":
        torch.manual_seed(ord(name))
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **sizes)
        save_for_hf(model, str(folder / name), model_args={**sizes, "num_classes": 5}, safe_serialization=True)
    task, node = Task("classification", 5, tuple("56789")), {"dataset": {"about": {"holds": "images"}}}

    def read() -> torch.Tensor:
        images = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
        with torch.no_grad():
            return torch.cat([source_model(n, {n: folder / n}, node, task)({"pixel_values": images}) for n in "ab"])

    words = ("method=distill_similar", "backbone=cnn_tiny", "backbone.weights=random:0", "dataset=digits",
             "method.zoo=[a,b]", *(f"sources.{name}={folder / name}" for name in "ab"))  # fmt: skip
    return words, read


def exported(method: str, folder: Path, shared: Path) -> None:
    words = (f"method={method}", *TINY, "backbone.weights=random:0", "hardware=cpu", "profiler=none",
             "trainer.max_steps=1", "trainer.progress=none", "dataset.batch_size=4",
             f"output_dir={shared}")  # fmt: skip
    export_run(carry_out(compose(list(words))), folder)


def an_export(folder: Path, shared: Path) -> Reader:
    exported("full", folder, shared)
    words = ("method=full", *TINY, f"backbone.weights=run:{folder}")
    node = compose(list(words)).config["backbone"]

    def read() -> torch.Tensor:
        return flat(body_tensors(build_backbone(resolved_backbone(node, {"backbone": folder}))))

    return words, read


def an_exported_adapter(folder: Path, shared: Path) -> Reader:
    """It lies beside its base."""
    exported("lora", folder, shared)
    words = ("method=distiller", *TINY, "backbone.weights=random:0", f"sources.teacher={folder}")
    return words, lambda: answers(folder)


READERS = (adapters, teacher, zoo, an_export, an_exported_adapter)


@pytest.mark.parametrize("reader", READERS)
def test_another_byte_of_a_model_is_another_run(
    reader: Callable[[Path, Path], Reader], tmp_path: Path, shared_runs: Path
) -> None:
    folder = tmp_path / "models"
    words, read = reader(folder, shared_runs)
    before, values, heard = compose(list(words)).identity, told(read), set()
    assert len(values) == 64, f"the models as they are must be read: {values}"
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for place in (len(content) // 3, len(content) // 2, len(content) - 9):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            if told(read) != values:
                heard.add(file.suffix)
                assert identity(words) != before, f"{file.relative_to(folder)} is read and in no identity"
        file.write_bytes(content)
    assert heard >= {".safetensors", ".json"}
    assert compose(list(words)).identity == before


def told(read: Callable[[], torch.Tensor]) -> str:
    """A digest of the values, or what is said instead."""
    try:
        return hashlib.sha256(read().double().numpy().tobytes()).hexdigest()
    except UserError as error:
        return str(error)


def identity(words: tuple[str, ...]) -> str:
    try:
        return compose(list(words)).identity
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("reader", READERS)
def test_what_lies_beside_changes_nothing(
    reader: Callable[[Path, Path], Reader], tmp_path: Path, shared_runs: Path
) -> None:
    words, _ = reader(tmp_path / "models", shared_runs)
    before = compose(list(words)).identity
    for folder in (tmp_path, *(path for path in (tmp_path / "models").rglob("*") if path.is_dir())):
        (folder / "README.md").write_text("read by nobody", encoding="utf-8")
        (folder / ".hidden.json").write_text("{}", encoding="utf-8")
    assert compose(list(words)).identity == before


def finished(method: str, folder: Path, shared: Path) -> Path:
    """A copy of a finished run's folder."""
    own = ("method.reduction_factor=2",) if method == "lst" else ()
    words = (f"method={method}", *TINY, *own, "backbone.weights=random:0", "hardware=cpu", "profiler=none",
             "trainer.max_steps=1", "trainer.progress=none", "dataset.batch_size=4",
             f"output_dir={shared}")  # fmt: skip
    run = carry_out(compose(list(words)))
    shutil.copytree(run, folder / run.name)
    return folder / run.name


def weights_of_a_run(folder: Path, shared: Path) -> Reader:
    run = finished("full", folder, shared)
    words = ("method=full", *TINY, f"backbone.weights=run:{run}")

    def read() -> torch.Tensor:
        check_model(model_folder(run))  # as the runner does before it hands a source on
        node = compose(list(words)).config["backbone"]
        return flat(body_tensors(build_backbone(resolved_backbone(node, {"backbone": run}))))

    return words, read


def a_run_that_teaches(method: str) -> Callable[[Path, Path], Reader]:
    """Its head and what it trained in its blocks answer, too."""

    def made(folder: Path, shared: Path) -> Reader:
        run = finished(method, folder, shared)
        return ("method=distiller", *TINY, "backbone.weights=random:0", f"sources.teacher={run}"), lambda: answers(run)

    return made


@pytest.mark.parametrize(
    "reader", [weights_of_a_run, a_run_that_teaches("full"), a_run_that_teaches("lora"), a_run_that_teaches("lst")]
)
def test_another_byte_of_a_finished_run_is_refused_or_another_run(
    reader: Callable[[Path, Path], Reader], tmp_path: Path, shared_runs: Path
) -> None:
    """A run says of its model which bytes it wrote: others are not read, whatever the identity."""
    words, read = reader(tmp_path / "runs", shared_runs)
    before, values, heard = compose(list(words)).identity, told(read), set()
    assert len(values) == 64, f"the run as it is must be read: {values}"
    for file in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for place in {len(content) // 3, len(content) // 2, max(0, len(content) - 9)} if content else ():
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            answer = told(read)
            if answer != values:
                heard.add(file.name)
                silent = len(answer) == 64 and identity(words) == before
                assert not silent, f"{file.name}: other values are read under the same identity"
        file.write_bytes(content)
    assert heard >= {"model.safetensors", "model.json"}
    assert compose(list(words)).identity == before
    assert told(read) == values
