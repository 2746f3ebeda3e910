"""From words to a valid config."""

from __future__ import annotations

import json
import shlex
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import Composer, compose, make_importable
from transfer_run.experiment.config.composed import Run, write_config

USER = Path(__file__).parents[2] / "user_configs"
BASE = ("method=toy", "backbone=small", "dataset=sentences")


def composed(*words: str) -> Run:
    return compose([*BASE, *words], str(USER))


def refused(*words: str) -> UserError:
    with pytest.raises(UserError) as error:
        composed(*words)
    return error.value


def test_later_groups_win() -> None:
    cfg = composed()
    assert cfg.config["trainer"]["max_epochs"] == 7, "the dataset's epochs over the general ones"
    assert cfg.config["optimizer"]["lr"] == 0.01, "the method's rate over the optimizer's"
    assert composed("optimizer.lr=0.5").config["optimizer"]["lr"] == 0.5, "the command line over all"


def test_an_experiment_wins_over_the_choices_it_makes_and_loses_to_the_command_line() -> None:
    cfg = compose(["experiment=good"], str(USER))
    assert [cfg.chosen(group) for group in ("method", "dataset", "backbone")] == ["toy", "sentences", "small"]
    assert (cfg.config["method"]["depth"], cfg.config["optimizer"]["lr"], cfg.config["seed"]) == (5, 0.25, 4)
    assert cfg.config["trainer"]["max_steps"] == 3
    assert compose(["+experiment=good", "seed=9"], str(USER)).config["seed"] == 9


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["seed=1"], ["+seed=1"]),
        (["seed=1"], ["++seed=1"]),
        (["experiment=good"], ["+experiment=good"]),
        (["optimizer.lr=1e-3"], ["optimizer.lr=0.001"]),
        (["trainer.max_epochs=2"], ["trainer.max_epochs=2.0"]),
        (["seed=1", "method.depth=2"], ["method.depth=2", "seed=1"]),
        ([], ["experiment=null"]),
        (["sources.a='method=toy seed=1'"], ["+sources.a=method=toy seed=1"]),
    ],
)
def test_the_same_config_however_it_is_written(words: list[str], same: list[str]) -> None:
    assert composed(*words) == composed(*same)


def test_values_have_their_declared_types() -> None:
    cfg = composed("method.rate=1", "method.scale=2", "method.width=4.0", "trainer.gradient_clip=1")
    for value in (cfg.config["method"]["rate"], cfg.config["method"]["scale"], cfg.config["trainer"]["gradient_clip"]):
        assert type(value) is float
    assert type(cfg.config["method"]["width"]) is int


def test_the_config_is_resolved_and_closed() -> None:
    cfg = composed("method.depth=${seed}", "output_dir=${hydra:runtime.choices.method}")
    assert cfg.config["method"]["depth"] == 0
    assert cfg.config["output_dir"] == "toy"
    assert "hydra" not in cfg.config
    with pytest.raises(FrozenInstanceError):
        cfg.identity = "another"  # type: ignore[misc]


def test_open_nodes_take_any_key_without_a_plus() -> None:
    cfg = composed("sources.teacher=method=full", "method.extra.a.b=1", "backbone.architecture.d_ff=4")
    assert cfg.config["sources"]["teacher"] == "method=full"
    assert cfg.config["method"]["extra"]["a"]["b"] == 1
    assert cfg.config["backbone"]["architecture"]["d_ff"] == 4


def test_the_users_folders_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    cfg = composed()
    assert list(cfg.config["search_path"]) == [str(USER.resolve())]
    make_importable(cfg)
    import toy  # type: ignore[import-not-found]

    assert toy.NAME == "toy"


def test_composing_from_a_run_config_gives_the_same_folders() -> None:
    cfg = composed()
    assert compose(BASE, search_path=cfg.config["search_path"]) == cfg


def test_a_method_that_starts_from_nothing_names_no_weights() -> None:
    """Those of the backbone's file are left out; those that a word names would be passed over, so it is refused."""
    assert composed("method=from_nothing").config["backbone"]["weights"] == "random"
    assert composed("method=from_nothing", "backbone.weights=random:3").config["backbone"]["weights"] == "random"
    with pytest.raises(UserError, match="does not read the backbone's weights"):
        composed("method=from_nothing", "backbone.weights='run:method=full'")


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.csv").write_text("a,b\n")
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    cfg = composed("dataset.path=data.csv", "backbone.weights=./weights")
    assert cfg.config["dataset"]["path"] == str((tmp_path / "data.csv").resolve())
    assert cfg.config["backbone"]["weights"] == str((tmp_path / "weights").resolve())
    assert composed("dataset.path=*.csv").config["dataset"]["path"] == str((tmp_path / "*.csv").resolve())


