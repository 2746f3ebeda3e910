"""Structural pruning: toys with known answers, the chain of every family, the Fisher pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.methods.side_tuning.models import BACKBONES, backbone, batch, lst, task
from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.memory.tracker import MemoryTracker
from transfer_run.methods.base import Context
from transfer_run.methods.side_tuning.ladder.fisher import squared_gradients
from transfer_run.methods.side_tuning.ladder.pruning import (
    ROWS_AT_ONCE,
    PruningChain,
    channel_scores,
    first_parameters,
    kept_rows,
    row_scores,
)
from transfer_run.methods.side_tuning.lst import LST


# ---- 8: toys
def test_rows_of_one_matrix() -> None:
    """Rows with norms 1, 4, 2, 3: half of them kept are the second and the fourth."""
    rows = torch.tensor([1.0, 4.0, 2.0, 3.0])
    importance = rows[:, None] * torch.tensor([[0.5, -0.25, 0.25]])
    assert kept_rows([importance], None, 2).tolist() == [1, 3]


def test_rows_that_matrices_share_are_ranked_by_the_product() -> None:
    first, second = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [2.0]])
    assert kept_rows([first, second], None, 1).tolist() == [2]


def test_only_the_kept_columns_count() -> None:
    importance = torch.tensor([[9.0, 1.0], [0.0, 2.0]])
    assert kept_rows([importance], None, 1).tolist() == [0]
    assert kept_rows([importance], torch.tensor([1]), 1).tolist() == [1]


def test_products_of_small_gradients_do_not_tie_at_zero() -> None:
    """Three squared gradients of 1e-16 underflow in float32."""
    small = torch.tensor([[1e-16], [3e-16], [2e-16]])
    assert kept_rows([small] * 3, None, 1).tolist() == [1]


def test_log_scores_keep_the_least_important_rows() -> None:
    importance = torch.tensor([[1e-2], [1e-6], [1e-4]])
    assert kept_rows([importance], None, 1).tolist() == [0]  # the product rule keeps the largest ...
    assert kept_rows([importance], None, 1, logs=True).tolist() == [1]  # ... and |log| the smallest


def test_log_scores_of_weights_are_refused() -> None:
    model = backbone("t5")
    with pytest.raises(UserError, match="weights may be negative"):
        LST(model, task(model), reduction_factor=2, init="magnitude", prune_compat=True)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.data())
@settings(max_examples=30, deadline=None)
def test_orders_hold_the_same_rows(seed: int, rows: int, data: Any) -> None:
    keep = data.draw(st.integers(1, rows))
    importance = torch.rand(rows, 3, generator=torch.Generator().manual_seed(seed))
    ascending = kept_rows([importance], None, keep).tolist()
    assert ascending == sorted(ascending)
    assert ascending == sorted(kept_rows([importance], None, keep, order="released").tolist())
    dropped = set(range(rows)) - set(ascending)
    score = importance.double().sum(1)
    assert all(score[d] <= score[k] for d in dropped for k in ascending)


# ---- the chain on every family
@pytest.mark.parametrize("name", BACKBONES)
def test_at_full_width_every_weight_is_unchanged(name: str) -> None:
    model = backbone(name)
    method = LST(model, task(model), reduction_factor=1, init="magnitude")
    method.cut_from_backbone(None)
    for stack in method.ladders:
        steps = method.side_steps(stack)
        for index, block in steps.blocks.items():
            wide = dict(model.blocks(stack)[int(index)].named_parameters())
            for inner, narrow in block.named_parameters():
                assert torch.equal(narrow, wide[inner]), inner
        if steps.norm is not None:
            assert torch.equal(steps.norm.weight, model.final_norm(stack).weight)


@pytest.mark.parametrize("name", BACKBONES)
def test_pruned_weights_are_rows_and_columns_of_the_backbone(name: str) -> None:
    """Every parameter of the side blocks is set, and every number in a matrix is one of the backbone's matrix."""
    model = backbone(name)
    method = LST(model, task(model), reduction_factor=2, init="magnitude")
    with torch.no_grad():
        for ladder in method.ladders.values():
            for p in ladder.steps.parameters():
                p.fill_(torch.nan)
    method.cut_from_backbone(None)
    for stack in method.ladders:
        for index, block in method.side_steps(stack).blocks.items():
            wide = dict(model.blocks(stack)[int(index)].named_parameters())
            for inner, narrow in block.named_parameters():
                if "q_norm" in inner or "k_norm" in inner:
                    continue  # norms of single heads are not cut
                source = wide.get(inner)
                if source is None:  # the position table, of the first block
                    source = model.blocks(stack)[0].get_parameter(inner)
                assert torch.isin(narrow, source).all(), inner
    assert not any(p.isnan().any() for n, p in method.named_parameters() if not n.endswith(HEAD_NORMS))


