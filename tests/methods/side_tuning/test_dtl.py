"""DTL: starts as the backbone, gradients pass the late blocks alone, DTL+ convolves the patches alone."""

from __future__ import annotations

import pytest
import torch

from tests.methods.side_tuning.models import backbone, batch, gradients, task
from transfer_run.errors import UserError
from transfer_run.methods.side_tuning.dtl import DTL, AddSide


def stirred(**settings: object) -> DTL:
    model = backbone("vit")
    method = DTL(model, task(model), **settings).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in method.ladders.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return method


def test_it_starts_as_the_backbone() -> None:
    model = backbone("vit")
    method, given = DTL(model, task(model), plus=True, pooling="backbone").eval(), batch(model)
    state = model.run(model.embed(given))
    assert torch.equal(method.features(given), model.pool(model.finish(state), state))


@pytest.mark.parametrize("plus", [False, True])
def test_the_equations(plus: bool) -> None:
    method = stirred(plus=plus, late=1)
    model, given, ladder = method.backbone, batch(method.backbone), method.ladders["image"]
    with torch.no_grad():
        state = model.embed(given)
        side = ladder.first(state.hidden)
        for index in range(3):
            state = model.step(state)
            if index >= 1:
                added = side * torch.sigmoid(100 * side)
                if plus:
                    image = added[:, 1:].reshape(3, 2, 2, 32).permute(0, 3, 1, 2)
                    swept = torch.nn.functional.conv2d(image, ladder.feedback.convolution.weight, padding=1, groups=32)
                    added[:, 1:] = swept.permute(0, 2, 3, 1).reshape(3, 4, 32)
                state = state.with_hidden(state.hidden + added)
            if index < 2:
                side = side + state.hidden @ ladder.maps[str(index)].a @ ladder.maps[str(index)].b
        features = model.model.norm(state.hidden[:, 1:].mean(1))
        torch.testing.assert_close(method.features(given), features)


def test_backward_visits_the_late_blocks_alone() -> None:
    method = stirred(late=1)
    runs: list[bool] = []
    for block in method.backbone.blocks("image"):
        block.register_forward_hook(lambda module, inputs, output: runs.append(output.requires_grad))
    found = gradients(method, batch(method.backbone))
    assert runs == [False, False, True]
    assert set(found) == {n for n, p in method.named_parameters() if p.requires_grad}


def test_it_is_small() -> None:
    """Table of the paper: 0.04 M trained parameters on ViT-B/16 (12 blocks of width 768, rank 2)."""
    model = backbone("vit", embed_dim=768, depth=12, num_heads=12)
    assert DTL(model, task(model)).counted_parameters() == pytest.approx(0.04e6, rel=0.1)


def test_impossible_settings_are_refused() -> None:
    model = backbone("vit")
    with pytest.raises(UserError, match="blocks 0 to 2"):
        DTL(model, task(model), late=3)
    with pytest.raises(UserError, match="no middle"):
        DTL(model, task(model), plus=True, kernel=4)
    assert AddSide(2, 100.0, 4, (1, 1), 0, None)(1, torch.ones(1, 1, 4), torch.ones(1, 1, 4)).sum() == 4
