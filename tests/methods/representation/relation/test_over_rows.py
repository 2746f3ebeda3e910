"""The encoder over the rows of a batch, alone and over two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from transfer_run.errors import UserError
from transfer_run.methods.representation.relation.over_rows import OverRows


def encoder(width: int = 8, **more: Any) -> OverRows:
    made = {"layers": 1, "heads": 2, "ffn_ratio": 1.0, "dropout": 0.5, "gather": False, "device": "cpu", **more}
    return OverRows(width, **made)


def test_the_order_of_the_rows_does_not_matter() -> None:
    made, rows, order = encoder(layers=2).eval(), torch.randn(6, 8), torch.randperm(6)
    assert torch.allclose(made(rows[order]), made(rows)[order], atol=1e-6)


def test_rows_see_each_other() -> None:
    """With rows in the place of the batch, which is what `batch_first` would make of them, they would not."""
    made, rows = encoder(dropout=0.0), torch.randn(5, 8)
    other = rows.clone()
    other[3] += 1
    assert (made(rows) - made(other)).abs().amax(1).gt(1e-4).all()


def test_without_attention_and_network_two_norms_are_left() -> None:
    made, rows = encoder(dropout=0.0), torch.randn(5, 8)
    with torch.no_grad():
        for linear in (made.layers[0].self_attn.out_proj, made.layers[0].linear2):
            linear.weight.zero_()
            linear.bias.zero_()
    expected = F.layer_norm(F.layer_norm(rows, (8,)), (8,))
    assert torch.allclose(made(rows), expected, atol=1e-6)
    assert torch.allclose(expected, F.layer_norm(rows, (8,)), atol=1e-4)


def test_it_is_the_encoder_of_the_paper() -> None:
    """Post-norm, ReLU, one softmax over all rows, by hand."""
    made, rows = encoder(heads=1, dropout=0.0, ffn_ratio=2.0), torch.randn(5, 8)
    layer: Any = made.layers[0]
    q, k, v = F.linear(rows, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, dim=1)
    mixed = layer.self_attn.out_proj((q @ k.T / 8**0.5).softmax(1) @ v)
    between = layer.norm1(rows + mixed)
    expected = layer.norm2(between + layer.linear2(layer.linear1(between).relu()))
    assert layer.linear1.out_features == 16
    assert torch.allclose(made(rows), expected, atol=1e-5)


def test_one_row_attends_to_itself() -> None:
    made, row = encoder().eval(), torch.randn(1, 1, 8)
    _, weights = made.layers[0].self_attn(row, row, row)
    assert weights.eq(1).all()


def test_dropout_is_everywhere() -> None:
    layer: Any = encoder(dropout=0.3).layers[0]
    assert {layer.self_attn.dropout, layer.dropout.p, layer.dropout1.p, layer.dropout2.p} == {0.3}


@pytest.mark.parametrize(("more", "says"), [({"heads": 3}, "not divided among 3"), ({"ffn_ratio": 0.1}, "no unit")])
def test_what_cannot_be_is_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        encoder(**more)
    assert "heads" not in more or error.value.nearest == ["1", "2", "4", "8"]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """They meet in a file: a port that was free may be taken when they begin."""
    store = str(tmp_path_factory.mktemp("meeting") / "store")
    worker = Path(__file__).parent / "ddp_worker.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(worker)]
    workers = [
        subprocess.Popen([*command, str(rank), store], stdout=subprocess.PIPE, env=environment, text=True)
        for rank in (0, 1)
    ]
    outputs = [each.communicate(timeout=300)[0] for each in workers]
    assert [each.returncode for each in workers] == [0, 0]
    found: dict[str, float] = json.loads(outputs[0].strip().splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gathered", "own"])
def test_two_processes_have_the_gradient_that_is_meant(what: str, two_processes: dict[str, float]) -> None:
    """Gathered: that of the whole batch in one process; each its own: the mean of those of the two halves."""
    assert two_processes[what] < 1e-5


@pytest.mark.slow
def test_the_two_ways_differ(two_processes: dict[str, float]) -> None:
    assert two_processes["between"] > 1e-3
