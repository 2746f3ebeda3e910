"""Check 4 of the method's spec, what cannot be, and whole runs: files, memory, stopped and gone on with, used again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests.matrix.smallest import stopped_in_work
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.methods.data_selection.expert_trajectories import ExpertTrajectories
from transfer_run.methods.data_selection.trajectories.network import FlatNetwork
from transfer_run.task import Task

CONFIGS = Path(__file__).parents[3] / "configs"
DIGITS = Task("classification", 10, tuple("0123456789"))


def backbone(name: str = "convnet_tiny") -> Any:
    node = yaml.safe_load((CONFIGS / "backbone" / f"{name}.yaml").read_text(encoding="utf-8"))
    return build_backbone(node | {"weights": "random:0"})


def method(**words: Any) -> ExpertTrajectories:
    torch.manual_seed(1)  # the head's
    return ExpertTrajectories(backbone(), DIGITS, **{"syn_steps": 4, "expert_epochs": 2, **words})


def gradients(made: ExpertTrajectories, seed: int = 5) -> tuple[torch.Tensor, ...]:
    network = FlatNetwork(made.plain())
    torch.manual_seed(seed)
    images = torch.randn(10, 1, 8, 8).requires_grad_()
    rate = torch.tensor(0.02).requires_grad_()
    weights = network.vector() + torch.stack([0.02 * n * torch.randn(network.count) for n in range(3)])
    torch.manual_seed(seed)
    found = made.matched(network, images, rate, torch.arange(10), 4, weights, lambda names: names[0] if names else None)
    return found.loss, found.images, found.rate


# ---- settings
def test_ast_with_everything_switched_off_is_mtt_to_the_bit() -> None:
    off = method(
        variant="ast", balanced_loss=False, middle_loss="none", weight_perturbation=0.0, student={"momentum": 0.0}
    )
    mtt = method(variant="mtt")
    for one, other in zip(gradients(off), gradients(mtt), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "words",
    [
        {"balanced_loss": True}, {"middle_loss": "sum"}, {"weight_perturbation": 1.0}, {"student": {"momentum": 0.9}},
        {"augment": None}, {"batch_syn": 4}, {"syn_steps": 5}, {"truncate": 2},
    ],
    ids=lambda words: next(iter(words)),
)  # fmt: skip
def test_every_switch_changes_the_gradient(words: dict[str, Any]) -> None:
    assert not torch.equal(gradients(method(variant="mtt"))[1], gradients(method(variant="mtt", **words))[1])


@pytest.mark.parametrize("variant", ["ast", "mtt"])
def test_both_ways_have_the_same_gradients(variant: str) -> None:
    found = [gradients(method(variant=variant, memory_mode=mode)) for mode in ("efficient", "official")]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_chunks_are_without_replacement_until_they_are_used_up() -> None:
    made = method(batch_syn=4, syn_steps=7)
    rows = made._rows(10, torch.device("cpu"))
    assert [len(each) for each in rows if each is not None] == [4, 4, 2, 4, 4, 2, 4]
    for first in (0, 3):
        three = torch.cat([each for each in rows[first : first + 3] if each is not None])
        assert sorted(three.tolist()) == list(range(10))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"max_start_epoch": 50}, "compared with epoch 51, and experts are trained for 50"),
        ({"syn_steps": 1}, "1 steps of a student cannot pass the goals of 2 epochs"),
        ({"batch_syn": 11}, "There are 10 synthetic images"),
        ({"truncate": 5}, "A student takes 4 steps"),
        ({"augment": ["crops"]}, "no differentiable operation 'crops'"),
        ({"evaluate": {"against": ["rand"]}}, "no images 'rand'"),
    ],
)
def test_what_cannot_be_is_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        method(**words)


def test_the_convnet_of_dataset_distillation() -> None:
    """P = 320,010 for CIFAR-10: the paper's three blocks, one norm group a channel."""
    made = ExpertTrajectories(backbone("convnet3"), DIGITS)
    assert FlatNetwork(made.plain()).count == 320_010
    assert (
        FlatNetwork(ExpertTrajectories(backbone("convnet4"), DIGITS).plain()).count == 320_010 + 128 * 128 * 9 + 3 * 128
    )


# ---- whole runs
WORDS = (
    "method=expert_trajectories", "backbone=convnet_tiny", "dataset=digits", "dataset.classes=[0,1,2]",
    "dataset.batch_size=32", "method.ipc=4", "method.iterations=3", "method.syn_steps=6", "method.expert_epochs=2",
    "method.max_start_epoch=2", "method.batch_syn=8", "method.lr_img=10", "method.expert.count=2",
    "method.expert.epochs=3", "method.evaluate.networks=1", "method.evaluate.epochs=4", "method.evaluate.every=2",
    "method.evaluate.batch_size=5", "method.evaluate.against=[random,initial]", "trainer.progress=none",
    "hardware=cpu", "trainer.log_every=1",
)  # fmt: skip


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carry_out(compose([*WORDS, f"output_dir={tmp_path_factory.mktemp('whole')}"]))


