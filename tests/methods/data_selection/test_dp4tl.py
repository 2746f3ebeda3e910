"""The method on a tiny convolutional surrogate with real digits; and the whole chain through the runner."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.backbones.load import build_backbone
from transfer_run.data.base import DataModule
from transfer_run.data.load import build_data
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.sources.resolve import source_tree
from transfer_run.methods.base import Context, Method
from transfer_run.methods.data_selection.dp4tl import DP4TL
from transfer_run.methods.data_selection.pruning.samples import gradient_norms, median_distance, moderate
from transfer_run.methods.data_selection.pruning.surrogate import in_order, seen_by
from transfer_run.task import Task

CONFIGS = Path(__file__).parents[3] / "configs"
SIX = tuple("012345")


def node(group: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(content.get(group, content))


def backbone(name: str = "cnn_tiny") -> Backbone:
    return build_backbone(node("backbone", name) | {"weights": "random:0"})


def digits(classes: list[int]) -> DataModule:
    data = build_data(node("dataset", "digits") | {"classes": classes, "rows": None}, node("backbone", "cnn_tiny"), 0)
    data.setup()
    return data


@pytest.fixture(scope="module")
def surrogate() -> Method:
    """Trained for three epochs on all six source classes."""
    torch.manual_seed(0)
    model, data = Method(backbone(), Task("classification", 6, SIX)), digits([0, 1, 2, 3, 4, 5])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = data.loader("train", batch_size=32)
    model.train()
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def context(tmp_path: Path, surrogate: Method) -> Context:
    target = digits([3, 5, 8])

    def batches(split: str, batch_size: int) -> Iterator[Batch]:
        yield from target.loader(split, batch_size=batch_size)

    return Context(
        0, tmp_path, batches, {"surrogate": tmp_path}, log=lambda line: None, batch_size=100,
        load_source=lambda name: surrogate, load_data=lambda name: digits([0, 1, 2, 3, 4, 5]),
    )  # fmt: skip


def selected(context: Context, **settings: Any) -> tuple[dict[str, Any], dict[str, list[int]]]:
    method = DP4TL(backbone(), Task("classification", 3, ("3", "5", "8")), **settings)
    method.prepare(context)
    result = json.loads(json.dumps(method.conclude(context), allow_nan=False))
    return result, json.loads((context.folder / "rows.json").read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("mapping", ["lm", "fm", "class_means", "random"])
def test_the_rows_of_the_kept_classes_are_kept_in_every_split(context: Context, mapping: str) -> None:
    result, rows = selected(context, mapping=mapping, pruning_ratio=0.5)
    source = digits([0, 1, 2, 3, 4, 5])
    kept = [int(name) for name in result["kept_groups"]]
    assert len(kept) == result["groups"]["kept"] == 3
    assert set(rows) == {"train", "validation", "test"}
    for split, numbers in rows.items():
        assert numbers == np.flatnonzero(np.isin(source.labels(split), kept)).tolist()
    scores = result["scores"]
    assert min(scores[str(c)] for c in kept) >= max(scores[str(c)] for c in range(6) if c not in kept)
    if mapping in ("lm", "fm"):
        assert sum(scores.values()) == len(digits([3, 5, 8]).labels("train"))
    assert result["table"][0].startswith(f"kept of digits by {mapping}: 3 of 6 groups")
    assert (context.folder / result["picture"]).read_bytes().startswith(b"\x89PNG")
    with (context.folder / "groups.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in sorted(lines, key=lambda line: line["kept_rank"] or "9")[:3]] == list(
        result["kept_groups"]
    )


def test_feature_mapping_finds_the_targets_own_classes(context: Context) -> None:
    result, _ = selected(context, mapping="fm", keep_groups=3)
    assert {"3", "5"} <= set(result["kept_groups"])
    reverse, _ = selected(context, mapping="fm", keep_groups=3, reverse=True)
    assert not set(reverse["kept_groups"]) & set(result["kept_groups"])


@pytest.mark.parametrize("mapping", ["lm", "fm", "class_means", "random", "random_rows", "moderate"])
def test_ratio_zero_keeps_every_row_in_order(context: Context, mapping: str) -> None:
    _, rows = selected(context, mapping=mapping, pruning_ratio=0.0)
    for split, numbers in rows.items():
        assert numbers == list(range(digits([0, 1, 2, 3, 4, 5]).sizes[split]))


@pytest.mark.parametrize("mapping", ["lm", "fm", "random", "random_rows", "moderate"])
def test_a_larger_ratio_keeps_a_part_of_a_smaller_one(context: Context, mapping: str) -> None:
    sets = [set(selected(context, mapping=mapping, pruning_ratio=ratio)[1]["train"]) for ratio in (0.2, 0.5, 0.8)]
    assert sets[2] < sets[1] < sets[0]


@pytest.mark.parametrize("mapping", ["lm", "fm"])
def test_order_and_labels_of_the_target_change_nothing(context: Context, mapping: str) -> None:
    before = selected(context, mapping=mapping)[0]["scores"]
    ordinary = context.batches

    def turned(split: str, batch_size: int) -> Iterator[Batch]:
        for batch in reversed(list(ordinary(split, 64))):
            yield batch | {"labels": (batch["labels"] + 1) % 3}

    context.batches = turned
    assert selected(context, mapping=mapping)[0]["scores"] == before


@pytest.mark.parametrize("mapping", ["lm", "fm"])
def test_selection_leaves_the_surrogate_as_it_was(context: Context, surrogate: Method, mapping: str) -> None:
    before = {name: tensor.clone() for name, tensor in surrogate.state_dict().items()}
    flags = [p.requires_grad for p in surrogate.parameters()]
    selected(context, mapping=mapping)
    assert all(p.grad is None for p in surrogate.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in surrogate.state_dict().items())
    assert [p.requires_grad for p in surrogate.parameters()] == flags


def test_clusters_take_the_place_of_classes(context: Context) -> None:
    result, rows = selected(context, mapping="fm", groups="kmeans", kmeans={"k": 9, "seed": 0}, keep_groups=4)
    assert result["groups"] == {"kept": 4, "of": 9, "unused_kept": result["groups"]["unused_kept"]}
    share = result["rows"]["train"]["kept"] / result["rows"]["train"]["of"]
    assert result["metrics"]["kept/rows_pct"] == pytest.approx(100 * share)
    assert result["metrics"]["kept/groups_pct"] == pytest.approx(100 * 4 / 9)
    assert 0 < len(rows["validation"]) < digits([0, 1, 2, 3, 4, 5]).sizes["validation"]


# ---- rivals that prune single rows
def test_moderate_keeps_the_middle() -> None:
    distance = np.array([0.5, 0.1, np.nan, 0.9, 0.3, 0.7])
    assert moderate(distance, 0.4).tolist() == [0, 4, 5]  # 0.3, 0.5, 0.7
    features = np.array([[0.0], [1.0], [5.0], [100.0]])
    np.testing.assert_allclose(median_distance(features, np.array([0, 0, 0, -100])), [1, 0, 4, np.nan])


def test_gradient_norms_are_those_of_single_samples(surrogate: Method) -> None:
    data = digits([0, 1, 2, 3, 4, 5])
    batch = next(in_order(surrogate, data, "train", 4))
    norms = gradient_norms(surrogate, [batch])
    one = {name: tensor[2:3] for name, tensor in batch.items()}
    surrogate.zero_grad()
    surrogate.loss(one).backward()
    expected = sum(float((p.grad**2).sum()) for p in surrogate.parameters() if p.grad is not None) ** 0.5
    surrogate.zero_grad()
    assert norms[2] == pytest.approx(expected, rel=1e-4)
    assert len(norms) == 4


def test_rows_with_the_largest_gradients_are_kept(context: Context, surrogate: Method) -> None:
    before = {name: tensor.clone() for name, tensor in surrogate.state_dict().items()}
    flags = [p.requires_grad for p in surrogate.parameters()]
    result, rows = selected(context, mapping="grand", pruning_ratio=0.9)
    scores = np.load(context.folder / result["row_scores"])
    assert set(rows) == {"train"}
    assert sorted(rows["train"]) == rows["train"]
    assert scores[rows["train"]].min() >= np.delete(scores, rows["train"]).max()
    assert all(p.grad is None for p in surrogate.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in surrogate.state_dict().items())
    assert [p.requires_grad for p in surrogate.parameters()] == flags


def test_features_are_the_pooled_input_of_the_head(surrogate: Method) -> None:
    batch = next(in_order(surrogate, digits([0, 1, 2, 3, 4, 5]), "train", 10))
    features, labels = seen_by(surrogate, [batch])
    logits, _ = seen_by(surrogate, [batch], logits=True)
    assert features.shape == (10, surrogate.backbone.feature_width)
    assert logits.shape == (10, 6)
    assert labels.tolist() == batch["labels"].tolist()


# ---- the user's errors
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mapping": "lm", "groups": "kmeans"}, "needs the surrogate's classes"),
        ({"mapping": "grand", "keep_groups": 2}, "keeps single rows"),
        ({"mapping": "moderate", "reverse": True}, "no reverse"),
        ({"pruning_ratio": 1.0}, "Nothing would be kept"),
    ],
)
def test_options_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DP4TL(backbone(), Task("classification", 3), **settings)


def test_a_surrogate_on_another_backbone_is_refused(context: Context) -> None:
    method = DP4TL(backbone("vit_tiny"), Task("classification", 3))
    with pytest.raises(UserError, match="surrogate is a cnn_tiny") as error:
        method.prepare(context)
    assert error.value.remedy == "backbone=cnn_tiny"


def test_more_clusters_than_images(context: Context) -> None:
    with pytest.raises(UserError, match="cannot make 5000 clusters"):
        selected(context, mapping="fm", groups="kmeans", kmeans={"k": 5000, "seed": 0})


# ---- the whole chain: surrogate -> selection -> pretraining on what was kept -> transfer
QUIET = ["hardware=cpu", "profiler=none", "trainer.progress=none"]
SOURCE = "method=pretrain backbone=cnn_tiny dataset=digits dataset.classes=[0,1,2,3,4]"


def chain(ratio: float) -> tuple[list[str], list[str], list[str]]:
    """The words of selection, pretraining and transfer."""
    words = f"method=dp4tl backbone=cnn_tiny dataset=digits method.pruning_ratio={ratio}".split()
    selection = [*words, f"sources.surrogate={SOURCE} trainer.max_steps=8"]
    large = [*f"{SOURCE} trainer.max_steps=3".split(), f"dataset.rows=run:{shlex.join(selection)}"]
    transfer = shlex.split("method=linear_probe backbone=cnn_tiny dataset=digits trainer.max_steps=3")
    return selection, large, [*transfer, f"backbone.weights=run:{shlex.join(large)}"]


def test_the_tree_of_runs_has_all_four_levels(tmp_path: Path) -> None:
    tree = source_tree(compose([*chain(0.4)[2], f"output_dir={tmp_path}"]))
    found = [(depth, run.name, run.run.config["method"]["name"]) for depth, run in tree.walk() if run.run is not None]
    assert found == [
        (0, "", "linear_probe"),
        (1, "backbone", "pretrain"),
        (2, "dataset.rows", "dp4tl"),
        (3, "surrogate", "pretrain"),
    ]


@pytest.mark.long
def test_surrogate_selection_pretraining_and_transfer(tmp_path: Path) -> None:
    where = [*QUIET, f"output_dir={tmp_path}"]
    selection, large, transfer = chain(0.4)
    folder = carry_out(compose([*transfer, *where]))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert 0 <= result["metrics"]["test/accuracy"] <= 1
    runs = {path.parent.name.split("-")[0]: path.parent for path in tmp_path.rglob("result.json")}
    assert set(runs) == {"dp4tl", "pretrain", "linear_probe"}
    assert len(list(tmp_path.rglob("result.json"))) == 4
    chosen = carry_out(compose([*selection, *where]))  # finished already
    extra = json.loads((chosen / "result.json").read_text(encoding="utf-8"))["extra"]
    assert extra["groups"]["kept"] == 3
    assert not (chosen / "checkpoints" / "model").exists()
    kept = json.loads((chosen / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert len(kept["train"]) == extra["rows"]["train"]["kept"]
    by_folder = compose([*large[:-1], f"dataset.rows={chosen}", *where])
    assert carry_out(by_folder) == carry_out(compose([*large, *where]))  # the same run, however the rows are named


@pytest.mark.long
def test_nothing_pruned_is_ordinary_pretraining_bit_for_bit(tmp_path: Path) -> None:
    where = [*QUIET, f"output_dir={tmp_path}"]
    _, large, _ = chain(0.0)
    pruned, ordinary = carry_out(compose([*large, *where])), carry_out(compose([*large[:-1], *where]))
    assert pruned != ordinary
    models = [(run / "checkpoints" / "model" / "model.safetensors").read_bytes() for run in (pruned, ordinary)]
    assert models[0] == models[1]


def test_a_linear_probe_trains_the_head_alone() -> None:
    from transfer_run.methods.build import build_method

    data = digits([5, 6, 7])
    model = build_method(node("method", "linear_probe"), backbone(), data.task)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=0.01)
    for batch in list(data.loader("train", batch_size=100))[:2]:
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"backbone.head.weight", "backbone.head.bias"}  # no running statistics of batch norm
