"""The checks of the method's spec on a perceptron and small networks of every family; then whole runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from tests import small
from tests.matrix.smallest import stopped_in_work
from transfer_run.backbones.base import Batch
from transfer_run.backbones.declared import family_of, takes
from transfer_run.backbones.layer_groups import stages
from transfer_run.backbones.load import build_backbone
from transfer_run.data.base import DataModule
from transfer_run.data.load import build_data
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.training import work as training_work
from transfer_run.methods.base import Context, Method
from transfer_run.methods.transferability.layer_transferability import RECIPE, LayerTransferability
from transfer_run.methods.transferability.layers.networks import (
    TREATMENTS,
    Network,
    accuracy,
    best_mean,
    fit,
    layers,
    networks,
    optimizer_of,
    relabelled,
    start,
)
from transfer_run.methods.transferability.layers.report import results_of
from transfer_run.methods.transferability.layers.splits import halves, rows_of
from transfer_run.methods.work import Work
from transfer_run.task import Task

CONFIGS = Path(__file__).parents[3] / "configs"
DIGITS = Task("classification", 10, tuple("0123456789"))
SGD = RECIPE | {"lr": 0.05, "weight_decay": 0.01}


def node(group: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(content.get(group, content))


def network(name: str = "mlp_tiny", classes: int = 5) -> Method:
    return Method(build_backbone(node("backbone", name) | {"weights": "random:0"}), Task("classification", classes))


def batches(method: Method, classes: int = 5, count: int = 64) -> list[Batch]:
    image = method.backbone.config["image"]
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randn(count, image["channels"], image["size"], image["size"], generator=generator)
    return [{"pixel_values": pixels, "labels": torch.arange(count) % classes}]


def trained(method: Method, which: Network, base: dict[str, Tensor] | None = None, seed: int = 3) -> list[float]:
    """Started and trained for six steps, in a loop of one name whatever the network is."""
    start(method, which, base, seed)
    data = batches(method)
    torch.manual_seed(1)
    return fit(method, "it", SGD, 6, lambda first: iter(data * 99), lambda: accuracy(method, data), Work(), 4)


def state(method: Method) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.backbone.state_dict().items()}


def base_of(name: str = "mlp_tiny") -> dict[str, Tensor]:
    method = network(name)
    trained(method, Network(0, "B"), seed=2)
    return state(method)


# ---- before training
@pytest.mark.parametrize("name", ["mlp_tiny", "cnn_tiny", "vit_tiny"])
def test_all_layers_copied_is_the_base_and_none_is_a_fresh_one(name: str) -> None:
    base, method, fresh = base_of(name), network(name), network(name)
    start(method, Network(0, "B", "B", len(layers(method))), base, 3)
    assert all(torch.equal(tensor, base[key]) for key, tensor in state(method).items())
    start(method, Network(0, "B", "B", 0), base, 3)
    start(fresh, Network(0, "B"), None, 3)
    other = state(fresh)
    assert all(torch.equal(tensor, other[key]) for key, tensor in state(method).items())


@pytest.mark.parametrize("name", ["mlp_tiny", "cnn_tiny"])
def test_a_cut_before_the_first_layer_trains_as_a_base_bit_for_bit(name: str) -> None:
    base, cut, fresh = base_of(name), network(name), network(name)
    assert trained(cut, Network(0, "B", "B", 0), base) == trained(fresh, Network(0, "B"))
    other = state(fresh)
    assert all(torch.equal(tensor, other[key]) for key, tensor in state(cut).items())


def test_new_layers_follow_the_initialiser() -> None:
    words: list[dict[str, Any]] = [{"linear": 300, "std": 0.02, "bias": 1} for _ in range(3)]
    config = node("backbone", "mlp_tiny") | {"weights": "random:0", "architecture": {"layers": words}}
    base, method = (Method(build_backbone(config), DIGITS) for _ in range(2))
    start(base, Network(0, "B"), None, 1)
    start(method, Network(0, "B", "B", 1), state(base), 2)
    for index in (1, 2):
        mine, theirs = (each.backbone.model.layers[index].weight for each in (method, base))
        assert not torch.equal(mine.weight, theirs.weight)
        assert float(mine.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        assert bool((mine.bias == 1).all())


# ---- after training
@pytest.mark.parametrize("name", ["mlp_tiny", "cnn_tiny", "vit_tiny"])
def test_frozen_layers_stay_and_all_others_move(name: str) -> None:
    """Weights, biases and running statistics, under weight decay and momentum."""
    base, method = base_of(name), network(name)
    trained(method, Network(0, "B", "A", 2), base)
    found, parts = state(method), list(stages(method.backbone).items())
    for place, (stage, names) in enumerate(parts):
        for key in names:
            counter = place >= 2 and not found[key].is_floating_point()  # of batches: both have seen six
            assert torch.equal(found[key], base[key]) == (place < 2 or counter), (stage, key)
    trained(method, Network(0, "B", "A", 2, learns=True), base)
    found = state(method)
    floats = [key for key in found if found[key].is_floating_point()]
    assert [key for key in floats if torch.equal(found[key], base[key])] == []


@pytest.mark.parametrize("name", ["mlp_tiny", "cnn_tiny"])
def test_what_is_frozen_has_no_gradient_and_no_optimizer(name: str) -> None:
    base, method = base_of(name), network(name)
    start(method, Network(0, "B", "A", 2), base, 3)
    frozen = {key for stage in layers(method)[:2] for key in stages(method.backbone)[stage]}
    parameters = dict(method.backbone.named_parameters())
    held = {id(p) for group in optimizer_of(method, SGD).param_groups for p in group["params"]}
    method.training_loss(batches(method)[0]).backward()
    for key, parameter in parameters.items():
        assert (key in frozen) == (parameter.grad is None) == (id(parameter) not in held), key
    counts = {key: parameter.numel() for key, parameter in parameters.items()}
    learning = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert learning == sum(counts.values()) - sum(counts[key] for key in frozen & counts.keys())


def test_random_layers_stay_as_they_were_drawn() -> None:
    method = network()
    last = len(layers(method)) - 1
    start(method, Network(0, "all", None, last), None, 3)
    drawn = state(method)
    trained(method, Network(0, "all", None, last))
    moved = {key for key, tensor in state(method).items() if not torch.equal(tensor, drawn[key])}
    assert moved == {"head.weight", "head.bias"}
    fresh = network()
    trained(method, Network(0, "all", None, 0))
    trained(fresh, Network(0, "B"))
    other = state(fresh)
    assert all(torch.equal(tensor, other[key]) for key, tensor in state(method).items())


def test_weights_decay_and_biases_have_a_rate_of_their_own() -> None:
    method = network()
    method.train_backbone()
    weights, vectors = optimizer_of(method, SGD | {"bias_lr": 2.0}).param_groups
    assert (weights["lr"], weights["weight_decay"]) == (0.05, 0.01)
    assert (vectors["lr"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in weights["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}


def test_the_rate_falls_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = network(), []
    start(method, Network(0, "B"), None, 3)
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: (seen.append([g["lr"] for g in self.param_groups]), step(self))
    )
    data = batches(method)
    fit(method, "it", SGD | {"bias_lr": 2.0, "factor": 0.5, "factor_every": 2}, 5, lambda first: iter(data * 9),
        lambda: 0.0, Work(), 9)  # fmt: skip
    assert np.allclose(seen, [[0.05, 0.1]] * 2 + [[0.025, 0.05]] * 2 + [[0.0125, 0.025]])


def test_a_network_counts_by_its_ten_best_evaluations() -> None:
    method = network()
    start(method, Network(0, "B"), None, 3)
    data, told = batches(method), iter(range(100))
    curve = fit(method, "it", SGD, 25, lambda first: iter(data * 99), lambda: float(next(told)), Work(), 2)
    assert curve == [float(number) for number in range(13)]  # after 2, 4, ..., 24 steps, and after the last
    assert best_mean(curve) == pytest.approx(7.5)  # 3, ..., 12
    assert best_mean([0.5, 0.7]) == pytest.approx(0.6)


# ---- every family
@pytest.mark.parametrize("name", list(small.CONFIGS))
def test_any_family_is_cut_between_what_runs(name: str) -> None:
    about = node("method", "layer_transferability")["about"]
    if "classification" not in small.forms(name) or not takes(about, family_of(small.CONFIGS[name])):
        pytest.skip("no classification by a head")
    task = Task("classification", 6)
    experiment = LayerTransferability(small.backbone(name), task, treatments=["AnB"], cuts=[1])
    order = layers(experiment)
    assert (order[0], order[-1]) == ("embedding", "head")
    assert len(order) > 3
    batch = small.batch(name, "classification")
    base = state(Method(small.backbone(name), task))
    method = Method(small.backbone(name, seed=5), task)
    start(method, Network(0, "B", "A", 2), base, 3)
    method.train()
    method.training_loss(batch).backward()
    moving = {key for key, p in method.backbone.named_parameters() if p.grad is not None}
    parts = stages(method.backbone)
    assert moving <= {key for stage in order[2:] for key in parts[stage]}
    assert all(moving & set(parts[stage]) for stage in order[2:])
    other = state(method)
    assert all(torch.equal(other[key], base[key]) for stage in order[:2] for key in parts[stage])


# ---- classes and rows
def test_random_halves_are_the_papers() -> None:
    task = Task("classification", 1000)
    split = {"kind": "random", "seed": 1, "fraction": 0.5, "classes": None}
    found = halves(split, task, 2)
    expected = np.random.RandomState(3).choice(1000, 500, replace=False)
    assert found["A"] == sorted(expected.tolist())
    assert sorted(found["A"] + found["B"]) == list(range(1000))
    assert halves(split, task, 2) == found
    assert halves(split, task, 3) != found
    assert len(halves(split | {"fraction": 0.3}, task, 0)["A"]) == 300


def test_natural_and_man_made() -> None:
    imagenet = halves({"kind": "natural_imagenet"}, Task("classification", 1000), 0)
    assert (len(imagenet["A"]), len(imagenet["B"])) == (449, 551)
    assert {0, 397, 936, 970, 998} <= set(imagenet["A"])  # tench, puffer, head cabbage, alp, ear
    assert {398, 935, 959, 971, 999} <= set(imagenet["B"])  # abacus, mashed potato, carbonara, bubble, toilet tissue
    cifar = halves({"kind": "natural_cifar100"}, Task("classification", 100), 0)
    assert (len(cifar["A"]), len(cifar["B"])) == (70, 30)
    with pytest.raises(UserError, match="of 1000 classes, the data set has 10"):
        halves({"kind": "natural_imagenet"}, DIGITS, 0)


def test_a_list_names_classes_by_name_or_number() -> None:
    task = Task("classification", 4, ("cat", "dog", "car", "bus"))
    assert halves({"kind": "list", "classes": ["dog", 0]}, task, 0) == {"A": [0, 1], "B": [2, 3]}
    for classes, said in (
        (["dogs", 0], "no class 'dogs'"), ([0, 0, 1], "named twice"), ([0], "two classes"), (None, "two classes"),
        ([0, 1, 2], "two classes"), ([4, 0], "no class 4"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            halves({"kind": "list", "classes": classes}, task, 0)


@pytest.fixture(scope="module")
def digits() -> DataModule:
    dataset = node("dataset", "digits") | {"classes": list(range(10)), "rows": None}
    data = build_data(dataset, node("backbone", "mlp_tiny"), 0)
    data.setup()
    return data


def test_rows_and_labels_of_a_half(digits: DataModule) -> None:
    labels = digits.labels("train")
    rows = rows_of(digits, "train", [7, 2], 30, seed=1)
    assert sorted(labels[rows].tolist()) == [2] * 30 + [7] * 30
    assert not np.array_equal(rows, rows_of(digits, "train", [7, 2], 30, seed=2))
    assert len(rows_of(digits, "train", [7, 2], None, 1)) == int(np.isin(labels, [2, 7]).sum())
    part = digits.part({"train": rows})
    seen = [batch["labels"] for batch in relabelled(part.loader("train", batch_size=25), [2, 7])]
    assert sorted(torch.cat(seen).tolist()) == [0] * 30 + [1] * 30
    batch = {"labels": torch.tensor([7, -100, 2])}
    assert next(iter(relabelled([batch], [2, 7])))["labels"].tolist() == [1, -100, 0]


# ---- the experiment
def test_the_networks_of_an_experiment() -> None:
    names = [each.name for each in networks(0, [2], TREATMENTS, both_ways=True)]
    bases, zero = ["0-base-A", "0-base-B"], ["0-random-0", "0-random-2"]
    cut = ["0-A2A", "0-B2B", "0-B2A", "0-A2B", "0-A2A+", "0-B2B+", "0-B2A+", "0-A2B+"]
    assert names == [*bases, *cut, *zero]
    assert [each.name for each in networks(1, [3], ["BnB"], both_ways=False)] == ["1-base-B", "1-B3B"]
    assert [each.name for each in networks(1, [3], ["AnB"], both_ways=False)] == ["1-base-A", "1-base-B", "1-A3B"]
    assert [each.curve(True) for each in networks(0, [2], ["AnB"], True)] == ["base", "base", "AnB", "AnB"]
    assert [each.curve(False) for each in networks(0, [2], ["AnB"], True)] == ["baseA", "baseB", "BnA", "AnB"]


def test_what_the_curves_say() -> None:
    given = {
        Network(0, "B"): 0.9, Network(1, "B"): 0.8, Network(0, "B", "B", 1): 0.8, Network(1, "B", "B", 1): 0.6,
        Network(0, "B", "A", 1): 0.5, Network(0, "B", "A", 1, True): 0.95, Network(0, "B", "B", 1, True): 0.9,
    }  # fmt: skip
    found = results_of(given, pooled=True)
    expected = {"coadaptation/1": 0.15, "specificity/1": 0.2, "boost/1": 0.1, "boost_over_self/1": 0.05, "base/0": 0.85}
    assert {key: found["metrics"][key] for key in expected} == pytest.approx(expected)
    assert found["curves"]["base"]["0"]["std"] == pytest.approx(0.0707, abs=1e-4)
    assert found["curves"]["BnB"]["1"]["networks"] == 2
    apart = results_of(given | {Network(0, "A"): 0.4, Network(0, "A", "A", 1): 0.3}, pooled=False)["metrics"]
    assert apart["coadaptation_A/1"] == pytest.approx(0.1)
    assert "specificity_A/1" not in apart
    assert apart["specificity_B/1"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"treatments": ["AnC"]}, "no treatment 'AnC'"),
        ({"cuts": [4]}, "has 4 layers"),
        ({"cuts": [0]}, "has 4 layers"),
        ({"head_classes": 4}, "4 outputs cannot answer"),
        ({"head_classes": 8}, "8 outputs cannot answer 10"),
        ({"split": {"kind": "random", "seed": 0, "fraction": 0.1, "classes": None}}, "A half needs two classes"),
    ],
)
def test_what_cannot_be_is_refused(words: dict[str, Any], said: str) -> None:
    backbone = build_backbone(node("backbone", "mlp_tiny") | {"weights": "random:0"})
    with pytest.raises(UserError, match=said):
        LayerTransferability(backbone, DIGITS, **words)


def context(data: DataModule, folder: Path) -> Context:
    def once(split: str, size: int, data: DataModule = data) -> Iterator[Batch]:
        return iter(data.loader(split, batch_size=size, seed=0))

    def endless(split: str, size: int, first: int, data: DataModule = data, augment: bool = False) -> Iterator[Batch]:
        loader = data.loader(split, batch_size=size, seed=0, augment=augment)
        epoch = first // len(loader)
        while True:
            loader.set_epoch(epoch)
            yield from loader
            epoch += 1

    return Context(0, folder, once, endless=endless, data=data, sizes=data.sizes, log=lambda line: None)


@pytest.mark.slow
def test_the_effect_on_digits(digits: DataModule, tmp_path: Path) -> None:
    """Check 6: transfer from the other half falls with n, copies of oneself and what learns on stay near the base."""
    backbone = build_backbone(node("backbone", "mlp_tiny") | {"weights": "random:0"})
    method = LayerTransferability(
        backbone, DIGITS, cuts=[1, 3], treatments=["BnB", "AnB", "BnB+", "AnB+"], both_ways=False, per_class=30,
        split={"kind": "list", "seed": 0, "fraction": 0.5, "classes": [0, 1, 2, 3, 4]},
        recipe=RECIPE | {"measure_every": 100},
    )  # fmt: skip
    method.prepare(context(digits, tmp_path))
    found = method.results["metrics"]
    assert found["AnB/1"] > found["AnB/3"] + 0.05
    assert found["AnB/3"] < found["BnB/3"] - 0.15
    for curve in ("BnB/1", "BnB/3", "BnB+/1", "BnB+/3", "AnB+/1", "AnB+/3"):
        assert abs(found[curve] - found["baseB/0"]) < 0.05, curve


# ---- whole runs
WORDS = (
    "method=layer_transferability", "backbone=mlp_tiny", "dataset=digits", "dataset.classes=[0,1,2,3,4,5,6,7]",
    "method.cuts=[1,3]", "method.recipe.steps=6", "method.recipe.measure_every=4", "trainer.progress=none",
    "hardware=cpu", "method.repeats=2", "method.split.seed=1",
)  # fmt: skip


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carry_out(compose([*WORDS, f"output_dir={tmp_path_factory.mktemp('whole')}"]))


def test_a_run_leaves_curves_a_picture_and_its_numbers(whole: Path) -> None:
    found = result(whole)
    with (whole / "curves.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [each.name for repeat in (0, 1) for each in networks(repeat, [1, 3], TREATMENTS, True)]
    assert list(dict.fromkeys(row["network"] for row in rows)) == wanted
    assert {row["evaluation"] for row in rows} == {"1", "2"}
    mean = np.mean([float(row["accuracy"]) for row in rows if row["network"] in ("0-A1B", "0-B1A", "1-A1B", "1-B1A")])
    assert found["metrics"]["AnB/1"] == pytest.approx(float(mean))
    assert found["extra"]["curves"]["AnB"]["1"]["networks"] == 4
    assert (whole / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert [sorted(split["A"] + split["B"]) for split in found["extra"]["splits"]] == [list("01234567")] * 2
    assert found["extra"]["splits"][0] != found["extra"]["splits"][1]
    assert not (whole / "checkpoints" / "prepare").exists()


def test_its_memory_is_planned(whole: Path) -> None:
    memory = result(whole)["memory"]
    assert memory["peak_phase"] == "prepare"
    assert memory["predicted_peak"] == pytest.approx(memory["peak"], rel=0.02)


@pytest.mark.parametrize("seen", [8, 6 * 24 + 3])
def test_a_stopped_run_goes_on_to_the_same_curves(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    """In the middle of a base, and of a network of the second repeat, whose bases have been trained."""
    run = compose([*WORDS, f"output_dir={tmp_path}", "profiler=none"])
    stopped_in_work(run, seen)
    written = {path.stem for path in (run.folder / "networks").glob("*.json")}
    assert len(written) == seen // 6
    taken = []
    with monkeypatch.context() as patch:
        ordinary = training_work.seed_all
        patch.setattr(training_work, "seed_all", lambda value: (taken.append(value), ordinary(value)))
        carry_out(run)
    assert len(taken) == 42 * 6 - seen - 1
    assert (run.folder / "curves.csv").read_bytes() == (whole / "curves.csv").read_bytes()
    assert result(run.folder)["extra"]["curves"] == result(whole)["extra"]["curves"]
