"""Networks of other depths from a finished one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.methods.initialization.models import TASK, batch, learned, vit, weights_of
from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.initialization.expand import Expand, places
from transfer_run.methods.tuning.full import Full
from transfer_run.methods.tuning.lora import LoRA
from transfer_run.task import Task

ON_OTHERS = Task("classification", 3, ("x", "y", "z"))


def expanded(source: Method, backbone: Backbone, blocks: str = "line", task: Task = TASK) -> Expand:
    method = Expand(backbone, task, blocks=blocks)  # type: ignore[arg-type]
    method.prepare(Context(seed=0, folder=Path("."), batches=lambda *_: iter([]), load_source=lambda name: source,
                           log=lambda line: None))  # fmt: skip
    return method


@pytest.fixture
def trained() -> Full:
    """An ordinary network of six blocks, all different."""
    method = Full(vit(6), TASK)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method.eval()


def test_equal_depth_is_the_same_function() -> None:
    """Check 1."""
    source = learned(4).eval()
    found = expanded(source, vit(4, seed=9))
    torch.testing.assert_close(found(batch()), source(batch()), atol=1e-5, rtol=0)


def test_blocks_lie_where_their_depth_says() -> None:
    """Check 2: l / L, not l / (L - 1); block 0 is B at every depth."""
    source = learned(4)
    three, six = (weights_of(expanded(source, vit(depth))) for depth in (3, 6))
    for name, base in source.line.base.named_parameters():
        assert torch.equal(three[0][name], base)
        assert torch.equal(six[0][name], base)
        slope = source.line.slope.get_parameter(name)
        torch.testing.assert_close(six[5][name], base + 5 / 6 * slope)
        for number in range(3):
            torch.testing.assert_close(three[number][name], six[2 * number][name])


def test_weights_are_a_line_from_which_both_ends_come_back() -> None:
    """Checks 3 and 8."""
    source = learned(4)
    blocks = weights_of(expanded(source, vit(5)))
    place = torch.stack([torch.ones(5), torch.arange(5) / 5], 1).double()
    for name, base in source.line.base.named_parameters():
        stacked = torch.stack([block[name] for block in blocks]).flatten(1).double()
        assert float((stacked[2:] - 2 * stacked[1:-1] + stacked[:-2]).abs().max()) < 1e-5
        fitted = torch.linalg.lstsq(place, stacked).solution
        torch.testing.assert_close(fitted[0], base.flatten().double(), atol=1e-5, rtol=1e-5)
        slope = source.line.slope.get_parameter(name).flatten().double()
        torch.testing.assert_close(fitted[1], slope, atol=1e-5, rtol=1e-5)


def test_what_it_makes_is_its_own() -> None:
    """The line is not tied to the network: training one leaves the other."""
    source = learned(4)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    made = expanded(source, vit(3))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())


def test_the_head_goes_on_where_the_label_set_is_the_same() -> None:
    """Check 10."""
    source = learned(4)
    same, other = expanded(source, vit(3)), expanded(source, vit(3), task=ON_OTHERS)
    head = source.backbone.head.weight
    assert torch.equal(same.backbone.head.weight, head)
    assert not torch.equal(other.backbone.head.weight, head)
    assert (same.results["head_taken"], other.results["head_taken"]) == (True, False)


def test_what_is_outside_of_the_blocks_is_the_finished_runs() -> None:
    source = learned(4)
    made = expanded(source, vit(3, seed=9)).backbone.model
    for name in ("pos_embed", "patch_embed.proj.weight", "norm.weight", "norm.bias"):
        assert torch.equal(made.get_parameter(name), source.backbone.model.get_parameter(name)), name


def test_the_last_norm_may_stand_behind_the_mean() -> None:
    """As the released descendants have it: the same weights, not the same function."""
    source = learned(4).eval()
    behind = expanded(source, vit(4, fc_norm=True))
    assert torch.equal(behind.backbone.model.fc_norm.weight, source.backbone.model.norm.weight)
    assert not torch.allclose(behind(batch()), source(batch()), atol=1e-4)


@pytest.mark.parametrize(
    ("chosen", "count", "expected"),
    [("first", 3, [0, 1, 2]), ("last", 3, [3, 4, 5]), ("spread", 3, [0, 2, 4]), ("spread", 4, [0, 1, 3, 4]),
     ("spread", 6, [0, 1, 2, 3, 4, 5]), ("first", 1, [0])],
)  # fmt: skip
def test_blocks_of_an_ordinary_network(trained: Full, chosen: str, count: int, expected: list[int]) -> None:
    assert places(chosen, count, 6) == expected
    made, theirs = weights_of(expanded(trained, vit(count, seed=9), chosen)), weights_of(trained)
    for number, place in enumerate(expected):
        assert all(torch.equal(made[number][name], tensor) for name, tensor in theirs[place].items())


def test_what_was_trained_beside_blocks_is_folded_in() -> None:
    source = LoRA(vit(4), TASK, rank=2)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = source.eval()(batch())
    found = expanded(source, vit(4, seed=9), "first")
    torch.testing.assert_close(found(batch()), expected, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused(trained: Full) -> None:
    with pytest.raises(UserError, match="no line over depth"):
        expanded(trained, vit(3))
    with pytest.raises(UserError, match="6 blocks, and 7"):
        expanded(trained, vit(7), "spread")
    with pytest.raises(UserError, match="more than its depth"):
        expanded(trained, vit(3, class_token=True), "first")
    with pytest.raises(UserError, match="more than its depth"):
        expanded(trained, vit(3, embed_dim=64), "first")
    with pytest.raises(UserError, match="other weights than those"):
        expanded(learned(4), vit(3, embed_dim=64))
