"""What a merge will need: planned of runs that do not exist yet, of files by the engine's bound, and measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.methods.merging.test_runs import HIGH, LOW, carried_out, merged_runs
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.dry_run import show_dry_run
from transfer_run.experiment.planning.plan import plan_run

OF_FILES = ["ties", "average", "task_arithmetic", "dare_linear", "dare_ties", "fisher_merging"]
SOURCES = ["dataset=none", f"sources.low='{LOW}'", f"sources.high='{HIGH}'"]


@pytest.mark.parametrize("method", ["fisher_merging", "regmean", "ties"])
def test_without_data_a_plan_stands_on_the_first_source(method: str, tmp_path: Path) -> None:
    plan = plan_run(compose([f"method={method}", *SOURCES, f"output_dir={tmp_path}", "hardware=cpu"]))
    assert plan.memory["peak_phase"] == "prepare"
    assert plan.parameters["total"] == 301_634  # vit_tiny and a head for two classes
    weights = 301_504 * 4
    copies = {"fisher_merging": 4, "regmean": 2, "ties": 1}[method]  # base, source, Fisher and gradients
    assert copies * weights < plan.memory["phases"]["prepare"]["by_kind"]["other"] < (copies + 4) * weights
    assert any("LoRA" in line for line in plan.left_out)


def test_a_dry_run_of_a_merge_shows_its_peak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_dry_run(compose(["method=fisher_merging", *SOURCES, f"output_dir={tmp_path}", "hardware=cpu"]))
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if "this run" in line)
    assert "MiB" in row
    assert "would run" in row
    assert "nothing to plan" not in said


def test_a_fishers_gradients_are_in_plan_and_measurement(shared_runs: Path) -> None:
    few = ("method.fisher.examples=4", "method.coefficients=[0.5,0.5]", "hardware=cpu")
    _, result = merged_runs(shared_runs, "method=fisher_merging", *few)
    memory = result["memory"]
    assert (memory["source"], memory["peak_phase"]) == ("tracker", "prepare")
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.1)
    assert memory["peak"] > 5 * 301_504 * 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that name three models of 8 MiB and their base."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        (folder / str(number)).mkdir()
        tensors = {f"block.{i}.weight": torch.randn(1024, 1024, generator=generator) for i in range(2)}
        save_file(tensors, folder / str(number) / "model.safetensors")
    models = ",".join(str(folder / str(number)) for number in (1, 2, 3))
    return ["dataset=none", f"method.models=[{models}]", f"method.base={folder / '0'}"]


@pytest.mark.parametrize("method", OF_FILES)
def test_the_bound_of_merged_files_holds(method: str, files: list[str], tmp_path: Path) -> None:
    own = ["method.isotropic=true", "method.coefficients=[0.2,0.3,0.5]"] if method == "fisher_merging" else []
    words = [f"method={method}", *files, *own, "method.chunk_bytes=1048576"]
    plan = plan_run(compose(words))
    _, result = carried_out(tmp_path, *words)
    measured = result["memory"]
    assert measured["source"] == "tracker"
    assert measured["predicted_peak"] == plan.memory["peak"]
    assert plan.memory["peak"] / 5 < measured["peak"] <= plan.memory["peak"] <= 9 * 2**20


def test_what_depends_on_whole_layers_has_no_bound(files: list[str]) -> None:
    gram = files[2].removeprefix("method.base=")  # a square of the right width
    with pytest.raises(UserError, match="largest layers"):
        plan_run(compose(["method=regmean", f"method.grams=[{gram},{gram},{gram}]", *files]))
    with pytest.raises(UserError, match="needs a data set"):
        plan_run(compose(["method=full", "dataset=none"]))


def folder_of(parent: Path, name: str, shapes: dict[str, tuple[int, ...]], *, lora: bool = False) -> Path:
    folder = parent / name
    folder.mkdir()
    stem = "adapter_model" if lora else "model"
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, folder / f"{stem}.safetensors")
    if lora:
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["a"]}')
    return folder


PLAIN = {"a.weight": (4, 3), "b.weight": (2, 2)}
THREE = ("method.coefficients=[1,1,1]",)
UNFIT = {
    "adapters without their start": (["lora", "lora"], (), "Adapters say nothing of where they started"),
    "another shape": (["one", "odd"], (), "do not fit each other"),
    "other names": (["one", "other"], ("method=ties", "method.base=one"), "do not fit each other"),
    "a weight too many": (["one", "one"], ("method.weights=[1,2,3]",), "There are 2 models and the weights"),
    "weights without a mean": (["one", "one"], ("method.weights=[1,-1]",), "sum to zero"),
    "nothing to search on": (["one", "one"], ("method=ties", "method.base=one", "method.lambda=[1,2]"), "no task to"),
    "coefficients": (
        ["one", "one"],
        ("method=fisher_merging", "method.isotropic=true", "method.coefficients=[1,1,1]"),
        "as many coefficients",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_files_that_do_not_fit_are_refused_before_the_run(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path, "one", PLAIN)
    folder_of(tmp_path, "odd", PLAIN | {"a.weight": (5, 3)})
    folder_of(tmp_path, "other", {"c.weight": (4, 3)})
    factors = {"base_model.model.a.lora_A.weight": (2, 3), "base_model.model.a.lora_B.weight": (4, 2)}
    folder_of(tmp_path, "lora", factors, lora=True)
    models, words, said = UNFIT[case]
    run = compose(["method=average", "dataset=none", f"method.models=[{','.join(models)}]", *words])
    for look in (plan_run, show_dry_run):
        with pytest.raises(UserError, match=said):
            look(run)
    fitting = compose(["method=average", "dataset=none", "method.models=[one,one]"])
    assert plan_run(fitting).memory["peak"] > 0


def test_what_must_be_fetched_or_carried_out_first_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder_of(tmp_path, "one", PLAIN)
    words = ["method=average", "dataset=none", f"output_dir={tmp_path}"]
    for more in (f"method.models=[{one},nobody/nothing]", f"sources={{a: {one}, b: nobody/nothing}}"):
        show_dry_run(compose([*words, more]))
        assert "was not looked at" in " ".join(capsys.readouterr().out.split())
