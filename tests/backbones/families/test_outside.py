"""A family of backbones from a user's own folder: a module and a backbone's config, nothing that exists is touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.matrix import smallest
from transfer_run.backbones.declared import families, family_of
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose, make_importable
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.models.export import export_run
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out

MODULE = '''
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from transfer_run.backbones.base import Backbone, State


class Bag(Backbone):
    """Byte embeddings through residual layers of no order: h -> h + tanh(W h), read by their mean."""

    family = "bag"
    stacks = ("text",)

    @classmethod
    def from_architecture(cls, config):
        sizes = config["architecture"]
        model = nn.Module()
        model.table = nn.Embedding(sizes["vocab_size"], sizes["width"])
        model.layers = nn.ModuleList(nn.Linear(sizes["width"], sizes["width"]) for _ in range(sizes["depth"]))
        return cls(model, config)

    @classmethod
    def from_folder(cls, folder, config):
        made = cls.from_architecture(config)
        made.model.load_state_dict(load_file(Path(folder) / "bag.safetensors"))
        return made

    def blocks(self, stack):
        return self.model.layers

    def width(self, stack, index=None):
        return self.model.table.embedding_dim

    def parts(self, stack, index):
        return {"mlp_in": f"model.layers.{index}"}

    def _embed(self, batch, stack=None, memory=None):
        return State(self.model.table(batch["input_ids"]), "text", mask=batch.get("attention_mask"))

    def _step(self, state):
        return state.with_hidden(state.hidden + torch.tanh(self.model.layers[state.index](state.hidden)))

    def finish(self, state):
        return state.hidden

    def pool(self, last, state):
        weights = state.mask.to(last.dtype).unsqueeze(-1)
        return (last * weights).sum(1) / weights.sum(1)
'''
CONFIG = """
# @package backbone
# A bag of bytes.
name: bag_small
family: bag
about: {target: bag_of_bytes.Bag, reads: [text], answers: [classification, regression], has: [blocks, parts, pool]}
weights: random
hub: null
revision: null
tokenizer: bytes
architecture: {vocab_size: 384, width: 16, depth: 3}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder: `bag_of_bytes.py` and `backbone/bag_small.yaml`."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "backbone").mkdir()
    (folder / "bag_of_bytes.py").write_text(MODULE, encoding="utf-8")
    (folder / "backbone" / "bag_small.yaml").write_text(CONFIG.lstrip(), encoding="utf-8")
    return folder


def composed(folder: Path, *words: str) -> Run:
    general = ["method=full", "backbone=bag_small", "dataset=python_docs", "hardware=cpu", "trainer.progress=none"]
    return compose([*general, "trainer.max_steps=4", "trainer.log_every=1", *words], config_dir=str(folder))


def test_it_is_listed(folder: Path) -> None:
    entry = registry.entry("backbone", "bag_small", [folder])
    assert (entry.family, entry.title) == ("bag", "A bag of bytes")
    assert "bag_small" in registry.names("backbone", [folder])


