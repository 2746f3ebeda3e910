"""VQT's compression: group lasso, selection, finetuning; each a run that goes on from the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.methods.side_tuning import models
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.run import carry_out
from transfer_run.methods.base import Context, Method
from transfer_run.methods.side_tuning.vqt import VQT
from transfer_run.task import Task

TASK = Task("classification", 3)
STAGES = ["train", "compress", "featselect", "finetune"]


def vqt(**settings: Any) -> VQT:
    model = models.backbone("vit")
    torch.manual_seed(1 + STAGES.index(settings.get("stage", "train")))  # each stage draws queries and head of its own
    method = VQT(model, TASK, **{"num_query_tokens": 2} | settings)
    with torch.no_grad():
        for parameter in (*method.extractor().values(), *method.backbone.head.parameters()):
            parameter.add_(torch.randn_like(parameter))
    return method.eval()


def context(source: Method | None, tmp_path: Path) -> Context:
    sources = {} if source is None else {"trained": tmp_path}
    return Context(0, tmp_path, lambda split, size: iter(()), sources, load_source=lambda name: source)  # type: ignore[arg-type,return-value]


def test_group_lasso_and_selection_by_hand() -> None:
    """Check 8: W = [[3, 0], [4, 0]] costs 5; the longest column is kept; int(0.7 * 224) = 156."""
    method = vqt(stage="compress", group_lasso=0.5)
    method.backbone.head = nn.Linear(2, 2)
    with torch.no_grad():
        method.backbone.head.weight.copy_(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
    assert method.column_norms().tolist() == [5.0, 0.0]
    assert method.column_norms().argsort(descending=True)[:1].tolist() == [0]
    assert int(0.7 * 224) == 156
    assert len(vqt(stage="featselect", keep_frac=0.7).kept) == int(0.7 * 32 * (1 + 3 * 2)) == 156  # type: ignore[arg-type]


def test_compressing_adds_the_penalty_to_the_loss() -> None:
    batch = models.batch(models.backbone("vit"))
    plain, lasso = (vqt(stage="compress", group_lasso=factor) for factor in (0.0, 0.5))
    lasso.load_state_dict(plain.state_dict())
    expected = plain.loss(batch) + 0.5 * plain.column_norms().sum()
    torch.testing.assert_close(lasso.loss(batch), expected)


@pytest.mark.parametrize("combine", ["concat", "pool", "weighted"])
@pytest.mark.parametrize("addon", ["none", "vpt", "adaptformer"])
def test_the_stages_hand_on(combine: Any, addon: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"combine": combine, "addon": addon, "vpt_tokens": 3}
    batch = models.batch(models.backbone("vit"))
    trained = vqt(**settings)
    compress = vqt(stage="compress", **settings)
    compress.prepare(context(trained, tmp_path))
    torch.testing.assert_close(compress.features(batch), trained.features(batch))
    assert not torch.equal(compress.backbone.head.weight, trained.backbone.head.weight)  # type: ignore[arg-type]
    select = vqt(stage="featselect", keep_frac=0.5, **settings)
    select.prepare(context(compress, tmp_path))
    order = compress.column_norms().sort(descending=True).indices[: compress.combine.features // 2]
    torch.testing.assert_close(select.features(batch), trained.features(batch)[:, order])
    for method in (compress, select):
        trains = {name for name, p in method.named_parameters() if p.requires_grad}
        assert trains == {"backbone.head.weight", "backbone.head.bias"}
        assert set(method.extractor()) <= set(method.shipped())
    finetune = vqt(stage="finetune", keep_frac=0.5, **settings)
    finetune.prepare(context(select, tmp_path))
    torch.testing.assert_close(finetune(batch), select(batch))
    assert all(p.requires_grad for p in finetune.extractor().values())


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is named"):
        vqt(stage="compress").prepare(context(None, tmp_path))
    for source, stage, reason in (
        (vqt(), "featselect", "stage=compress"), (Method(models.backbone("vit"), TASK), "compress", "stage=train"),
        (vqt(num_query_tokens=1), "compress", "other queries"), (vqt(addon="vpt"), "compress", "another add-on"),
        (vqt(stage="featselect", keep_frac=0.2), "finetune", "another share"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=reason):
            vqt(stage=stage).prepare(context(source, tmp_path))


@pytest.mark.long
def test_runs_hand_on_by_their_words(tmp_path: Path) -> None:
    """train -> compress -> featselect as runs; the last one's model reloads with its features."""
    common = ["backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits", "trainer.max_steps=2",
              "trainer.progress=none", "profiler=none", "hardware=cpu", f"output_dir={tmp_path}"]  # fmt: skip
    base = "method=vqt backbone=vit_tiny backbone.weights=random:0 dataset=digits trainer.max_steps=2"
    compress = carry_out(compose([*common, "method=vqt", "method.stage=compress", f"sources.trained={base}"]))
    words = [*common, "method=vqt", "method.stage=featselect", "method.keep_frac=0.3", f"sources.trained={compress}"]
    model = load_model(carry_out(compose(words)) / "checkpoints" / "model")
    before = load_model(compress / "checkpoints" / "model")
    assert isinstance(model, VQT)
    assert isinstance(before, VQT)
    assert model.kept is not None
    order = before.column_norms().sort(descending=True, stable=True).indices
    assert model.kept.tolist() == order[: len(model.kept)].tolist()
    assert torch.equal(model.queries, before.queries)  # type: ignore[arg-type]


@pytest.mark.long
def test_stages_of_one_command_hand_on_whole_models(tmp_path: Path) -> None:
    """The stage before is `sources.trained`, not the backbone's weights: the same runs as those chained by hand."""
    common = ["method=vqt", "backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits", "trainer.max_steps=2",
              "trainer.progress=none", "profiler=none", "hardware=cpu", f"output_dir={tmp_path}"]  # fmt: skip
    stages = "[[],[method.stage=compress,optimizer.lr=0.05],[method.stage=featselect,method.keep_frac=0.7]]"
    cfg = compose([*common, f"stages={stages}"])
    assert cfg.config["backbone"]["weights"] == "random:0"
    folder = carry_out(cfg)
    runs = sorted(path.parent for path in (tmp_path / "runs" / "digits").glob("*/result.json"))
    assert len(runs) == 3
    model = load_model(folder / "checkpoints" / "model")
    assert isinstance(model, VQT)
    assert model.kept is not None
    assert len(model.kept) == int(0.7 * 448)
    with pytest.raises(UserError, match="needs a source 'trained'"):  # the first stage has none before it
        carry_out(compose([*common, "stages=[[method.stage=compress],[method.stage=featselect]]"]))