WRONG: list[tuple[str, str, str | None]] = [
    ("method=ty", "There is no method 'ty'", "toy"),
    ("method=lts", "There is no method 'lts'", "lst"),
    ("dataset=pictures", "There is no dataset 'pictures'", "suite/pictures"),
    ("dataset=suite/picture", "There is no dataset 'suite/picture'", "suite/pictures"),
    ("backbone=smal", "There is no backbone 'smal'", "small"),
    ("hardware=gpu", "There is no hardware 'gpu'", "1gpu"),
    ("hardware=2gpus", "There is no hardware '2gpus'", "2gpu"),
    ("optimizer=adamW", "There is no optimizer 'adamW'", "adamw"),
    ("logger=tensorbord", "There is no logger 'tensorbord'", "tensorboard"),
    ("+experiment=god", "There is no experiment 'god'", "good"),
    ("hydra/launcher=jobllib", "There is no hydra/launcher 'jobllib'", "joblib"),
    ("methd=toy", "There is no key 'methd'", "method"),
    ("method.dept=3", "There is no key 'method.dept'", "method.depth"),
    ("+method.new=3", "There is no key 'method.new'", None),
    ("method.inner.labl=x", "There is no key 'method.inner.labl'", "method.inner.label"),
    ("depth=3", "There is no key 'depth'", "method.depth"),
    ("lr=3", "There is no key 'lr'", "optimizer.lr"),
    ("batch_size=3", "There is no key 'batch_size'", "dataset.batch_size"),
    ("dataset.batchsize=3", "There is no key 'dataset.batchsize'", "dataset.batch_size"),
    ("trainer.max_epoch=3", "There is no key 'trainer.max_epoch'", "trainer.max_epochs"),
    ("seed=abc", "seed must be a whole number of at least 0, not 'abc'", None),
    ("seed=-1", "seed must be a whole number of at least 0, not -1", None),
    ("seed.x=1", "seed must be a whole number", None),
    ("method.rate=2", "method.rate must be a number of at least 0 and of at most 1, not 2", None),
    ("method.width=two", "method.width must be a whole number of at least 1 or null, not 'two'", None),
    ("method.mode=gate", "method.mode must be one of plain, gated, null, not 'gate'", "gated"),
    ("method.inner=3", "method.inner is a group of keys", "method.inner.bias"),
    ("method.blocks=3", "method.blocks must be a list of whole numbers", None),
    ("method.extra=3", "method.extra must be keys with values", None),
    ("dataset.batch_size=0", "dataset.batch_size must be a whole number of at least 1, not 0", None),
    ("hardware.precision=bf16", "hardware.precision must be one of 32-true, bf16-mixed", "bf16-true"),
    ("optimizer.betas=[0.9,x]", "optimizer.betas must be a list of 2 numbers", None),
    ("force=yes", "force must be true or false, not 'yes'", None),
    ("seed=1,2", "seed=1,2 names several values", None),
    ("method=null", "method=null chooses no method", None),
    ("~method", "No method is chosen", None),
    ("~seed", "seed was taken out", None),
    ("trainer=null", "trainer is a group of keys", "trainer.max_epochs"),
    ("seed=${nothing}", "seed cannot be resolved", None),
    ("dataset=my_files", "dataset.path must be given", None),
    ("dataset.path=no/such.csv", "dataset.path=no/such.csv does not exist", None),
    ("backbone.weights=randm", "backbone.weights=randm does not exist", "random"),
    ("backbone.tokenizer=./nowhere", "backbone.tokenizer=./nowhere does not exist", None),
    ("method=for_cnns", "method=for_cnns is not defined on backbone=small (family t5)", None),
    ("dataset=suite/pictures", "dataset=suite/pictures holds images, which backbone=small (family t5)", None),
    ("dataset.form=language_modeling", "asks for language_modeling", None),
    ("seed=[1,", "cannot be read", None),
]


@pytest.mark.parametrize(("word", "message", "near"), WRONG, ids=[word for word, *_ in WRONG])
def test_a_wrong_word_is_answered(word: str, message: str, near: str | None) -> None:
    error = refused(word)
    assert message in error.what
    assert word.lstrip("+~").partition("=")[0].partition(".")[0].split("/")[-1] in f"{error.where} {error.what}"
    assert len(error.nearest) <= 3
    if near is not None:
        assert near in error.nearest