@pytest.mark.parametrize(
    ("words", "what", "remedy"),
    [
        (["dataset=digits"], "holds images, which backbone=bag_small (family bag) does not read", "cnn_tiny"),
        (["dataset.task=language_modeling"], "asks for language_modeling", "gpt2"),
        (["method=prompt_tuning"], "it needs a sequence that takes extra tokens", "backbone=Qwen"),
        (["method=lst"], "method=lst is not defined on backbone=bag_small (family bag)", "method=adapter, average"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_words(folder: Path, words: list[str], what: str, remedy: str) -> None:
    with pytest.raises(UserError) as error:
        composed(folder, *words)
    assert what in error.value.what
    assert remedy in error.value.remedy


def test_a_data_set_that_ours_do_not_read_is_answered_with_the_users_own(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    other = yaml.safe_load(CONFIG) | {"name": "curves_small", "family": "curves"}
    other["about"] = {"target": "curves.Curves", "reads": ["spectra"]}
    (mine / "curves.py").write_text("")
    data = dict(registry.entry("dataset", "digits").content["dataset"])
    data = {**data, "name": "curves", "about": {**data["about"], "holds": "spectra"}}
    (mine / "dataset").mkdir(exist_ok=True)
    (mine / "dataset" / "curves.yaml").write_text("# @package _global_\n" + yaml.safe_dump({"dataset": data}))
    (mine / "backbone" / "curves_small.yaml").write_text("# @package backbone\n# Curves.\n" + yaml.safe_dump(other))
    with pytest.raises(UserError) as error:
        composed(mine, "dataset=curves")
    assert error.value.remedy.startswith("choose backbone=curves_small, or dataset=")


def test_its_words_are_refused_before_torch_is_imported(folder: Path) -> None:
    script = f"""
import sys
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
for data in ("digits", "python_docs"):
    try:
        compose(["method=full", "backbone=bag_small", "dataset=" + data], config_dir={str(folder)!r})
    except UserError as error:
        print(error.what)
assert "torch" not in sys.modules
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("dataset=digits holds images")


def test_what_describes_it_is_no_part_of_the_identity(folder: Path, tmp_path: Path) -> None:
    described = tmp_path / "described"
    shutil.copytree(folder, described)
    config = described / "backbone" / "bag_small.yaml"
    config.write_text(
        config.read_text(encoding="utf-8").replace("about: {", "about: {title: Bytes, "), encoding="utf-8"
    )
    assert composed(described).identity == composed(folder).identity
    assert composed(folder).identity != composed(folder, "backbone.architecture.depth=2").identity
    pool = ["method=tmi", "method.pool=[bag_small]"]
    assert composed(described, *pool).identity == composed(folder, *pool).identity


@pytest.mark.parametrize(
    ("about", "what", "nearest"),
    [
        ({"target": "bag_of_bytes.Bags"}, "bag_of_bytes has no class of backbones 'Bags'", "Bag"),
        ({"target": "bag_of_words.Bag"}, "module 'bag_of_words' cannot be imported", ""),
        ({"reads": ["text"]}, "does not say where its class is", ""),
        ({"target": "bag_of_bytes.Bag", "answer": ["regression"]}, "declares no 'answer'", "answers"),
    ],
)
def test_a_wrong_declaration(
    folder: Path, about: dict[str, Any], what: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(UserError) as error:
        build_backbone(yaml.safe_load(CONFIG) | {"about": about}, device="meta")
    assert what in error.value.what
    assert nearest in [*error.value.nearest, ""]


def test_ours_are_declared_each_beside_its_module() -> None:
    modules = {family.target.rpartition(".")[0] for family in families().values()}
    assert modules == {f"transfer_run.backbones.families.{name}" for name in families()}
    assert family_of({"family": "t5"}).writes
    with pytest.raises(UserError, match="no family of backbones 'tee5'"):
        family_of({"family": "tee5"})


def test_a_method_that_asks_for_what_it_has_works_on_it(folder: Path) -> None:
    """LoRA never heard of this family: it asks for blocks whose parts have names."""
    cfg = composed(folder, "method=lora", "method.targets=[mlp_in]")
    make_importable(cfg)
    method, data = smallest.build(cfg)
    data.setup()
    batch = smallest.batch_of(data)
    before = method.loss(batch)
    before.backward()
    trained = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in trained} == {"backbone"}
    assert sum("lora_" in name for name in trained) == 6


@pytest.mark.slow
def test_it_is_planned_run_resumed_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    whole = carry_out(composed(folder, f"output_dir={tmp_path / 'whole'}"))
    parted = smallest.carried_out_in_two(composed(folder, f"output_dir={tmp_path / 'parted'}"))
    losses = [(run / "metrics.csv").read_text(encoding="utf-8").splitlines()[0] for run in (whole, parted)]
    assert losses[0] == losses[1]
    one, other = (load_model(run / "checkpoints" / "model") for run in (whole, parted))
    assert type(one.backbone).__name__ == "Bag"
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    assert result["backbone"] == "bag_small"
    assert export_run(whole, tmp_path / "exported")
    exported = load_model(tmp_path / "exported")
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), exported.state_dict().values(), strict=True)
    )
    planned = plan_run(composed(folder)).memory["peak"]
    assert planned == pytest.approx(result["memory"]["peak"], rel=0.05)
    next_one = carry_out(composed(folder, f"backbone.weights=run:{whole}", "seed=1", f"output_dir={tmp_path / 'next'}"))
    about = json.loads((next_one / "checkpoints" / "model" / "model.json").read_text(encoding="utf-8"))
    assert about["backbone"]["about"]["target"] == "bag_of_bytes.Bag"
    assert about["provenance"]["source"] == "run"
