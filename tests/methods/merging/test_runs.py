"""Merging through the runner: files without data, finished runs with their tasks, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

import transfer_run
from tests.methods.merging.toy import equal
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.run import carry_out
from transfer_run.methods.merging.engine.checkpoint import StateDict, open_checkpoint
from transfer_run.methods.merging.engine.stream import Job, merge_in_memory
from transfer_run.methods.merging.runs.source_task import SourceTask
from transfer_run.methods.merging.task_arithmetic import TaskArithmeticRule
from transfer_run.methods.merging.ties import TiesRule
from transfer_run.run_folder import BODY_PREFIX, model_folder, read_config

START = "backbone=vit_tiny backbone.weights=random:0 dataset=digits trainer.max_steps=6"
LOW = f"method=full {START} dataset.classes=[5,6]"
HIGH = f"method=full {START} dataset.classes=[7,8,9] seed=1"


def carried_out(folder: Path, *words: str) -> tuple[Path, dict[str, Any]]:
    """Carry out a run; its folder and result."""
    run = carry_out(compose([*words, f"output_dir={folder}", "hardware=cpu", "trainer.progress=none"]))
    return run, json.loads((run / "result.json").read_text(encoding="utf-8"))


# ---- files
@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, one, and two in shards."""
    folder = tmp_path_factory.mktemp("berts")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    model = BertModel(config)
    for name, limit in (("base", "1GB"), ("one", "1GB"), ("two", "8KB")):
        model.save_pretrained(folder / name, max_shard_size=limit)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    (folder / "base" / "tokenizer.json").write_text("{}")
    return folder


def words(berts: Path, method: str = "ties", *more: str) -> list[str]:
    models = f"method.models=[{berts / 'one'},{berts / 'two'}]"
    return [f"method={method}", "dataset=none", f"method.base={berts / 'base'}", models, *more]