HEAD_NORMS = ("q_norm.weight", "k_norm.weight")


def test_one_block_by_hand() -> None:
    """The decisions of a T5 encoder block and a BERT block, worked out step by step."""
    for name in ("t5", "bert"):
        model = backbone(name)
        chain = PruningChain(model, None, 2)
        part = {n: model.part("encoder", 0, n) for n in ("q", "k", "v", "out", "norm1", "mlp_in", "mlp_out", "norm2")}

        def top(score: Tensor, keep: int) -> Tensor:
            return score.abs().double().sum(1).topk(keep).indices.sort().values

        table = model.model.get_input_embeddings().weight
        c0 = top(table.T, 16)
        product = part["q"].weight.double() * part["k"].weight.double() * part["v"].weight.double()
        r1 = top(product[:, c0], 16)
        r2 = top(part["out"].weight[:, r1], 16)
        r3 = top(part["mlp_in"].weight[:, r2], 24)
        r4 = top(part["mlp_out"].weight[:, r3], 16)
        cut = chain.block("encoder", 0)
        inside = {id(m): n for n, m in model.blocks("encoder")[0].named_modules()}

        def named(n: str, kind: str, inside: Any = inside, part: Any = part) -> str:
            return f"{inside[id(part[n])]}.{kind}"

        for n, rows, columns in (
            ("q", r1, c0),
            ("v", r1, c0),
            ("out", r2, r1),
            ("mlp_in", r3, r2),
            ("mlp_out", r4, r3),
        ):
            assert torch.equal(cut[named(n, "weight")], part[n].weight[rows][:, columns])
            if name == "bert":
                assert torch.equal(cut[named(n, "bias")], part[n].bias[rows])
        for n, channels in (("norm1", c0 if model.pre_norm else r2), ("norm2", r2 if model.pre_norm else r4)):
            assert torch.equal(cut[named(n, "weight")], part[n].weight[channels])
        assert torch.equal(chain.columns, r4)


def test_fused_and_separate_projections_are_cut_alike() -> None:
    """GPT-2's fused, transposed qkv: its thirds share the rows kept, and the output reads them."""
    model = backbone("gpt2")
    chain = PruningChain(model, None, 2)
    c0 = chain.columns
    cut = chain.block("decoder", 0)
    thirds = model.part("decoder", 0, "qkv").weight.T.chunk(3)
    rows = (thirds[0][:, c0].double() * thirds[1][:, c0] * thirds[2][:, c0]).abs().sum(1).topk(16).indices.sort().values
    for ours, theirs in zip(cut["attn.c_attn.weight"].T.chunk(3), thirds, strict=True):
        assert torch.equal(ours, theirs[rows][:, c0])
    assert torch.equal(chain.decisions["decoder.0.qkv"], rows)
    assert torch.isin(cut["attn.c_proj.weight"], model.part("decoder", 0, "out").weight[rows]).all()