@pytest.mark.parametrize(
    ("word", "message", "where"),
    [
        ("experiment=key", "There is no key 'method.gaet'", "experiment/key.yaml"),
        ("experiment=value", "trainer.max_epochs must be a whole number", "experiment/value.yaml"),
        ("experiment=choice", "There is no method 'lts'", "experiment/choice.yaml"),
        ("experiment=no_yaml", "not valid YAML", "no_yaml.yaml, line 3"),
        ("method=other_key", "There is no key 'optimizer.lrr'", "method/other_key.yaml"),
        ("method=no_type", "neither a type", "method.about.options.depth"),
        ("method=no_key", "describes a key that does not exist", ""),
        ("method=other_name", "does not set method.name to 'other_name'", "method/other_name.yaml"),
        ("method=no_package", "does not set method.name", "method/no_package.yaml"),
        ("method=full", "stands in two places", "broken/method/full.yaml"),
    ],
)
def test_a_wrong_file_is_named(word: str, message: str, where: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([word, *BASE[1:]], search_path=[str(USER), str(USER / "broken")])
    error = caught.value
    assert message in error.what
    assert where in error.where


def test_a_pair_that_does_not_fit_names_what_would() -> None:
    assert "backbone=" in refused("method=for_cnns").remedy
    assert "method=" in refused("method=for_cnns").remedy
    assert "dataset=" in refused("dataset=suite/pictures").remedy
    error = refused("method=only_regression", "backbone=small_encoder")
    assert "does not train on dataset=sentences, a task of classification" in error.what
    assert "regression" in error.remedy


def test_the_words_of_every_run_of_a_sweep() -> None:
    composer = Composer([USER])
    jobs = composer.jobs([*BASE, "seed=0,1", "method.depth=range(2,4)", "hydra/launcher=joblib"])
    values: list[Any] = []
    for job in jobs:
        assert "hydra/launcher=joblib" in job
        cfg = composer.compose(job)
        values.append((cfg.config["seed"], cfg.config["method"]["depth"]))
    assert values == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_hardware_slurm_goes_to_slurm() -> None:
    """What a job asks for is tests/sweeps/test_slurm.py's."""
    from hydra.types import RunMode

    composer = Composer([USER])
    hydra = composer.load(composer.normalise([*BASE, "hardware=slurm"]), RunMode.MULTIRUN).hydra
    assert hydra.launcher._target_ == "transfer_run.sweeps.slurm.Jobs"


HUB = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"


@pytest.mark.parametrize(
    ("backbone", "weights", "tokenizer"),
    [
        ("bert-base-uncased", "run:method=full backbone=bert-base-uncased dataset=mqp", HUB),
        ("bert-base-uncased", "run:method=full backbone=bert-base-uncased dataset=mqp backbone.weights=random", None),
        ("bert-base-uncased", "random", None),
        ("bert-base-uncased", "hub", None),
        ("bert_tiny", "run:method=full backbone=bert_tiny dataset=python_docs", "bytes"),
    ],
)
def test_weights_of_a_run_read_what_the_run_has_read(backbone: str, weights: str, tokenizer: str | None) -> None:
    run = compose(["method=full", f"backbone={backbone}", "dataset=glue/rte", f"backbone.weights={weights}"])
    assert run.config["backbone"]["tokenizer"] == tokenizer


def test_the_tokenizer_of_a_run_is_handed_on_and_may_be_said(tmp_path: Path) -> None:
    first = "method=full backbone=bert-base-uncased dataset=mqp"
    second = f"method=full backbone=bert-base-uncased dataset=glue/mnli 'backbone.weights=run:{first}'"
    words = ["method=full", "backbone=bert-base-uncased", "dataset=glue/rte", f"backbone.weights=run:{second}"]
    assert compose(words).config["backbone"]["tokenizer"] == HUB
    assert compose(words).identity == compose([*words, f"backbone.tokenizer={HUB}"]).identity
    source = compose([*shlex.split(first), f"output_dir={tmp_path}"])
    write_config(source.folder, source.config)
    (source.folder / "result.json").write_text("{}", encoding="utf-8")
    for named in (source.identity[:8], source.folder):
        run = compose([*words[:3], f"output_dir={tmp_path}", f"backbone.weights=run:{named}"])
        assert run.identity == compose([*words[:3], f"backbone.weights=run:{first}"]).identity
    model = tmp_path / "model"
    model.mkdir()
    backbone = {"weights": "hub", "hub": "someone/bert", "revision": None, "tokenizer": None}
    (model / "model.json").write_text(json.dumps({"backbone": backbone}), encoding="utf-8")
    assert compose([*words[:3], f"backbone.weights={model}"]).config["backbone"]["tokenizer"] == "someone/bert"


def test_a_member_of_a_pool_reads_what_its_run_has_read() -> None:
    member = "bert-base-uncased:run:method=full backbone=bert-base-uncased dataset=mqp"
    run = compose(["method=tmi", "backbone=bert_tiny", "dataset=python_docs", f"method.pool=['{member}',bert_tiny]"])
    assert [node["tokenizer"] for node in run.backbones["pool"].values()] == [HUB, "bytes"]


def test_a_backbone_that_reads_no_text_gets_no_tokenizer() -> None:
    source = "run:method=full backbone=vit_base_patch16_224 dataset=vtab/cifar100"
    run = compose(["method=full", "backbone=vit_base_patch16_224", "dataset=vtab/dtd", f"backbone.weights={source}"])
    assert run.config["backbone"]["tokenizer"] is None


@pytest.mark.parametrize(
    ("words", "message", "where"),
    [
        (["contents.x=1"], "contents is filled in", "contents.x=1"),
        (["method=[lst]"], r"method=\[lst\] chooses no method", "method=[lst]"),
        (
            ["method=distiller", "backbone=bert_tiny", "sources.teacher='method=full dry_run=true'"],
            "dry_run is of the run that is asked for",
            "sources.teacher: method=full dry_run=true",
        ),
        (["stages=[[trainer.max_stps=3],[seed=1]]"], "no key 'trainer.max_stps'", "stages: trainer.max_stps=3"),
    ],
)
def test_words_that_would_do_nothing_are_refused(words: list[str], message: str, where: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        compose(words)
    assert error.value.where == where
