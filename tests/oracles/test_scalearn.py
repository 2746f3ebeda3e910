"""ScaLearn and AdapterFusion against numbers of the paper's own modules, in float64: sums, outputs, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from transfer_run.methods.inside.bottleneck import Bottleneck
from transfer_run.methods.task_transfer.combining.adapters import SourceAdapters
from transfer_run.methods.task_transfer.combining.attention import Attention
from transfer_run.methods.task_transfer.combining.scaling import Scaling
from transfer_run.methods.task_transfer.scalearn import Combined

ORACLE = "scalearn_*.npz"
BOUND = {"atol": 1e-10, "rtol": 1e-9}

Tensors = dict[str, Tensor]


@pytest.fixture(params=[False, True], ids=["efficient", "official"])
def official(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def unit(tensors: Tensors, number: int) -> Bottleneck:
    """One of the file's adapters, as a source run has it."""
    down = tensors[f"adapter{number}/down_weight"]
    made = Bottleneck(down.shape[1], down.shape[0], like=down)
    made.load_state_dict(
        {
            f"{part}.{kind}": tensors[f"adapter{number}/{part}_{kind}"]
            for part in ("down", "up")
            for kind in ("weight", "bias")
        }
    )
    return made


def adapters(tensors: Tensors, *numbers: int) -> SourceAdapters:
    """The file's adapters side by side; all of them, or those of these numbers."""
    _, _, width, bottleneck, count = tensors["dims"].tolist()
    chosen = numbers or tuple(range(count))
    made = SourceAdapters(len(chosen), width, bottleneck, like=tensors["hidden"])
    for place, number in enumerate(chosen):
        made.put(place, unit(tensors, number))
    return made


def norm(tensors: Tensors) -> nn.LayerNorm:
    made = nn.LayerNorm(len(tensors["ln_weight"]), eps=float(tensors["ln_eps"]), dtype=torch.float64)
    made.load_state_dict({"weight": tensors["ln_weight"], "bias": tensors["ln_bias"]})
    return made


def through(tensors: Tensors, combined: nn.Module, hook: str = "after_norm", hidden: str = "hidden") -> Tensor:
    """y of the sub-layer whose last norm has the hook: the norm is given h + u."""
    layer = norm(tensors)
    layer.register_forward_hook(getattr(combined, hook))
    found: Tensor = layer(tensors[hidden] + tensors["input_tensor"])
    return found


def same(ours: Tensor | None, tensors: Tensors, name: str) -> None:
    assert ours is not None
    torch.testing.assert_close(ours.detach(), tensors[name].reshape(ours.shape), **BOUND, msg=name)


def omega(tensors: Tensors, variant: str) -> nn.Parameter:
    return nn.Parameter(tensors[f"{variant}/omega"].clone())


def test_the_norm_and_the_outputs_of_all_adapters(tensors: Tensors) -> None:
    z = norm(tensors)(tensors["hidden"] + tensors["input_tensor"])
    same(z, tensors, "x")
    same(adapters(tensors).outputs(z), tensors, "up")


@pytest.mark.parametrize("number", [0, 1])
def test_stage_one_and_one_source_of_weight_one_are_one_adapter(tensors: Tensors, number: int, official: bool) -> None:
    """Check 1."""
    same(through(tensors, unit(tensors, number)), tensors, f"single{number}/y")
    whole = nn.Parameter(torch.ones(1, tensors["dims"][2].item(), dtype=torch.float64))  # type: ignore[arg-type]
    scaling = Scaling(whole, constraint="none", dropout=0.0, official=official)
    same(through(tensors, Combined(adapters(tensors, number), scaling)), tensors, f"single{number}/y")


@pytest.mark.parametrize("variant", ["scalearn", "uniform", "mean", "softmax"])
def test_scaled_sums(tensors: Tensors, variant: str, official: bool) -> None:
    weights = omega(tensors, variant)
    constraint = variant if variant in ("mean", "softmax") else "none"
    scaling = Scaling(weights, constraint=constraint, dropout=0.3, official=official).eval()  # type: ignore[arg-type]
    combined = Combined(adapters(tensors), scaling)
    same(combined(tensors["x"]) + tensors["residual"], tensors, f"{variant}/fused")
    y = through(tensors, combined)
    same(y, tensors, f"{variant}/y")
    (y * tensors["G"]).sum().backward()
    same(weights.grad, tensors, f"{variant}/g_omega")


@pytest.mark.parametrize("variant", ["plusplus", "uniform_plusplus"])
def test_layers_that_share_their_coefficients(tensors: Tensors, variant: str, official: bool) -> None:
    """Check 4: the gradient is the sum over the layers."""
    weights = omega(tensors, variant)
    layers = [
        Combined(adapters(tensors), Scaling(weights, constraint="none", dropout=0.0, official=official))
        for _ in range(2)
    ]
    first, second = through(tensors, layers[0]), through(tensors, layers[1], hidden="hidden2")
    same(first, tensors, f"{variant}/y")
    same(second, tensors, f"{variant}/y2")
    ((first + second) * tensors["G"]).sum().backward()
    same(weights.grad, tensors, f"{variant}/g_omega")


def test_adapter_fusion(tensors: Tensors, official: bool) -> None:
    width = int(tensors["dims"][2])
    attention = Attention(width, dropout=0.1, official=official, like=tensors["hidden"]).eval()
    names = [name for name, _ in attention.named_parameters()]
    attention.load_state_dict({name: tensors[f"fusion/w/{name}"] for name in names})
    combined = Combined(adapters(tensors), attention)
    same(combined(tensors["x"]) + tensors["residual"], tensors, "fusion/fused")
    y = through(tensors, combined)
    same(y, tensors, "fusion/y")
    (y * tensors["G"]).sum().backward()
    for name in names:
        same(attention.get_parameter(name).grad, tensors, f"fusion/g/{name}")
    same(0.01 * attention.penalty(), tensors, "fusion/reg")
