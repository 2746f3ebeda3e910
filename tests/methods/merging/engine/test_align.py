"""What is merged, what is taken over, what is refused: all before a byte is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.methods.merging.toy import equal, flat, job, merged, random_models, streamed, write
from transfer_run.errors import UserError
from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.engine.checkpoint import open_checkpoint
from transfer_run.methods.merging.engine.stream import Job, merge_to_folder
from transfer_run.methods.merging.task_arithmetic import TaskArithmeticRule
from transfer_run.methods.merging.ties import TiesRule


def test_every_misfit_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    base, models = random_models(2)
    del models[0]["block.2.bias"]
    models[1]["a.weight"] = torch.zeros(6, 5)
    models[1]["extra"] = torch.zeros(2)
    models[0]["conv"] = models[0]["conv"].to(torch.int8)
    paths = [write(model, tmp_path / f"model{i}") for i, model in enumerate(models)]
    with pytest.raises(UserError) as raised:
        merge_to_folder(
            Job([open_checkpoint(path) for path in paths], open_checkpoint(write(base, tmp_path / "base"))),
            TiesRule(),
            tmp_path / "out",
        )
    for said in (
        "4 tensors",
        "block.2.bias: missing in",
        "a.weight: [7, 5] in",
        "extra: missing in",
        "conv: torch.int8",
    ):
        assert said in raised.value.message()
    assert not (tmp_path / "out").exists()


def test_no_models() -> None:
    with pytest.raises(UserError, match="nothing to merge"):
        job(None, [])


def test_excluded_tensors_are_the_bases() -> None:
    base, models = random_models(2)
    models[1]["block.2.bias"] = torch.zeros(9)  # a head of another size does not matter once it is excluded
    out = merged(base, models, TaskArithmeticRule(1.0), exclude=["block\\..*"])
    assert equal({n: out[n] for n in out if n.startswith("block")}, {n: base[n] for n in base if n.startswith("block")})
    assert not torch.equal(out["conv"], base["conv"])
    without_base = merged(None, models, AverageRule(), exclude=["block\\..*"])
    assert torch.equal(without_base["block.2.bias"], models[0]["block.2.bias"])


def test_tensors_of_different_shapes_are_the_targets_where_that_is_asked() -> None:
    _, models = random_models(2)
    models[1]["a.weight"] = torch.zeros(9, 5)
    models[0]["head"] = torch.ones(3)
    out = merged(None, models, AverageRule(), mismatched="exclude")
    assert torch.equal(out["a.weight"], models[0]["a.weight"])
    assert torch.equal(out["head"], models[0]["head"])


def test_integer_buffers_are_taken_over(tmp_path: Path) -> None:
    base, models = random_models(2)
    for i, tensors in enumerate([base, *models]):
        tensors["bn.num_batches_tracked"] = torch.tensor(10 * i)
        tensors["mask"] = torch.tensor([True, False])
    out = streamed(base, models, TiesRule(), tmp_path)
    assert out["bn.num_batches_tracked"] == 0
    assert out["mask"].dtype == torch.bool


def test_batch_norm_statistics_are_averaged_by_every_rule() -> None:
    base, models = random_models(2)
    for i, tensors in enumerate([base, *models]):
        tensors["bn.running_var"] = torch.full((4,), float(i + 1))
    work = job(base, models)
    assert work.layout.numel == sum(t.numel() for n, t in base.items() if n != "bn.running_var")
    assert torch.equal(merged(base, models, TaskArithmeticRule(5.0))["bn.running_var"], torch.full((4,), 2.5))


def test_tied_matrices_count_once_and_are_written_under_every_name() -> None:
    base, models = random_models(3, {"shared.weight": (9, 4), "block": (11,)})
    names = ["decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "lm_head.weight"]
    once = merged(base, models, TiesRule(keep=0.3))
    for tensors in (base, *models):
        tensors.update({name: tensors["shared.weight"].clone() for name in names})
    work = job(base, models)
    assert work.layout.numel == 9 * 4 + 11
    assert sum(len(others) for others in work.layout.tied.values()) == 3
    out = merged(base, models, TiesRule(keep=0.3))
    assert out.keys() == base.keys()
    assert all(torch.equal(out[name], once["shared.weight"]) for name in [*names, "shared.weight"])
    assert torch.equal(out["block"], once["block"])


def test_a_tied_name_may_be_missing_in_some_files() -> None:
    base, models = random_models(2, {"shared.weight": (9, 4)})
    base["lm_head.weight"] = base["shared.weight"].clone()
    models[1]["encoder.embed_tokens.weight"] = models[1]["shared.weight"].clone()
    out = merged(base, models, AverageRule())
    wanted = (models[0]["shared.weight"] + models[1]["shared.weight"]) / 2
    assert all(torch.equal(out[n], wanted) for n in ("shared.weight", "lm_head.weight", "encoder.embed_tokens.weight"))


def test_untied_twins_are_merged_apart() -> None:
    base, models = random_models(2, {"shared.weight": (9, 4)})
    for tensors in (base, *models):
        tensors["lm_head.weight"] = tensors["shared.weight"].clone()
    models[1]["lm_head.weight"] += 1  # one model has trained them apart
    work = job(base, models)
    assert not work.layout.tied
    assert work.layout.numel == 2 * 9 * 4
    zeros = {"q": torch.zeros(3, 3), "k": torch.zeros(3, 3)}
    assert job(zeros, [zeros, zeros]).layout.numel == 18  # untouched zeros are not one matrix


def test_a_longer_vocabulary_of_the_base_is_cut() -> None:
    base, models = random_models(2, {"shared.weight": (12, 4), "dense.weight": (12, 4)})
    models = [{**model, "shared.weight": model["shared.weight"][:9].clone()} for model in models]
    out = merged(base, models, TaskArithmeticRule(1.0))
    wanted = base["shared.weight"][:9] + sum(m["shared.weight"] - base["shared.weight"][:9] for m in models)
    assert torch.allclose(out["shared.weight"], wanted, atol=1e-6)
    models = [{**model, "dense.weight": model["dense.weight"][:9].clone()} for model in models]
    with pytest.raises(UserError, match="differ"):
        job(base, models)


def test_the_result_has_the_bases_types(tmp_path: Path) -> None:
    base, models = random_models(2)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in base.items()}
    out = streamed(half, models, TaskArithmeticRule(0.5), tmp_path)
    assert {tensor.dtype for tensor in out.values()} == {torch.bfloat16}
    exact = merged({n: t.float() for n, t in half.items()}, models, TaskArithmeticRule(0.5))
    assert torch.equal(flat(out), flat(exact).to(torch.bfloat16))  # arithmetic in float32, rounded once
    without = streamed(None, [half, models[0]], AverageRule(), tmp_path / "b")
    assert {tensor.dtype for tensor in without.values()} == {torch.bfloat16}


def test_buffers_that_a_library_makes_anew_need_not_be_in_every_file() -> None:
    base, models = random_models(2)
    mask = torch.ones(1, 1, 4, 4).tril()
    models[0]["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    base["transformer.h.0.attn.bias"] = mask
    models[1]["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    out = merged(base, models, TaskArithmeticRule(1.0))
    assert out.keys() == base.keys()
    assert torch.equal(out["transformer.h.0.attn.bias"], mask)
    models[0]["block.attn.bias"] = torch.ones(3)  # a bias of that name is a weight
    with pytest.raises(UserError, match="1 tensors are missing"):
        job(base, models)
