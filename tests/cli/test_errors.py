"""Wrong words: exit code 2, one message with the nearest name, no traceback, at once, nothing heavy loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import TOY, USER, Answer

SEVERAL = ["method=linear_probe", "backbone=bert_tiny", "dataset=text_files", "dataset.form=multi_label"]
TEXTS = ["method=full", "backbone=t5_tiny", "dataset=text_files", "dataset.form=text_to_text"]
EARLY: list[tuple[str, list[str], str]] = [
    (
        "a form that the data set has not",
        ["dataset=python_docs", "dataset.form=regression"],
        "one of classification",
    ),
    ("a metric of another form", [*SEVERAL, "dataset.metrics=[accuracy]"], "subset_accuracy"),
    ("several labels for a model that writes", [*SEVERAL, "backbone=t5_tiny"], "does not answer"),
    ("a metric of classes for numbers", ["dataset=glue/stsb", "dataset.metrics=[mcc]"], "pearson"),
    (
        "a metric of texts for classes",
        ["backbone=t5_tiny", "dataset=python_docs", "dataset.metrics=[rougeL]"],
        "f1_macro",
    ),
    ("a metric of classes for texts", [*TEXTS, "dataset.metrics=[matthews]"], "choose among exact_match, number_match"),
    (
        "a mean of nothing",
        ["method=full", "dataset=digits", "backbone=vit_tiny", "dataset.metrics=[glue]"],
        "there are none",
    ),
    *(
        (
            f"{method} without a base",
            [f"method={method}", "dataset=none", f"method.models=[{USER}]"],
            "method.base=FOLDER",
        )
        for method in ("ties", "task_arithmetic", "dare_linear", "dare_ties")
    ),
    ("a merge of folders without a base", ["method=ties", "dataset=none", f"sources.a={USER}"], "method.base=FOLDER"),
    (
        "a Fisher of nothing",
        ["method=fisher_merging", "dataset=none", f"method.models=[{USER}]"],
        "method.isotropic=true",
    ),
    ("a RegMean of nothing", ["method=regmean", "dataset=none", f"method.models=[{USER}]"], "method.grams=[FILE,FILE]"),
    (
        "a vector that is added to nothing",
        ["method=diff_vector", "dataset=none", f"sources.source_tuned={USER}", f"sources.source_base={USER}"],
        "sources.target_base=FOLDER",
    ),
    ("a merge of nothing", ["method=ties", "backbone=bert_tiny", "dataset=python_docs"], "sources.a="),
    ("a merge of nothing without data", ["method=average", "dataset=none"], "method.models=[FOLDER,FOLDER]"),
    (
        "weights that are not read",
        ["method=pretrain", "backbone.weights=run:method=full"],
        "method=full goes on from them",
    ),
    ("what a sweep is called, of one run", ["sweep.name=mine"], "add -m"),
    ("several at once, of one run", ["sweep.parallel=2"], "add -m"),
    ("taps of a backbone that is trained", ["method=lora", "cache.taps=disk"], "trains inside the backbone"),
]
"""What only the whole of the words tells; nothing heavy is imported for it either."""
WRONG: list[tuple[str, list[str], str]] = [
    ("unknown key", ["method.dept=3"], "method.depth"),
    ("unknown key with a plus", ["+method.dept=3"], "method.depth"),
    ("unknown key of an experiment", ["--config-dir", str(USER / "broken"), "+experiment=key"], "method.gate"),
    ("misspelt method", ["method=lts"], "lst"),
    ("misspelt nested data set", ["dataset=suite/picture"], "suite/pictures"),
    ("misspelt nested method", ["method=peft/dorra"], "peft/dora"),
    ("method without its family", ["method=dora"], "peft/dora"),
    ("misspelt experiment", ["+experiment=god"], "good"),
    ("misspelt group", ["methd=lst"], "method"),
    ("wrong type", ["seed=abc"], "seed must be a whole number"),
    ("wrong type in a method", ["method.width=two"], "method.width must be a whole number"),
    ("out of bounds", ["dataset.batch_size=-1"], "at least 1"),
    ("closed choice", ["method.mode=gate"], "gated"),
    ("closed precision", ["hardware.precision=bf16"], "bf16-mixed"),
    ("impossible pair", ["method=for_cnns"], "backbone=small"),
    ("images for a text model", ["dataset=suite/pictures"], "holds images"),
    ("a list for a group of keys", ["trainer=[1,2]"], "set them one by one"),
    ("a key that Hydra lacks", ["hydra.sweeper.foo=1"], "where:   hydra.sweeper.foo=1"),
    *EARLY,
    ("missing file", ["dataset.path=no/such/file.csv"], "no/such/file.csv does not exist"),
    ("missing weights", ["backbone.weights=no/such/folder"], "no/such/folder does not exist"),
    ("no word", ["lst"], "method=lst"),
    ("misspelt flag", ["--multirn"], "--multirun"),
    ("several values in one run", ["seed=0,1"], "add -m"),
    ("a test of no run", ["test=new.csv"], "run=FOLDER test=new.csv"),
    ("a sweep of a finished run", ["-m", "run=outputs/runs/x", "test=own,new.csv"], "alone"),
    ("a sweep without an end", ["-m", "method.scale=interval(0.0,1.0)"], "add sweep.trials=N"),
    ("a wrong run of a sweep", ["-m", "seed=0,1,x"], "in run 3 of 3"),
    ("a wrong word with --cfg", ["--cfg", "job", "method.dept=3"], "method.depth"),
    ("a key that no grammar reads", ["trainer..max_steps=1"], "trainer..max_steps=1"),
    ("nobody's home", ["dataset.path=~nobody_of_that_name/x"], "has the home ~nobody_of_that_name"),
    ("a name longer than a file's", [f"dataset.path={'x' * 300}"], "... (300 characters)' is no path"),
    ("a source longer than a file's name", [f"sources.teacher={'x' * 300}"], "sources.teacher"),
    ("an output folder longer than a file's name", [f"output_dir={'x' * 300}"], "output_dir"),
    ("a source that is no text", ["sources.teacher={a:1}"], "sources.teacher must be the words of a run"),
    ("no hardware", ["~hardware"], "No hardware is chosen"),
    ("digests taken out", ["~contents"], "contents was taken out"),
    ("no logger", ["~logger"], "No logger is chosen"),
    ("a choice that another word makes", ["method=${seed}"], "chooses no method"),
    ("no launcher", ["hydra/launcher=[]"], "chooses no hydra/launcher"),
    ("a launcher that is a number", ["hydra.launcher=1"], "hydra.launcher is a group of keys"),
    ("an axis without a sweep", ["hydra.sweeper.params.seed=1"], "where:   hydra.sweeper.params.seed=1"),
    (
        "first weights of stages",
        [
            "method=full",
            "backbone=vit_tiny",
            "dataset=digits",
            "backbone.weights=nowhere",
            "stages=[[seed=1],[seed=2]]",
        ],
        "backbone.weights=nowhere does not exist",
    ),
    ("what a sweep reads", ["-m", "seed=1,2", "~sweep"], "sweep.name was taken out"),
    ("what a launcher reads", ["hardware=slurm", "~hardware.slurm.minutes"], "hardware.slurm.minutes was taken out"),
    ("a stage without words", ["backbone.weights='stage:'"], "backbone.weights names no run"),
    (
        "a tokenizer that is no name",
        ["backbone.tokenizer=run:method=full"],
        "reads a tokenizer there",
    ),
    ("a file's name for a choice", ["experiment=full_rte.yaml"], "no experiment 'full_rte.yaml'"),
    ("a choice longer than a file's name", [f"experiment={'x' * 300}"], "no experiment 'xxx"),
    ("a tokenizer longer than a file's name", [f"backbone.tokenizer={'x' * 300}"], "backbone.tokenizer"),
    ("a number for a name", ["dataset.beside={1: 2}"], "1 is no name of data beside"),
    ("a folder that does not exist", ["--config-dir", "nowhere"], "nowhere does not exist"),
]


@pytest.mark.parametrize(("words", "expected"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_command_is_answered_at_once(words: list[str], expected: str, command: Callable[..., Answer]) -> None:
    base = [word for word in TOY if word.partition("=")[0] not in {w.lstrip("+").partition("=")[0] for w in words}]
    if "--config-dir" in words:
        base = []
    answer = command("run", *base, *words)
    assert answer.code == 2, answer.err
    assert answer.out == ""
    assert expected in answer.err
    assert "Traceback" not in answer.err
    assert 1 <= len(answer.err.splitlines()) <= 5


def test_at_once_is_at_once(process: Callable[..., Answer]) -> None:
    answer = process("run", *TOY, "method.dept=3")
    assert (answer.code, answer.out) == (2, "")
    assert "nearest: method.depth" in answer.err
    assert answer.seconds < 1.5


def test_nothing_heavy_is_imported_before_the_words_are_known_to_be_valid(tmp_path: Path) -> None:
    script = f"""