def test_a_run_leaves_the_set_its_pictures_and_its_experts(whole: Path) -> None:
    made = load_file(whole / "synthetic.safetensors")
    assert (list(made["images"].shape), made["images"].dtype) == ([12, 1, 8, 8], torch.float32)
    assert made["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    pixels = np.stack([np.asarray(Image.open(whole / "images" / name / f"{n:03d}.png"))
                       for name in "012" for n in range(4)])  # fmt: skip
    expected = (made["images"][:, 0].clamp(0, 1) * 255).round().numpy()
    assert np.array_equal(pixels, expected)
    assert (whole / "synthetic.png").read_bytes().startswith(b"\x89PNG")
    with (whole / "losses.csv").open(encoding="utf-8", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    files = sorted((whole / "experts").glob("*"))
    assert [file.name for file in files] == ["expert-000.safetensors", "expert-001.safetensors"]
    first, second = (load_file(file)["trajectory"] for file in files)
    assert first.shape[0] == 4
    assert not torch.equal(first[0], second[0])
    assert not (whole / "checkpoints" / "prepare").exists()
    log = (whole / "run.log").read_text(encoding="utf-8")
    assert "2 experts, 4 times 14,811 weights each: 0.5 MB" in log
    assert "% of the synthetic pixels lie outside 0..1" in log


def test_a_run_tells_last_and_best_of_each_set(whole: Path) -> None:
    found = result(whole)
    assert {"distilled/last", "distilled/max", "random/last", "initial/max", "step_size"} <= found["metrics"].keys()
    assert found["metrics"]["distilled/max"] >= found["metrics"]["distilled/last"]
    assert found["metrics"]["images"] == 12


def test_its_memory_is_planned(whole: Path) -> None:
    memory = result(whole)["memory"]
    assert memory["peak_phase"] == "prepare"
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.02)


OUTER = (*WORDS, "dataset.batch_size=4", "method.ipc=20", "method.batch_syn=null", "method.evaluate.batch_size=4")
"""The outer step needs more than an expert's or a fresh network's."""


@pytest.mark.parametrize("mode", ["efficient", "official"])
def test_the_outer_steps_memory_is_planned(mode: str, tmp_path: Path) -> None:
    words = [*OUTER, f"method.memory_mode={mode}", "method.expert.count=1", "method.evaluate.against=[]"]
    memory = result(carry_out(compose([*words, f"output_dir={tmp_path}"])))["memory"]
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.02)


def test_memory_grows_with_the_unrolled_steps_unless_they_are_taken_again() -> None:
    """The whole graph: as many times more as steps. Step by step: students alone, 2 sqrt(N) of them; cut: nothing."""

    def peak(*words: str) -> int:
        return int(plan_run(compose([*OUTER, *words])).memory["peak"])

    few, many = "method.syn_steps=4", "method.syn_steps=16"
    official = [peak("method.memory_mode=official", steps) for steps in (few, many)]
    efficient = [peak(steps) for steps in (few, many)]
    cut = [peak("method.truncate=2", "method.memory_mode=official", steps) for steps in (few, many)]
    assert official[1] > 3.2 * official[0]
    assert efficient[1] < 1.35 * efficient[0]
    assert efficient[1] < 0.25 * official[1]
    assert cut[1] < 1.04 * cut[0]  # the numbers that augmentations drew


@pytest.mark.parametrize("seen", [4, 13, 20])
def test_a_stopped_run_goes_on_to_the_same_images(whole: Path, tmp_path: Path, seen: int) -> None:
    """In the middle of the first expert, in the middle of distilling, while a fresh network learns."""
    run = compose([*WORDS, f"output_dir={tmp_path}", "profiler=none"])
    stopped_in_work(run, seen)
    carry_out(run)
    for name in ("synthetic.safetensors", "losses.csv", "experts/expert-001.safetensors"):
        assert (run.folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert result(run.folder)["extra"]["accuracies"] == result(whole)["extra"]["accuracies"]


def test_another_run_takes_the_experts_and_a_third_the_images(whole: Path) -> None:
    output = f"output_dir={whole.parents[2]}"
    own = " ".join(WORDS)
    words = [*WORDS, output, "method.variant=mtt", "method.ipc=1", "method.batch_syn=null", f"method.experts=run:{own}"]
    second = carry_out(compose(words))
    assert not (second / "experts").exists()
    assert "2 experts of" in (second / "run.log").read_text(encoding="utf-8")
    memory = result(second)["memory"]
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.02)
    reader = [
        "method=pretrain", "backbone=mlp_tiny", "dataset=distilled", "dataset.real=digits classes=[0,1,2]",
        f"dataset.path=run:{own}", "trainer.max_epochs=2", "trainer.progress=none", "hardware=cpu", output,
    ]  # fmt: skip
    third = result(carry_out(compose(reader)))
    assert "test/accuracy" in third["metrics"]
    with pytest.raises(UserError, match=r"dataset\.real of 3, 4, 5"):
        carry_out(compose([*reader[:3], "dataset.real=digits classes=[3,4,5]", *reader[4:]]))
