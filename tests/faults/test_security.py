"""What somebody else may have written does not run, and names stay in the output folder: each planted and refused."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.own_configs import own
from transfer_run.cli import run as command
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out

VIT = ("method=linear_probe", "backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits", "hardware=cpu",
       "trainer.max_steps=1", "trainer.progress=none", "profiler=none")  # fmt: skip
BERT = ("method=linear_probe", "backbone=bert_tiny", "dataset=python_docs", "hardware=cpu", "trainer.max_steps=1",
        "trainer.progress=none", "profiler=none")  # fmt: skip
SECRET = "not-a-real-key-0123456789"


class Planted:
    """A pickle that makes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What is there once planted code has run."""
    return tmp_path / "planted_code_has_run"


def refused(words: tuple[str, ...] | list[str], says: str, folder: str | None = None) -> UserError:
    with pytest.raises(UserError, match=says) as error:
        carry_out(compose(list(words), folder))
    return error.value


# ---- words and configs
@pytest.mark.parametrize(
    "word",
    ["dataset.about.target=os.system", "method.about.target=os.system", "optimizer.about.target=os.system",
     "+backbone.about.target=os.system", "dataset.about={target: os.system}", "dataset.form=os:system",
     "dataset.tests={a: 'digits about.target=os.system'}", "hydra.launcher._target_=os.system",
     "hydra.sweeper._target_=os.system", "hydra.callbacks.a={_target_: os.system}",
     "hydra.job_logging.handlers.a.()=os.system", "hydra.hydra_logging={a: 1}"],
)  # fmt: skip
@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_no_word_names_code(word: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("it was called"))
    with pytest.raises(UserError) as error:
        command.run([*flags, *VIT, word])
    assert word.lstrip("+").partition("=")[0].split(".")[0] in error.value.where


@pytest.mark.parametrize("target", ["os.system", "subprocess.run", "builtins.exec", "torch.hub.load", "pickle.load"])
@pytest.mark.parametrize(("group", "like"), [("method", "linear_probe"), ("dataset", "digits"), ("optimizer", "adamw")])
def test_no_file_names_code_of_others(target: str, group: str, like: str, tmp_path: Path) -> None:
    folder = own(tmp_path, group, "mine", like, about={"target": target})
    error = refused([*VIT, f"{group}=mine"], "lies in no folder that you have named", str(folder))
    assert f"{group}.about.target" in error.where


@pytest.mark.parametrize(("group", "like"), [("method", "linear_probe"), ("dataset", "digits"), ("optimizer", "adamw")])
def test_what_is_no_class_of_the_kind_is_not_called(group: str, like: str, tmp_path: Path) -> None:
    folder = own(tmp_path, group, "mine", like, about={"target": "transfer_run.files.write_json"})
    words = [*VIT, f"{group}=mine", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(Exception, match=r"has no .*'write_json'"):
        carry_out(compose(words, str(folder)))


def test_a_choice_is_a_file_of_its_group(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("# @package _global_\nmethod: {name: ../../evil}\n", encoding="utf-8")
    (tmp_path / "conf" / "method").mkdir(parents=True)
    refused([*VIT, "method=../../evil"], "no method '../../evil'", str(tmp_path / "conf"))


@pytest.mark.parametrize(
    "word",
    ["dataset.name=../../evil", "method.name=../evil", "backbone.name=/evil", "backbone.name=other",
     "sources={'../../evil': 'method=full'}", "dataset.tests={'../evil': digits}",
     "dataset.beside={'../evil': digits}"],
)  # fmt: skip
def test_names_stay_within_the_output_folder(word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        compose([*VIT, f"output_dir={tmp_path / 'out'}", word])
    assert word.partition(".")[0].partition("=")[0] in error.value.message()
    assert not (tmp_path / "out").exists()


def test_names_of_members_are_names() -> None:
    words = ["dataset=sequence", "method=zscl", "backbone=clip_tiny"]
    with pytest.raises(UserError, match="is no name of a part of the data"):
        compose([*words, 'dataset.tasks=["digits name=../../evil","digits"]'])


# ---- secrets
@pytest.mark.parametrize("word", ["dataset.label_names=[${oc.env:SOME_API_KEY},b,c,d,e]",
                                  "output_dir=${oc.env:SOME_API_KEY}", f"sources.teacher=/models/{SECRET}/x",
                                  f"dataset.path=hf_{'a1B2c3D4e5' * 4}"])  # fmt: skip
def test_no_secret_gets_into_a_config(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    with pytest.raises(UserError, match="which would be written") as error:
        compose([*VIT, word])
    assert SECRET not in error.value.message()
    assert "a1B2c3" not in error.value.message()


def test_no_secret_of_the_environment_is_in_a_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    folder = carry_out(compose([*VIT, f"output_dir={tmp_path}"]))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


# ---- files that are read
def bert(folder: Path) -> Path:
    """A folder of transformers with random weights for `bert_tiny`, as safetensors."""
    from transformers import BertConfig, BertModel

    from transfer_run.experiment.config import registry

    sizes = dict(registry.entry("backbone", "bert_tiny").content["backbone"]["architecture"])
    BertModel(BertConfig(**{k: v for k, v in sizes.items() if k != "model_type"})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin"])
def test_a_pickle_among_the_weights_is_not_opened(name: str, tmp_path: Path, mark: Path) -> None:
    folder = bert(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with (folder / name).open("wb") as file:
        pickle.dump({"embeddings": Planted(mark)}, file)
    words = [*BERT, f"backbone.weights={folder}", "backbone.tokenizer=bytes", f"output_dir={tmp_path / 'out'}"]
    refused(words, "")
    assert not mark.exists()


def test_a_model_with_code_of_its_own_is_read_without_it(tmp_path: Path, mark: Path) -> None:
    folder = bert(tmp_path / "model")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": config["auto_map"]}))
    words = [*BERT, f"backbone.weights={folder}", "backbone.tokenizer=bytes", f"output_dir={tmp_path / 'out'}"]
    assert carry_out(compose(words)).is_dir()
    assert not mark.exists()


def test_a_table_of_pickles_and_a_loading_script_are_no_data(tmp_path: Path, mark: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "data.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n", encoding="utf-8")
    for name in ("train.pkl", "train.npy"):
        with (data / name).open("wb") as file:
            pickle.dump([Planted(mark)], file)
    words = ["method=linear_probe", "backbone=bert_tiny", "dataset=text_files", f"dataset.path={data}", "hardware=cpu",
             "backbone.weights=random:0", f"output_dir={tmp_path / 'out'}"]  # fmt: skip
    refused(words, "")
    np.save(tmp_path / "rows.npy", np.array([Planted(mark)], dtype=object))
    refused([*VIT, f"dataset.rows={tmp_path / 'rows.npy'}", f"output_dir={tmp_path / 'out'}"], "")
    assert not mark.exists()


def test_somebodys_run_names_no_code_and_brings_none(tmp_path: Path, mark: Path) -> None:
    folder = carry_out(compose([*VIT, f"output_dir={tmp_path / 'out'}"]))
    evil = tmp_path / "evil"
    shutil.copytree(folder, evil)
    (evil / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n", encoding="utf-8")
    config = yaml.safe_load((evil / "config.yaml").read_text())
    config["search_path"] = [str(evil)]
    described = json.loads((evil / "checkpoints" / "model" / "model.json").read_text())
    for node in (config["method"], config["dataset"], described["method"]):
        node["about"]["target"] = "evil.Evil"
    (evil / "config.yaml").write_text(yaml.safe_dump(config))
    (evil / "checkpoints" / "model" / "model.json").write_text(json.dumps(described))
    for words in (
        [*VIT, f"backbone.weights=run:{evil}", "seed=5"],
        [*VIT[1:], "method=distiller", f"sources.teacher={evil}"],
        ["method=average", "dataset=none", f"sources={{a: '{evil}', b: '{folder}'}}"],
    ):
        with pytest.raises(Exception, match="evil"):
            carry_out(compose([*words, f"output_dir={tmp_path / 'other'}"]))
    with pytest.raises(Exception, match="evil"):
        command.run([f"run={evil}", f"export={tmp_path / 'export'}"])
    assert not mark.exists()


def test_a_checkpoint_to_go_on_from_holds_no_code(tmp_path: Path, mark: Path) -> None:
    run = compose([*VIT, "trainer.max_steps=2", f"output_dir={tmp_path / 'out'}"])
    folder = carry_out(run)
    (folder / "result.json").unlink()
    for checkpoint in (folder / "checkpoints").glob("*.ckpt"):
        torch.save({"state_dict": {}, "global_step": Planted(mark)}, checkpoint)
    with contextlib.suppress(UserError):  # refused, or set aside
        carry_out(run)
    assert not mark.exists()
