"""QST: the equations, the two ways of starting, its ladders."""

from __future__ import annotations

import pytest
import torch

from tests.methods.side_tuning.models import backbone, batch, gradients, task
from transfer_run.methods.side_tuning.qst import QST


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert", "vit"])
def test_the_papers_start_is_the_backbone(name: str) -> None:
    model = backbone(name)
    given = batch(model)
    method = QST(model, task(model), reduction_factor=2, rank=3, fidelity="paper").eval()
    assert torch.equal(method(given), method.plain().eval()(given))


def test_the_equations() -> None:
    """s_l = block(z s + (1 - z) down(h_l)); h = a h_L + (1 - a) up(s_L), a = 0.73 at the start."""
    model = backbone("vit")
    method = QST(model, task(model), reduction_factor=2, rank=3).eval()
    ladder, given = method.ladders["image"], batch(model)
    with torch.no_grad():
        ladder.mix.alpha.copy_(torch.tensor([-1.0, 0.5, 2.0]))
        state = model.embed(given)
        side = ladder.first(state.hidden)
        for index in range(3):
            state = model.step(state)
            z = torch.sigmoid(ladder.mix.alpha[index])
            side = ladder.steps.blocks[str(index)](z * side + (1 - z) * ladder.maps[str(index)](state.hidden))
        share = torch.sigmoid(torch.tensor(1.0))
        hidden = share * model.finish(state) + (1 - share) * method.output.up(ladder.steps.norm(side))
        torch.testing.assert_close(method(given), method.backbone.head(model.pool(hidden, state)))


@pytest.mark.parametrize("ladder", ["low_rank", "adapter", "max_pool", "avg_pool"])
def test_every_ladder_trains_all_that_is_trainable(ladder: str) -> None:
    model = backbone("llama")
    method = QST(model, task(model), reduction_factor=2, ladder=ladder).train()  # type: ignore[arg-type]
    assert method.ladders["decoder"].maps["0"](torch.randn(2, 5, 32)).shape == (2, 5, 16)
    found = gradients(method, batch(model))
    assert set(found) == {n for n, p in method.named_parameters() if p.requires_grad}
    assert any("maps" in name for name in found) == (ladder in ("low_rank", "adapter"))
