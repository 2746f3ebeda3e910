"""`transfer-plan`: the contract's JSON, the report, budgets and devices, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from transfer_run.cli.exits import exit_code
from transfer_run.cli.plan import HELP, plan
from transfer_run.data.load import build_data
from transfer_run.data.rows.sampling import Draw
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.memory.account import KINDS

TINY = ["method=full", "backbone=vit_tiny", "dataset=digits", "dataset.batch_size=16", "backbone.weights=random"]


def answer(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON of `transfer-plan`; fails when standard output holds anything else."""
    assert plan([*TINY, *words, "plan.format=json"]) == 0
    content: dict[str, Any] = json.loads(capfd.readouterr().out)
    return content


def test_json_is_that_of_the_contract(capfd: pytest.CaptureFixture[str]) -> None:
    content = answer(capfd)
    assert list(content) == ["schema", "method", "backbone", "dataset", "batch_size", "profile", "seconds", "memory"]
    assert [content[key] for key in list(content)[:6]] == [1, "full", "vit_tiny", "digits", 16, "modern"]
    memory = content["memory"]
    assert (memory["unit"], memory["source"]) == ("bytes", "plan")
    assert memory["predicted_peak"] == memory["peak"] == sum(memory["by_kind"].values())
    assert set(memory["by_kind"]) == set(KINDS)
    assert memory["peak_phase"] in memory["phases"]


def test_hardware_decides_whose_memory_is_predicted(capfd: pytest.CaptureFixture[str]) -> None:
    gpu, cpu = answer(capfd), answer(capfd, "hardware=cpu")
    assert gpu["memory"]["by_kind"]["other"] > 2**23 > cpu["memory"]["by_kind"]["other"]  # cuBLAS's workspaces
    assert plan_run(compose([*TINY]), target="cpu").memory["peak"] == cpu["memory"]["peak"]