import sys
from transfer_run.cli import list as listing, run
from transfer_run.cli.exits import exit_code
toy, early = {list(TOY)!r}, {[words for _, words, _ in EARLY]!r}
for words in (["--help"], [*toy, "--cfg", "job"], [*toy, "--info", "defaults"], [*toy, "method.dept=1"], ["method=lts"],
              [*toy, "method=for_cnns"], *early, [*toy, "-m", "seed=0,x"], ["--shell-completion", "install=bash"]):
    exit_code(lambda: run.run(words))
for kind in ("methods", "backbones", "datasets"):
    listing.show([kind])
from transfer_run.experiment.config.compose import compose
compose(toy[2:], toy[1]).folder
heavy = ["torch", "transformers", "timm", "lightning", "peft", "datasets", "wandb", "sklearn", "numpy"]
print("LOADED", [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["LOADED []"], done.stderr
    assert list(tmp_path.iterdir()) == []


LLAMA = ("method=lst", "backbone=llama-stories260k", "dataset=python_docs", "hardware=cpu", "trainer.progress=none")


@pytest.mark.parametrize(
    ("words", "what", "remedy"),
    [
        ((), "'llama-stories260k' is on no hub", "backbone.weights=PATH"),
        (("backbone.weights=random", "backbone.tokenizer=bytes"), "no side network 8 times narrower", "nearest: 4"),
    ],
)
def test_a_backbone_that_is_on_no_hub(
    words: tuple[str, ...], what: str, remedy: str, command: Callable[..., Answer]
) -> None:
    """A hub is not asked for nothing; the side network's own limits are said as clearly."""
    answer = command("run", *LLAMA, *words)
    assert answer.code == 2, answer.err
    assert what in answer.err
    assert remedy in answer.err
    assert "Traceback" not in answer.err


def test_a_run_that_is_no_path_has_near_ones(command: Callable[..., Answer], tmp_path: Path) -> None:
    for name in ("full-bert_tiny-1a2b3c4d", "lora-bert_tiny-99999999"):
        folder = tmp_path / "outputs" / "runs" / "sentences" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("seed: 0\n")
        (folder / "run.log").write_text("")
    for named in ("1a2b3c4d", "full-bert_tiny-1a2b3c4e", "outputs/runs/sentences/full-bert-1a2b3c4d"):
        answer = command("run", f"run={named}", "test=own")
        assert answer.code == 2
        assert "nearest: outputs/runs/sentences/full-bert_tiny-1a2b3c4d" in answer.err
