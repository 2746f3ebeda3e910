"""ScaLearn: the paper's identities, what is trained and what is not, which sources are refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import small
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.files import write_json
from transfer_run.methods.base import Context, Method
from transfer_run.methods.task_transfer.combining.adapters import SourceAdapters
from transfer_run.methods.task_transfer.combining.scaling import Scaling, new_omega
from transfer_run.methods.task_transfer.scalearn import Combined, ScaLearn
from transfer_run.methods.tuning.adapter import Adapter
from transfer_run.run_folder import RESULT
from transfer_run.task import Task

VARIANTS = ["scalearn", "uniform", "plusplus", "uniform_plusplus", "fusion"]
NAMES = ("a", "b", "c")


def source(key: str = "bert", seed: int = 0, **settings: Any) -> Adapter:
    """A stage-one model whose adapters matter."""
    words: dict[str, Any] = {"placement": "pfeiffer", "activation": "relu", "train_norms": False, "bottleneck": 6}
    made = Adapter(small.backbone(key), small.task(key), **{**words, **settings})
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.adapters.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return made.eval()


def sources(key: str = "bert", names: tuple[str, ...] = NAMES) -> dict[str, Method]:
    return {name: source(key, seed) for seed, name in enumerate(names)}


def target(key: str = "bert", names: tuple[str, ...] = NAMES, start: Any = None, **settings: Any) -> ScaLearn:
    """Stage two on these sources; the same head every time."""
    made = ScaLearn(small.backbone(key), small.task(key), tasks=names, **{"bottleneck": 6, **settings})
    known = start or sources(key, names)
    made.take_sources(lambda name: known[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        if isinstance(made.backbone.head, nn.Linear):
            made.backbone.head.reset_parameters()
    return made.eval()


def combined(method: ScaLearn) -> list[Combined]:
    return [layer for layer in method.layers.values() if isinstance(layer, Combined)]


def set_omega(method: ScaLearn, value: float | Tensor) -> None:
    with torch.no_grad():
        for layer in combined(method):
            layer.combine.omega.copy_(torch.as_tensor(value).expand_as(layer.combine.omega))  # type: ignore[operator, union-attr, arg-type]


def features(method: Method, key: str = "bert") -> Tensor:
    """What the head reads; of T5, whose own head answers, the logits."""
    with torch.no_grad():
        return method(small.batch(key)) if key == "t5" else method.features(small.batch(key))


@pytest.mark.parametrize("key", ["bert", "t5", "vit", "gpt2"])
@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
def test_one_source_of_weight_one_is_its_stage_one(key: str, memory_mode: Any) -> None:
    """Check 1; where blocks normalise first, too: the adapters of `method=adapter` stand at the same place."""
    known = sources(key, ("a",))
    method = target(key, ("a",), known, memory_mode=memory_mode)
    set_omega(method, 1.0)
    torch.testing.assert_close(features(method, key), features(known["a"], key), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
def test_coefficients_of_zero_leave_the_backbone_alone(memory_mode: Any) -> None:
    """Check 2."""
    method = target(memory_mode=memory_mode)
    set_omega(method, 0.0)
    plain = Method(small.backbone("bert"), small.task("bert")).eval()
    torch.testing.assert_close(features(method), features(plain))


@pytest.mark.parametrize(
    ("variant", "counted"),
    [("scalearn", 73_728), ("uniform", 96), ("plusplus", 6_144), ("uniform_plusplus", 8), ("fusion", 21_252_096)],
)
def test_the_papers_parameter_counts(variant: Any, counted: int) -> None:
    """Check 3: RoBERTa-base, eight tasks."""
    node = dict(registry.entry("backbone", "roberta-base", ()).content["backbone"])
    with torch.device("meta"):
        backbone = build_backbone(node, weights=False, device="meta")
        method = ScaLearn(backbone, Task("classification", 2), tasks=[str(n) for n in range(8)], variant=variant)
    assert method.counted_parameters() == counted
    assert combined(method)[0].adapters.bottleneck == 48


def test_uniform_is_constant_over_the_channels_and_plusplus_over_the_layers() -> None:
    """Check 4; the gradient of what is shared is the sum of the layers' own."""
    numbers = torch.randn(3, 1)
    known = sources()
    found = {}
    for variant in ("scalearn", "uniform", "plusplus", "uniform_plusplus"):
        method = target(start=known, variant=variant)
        set_omega(method, numbers)
        method(small.batch("bert")).square().sum().backward()
        found[variant] = method
    for variant in ("uniform", "plusplus", "uniform_plusplus"):
        torch.testing.assert_close(features(found[variant]), features(found["scalearn"]), atol=1e-5, rtol=1e-5)
    grads = {v: [layer.combine.omega.grad for layer in combined(m)] for v, m in found.items()}  # type: ignore[union-attr]
    per_layer: Any = torch.stack(grads["scalearn"])  # type: ignore[arg-type]
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(torch.stack(grads["uniform"]), per_layer.sum(-1, keepdim=True), **close)  # type: ignore[arg-type]
    torch.testing.assert_close(grads["plusplus"][0], per_layer.sum(0), **close)
    torch.testing.assert_close(grads["uniform_plusplus"][0], per_layer.sum((0, -1))[:, None], **close)
    assert len({id(layer.combine.omega) for layer in combined(found["plusplus"])}) == 1  # type: ignore[union-attr]


