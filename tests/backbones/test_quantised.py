"""A frozen backbone in fewer bits or in CPU memory: equal or near numbers, what the plan counts, who is refused."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.matrix import smallest
from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.quantised import Packed, PlannedLinear, check_quantised
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.experiment.run import carry_out
from transfer_run.methods.base import Method

WORDS = {
    "vit": ["backbone=vit_tiny", "dataset=digits", "dataset.batch_size=8"],
    "t5": ["backbone=t5_tiny", "dataset=python_docs", "dataset.answers=names", "dataset.batch_size=4"],
    "bert": ["backbone=bert_tiny", "dataset=python_docs", "dataset.batch_size=4"],
    "llama": ["backbone=llama_tiny", "dataset=python_docs", "dataset.batch_size=4"],
}
GENERAL = ["backbone.weights=random:0", "hardware=cpu", "trainer.progress=none"]


def built(method: str, family: str, *words: str) -> tuple[Method, dict[str, torch.Tensor]]:
    made, data = smallest.build(compose([f"method={method}", *WORDS[family], *GENERAL, *words]))
    data.setup()
    return made, smallest.batch_of(data, 4)


def run_of(output: Path, *words: str) -> Path:
    return carry_out(
        compose([*WORDS["vit"], *GENERAL, "trainer.max_steps=3", f"output_dir={output}", "trainer.log_every=1", *words])
    )


def peak(*words: str) -> int:
    return int(plan_run(compose(list(words))).memory["peak"])


# ---- offload
@pytest.mark.parametrize(
    ("method", "family"),
    [("lst", "vit"), ("lst", "t5"), ("qst", "llama"), ("unipt", "bert"), ("linear_probe", "vit"), ("sherl", "vit")],
)
def test_streamed_blocks_give_the_same_numbers(method: str, family: str) -> None:
    settings = ["method.reduction_factor=4"] if method in ("lst", "qst") else []
    whole, batch = built(method, family, *settings)
    streamed, _ = built(method, family, *settings, "backbone.offload=cpu")
    losses = []
    for made in (whole, streamed):
        made.train()
        torch.manual_seed(3)
        loss = made.training_loss(batch)
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    for (name, one), other in zip(whole.named_parameters(), streamed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name
    streamed.eval()
    whole.eval()
    with torch.no_grad():
        assert torch.equal(whole.predict(batch), streamed.predict(batch))


def test_at_most_two_blocks_are_there() -> None:
    made, batch = built("lst", "vit", "backbone.offload=cpu")
    stream = made.backbone.stream
    assert stream is not None
    sizes: list[int] = []
    homes = {id(t) for t in stream.host_tensors()}
    for block in made.backbone.blocks("image"):

        def look(module: nn.Module, inputs: Any) -> None:
            assert not homes & {id(t) for t in module.parameters()}  # copies are what runs
            sizes.append(1 + len(stream._ahead))

        block.register_forward_pre_hook(look)
    with torch.no_grad():
        made(batch)
    assert sizes == [2] * (len(sizes) - 1) + [1]
    assert homes == {id(t) for t in stream.host_tensors()}


def test_streamed_blocks_stay_at_home() -> None:
    """Whatever is moved around them; a change of type reaches them."""
    made, _ = built("lst", "vit", "backbone.offload=cpu")

    class Elsewhere(torch.Tensor):
        """A tensor that was moved."""

    move = lambda t: t.detach().as_subclass(Elsewhere)  # noqa: E731
    stream = made.backbone.stream
    assert stream is not None
    homes = [id(t.untyped_storage()._cdata) for t in stream.host_tensors()]
    made.double()
    assert {t.dtype for t in stream.host_tensors() if t.is_floating_point()} == {torch.float64}
    made.backbone._apply(move)
    assert len(homes) == len(stream.host_tensors())
    assert not any(isinstance(t.data, Elsewhere) for t in stream.host_tensors())


@pytest.mark.long
def test_an_offloaded_run_is_the_same_run(tmp_path: Path) -> None:
    """Same identity, same losses, plan beside measurement as ever; a copied backbone streams its own blocks."""
    words = ["method=lst"]
    assert compose(words).identity == compose([*words, "backbone.offload=cpu"]).identity
    folders = [run_of(tmp_path / name, *words, *more) for name, more in (("a", []), ("b", ["backbone.offload=cpu"]))]
    losses = [(folder / "metrics.csv").read_text().splitlines()[1].split(",") for folder in folders]
    assert losses[0] == losses[1]
    memory = json.loads((folders[1] / "result.json").read_text())["memory"]
    assert memory["predicted_peak"] == pytest.approx(
        max(phase["peak"] for phase in memory["phases"].values()), rel=0.02
    )
    method = load_model(folders[1] / "checkpoints" / "model")
    twin = copy.deepcopy(method.backbone)
    assert twin.stream is not None
    assert twin.stream.blocks["image", 0] is twin.blocks("image")[0]


def test_the_plan_counts_two_blocks_of_an_offloaded_backbone() -> None:
    words = ["method=linear_probe", "backbone=vit_base_patch16_224", "dataset=vtab/cifar100", "dataset.batch_size=1"]
    plans = {away: plan_run(compose([*words, f"backbone.offload={away}"])).memory for away in ("null", "cpu")}
    model = build_backbone({**_config(words), "offload": None}, device="meta")
    block = sum(4 * p.numel() for p in model.blocks("image")[0].parameters())
    saved = plans["null"]["by_kind"]["parameters"] - plans["cpu"]["by_kind"]["parameters"]
    assert saved == pytest.approx(10 * block, rel=0.01)  # 12 blocks, two of them there
    assert plans["cpu"]["peak"] < 0.4 * plans["null"]["peak"]


# ---- fewer bits
@pytest.mark.parametrize(
    ("method", "family"),
    [("lst", "vit"), ("lst", "t5"), ("lst", "llama"), ("qst", "llama"), ("res_tuning_bypass", "bert"),
     ("unipt", "bert"), ("sherl", "vit"), ("linear_probe", "vit"), ("lora", "bert"), ("lora", "t5"), ("lora", "vit"),
     ("ia3", "vit"), ("vqt", "vit"), ("prompt_tuning", "t5"), ("prefix_tuning", "llama"), ("peft/p_tuning", "bert"),
     ("parallel_adapter", "bert"), ("mam_adapter", "t5")],
)  # fmt: skip
def test_a_backbone_in_bf16_trains_its_side_in_float32(method: str, family: str) -> None:
    settings = ["method.reduction_factor=4"] if method in ("lst", "qst") else []
    wide, batch = built(method, family, *settings)
    narrow, _ = built(method, family, *settings, "backbone.load=bf16")
    frozen = [p for p in narrow.backbone.model.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    assert {p.dtype for p in narrow.parameters() if p.requires_grad} == {torch.float32}
    losses = []
    for made in (wide, narrow):
        made.eval()
        loss = made.training_loss(batch)
        loss.backward()
        losses.append(loss.item())
        assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)
        made.predict(batch)
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert [n for n, p in wide.named_parameters() if p.grad is not None] == [
        n for n, p in narrow.named_parameters() if p.grad is not None
    ]


@pytest.mark.long
def test_a_bf16_run_is_another_run_and_reloads(tmp_path: Path) -> None:
    assert compose(["method=lst"]).identity != compose(["method=lst", "backbone.load=bf16"]).identity
    folder = run_of(tmp_path, "method=lst", "backbone.load=bf16", "method.init_samples=8")
    memory = json.loads((folder / "result.json").read_text())["memory"]
    assert memory["predicted_peak"] == pytest.approx(
        max(phase["peak"] for phase in memory["phases"].values()), rel=0.02
    )
    method = load_model(folder / "checkpoints" / "model")
    assert next(method.backbone.model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("load", "bytes_each"),
    [("bf16", 2.0), ("int8", 1 + 4 / 768), ("nf4", 0.5 + 4 / 64), ("nf4_double", 0.5 + 1 / 64 + 4 / (64 * 256))],
)
def test_the_plan_knows_the_bytes_of_a_weight(load: str, bytes_each: float) -> None:
    linear = nn.Linear(768, 768, bias=False)
    if load != "bf16":
        planned = PlannedLinear(linear, load)
        assert sum(b.numel() * b.element_size() for b in planned.buffers()) == 768 * 768 * bytes_each
    words = ["method=linear_probe", "backbone=vit_base_patch16_224", "dataset=vtab/cifar100", "dataset.batch_size=1"]
    memory = plan_run(compose([*words, f"backbone.load={load}"])).memory
    model = build_backbone({**_config(words), "load": None}, device="meta")
    linears = sum(
        m.weight.numel() for b in model.blocks("image") for m in b.modules() if isinstance(m, nn.Linear)
    )  # fmt: skip
    rest = 2 * (sum(p.numel() for p in model.model.parameters()) - linears)
    scales = 12 * 4 * (3 * 768 + 768 + 3072 + 768) if load == "int8" else 0
    expected = rest + scales + linears * (1 if load == "int8" else bytes_each)
    head = 4 * (768 * 100 + 100)
    assert memory["by_kind"]["parameters"] == pytest.approx(expected + head, rel=0.03)


@pytest.mark.long
def test_t5_11b_is_side_tuned_under_24_gb() -> None:
    """In seconds, on a machine that has neither the weights nor a GPU."""
    words = ["backbone=t5-11b", "dataset=glue/rte"]
    begin = time.process_time()
    assert peak("method=lst", *words, "backbone.load=nf4", "dataset.batch_size=16") < 24 * 10**9
    assert time.process_time() - begin < 60
    assert (
        peak("method=qst", *words, "backbone.load=bf16", "backbone.offload=cpu", "dataset.batch_size=16") < 24 * 10**9
    )


# ---- refusals
@pytest.mark.parametrize("words", [
    ["method=full", "backbone.load=bf16"], ["method=bitfit", "backbone.load=bf16"],
    ["method=dtl", "backbone.load=bf16"], ["method=lora", "backbone.offload=cpu"],
    ["method=adapter", "backbone.load=nf4"],
])  # fmt: skip
def test_methods_inside_the_backbone_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="trains inside the backbone"):
        plan_run(compose([*WORDS["vit"], "backbone.weights=random:0", *words]))


def test_other_refusals() -> None:
    for words, reason in (
        (["method=vqt", "backbone.offload=cpu"], "insides"),
        (["method=lst", "backbone.load=nf4", "backbone.offload=cpu"], "not streamed"),
    ):
        with pytest.raises(UserError, match=reason):
            plan_run(compose([*WORDS["vit"], "backbone.weights=random:0", *words]))
    with pytest.raises(UserError, match="must be one of"):
        compose(["method=lst", "backbone.load=int4"])


@pytest.mark.parametrize("load", ["int8", "nf4"])
def test_without_cuda_or_bitsandbytes_it_says_so(load: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="need a CUDA GPU"):
        built("lst", "vit", f"backbone.load={load}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="need bitsandbytes"):
        check_quantised({"load": load})


def test_a_packed_layer_hides_its_weight() -> None:
    """T5 casts activations to the type of `wo.weight`: packed bytes must not be seen as such."""
    layer = Packed(nn.Linear(4, 4))
    assert layer.weight is None
    assert layer(torch.ones(1, 4)).shape == (1, 4)


def _config(words: list[str]) -> dict[str, Any]:

    return dict(compose(words).config["backbone"])