def test_folders_in_a_folder_out(berts: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    run, result = carried_out(tmp_path, *words(berts, "ties", f"export={out}"))
    assert run.parent.name == "none"
    assert result["extra"]["merge"]["models"] == 2
    assert result["parameters"]["total"] == sum(p.numel() for p in BertModel.from_pretrained(out).parameters())
    written = ["config.json", "export.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in out.iterdir()) == written
    opened = [open_checkpoint(berts / name) for name in ("one", "two", "base")]
    assert equal(load_file(out / "model.safetensors"), merge_in_memory(Job(opened[:2], opened[2]), TiesRule()))


def test_paths_are_part_of_the_identity(berts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(berts)
    words = ["method=average", "dataset=none"]
    relative = compose([*words, "method.models=[one,hub/name]"])
    assert list(relative.config["method"]["models"]) == [str(berts / "one"), "hub/name"]
    assert relative.identity == compose([*words, f"method.models=[{berts}/one,hub/name]"]).identity
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"method\.models=one does not exist"):
        compose([*words, "method.models=[one,hub/name]"])


def test_nothing_is_done_twice(berts: Path, tmp_path: Path) -> None:
    run, _ = carried_out(tmp_path, *words(berts, "average"))
    written = (run / "checkpoints" / "model" / "model.safetensors").stat().st_mtime_ns
    out = tmp_path / "later"
    again, _ = carried_out(tmp_path, *words(berts, "average", f"export={out}"))
    assert again == run
    assert (run / "checkpoints" / "model" / "model.safetensors").stat().st_mtime_ns == written
    assert (out / "model.safetensors").is_file()


def test_output_in_shards_and_a_source_folder(berts: Path, tmp_path: Path) -> None:
    run, _ = carried_out(
        tmp_path, "method=task_arithmetic", "dataset=none", f"method.base={berts / 'base'}",
        f"sources.one={berts / 'one'}", f"sources.two={berts / 'two'}",
        "method.max_shard_bytes=8000", "method.lambda=0.5",
    )  # fmt: skip
    model = run / "checkpoints" / "model"
    assert len(list(model.glob("model-*-of-*.safetensors"))) > 2
    merged = BertModel.from_pretrained(model).state_dict()
    opened = [open_checkpoint(berts / name) for name in ("one", "two", "base")]
    wanted = merge_in_memory(Job(opened[:2], opened[2]), TaskArithmeticRule(0.5))
    assert all(torch.equal(merged[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("method", ["ties", "average"])
def test_a_base_of_longer_vocabulary_gives_a_model_that_loads(method: str, berts: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    longer = BertModel.from_pretrained(berts / "base")
    longer.resize_token_embeddings(64)
    longer.save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    models = f"method.models=[{berts / 'one'},{berts / 'two'}]"
    carried_out(
        tmp_path, f"method={method}", "dataset=none", f"method.base={tmp_path / 'base'}", models, f"export={out}"
    )
    merged, info = BertModel.from_pretrained(out, output_loading_info=True)
    assert merged.config.vocab_size == len(merged.embeddings.word_embeddings.weight) == 60
    assert not any(info.values())
    written = load_file(out / "model.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in merged.state_dict().items() if name in written)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_masks_follow_the_seed(method: str, berts: Path, tmp_path: Path) -> None:
    first, second, third = (
        load_file(
            carried_out(tmp_path / place, *words(berts, method, f"seed={seed}"))[0]
            / "checkpoints/model/model.safetensors"
        )
        for place, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert equal(first, second)
    assert not equal(first, third)


def test_isotropic_fisher_merging_of_files_is_a_weighted_mean(berts: Path, tmp_path: Path) -> None:
    more = ("method.isotropic=true", "method.coefficients=[0.25,0.75]")
    run, _ = carried_out(tmp_path, *words(berts, "fisher_merging", *more))
    one, two = (BertModel.from_pretrained(berts / name).state_dict() for name in ("one", "two"))
    for name, tensor in load_file(run / "checkpoints" / "model" / "model.safetensors").items():
        assert torch.allclose(tensor, 0.25 * one[name] + 0.75 * two[name], atol=1e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("method.lambda=[0.5,1.0]",), "no task to search on"),
        (("method.lambda=much",), "neither a finite number"),
        (("method.base=null",), "the model that all were fine-tuned from"),
        (("method.models=[/nowhere]",), "/nowhere does not exist"),
        (("method.models=[]",), "the run names nothing"),
        (("method=regmean",), "files of Gram matrices"),
        (("method=fisher_merging",), "method.fisher.paths or sources"),
        (("method=full",), "needs a data set"),
    ],
    ids=str,
)
def test_what_is_refused(more: tuple[str, ...], said: str, berts: Path, tmp_path: Path) -> None:
    used = [] if "method=full" in more else words(berts)[1:]
    method = [] if more[0].startswith("method=") else ["method=ties"]
    with pytest.raises(UserError, match=said):
        carried_out(tmp_path, *method, *(used or ["dataset=none"]), *more)
    assert not list(tmp_path.rglob("*.safetensors"))


# ---- finished runs
@pytest.fixture
def runs(shared_runs: Path) -> Path:
    return shared_runs


def merged_runs(runs: Path, *more: str) -> tuple[Path, dict[str, Any]]:
    return carried_out(runs, "dataset=none", f"sources.low='{LOW}'", f"sources.high='{HIGH}'", *more)


def test_runs_are_merged_and_tested_on_every_task(runs: Path) -> None:
    run, result = merged_runs(runs, "method=ties", "method.lambda=[0.5,1.0,1.5]")
    low, high = (json.loads((path / "result.json").read_text()) for path in source_folders(runs))
    rows = {row["task"]: row for row in result["extra"]["tasks"]}
    assert list(rows) == ["low", "high", "average"]
    assert rows["low"]["individual"] == low["metrics"]["test/accuracy"]
    assert rows["high"]["individual"] == high["metrics"]["test/accuracy"]
    assert result["metrics"]["test/average"] == pytest.approx(
        (rows["low"]["merged"] + rows["high"]["merged"]) / 2, abs=1e-5
    )
    assert result["metrics"]["test/accuracy"] == pytest.approx(rows["low"]["merged"], abs=1e-5)  # the runner's own test
    search = result["extra"]["search"]
    assert [entry["lambda"] for entry in search] == [0.5, 1.0, 1.5]
    best = max(search, key=lambda entry: entry["validation"])
    assert result["extra"]["merge"]["lambda"] == best["lambda"]
    assert result["extra"]["merge"]["models"] == 2
    chosen = f"with lambda={best['lambda']}, the best of 3 on validation"
    assert chosen in result["extra"]["table"][0]
    assert chosen in (run / "run.log").read_text(encoding="utf-8")
    assert run.name.endswith(result["identity"][:8])

    bodies = [open_checkpoint(path) for path in source_folders(runs)]
    method = load_model(run / "checkpoints" / "model")
    start = {n: t for n, t in load_start(runs).items() if n in bodies[0].entries}
    wanted = merge_in_memory(Job(bodies, StateDict(start)), TiesRule(best["lambda"]))
    body = {n.removeprefix(BODY_PREFIX): t for n, t in method.state_dict().items() if n.startswith(BODY_PREFIX)}
    assert equal({name: body[name] for name in wanted}, wanted)
    head = load_file(source_folders(runs)[0] / "checkpoints" / "model" / "model.safetensors")["backbone.head.weight"]
    assert torch.equal(method.backbone.head.weight, head)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["model"]


def test_an_export_has_the_heads_of_all_tasks(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    _, result = merged_runs(runs, "method=average", f"export={out}")
    assert sorted(path.name for path in (out / "heads").iterdir()) == [
        "high.safetensors", "low.safetensors", "tasks.json"
    ]  # fmt: skip
    for row, folder in zip(result["extra"]["tasks"], source_folders(runs), strict=False):
        task = SourceTask(row["task"], folder, read_config(folder))
        loaded = transfer_run.load(out, task=row["task"])
        assert loaded.task == task.task
        data, right = task.batches("test", torch.device("cpu")), []
        with torch.no_grad():
            for batch in data:
                right += (loaded.predict(batch) == batch["labels"]).tolist()
        assert sum(right) / len(right) == pytest.approx(row["merged"], abs=1e-6)
    assert transfer_run.load(out).task.num_labels == 2  # the first source's, the run's own
    with pytest.raises(UserError, match="no task 'hihg'"):
        transfer_run.load(out, task="hihg")
    with pytest.raises(UserError, match="no task"):
        transfer_run.load(source_folders(runs)[0], task="low")


def source_folders(runs: Path) -> list[Path]:
    """The run folders of LOW and HIGH."""
    return [compose([*words.split(), f"output_dir={runs}"]).folder for words in (LOW, HIGH)]


def load_start(runs: Path) -> dict[str, torch.Tensor]:
    config = OmegaConf.to_container(OmegaConf.load(source_folders(runs)[0] / "config.yaml").backbone)
    return build_backbone(config).model.state_dict()  # type: ignore[arg-type]


def test_fishers_and_grams_are_computed_once_beside_the_sources(runs: Path) -> None:
    few = ("method=fisher_merging", "method.fisher.examples=8")
    run, result = merged_runs(runs, *few, "method.coefficients=[1,0]")
    assert result["metrics"]["test/low/accuracy"] == result["extra"]["tasks"][0]["individual"]  # the target itself
    target = open_checkpoint(source_folders(runs)[0])
    body = load_file(run / "checkpoints" / "model" / "model.safetensors")
    assert all(
        torch.equal(body[BODY_PREFIX + name].flatten(), target.read(name, 0, entry.numel))
        for name, entry in target.entries.items()
    )
    files = [path / "checkpoints" / "fisher-exact-8.safetensors" for path in source_folders(runs)]
    written = [path.stat().st_mtime_ns for path in files]
    _, result = merged_runs(runs, *few, "method.n_coefficients=3")
    assert [tuple(entry["coefficients"]) for entry in result["extra"]["search"]] == [(1, 0), (0.5, 0.5), (0, 1)]
    assert [path.stat().st_mtime_ns for path in files] == written

    merged_runs(runs, "method=regmean", "method.examples=8")
    assert all((path / "checkpoints" / "gram-8.safetensors").is_file() for path in source_folders(runs))


def test_adapters_of_runs_are_folded_in(runs: Path) -> None:
    lora = f"method=lora {START} dataset.classes=[7,8,9]"
    run, result = carried_out(
        runs, "method=task_arithmetic", "method.lambda=1.0", "dataset=none", f"sources.low='{lora}'"
    )
    # one model with lambda 1 is that model: the LoRA run's own accuracy
    assert result["extra"]["tasks"][0]["merged"] == pytest.approx(result["extra"]["tasks"][0]["individual"], abs=1e-6)
    assert not (run / "checkpoints" / "bodies").exists()


def test_with_a_dataset_the_merged_model_gets_that_sources_head(runs: Path) -> None:
    words = (*START.split()[:2], "dataset=digits", "dataset.classes=[7,8,9]", "method=average")
    _, result = carried_out(runs, *words, f"sources.low='{LOW}'", f"sources.high='{HIGH}'")
    assert result["metrics"]["test/accuracy"] == pytest.approx(result["metrics"]["test/high/accuracy"], abs=1e-5)
    with pytest.raises(UserError, match="own dataset"):
        carried_out(runs, *words[:3], "dataset.classes=[0,1,2,3]", words[-1], f"sources.low='{LOW}'")


def test_sources_that_cannot_be_merged(runs: Path) -> None:
    elsewhere = LOW.replace("random:0", "random:1")
    with pytest.raises(UserError, match="fine-tuned from the same weights"):
        merged_runs(runs, "method=ties", f"sources.other='{elsewhere}'")
    adapter = f"method=adapter {START} dataset.classes=[5,6]"
    with pytest.raises(UserError, match="merging would lose"):
        merged_runs(runs, "method=ties", f"sources.other='{adapter}'")


# ---- the pretrained model among the models
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_tuned_model_is_drawn_back_towards_the_pretrained_one(share: float, shared_runs: Path) -> None:
    own = ("method.isotropic=true", "method.include_pretrained=true", f"method.coefficients=[{share},{1 - share}]")
    folder, result = carried_out(shared_runs, "method=fisher_merging", "dataset=none", f"sources.low='{LOW}'", *own)
    source = next(p for p in (shared_runs / "runs" / "digits").glob("full-*") if _is(p, LOW, shared_runs))
    tuned, merged = (load_model(model_folder(p)).backbone.state_dict() for p in (source, folder))
    start = build_backbone(dict(read_config(source)["backbone"])).state_dict()
    body = [name for name in start if not name.startswith("head")]
    for name in body:
        wanted = share * tuned[name] + (1 - share) * start[name]
        assert torch.allclose(merged[name], wanted, atol=1e-6), name
    assert result["extra"]["merge"]["models"] == 2
    assert any(not torch.equal(tuned[name], start[name]) for name in body)


def _is(folder: Path, words: str, root: Path) -> bool:
    return folder.name == compose([*words.split(), f"output_dir={root}", "hardware=cpu"]).folder.name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset=none", f"sources.low='{LOW}'"), "goes with method.isotropic"),
        (("dataset=none", "method.models=[.]", "method.isotropic=true"), "no weights of its"),
    ],
)
def test_the_pretrained_model_has_no_fisher_and_files_have_no_backbone(words: tuple[str, ...], said: str) -> None:
    from transfer_run.experiment.planning.plan import plan_run

    with pytest.raises(UserError, match=said):
        plan_run(compose(["method=fisher_merging", "method.include_pretrained=true", *words]))
