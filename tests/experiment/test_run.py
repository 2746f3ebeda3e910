"""The story of a run: recorded once, resumed, shared between processes, several devices, sources, failures."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from transfer_run.data.load import build_data
from transfer_run.errors import RunFailed, UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.run import carry_out

OFTEN = ("method=full", "trainer.max_steps=6", "trainer.log_every=1", "trainer.checkpoint_minutes=1e-9",
         "profiler=none")  # fmt: skip
PROBE = ("method=linear_probe", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu")


def config(tmp_path: Path, *words: str) -> Run:
    return compose([*PROBE, f"output_dir={tmp_path}", "trainer.max_steps=3", "trainer.progress=none", *words])


def result_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carry_out(config(tmp_path_factory.mktemp("run")))


def test_the_folder_and_the_result_are_those_of_the_contract(finished: Path) -> None:
    assert finished.parent.name == "digits"
    assert finished.name.startswith("linear_probe-vit_tiny-")
    assert {"config.yaml", "result.json", "metrics.csv", "run.log", "checkpoints"} <= {
        p.name for p in finished.iterdir()
    }
    result = result_of(finished)
    assert finished.name.endswith(result["identity"][:8])
    assert {
        "schema", "status", "identity", "method", "backbone", "dataset", "seed",
        "metrics", "parameters", "memory", "time", "environment",
    } <= set(result)  # fmt: skip
    assert set(result["memory"]["by_kind"]) == {
        "parameters", "gradients", "optimizer", "activations", "inputs", "other",
    }  # fmt: skip
    assert result["parameters"]["trainable"] == 64 * 5 + 5
    assert result["environment"]["torch"]


def test_a_finished_run_is_not_repeated_unless_forced(finished: Path) -> None:
    before = (finished / "result.json").stat().st_mtime_ns
    cfg = config(finished.parents[2])
    assert carry_out(cfg) == finished
    assert (finished / "result.json").stat().st_mtime_ns == before
    carry_out(config(finished.parents[2], "force=true"))
    assert (finished / "result.json").stat().st_mtime_ns > before


@pytest.mark.parametrize("of_plans", [(), ("plan.profile=paper", "plan.devices=4")])
def test_classes_that_only_the_data_name_are_planned_too(of_plans: tuple[str, ...], tmp_path: Path) -> None:
    """And what only plans are asked for is left out of the one beside the measurement."""
    lines = [f'"{word} {number}",{word}' for number in range(20) for word in ("hot", "cold", "mild")]
    (tmp_path / "own.csv").write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    words = ["method=bitfit", "backbone=bert_tiny", "dataset=text_files", "dataset.max_source_length=8"]
    words += [f"dataset.path={tmp_path / 'own.csv'}", "hardware=cpu", f"output_dir={tmp_path}", "trainer.progress=none"]
    cfg = compose([*words, "trainer.max_steps=2", *of_plans])
    memory = result_of(carry_out(cfg))["memory"]
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.02)


def test_samples_a_second_counts_a_last_small_batch_as_it_is(tmp_path: Path) -> None:
    cfg = config(tmp_path, "dataset.batch_size=400", "trainer.max_steps=4", "profiler=none")
    values: dict[str, Any] = dict(cfg.config)
    data = build_data(values["dataset"], values["backbone"], 0)
    data.setup()
    rows = len(data.split("train"))
    assert 400 < rows < 800  # two batches an epoch
    time = result_of(carry_out(cfg))["time"]
    assert time["samples_per_second"] * time["fit_seconds"] == pytest.approx(2 * rows, rel=0.01)


def test_a_finished_run_answers_without_torch(finished: Path) -> None:
    code = (
        "import sys; from transfer_run.experiment.config.compose import compose; "
        "from transfer_run.experiment.run import carry_out; "
        f" carry_out(compose({[*PROBE, f'output_dir={finished.parents[2]}', 'trainer.max_steps=3']!r})); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carry_out(config(tmp_path_factory.mktemp("alone"), *OFTEN))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_devices_make_one_folder_and_the_same_model(strategy: str, alone: Path, tmp_path: Path) -> None:
    words = (f"hardware={strategy}", "hardware.accelerator=cpu", "hardware.devices=2", "hardware.num_workers=0")
    both = carry_out(config(tmp_path, *OFTEN, *words))
    assert both.name == alone.name, "the number of devices is no part of a run's identity"
    assert len(list(tmp_path.glob("runs/*/*"))) == 1
    first, second = (load_file(f / "checkpoints" / "model" / "model.safetensors") for f in (alone, both))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert second[name].sub(tensor).abs().max() < 1e-4, name
    assert result_of(both)["metrics"] == pytest.approx(result_of(alone)["metrics"], abs=1e-6), "no row is counted twice"
    losses = [[float(row["train/loss"]) for row in rows_of(folder) if row["train/loss"]] for folder in (alone, both)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4), "of all processes, not of the first alone"
    assert len(losses[0]) == 6
    assert (both / "run.rank1.log").is_file()
    one, other = (optimizer_of(folder) for folder in (alone, both))
    assert [sorted(state) for state in one] == [sorted(state) for state in other]
    for number, state in enumerate(one):
        for name, value in state.items():
            assert other[number][name].shape == value.shape
            assert other[number][name].sub(value).abs().max() < 1e-5, f"what it goes on with: {number} {name}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("dataset.class_weights=[1,5,1,1,9]",),
        ("backbone=t5_tiny", "dataset=python_docs", "dataset.answers=names", "dataset.max_source_length=32"),
    ],
    ids=["weights of classes", "answers of several lengths"],
)  # fmt: skip
def test_two_devices_weigh_every_label_as_one_does(words: tuple[str, ...], tmp_path: Path) -> None:
    """Labels that count differently are not spread evenly: a mean over each process's own would be another loss."""
    plain = ("optimizer=sgd", "optimizer.lr=0.5", "optimizer.warmup=0", "trainer.max_steps=4", "trainer.log_every=1")
    two = ("hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2", "hardware.num_workers=0")
    alone, both = (carry_out(config(tmp_path / name, *words, *plain, *more))
                   for name, more in (("alone", ()), ("both", two)))  # fmt: skip
    first, second = (load_file(f / "checkpoints" / "model" / "model.safetensors") for f in (alone, both))
    for name, tensor in first.items():
        assert second[name].sub(tensor).abs().max() < 1e-5, name
    losses = [[float(row["train/loss"]) for row in rows_of(folder) if row["train/loss"]] for folder in (alone, both)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def optimizer_of(folder: Path) -> list[dict[str, torch.Tensor]]:
    """The states of each trained parameter in a run's last checkpoint."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    (states,) = saved["optimizer_states"]
    return [states["state"][number] for number in sorted(states["state"])]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hardware=fsdp", "hardware.accelerator=cpu", "hardware.precision=bf16-mixed"], "bf16-mixed needs CUDA GPUs"),
        (["hardware=cpu", "hardware.nodes=2"], "nothing has started it on the others"),
    ],
)
def test_what_several_devices_need_is_said_at_once(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        carry_out(config(tmp_path, *words))


def test_a_batch_that_does_not_divide_among_devices_is_refused(tmp_path: Path) -> None:
    cfg = config(tmp_path, "hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=3")
    with pytest.raises(UserError, match="does not divide"):
        carry_out(cfg)


def test_a_broken_run_leaves_its_traceback_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transfer_run.methods.tuning.linear_probe import LinearProbe

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("no reason at all")

    monkeypatch.setattr(LinearProbe, "loss", broken)
    with pytest.raises(RunFailed) as caught:
        carry_out(config(tmp_path))
    log = caught.value.log.read_text(encoding="utf-8")
    assert "Traceback" in log
    assert "no reason at all" in log
    assert not (caught.value.log.parent / "result.json").exists()


def test_the_best_epoch_can_be_kept(tmp_path: Path) -> None:
    words = (
        "trainer.max_steps=null",
        "trainer.max_epochs=3",
        "trainer.select=best",
        "profiler=none",
        "optimizer.lr=0.3",
    )
    folder = carry_out(config(tmp_path, *words))
    import csv

    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        seen = [float(r["validation/accuracy"]) for r in csv.DictReader(file) if r.get("validation/accuracy")]
    import torch

    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["callbacks"]["Checkpoints"]["best"]
    assert best == pytest.approx(max(seen), abs=1e-6)


class TestSources:
    def test_a_source_is_carried_out_once_and_found_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weights = (
            "backbone.weights='run:method=pretrain backbone=vit_tiny dataset=digits dataset.classes=[0,1,2,3,4] "
            "trainer.max_steps=2 trainer.max_epochs=1'"
        )
        first = carry_out(config(tmp_path, weights, "profiler=none"))
        sources = list(tmp_path.glob("runs/digits/pretrain-*/result.json"))
        assert len(sources) == 1
        stamp = sources[0].stat().st_mtime_ns
        second = carry_out(config(tmp_path, weights, "profiler=none", "seed=1"))
        assert first != second
        assert sources[0].stat().st_mtime_ns == stamp

    def test_a_source_that_is_no_run_and_no_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="neither a run's words"):
            carry_out(config(tmp_path, "sources.teacher=nonsense"))

    def test_an_unfinished_run_is_no_source(self, tmp_path: Path) -> None:
        folder = tmp_path / "half"
        folder.mkdir()
        (folder / "config.yaml").write_text("seed: 0", encoding="utf-8")
        (folder / "run.log").touch()
        with pytest.raises(UserError, match="has not finished"):
            carry_out(config(tmp_path, f"sources.teacher={folder}"))

    def test_the_tree_of_runs_is_shown_and_nothing_carried_out(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cfg = compose(
            [
                "method=lst",
                "backbone=vit_tiny",
                "dataset=digits",
                f"output_dir={tmp_path}",
                "dry_run=true",
                "hardware=cpu",
            ]
        )
        carry_out(cfg)
        shown = capsys.readouterr().out
        assert "pretrain" in shown
        assert "would run" in shown
        assert "nothing was carried out" in shown
        assert not list(tmp_path.glob("**/result.json"))


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_loggers_write_into_the_run_folder(tmp_path: Path, logger: str) -> None:
    words = [f"logger={logger}", "profiler=none", *(["logger.offline=true"] if logger == "wandb" else [])]
    folder = carry_out(config(tmp_path, *words))
    written = [path for path in folder.rglob("*") if "tfevents" in path.name or path.suffix == ".wandb"]
    assert written


class TestExport:
    def test_a_trained_backbone_opens_in_its_own_library(self, tmp_path: Path) -> None:
        import timm

        words = ("method=full", "profiler=none", f"export={tmp_path / 'out'}")
        carry_out(config(tmp_path, *words))
        model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=0)
        assert sum(p.numel() for p in model.parameters()) > 250_000
        assert (tmp_path / "out" / "head.safetensors").is_file()

    def test_what_was_trained_beside_a_frozen_backbone_comes_with_a_loader(
        self, finished: Path, tmp_path: Path
    ) -> None:
        from transfer_run.experiment.models.export import export_run
        from transfer_run.experiment.models.model_files import load_model

        out = export_run(finished, tmp_path / "out")
        assert load_model(out).task.num_labels == 5
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(UserError, match="not empty"):
            export_run(finished, tmp_path / "full")


def test_more_gpus_than_there_are_is_the_users_error(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="This machine has 0 GPUs"):
        carry_out(config(tmp_path, "hardware=1gpu", "hardware.accelerator=gpu"))