def test_the_order_of_the_sources_does_not_matter_and_a_double_counts_by_halves() -> None:
    """Check 5."""
    known, numbers = sources(), torch.randn(3, 32)
    method, permuted = target(start=known), target(names=("c", "a", "b"), start=known)
    set_omega(method, numbers)
    set_omega(permuted, numbers[[2, 0, 1]])
    torch.testing.assert_close(features(permuted), features(method), atol=1e-6, rtol=1e-5)
    doubled = target(names=(*NAMES, "again"), start={**known, "again": known["a"]})
    set_omega(doubled, torch.cat([numbers[:1] / 2, numbers[1:], numbers[:1] / 2]))
    torch.testing.assert_close(features(doubled), features(method), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
def test_the_sum_is_linear_in_the_coefficients(memory_mode: Any) -> None:
    """Check 6."""
    method, z, (one, two) = target(memory_mode=memory_mode), torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    layer = combined(method)[0]

    def delta(numbers: Tensor) -> Tensor:
        set_omega(method, numbers)
        return layer(z).detach()

    torch.testing.assert_close(delta(one + two), delta(one) + delta(two), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("constraint", ["mean", "softmax"])
def test_equal_coefficients_under_a_constraint_give_the_mean_adapter(constraint: Any) -> None:
    """Check 6."""
    method, z = target(constraint=constraint).train(), torch.randn(2, 5, 32)
    set_omega(method, 1.7)
    layer = combined(method)[1]
    torch.testing.assert_close(layer(z), layer.adapters.outputs(z).mean(-2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_moves_the_coefficients_and_the_head_alone(variant: Any) -> None:
    """Check 7."""
    method = target(variant=variant).train()
    before = copy.deepcopy(method.state_dict())
    optimizer = torch.optim.AdamW(method.parameter_groups(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        method.loss(small.batch("bert")).backward()
        optimizer.step()
    moved = {name for name, tensor in method.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(".combine." in name or ".head." in name for name in moved)
    trained = {name for name, p in method.named_parameters() if p.requires_grad and "key.bias" not in name}
    assert trained <= moved  # a key's bias moves every score alike


@pytest.mark.parametrize(("variant", "width"), [("scalearn", 768), ("uniform", 1)])
def test_the_start(variant: Any, width: int) -> None:
    """Check 8."""
    method = target(names=tuple("abcdefgh"), variant=variant, start=dict.fromkeys("abcdefgh", source()))
    omega = torch.cat([layer.combine.omega for layer in combined(method)]).detach()  # type: ignore[arg-type, union-attr, list-item]
    assert omega.mean().item() == pytest.approx(2 / 8, abs=1e-3)
    assert omega.std().item() == pytest.approx(1e-3, rel=0.4)


def test_attention_without_a_query_is_the_mean() -> None:
    """Check 9."""
    layer, z = combined(target(variant="fusion"))[0], torch.randn(2, 5, 32)
    attention: Any = layer.combine
    with torch.no_grad():
        attention.query.weight.zero_()
        attention.key.weight.zero_()
        attention.value.weight.copy_(torch.eye(32))
    torch.testing.assert_close(layer(z), layer.adapters.outputs(z).mean(-2), atol=1e-6, rtol=1e-5)
    assert attention.penalty().item() == 0
    with torch.no_grad():
        attention.value.weight[0, 0] = 3.0
    assert attention.penalty().item() == 4


def test_known_coefficients_are_found_again() -> None:
    """Check 10."""
    method, wanted, z = target(), torch.randn(3, 32), torch.randn(256, 32)
    layer = combined(method)[0]
    set_omega(method, wanted)
    goal, omega = layer(z).detach(), layer.combine.omega
    set_omega(method, 0.0)
    optimizer = torch.optim.Adam([omega], lr=0.1)  # type: ignore[list-item]
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        (layer(z) - goal).square().sum(-1).mean().backward()
        optimizer.step()
    torch.testing.assert_close(omega, wanted, atol=1e-2, rtol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
def test_less_memory_for_equal_numbers(variant: Any) -> None:
    """In training, dropout included: both modes draw the same."""
    known, losses, grads = sources(), [], []
    for mode in ("efficient", "official"):
        torch.manual_seed(1)
        method = target(start=known, variant=variant, memory_mode=mode, omega={"init_std": 0.3}
                        if variant != "fusion" else {}).train()  # fmt: skip
        torch.manual_seed(2)
        loss = method.loss(small.batch("bert"))
        loss.backward()
        losses.append(loss.detach())
        grads.append([p.grad for p in method.parameters() if p.requires_grad])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-4)


def test_dropout_is_on_the_coefficients_and_only_in_training() -> None:
    method, z = target(omega={"dropout": 0.5}).train(), torch.randn(2, 5, 32)
    scaling: Any = combined(method)[0].combine
    set_omega(method, 1.0)
    drawn = torch.stack([scaling.coefficients() for _ in range(50)])
    assert set(drawn.unique().tolist()) == {0.0, 2.0}
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.1)
    assert not torch.equal(combined(method)[0](z), combined(method)[0](z))
    assert torch.equal(scaling.eval().coefficients(), scaling.omega)
    rates = {v: target(variant=v).dropout for v in ("scalearn", "uniform", "plusplus", "uniform_plusplus")}
    assert rates == {"scalearn": 0.3, "uniform": 0.3, "plusplus": 0.3, "uniform_plusplus": 0.0}


def test_the_penalties_are_in_the_training_loss_alone() -> None:
    method = target(omega={"penalty": 0.5, "dropout": 0.0}, backbone_dropout=False)
    set_omega(method, torch.tensor([[3.0], [1.0], [0.0]]))
    plain = super(ScaLearn, method).loss(small.batch("bert"))
    torch.testing.assert_close(method.loss(small.batch("bert")), plain)
    method.train()
    torch.testing.assert_close(method.loss(small.batch("bert")), plain + 0.5 * 3 * (4 + 0 + 1) / 3)


def test_what_it_ships_needs_no_source() -> None:
    method = target()
    names = set(method.shipped())
    assert {name.split(".")[-1] for name in names if ".adapters." in name} == {"down", "down_bias", "up", "up_bias"}
    assert not [name for name in names if name.startswith("backbone.model")]
    empty = ScaLearn(small.backbone("bert"), small.task("bert"), tasks=NAMES, bottleneck=6).eval()
    empty.load_state_dict(method.shipped(), strict=False)
    assert torch.equal(empty(small.batch("bert")), method(small.batch("bert")))


def test_the_papers_head_is_dense_tanh_out() -> None:
    method, (x,) = target(head="dense"), torch.randn(1, 3, 32)
    dense, out = method.backbone.head[1], method.backbone.head[4]  # type: ignore[index]
    torch.testing.assert_close(method.backbone.head(x), out(torch.tanh(dense(x))))
    assert dense.weight.requires_grad
    assert out.weight.shape == (small.CLASSES, 32)
    assert method.counted_parameters() == target().counted_parameters()
    with pytest.raises(UserError, match="no linear head"):
        ScaLearn(small.backbone("t5"), small.task("t5"), tasks=NAMES, bottleneck=6, head="dense")


def test_a_scale_of_a_source_adapter_counts() -> None:
    known: dict[str, Any] = {"a": source(scale=0.5), "b": source(seed=1, learn_scale=True)}
    known["b"].adapters["encoder_1_mlp_out"].scale.data.fill_(3.0)
    method = target(names=("a", "b"), start=known)
    for name, numbers in (("a", [1.0, 0.0]), ("b", [0.0, 1.0])):
        set_omega(method, torch.tensor(numbers)[:, None])
        torch.testing.assert_close(features(method), features(known[name]), atol=1e-6, rtol=1e-5)


def test_the_result_tells_what_was_taken(tmp_path: Path) -> None:
    write_json(tmp_path / RESULT, {"status": "finished", "dataset": "x", "metrics": {"test/accuracy": 0.5}})
    method = target(variant="uniform")
    set_omega(method, torch.tensor([[0.5], [0.25], [0.0]]))
    context = Context(0, tmp_path, lambda *_: iter(()), {"a": tmp_path})
    assert method.conclude(context) == {
        "sources": {"a": {"dataset": "x", "metrics": {"test/accuracy": 0.5}}},
        "omega": {"a": [0.5] * 3, "b": [0.25] * 3, "c": [0.0] * 3},
    }
    assert "omega" not in target(variant="fusion").conclude(context)
    assert target(variant="uniform_plusplus").coefficients()["a"] == [pytest.approx(2 / 3, abs=0.01)]


def other_weights() -> Adapter:
    made = source()
    made.backbone.model.get_parameter("encoder.layer.1.output.LayerNorm.weight").data[3] += 1e-3
    return made


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Method(small.backbone("bert"), small.task("bert")), "has no adapters"),
        (lambda: source(placement="houlsby"), "one adapter behind the feed-forward of every block"),
        (lambda: source(placement="houlsby", sites=["mlp"]), "one adapter behind the feed-forward of every block"),
        (lambda: source(layers={"encoder": [0, 2]}), "one adapter behind the feed-forward of every block"),
        (lambda: source(train_norms=True), "trained the backbone's norms"),
        (lambda: source(activation="gelu"), "activation gelu, and method.activation=relu"),
        (lambda: source(layernorm="in"), "norms of their own"),
        (lambda: source(bottleneck=4), "adapters of 4 channels, and this run wants 6"),
        (other_weights, r"other weights of the backbone \(encoder.layer.1.output.LayerNorm.weight\)"),
    ],
)
def test_sources_that_do_not_fit_are_refused(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        target(names=("a", "b"), start={"a": source(), "b": make()})
    assert refused.value.where == "sources.b"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tasks": ()}, "no source task"),
        ({"variant": "fusion", "constraint": "mean"}, "no coefficients to set"),
        ({"variant": "fusion", "omega": {"dropout": 0.1}}, "no coefficients to set"),
        ({"fusion": {"penalty": 0.0}}, "method.variant=scalearn has no attention"),
        ({"constraint": "softmax", "omega": {"dropout": 0.3}}, "take no dropout"),
        ({"bottleneck": None, "reduction": 64}, "leaves no bottleneck"),
        ({"activation": "rleu"}, "no activation 'rleu'"),
    ],
)
def test_words_without_meaning_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ScaLearn(small.backbone("bert"), small.task("bert"), **{"tasks": NAMES, "bottleneck": 6, **settings})


def test_beside_a_stream_of_half_precision_everything_trained_is_whole() -> None:
    adapters = SourceAdapters(2, 8, 3, like=torch.zeros(1, dtype=torch.bfloat16))
    omega = new_omega(2, 8, 2.0, 0.001, adapters.up)
    assert {adapters.up.dtype, omega.dtype} == {torch.float32}
    layer = Combined(adapters, Scaling(omega, constraint="none", dropout=0.0, official=False))
    assert layer(torch.ones(1, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
