"""Every form in which we write a model, before every reader of models: the same numbers, or a refusal in words."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

import transfer_run
from tests.experiment.test_local_weights import words_of
from tests.methods.merging.toy import Tensors
from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.tokenizer import build_tokenizer
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.export import export_run
from transfer_run.experiment.models.handover import resolved_backbone
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.sources.models import source_model
from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.engine.opening import open_base, open_models
from transfer_run.methods.merging.engine.stream import Job, merge_in_memory
from transfer_run.methods.merging.runs.bodies import body_tensors

COMMON = ("hardware=cpu", "profiler=none", "trainer.max_steps=1", "trainer.progress=none", "dataset.batch_size=4",
          "optimizer.lr=0.05", "optimizer.warmup=0")  # fmt: skip
BERT = ("backbone=bert_tiny", "backbone.weights=random:0", "dataset=python_docs")
VIT = ("backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits")
MADE: dict[str, tuple[str, ...]] = {
    "full": (*BERT, "method=full"), "lora": (*BERT, "method=lora"), "prompts": (*BERT, "method=prompt_tuning"),
    "vit": (*VIT, "method=full"),
}  # fmt: skip
pytestmark = pytest.mark.slow
PLACES = ("run", "model", "export")


@dataclass
class Written:
    """What a run made, in three places, and the body that it ended with."""

    config: Mapping[str, Any]
    run: Path
    export: Path
    body: Tensors

    def at(self, place: str) -> Path:
        return {"run": self.run, "model": self.run / "checkpoints" / "model", "export": self.export}[place]


@pytest.fixture(scope="module")
def written(shared_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    root, found = tmp_path_factory.mktemp("written"), {}
    for name, words in MADE.items():
        run = compose([*COMMON, *words, f"output_dir={shared_runs}"])
        folder = carry_out(run)
        model = transfer_run.load(folder)
        if name != "prompts":
            model.fold()
        body = {n: tensor.detach().clone() for n, tensor in body_tensors(model.backbone).items()}
        found[name] = Written(run.config, folder, export_run(folder, root / name), body)
    return found


def as_weights(made: Written, place: Path, words: str) -> Mapping[str, Tensor]:
    node = {**made.config["backbone"], "weights": words}
    return body_tensors(build_backbone(resolved_backbone(node, {"backbone": place})))


def merged(made: Written, place: Path) -> Mapping[str, Tensor]:
    """The mean of the model and itself: on the base beside it, where it is an adapter."""
    base = place / "base"
    models, start = open_models([place, place], str(base) if base.is_dir() else None)
    out = merge_in_memory(Job(models, start), AverageRule())
    return out if start is None else {**whole(start), **out}


def whole(checkpoint: Any) -> Tensors:
    return {n: checkpoint.read(n, 0, e.numel).view(e.shape) for n, e in checkpoint.entries.items()}


def from_source(made: Written, place: Path) -> Mapping[str, Tensor]:
    task = transfer_run.load(made.run).task
    method = source_model("teacher", {"teacher": place}, made.config, task)
    if made.config["method"]["name"] == "lora":
        method.fold()
    return body_tensors(method.backbone)


def loaded(made: Written, place: Path) -> Mapping[str, Tensor]:
    method = transfer_run.load(place)
    if made.config["method"]["name"] == "lora":
        method.fold()
    return body_tensors(method.backbone)


READERS: dict[str, Callable[[Written, Path], Mapping[str, Tensor]]] = {
    "backbone.weights": lambda made, place: as_weights(made, place, str(place)),
    "backbone.weights=run:": lambda made, place: as_weights(made, place, f"run:{place}"),
    "method.models": merged,
    "method.base": lambda made, place: whole(open_base(str(place))),
    "sources": from_source,
    "load": loaded,
}
REFUSED = {
    ("prompts", "backbone.weights"), ("prompts", "backbone.weights=run:"), ("prompts", "method.models"),
    ("prompts", "method.base"), ("lora", "method.models run"), ("lora", "method.models model"),
    ("lora", "method.base run"), ("lora", "method.base model"),
}  # fmt: skip
"""What cannot be read so, whatever place it lies in, or in one place alone."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", MADE)
def test_every_form_before_every_reader(written: dict[str, Written], name: str, place: str, reader: str) -> None:
    made = written[name]
    if (name, reader) in REFUSED or (name, f"{reader} {place}") in REFUSED:
        with pytest.raises(UserError) as error:
            READERS[reader](made, made.at(place))
        assert error.value.remedy
        return
    found = READERS[reader](made, made.at(place))
    if (name, reader) == ("lora", "method.base"):  # the saved start of other adapters
        assert all("lora_" in each for each in found)
        return
    assert found.keys() == made.body.keys()
    assert all(torch.allclose(found[n], tensor, atol=1e-6) for n, tensor in made.body.items())


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    """An export is read by the words that its model has learned, wherever the model lay that it began with; weights
    that name none are not read as bytes."""
    from transformers import BertConfig, BertModel

    start = tmp_path / "start"
    words_of(start)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
             "vocab_size": 64, "max_position_embeddings": 64}  # fmt: skip
    BertModel(BertConfig(**sizes)).save_pretrained(start)
    known = AutoTokenizer.from_pretrained(start).get_vocab()
    bert = ["backbone=bert_tiny", "backbone.tokenizer=null", "dataset=python_docs"]
    bert += [f"backbone.architecture.{key}={value}" for key, value in sizes.items()]
    words = [*COMMON, *bert, f"output_dir={tmp_path / 'out'}"]
    run = carry_out(compose([*words, "method=full", f"backbone.weights={start}", f"export={tmp_path / 'export'}"]))
    shutil.rmtree(start)
    assert AutoTokenizer.from_pretrained(tmp_path / "export").get_vocab() == known
    for place in (f"{tmp_path / 'export'}", f"run:{tmp_path / 'export'}"):
        again = compose([*words, "method=linear_probe", f"backbone.weights={place}"])
        assert build_tokenizer(dict(again.config["backbone"])).get_vocab() == known
    with pytest.raises(UserError, match="tokenizer"):  # named by the run, and gone
        build_tokenizer(dict(compose([*words, "method=full", f"backbone.weights=run:{run}"]).config["backbone"]))
    merge = f"method=average method.models=[{tmp_path / 'export'}] dataset=none"
    with pytest.raises(UserError, match="merged from files name no tokenizer") as error:
        compose([*words, "method=full", f"backbone.weights='run:{merge}'"])
    assert error.value.remedy.startswith("backbone.tokenizer=")