@pytest.mark.parametrize("method", ["full", "lst"])
def test_a_gpu_that_computes_blocks_again_keeps_less(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = (f"method={method}", "dataset.batch_size=64", "plan.profile=modern")
    kept = answer(capfd, *words)["memory"]["by_kind"]["activations"]
    again = answer(capfd, *words, "hardware.activation_checkpointing=true")["memory"]["by_kind"]["activations"]
    assert again < 0.8 * kept


def test_the_profile_is_the_papers(capfd: pytest.CaptureFixture[str]) -> None:
    content = answer(capfd, "plan.profile=paper")
    assert content["profile"] == "paper"
    assert content["memory"]["phases"]["evaluation"]["by_kind"]["gradients"] > 0  # zeroed, but kept


def test_budget_is_answered_with_both_sides_of_the_border(capfd: pytest.CaptureFixture[str]) -> None:
    budget = answer(capfd, "hardware=cpu", "plan.budget=20MB")["budget"]
    assert budget["bytes"] == 20_000_000
    assert budget["peak"] <= budget["bytes"] < budget["next_peak"]
    at_the_border = answer(capfd, "hardware=cpu", f"dataset.batch_size={budget['batch_size'] + 1}")
    assert at_the_border["memory"]["peak"] == budget["next_peak"]


def test_a_cards_budget_leaves_room_for_what_pytorch_does_not_count(capfd: pytest.CaptureFixture[str]) -> None:
    budget = answer(capfd, "plan.budget=100MB", "plan.context=20MB", "plan.cached=0.25")["budget"]
    assert (budget["bytes"], budget["usable"]) == (100_000_000, 64_000_000)
    assert budget["peak"] <= 64_000_000 < budget["next_peak"]
    bare = answer(capfd, "plan.budget=100MB", "plan.context=1B", "plan.cached=0")["budget"]
    assert bare["batch_size"] > budget["batch_size"]


def test_a_card_has_what_its_driver_reports(capfd: pytest.CaptureFixture[str]) -> None:
    tiny = ["method=full", "backbone=vit_base_patch16_224", "dataset=vtab/cifar100", "plan.advice=false"]
    assert plan([*tiny, "plan.card=L4", "plan.format=json"]) == 0
    budget = json.loads(capfd.readouterr().out)["budget"]
    assert budget["bytes"] == int(22.03 * 2**30)  # not 24 GB, as its name has it
    assert budget["peak"] <= budget["usable"] == int((budget["bytes"] - 0.8 * 2**30) / 1.1)
    for words, said in ((["plan.card=L5"], "nearest: l4"), (["plan.card=l4", "hardware=cpu"], "a CPU"),
                        (["plan.card=l4", "plan.budget=3GB"], "one of the two")):  # fmt: skip
        assert exit_code(lambda words=words: plan([*TINY, *words])) == 2  # type: ignore[misc]
        assert said in capfd.readouterr().err


def test_the_report_is_of_the_batch_that_is_the_answer(capfd: pytest.CaptureFixture[str]) -> None:
    budget = answer(capfd, "plan.budget=1GB")["budget"]
    assert plan([*TINY, "plan.budget=1GB"]) == 0
    out = capfd.readouterr().out
    assert f"batch {budget['batch_size']}, 32-true" in out
    assert f"dataset.batch_size={budget['batch_size'] // 2}: " in out, "what would help is about that batch, too"
    assert "the batch of 16 that was asked for needs " in " ".join(out.split())


def test_a_budget_that_nothing_fits_says_what_one_example_needs(capfd: pytest.CaptureFixture[str]) -> None:
    assert plan([*TINY, "plan.budget=1MB"]) == 0
    assert re.search(
        r"not even one example fits 1MB .*: it needs [0-9.]+ MiB", " ".join(capfd.readouterr().out.split())
    )


def test_one_of_several_devices_gets_its_share_of_the_batch(capfd: pytest.CaptureFixture[str]) -> None:
    one, ddp = answer(capfd, "dataset.batch_size=8"), answer(capfd, "plan.devices=2")
    trained = one["memory"]["phases"]["step"]["by_kind"]["gradients"]
    assert ddp["batch_size"] == 16
    assert ddp["memory"]["peak"] - one["memory"]["peak"] == pytest.approx(trained, rel=0.05)
    fsdp = answer(capfd, "plan.devices=2", "plan.strategy=fsdp")
    assert fsdp["memory"]["by_kind"]["optimizer"] < 0.6 * one["memory"]["by_kind"]["optimizer"]
    assert plan([*TINY, "hardware=2gpu"]) == 0
    out = capfd.readouterr().out
    assert "batch 8 a device, one of 2 (ddp)" in out
    assert "* ddp: every device holds the whole model" in out


def test_the_report_tells_what_and_why(capfd: pytest.CaptureFixture[str]) -> None:
    assert plan([*TINY, "plan.budget=1GB"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    for words in ("full / vit_tiny / digits", "backward", "largest tensors alive at the peak", "It is made up of",
                  "the largest batch that fits", "for the CUDA context",
                  "parameters are trained (100.00 %)"):  # fmt: skip
        assert words in out


def test_the_papers_setting_is_said_and_gives_way_to_words(capfd: pytest.CaptureFixture[str]) -> None:
    lora = ["method=lora", "plan.profile=paper"]
    assert "assumptions" not in answer(capfd, "method=lora")
    (said,) = answer(capfd, *lora)["assumptions"]
    assert "method.bias=all, method.add_biases=true" in said
    (said,) = answer(capfd, *lora, "method.bias=all")["assumptions"]
    assert "method.bias" not in said
    assert "assumptions" not in answer(capfd, *lora, "plan.paper_method=false")


def test_wrong_words_are_answered_without_a_plan(capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: plan(["method=fulll"])) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "nearest: full" in captured.err
    with pytest.raises(UserError, match="not an amount of memory"):
        plan([*TINY, "plan.budget=24"])
    with pytest.raises(UserError, match="transfer-run's to show"):
        plan([*TINY, "--cfg", "job"])
    with pytest.raises(UserError, match="several runs"):
        plan([*TINY, "plan.picture=a.png"])


def test_help_needs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert plan(["--help"]) == 0
    assert capfd.readouterr().out.strip() == HELP.strip()


def test_wrong_words_import_nothing_heavy() -> None:
    code = (
        "import sys; from transfer_run.cli.exits import exit_code; from transfer_run.cli.plan import plan; "
        "code = exit_code(lambda: plan(['method=fulll'])) & exit_code(lambda: plan(['plan.budget=24XB'])); "
        "heavy = {'torch', 'transformers', 'timm', 'lightning', 'peft', 'datasets'} & set(sys.modules); "
        "sys.exit(code if not heavy else 99)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 2


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc on this machine")
def test_three_billion_parameters_in_two_gibibytes() -> None:
    words = ["method=lst", "backbone=t5-3b", "dataset=glue/rte", "plan.format=json"]
    code = (
        "import sys; from transfer_run.cli.plan import plan; plan(sys.argv[1:]); "
        "assert 'lightning' not in sys.modules, 'half the time of a small plan'; "
        "status = open('/proc/self/status').read(); print(status.split('VmHWM:')[1].split()[0], file=sys.stderr)"
    )  # its own high-water mark: the kernel's record of a child counts the parent that it was forked from
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, env=environment
    )
    assert json.loads(done.stdout)["memory"]["by_kind"]["parameters"] > 10 * 2**30
    assert int(done.stderr.split()[-1]) * 1024 < 2 * 2**30


def test_running_text_is_planned_as_it_is_read_and_as_others_read_it() -> None:
    """Full windows need no mask, and heads that share keys none of their own: rows that are padded need both."""
    words = ["method=full", "backbone=llama_tiny", "backbone.weights=random:0", "dataset=python_docs",
             "dataset.task=language_modeling", "hardware=cpu"]  # fmt: skip
    plain, padded = (plan_run(compose([*words, *more])).memory["phases"]["forward"]["by_kind"]["activations"]
                     for more in ([], ["plan.padded=true"]))  # fmt: skip
    assert plain < padded
    data = build_data(*(compose(words).config[node] for node in ("dataset", "backbone")), 0)
    data.setup()
    assert set(data.collate([data.example("train", Draw(0, 0, True))])) == {"input_ids", "labels"}