def test_grouped_keys_are_a_decision_of_their_own() -> None:
    model = backbone("llama")
    chain = PruningChain(model, None, 2)
    chain.block("decoder", 0)
    assert len(chain.decisions["decoder.0.qkv"]) == 16
    assert len(chain.decisions["decoder.0.qkv.groups"]) == 8


def test_the_chain_passes_through_dropped_blocks() -> None:
    """Keeping one block less does not change what the others start from."""
    model = backbone("t5")
    whole, some = (lst(model, side_layers=kept) for kept in ({}, {"encoder": [0, 2], "decoder": [1]}))
    whole.cut_from_backbone(None)
    some.cut_from_backbone(None)
    for stack, index in (("encoder", "2"), ("decoder", "1")):
        ours, theirs = (m.side_steps(stack).blocks[index].state_dict() for m in (some, whole))
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


# ---- random initialisation
def test_random_initialisation_follows_the_backbones_widths() -> None:
    """T5's rule at the backbone's d, d_kv and d_ff; maps N(0, 0.01^2); alpha 0; norms 1."""
    model = backbone("t5", d_model=128, d_kv=16, d_ff=256, num_heads=8)
    torch.manual_seed(0)
    method = LST(model, task(model), reduction_factor=2, init="random")
    block = method.side_steps("encoder").blocks["0"]
    attention, feed = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
    expected = {attention.q: (128 * 16) ** -0.5, attention.k: 128**-0.5, attention.v: 128**-0.5,
                attention.o: 128**-0.5, feed.wi: 128**-0.5, feed.wo: 256**-0.5}  # fmt: skip
    for linear, std in expected.items():
        assert linear.weight.std().item() == pytest.approx(std, rel=0.05)
    assert (block.layer[0].layer_norm.weight == 1).all()
    ladder = method.ladders["encoder"]
    for linear in (ladder.first, ladder.maps["1"], method.output.up):
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert (linear.bias == 0).all()
    assert (ladder.mix.alpha == 0).all()
    assert ladder.mix.gate(0) == 0.5


# ---- 9: Fisher
def test_fisher_of_a_linear_softmax() -> None:
    """The sum over samples of (p - y)^2 x^2, entry by entry; twice the samples double it and keep the same rows."""
    torch.manual_seed(0)
    linear = nn.Linear(4, 3, bias=False).requires_grad_(False)
    x, y = torch.randn(10, 4), torch.arange(10) % 3

    def loss(given: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(linear(given["x"]), given["y"])

    def samples(times: int) -> Any:
        return ({"x": x[i : i + 1], "y": y[i : i + 1]} for _ in range(times) for i in range(10))

    once = squared_gradients(loss, {"w": linear.weight}, samples(1), 10)["w"]
    error = linear(x).softmax(-1) - F.one_hot(y, 3)
    torch.testing.assert_close(once, torch.einsum("ni,nj->ij", error**2, x**2))
    twice = squared_gradients(loss, {"w": linear.weight}, samples(2), 20)["w"]
    torch.testing.assert_close(twice, 2 * once)
    assert torch.equal(kept_rows([once], None, 2), kept_rows([twice], None, 2))
    assert torch.equal(squared_gradients(loss, {"w": linear.weight}, samples(2), 10)["w"], once)  # no more than asked
    assert not linear.weight.requires_grad
    assert linear.weight.grad is None


def context(model: Backbone, tmp_path: Path, count: int = 4) -> Context:
    def batches(split: str, size: int) -> Any:
        assert (split, size) == ("train", 1)
        for seed in range(count):
            yield batch(model, rows=1, seed=seed)

    return Context(seed=0, folder=tmp_path, batches=batches, log=lambda line: None)


@pytest.mark.parametrize("name", ["t5", "t5-gated", "bert", "deberta", "gpt2", "llama", "vit"])
def test_prepare_cuts_by_fisher(name: str, tmp_path: Path) -> None:
    """Deterministic, in evaluation mode, and everything is frozen or trained, with or without gradient, as before."""
    model = backbone(name)
    method = LST(model, task(model), reduction_factor=2).train()
    head, flags = method.backbone.head, {n: p.requires_grad for n, p in method.named_parameters()}
    before = {n: p.clone() for n, p in method.named_parameters()}
    method.prepare(context(model, tmp_path))
    after = {n: p.clone() for n, p in method.named_parameters()}
    assert method.training
    assert method.backbone.head is head
    assert {n: p.requires_grad for n, p in method.named_parameters()} == flags
    assert all(p.grad is None for p in method.parameters())
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed
    assert all(n.startswith("ladders.") and ".steps." in n for n in changed)
    method.prepare(context(model, tmp_path))
    assert all(torch.equal(p, after[n]) for n, p in method.named_parameters())
    other = LST(model, task(model), reduction_factor=2, init="magnitude")
    other.prepare(context(model, tmp_path, count=0))
    assert any(not torch.equal(p, after[n]) for n, p in other.named_parameters() if ".steps." in n)


def test_fisher_without_data_says_so(tmp_path: Path) -> None:
    model = backbone("t5")
    with pytest.raises(UserError, match="training split is empty"):
        LST(model, task(model), reduction_factor=2).prepare(context(model, tmp_path, count=0))


def test_random_initialisation_reads_no_data(tmp_path: Path) -> None:
    model = backbone("t5")
    method = LST(model, task(model), reduction_factor=2, init="random")
    before = {n: p.clone() for n, p in method.named_parameters()}

    def none(split: str, size: int) -> Any:
        raise AssertionError("no data is needed")

    method.prepare(Context(seed=0, folder=tmp_path, batches=none))
    assert all(torch.equal(p, before[n]) for n, p in method.named_parameters())


# ---- the first weights: channels alone, and no table of gradients
@pytest.mark.parametrize("name", ["t5", "t5-gated", "bert", "deberta", "gpt2", "llama", "vit"])
def test_a_tables_sums_are_those_of_its_whole_gradient(name: str) -> None:
    """Tokens that come twice, padding ids, heads that are the table: by channel as if every entry had been kept."""
    model = backbone(name)
    method = LST(model, task(model), reduction_factor=2).eval()
    given = [batch(model, rows=1, seed=seed) for seed in range(3)]
    for one in given:
        if "input_ids" in one:
            one["input_ids"][:, 2], one["input_ids"][:, 3] = one["input_ids"][0, 0], 0
    ours = method.fisher(iter(given))
    firsts = first_parameters(model, method.ladders)
    whole = squared_gradients(method.plain().loss, firsts, iter(given), 3)
    assert set(firsts) <= set(ours)
    for key, sums in whole.items():
        others = [0] if sums.dim() == 2 else [1, 2, 3]
        assert ours[key].shape == (sums.shape[1] if sums.dim() == 2 else sums.shape[0],)
        assert sums.any()
        torch.testing.assert_close(ours[key].float(), sums.sum(others), rtol=1e-5, atol=0)
    assert all(p.grad is None for p in method.parameters())
    assert not any(module._forward_hooks for module in method.modules())


def test_an_untied_tables_gradient_is_never_made() -> None:
    model = backbone("bert", vocab_size=5000)
    method = LST(model, task(model), reduction_factor=2)
    table = model.model.get_input_embeddings().weight
    with MemoryTracker() as tracker:
        tracker.hold_model(method)
        method.fisher(iter([batch(model, rows=1)]))
        assert not [a for a in tracker.allocations if a.kind != "parameters" and a.bytes >= table.nbytes]


def test_scores_are_made_some_rows_at_a_time() -> None:
    importance = torch.rand(3 * ROWS_AT_ONCE + 5, 7)
    columns = torch.tensor([0, 3, 6])
    whole = (importance.double()[:, columns] * importance.double()[:, columns]).sum(1)
    assert torch.equal(row_scores([importance] * 2, columns), whole)
    torch.testing.assert_close(channel_scores(importance - 0.5), (importance.double() - 0.5).abs().sum(0))
