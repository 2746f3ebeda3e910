"""TIES and its baselines against numbers that the paper's own code produced."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.engine.checkpoint import StateDict
from transfer_run.methods.merging.engine.stream import Job, Rule, merge_in_memory
from transfer_run.methods.merging.task_arithmetic import TaskArithmeticRule
from transfer_run.methods.merging.ties import TiesRule

ORACLE = "ties_*.npz"
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

Arrays = dict[str, np.ndarray]


def under(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): torch.from_numpy(a) for name, a in arrays.items() if name.startswith(prefix)}


def job(arrays: Arrays) -> Job:
    count = len({match[1] for name in arrays if (match := re.match(r"ft(\d+)__", name))})
    models = [StateDict(under(arrays, f"ft{i}__")) for i in range(count)]
    found = Job(models, StateDict(under(arrays, "base__")))
    assert list(found.layout.merged) == list(arrays["sorted_keys"])
    return found


def merged(arrays: Arrays, rule: Rule) -> np.ndarray:
    out = merge_in_memory(job(arrays), rule)
    return torch.cat([out[name].flatten() for name in arrays["sorted_keys"]]).numpy()


def matching(arrays: Arrays, pattern: str) -> list[tuple[str, re.Match[str]]]:
    """Arrays whose whole name matches. A file without any has nothing to say here, and its test is skipped;
    `test_no_array_goes_unread` sees to it that none is there for no test."""
    found = [(name, match) for name in arrays if (match := re.fullmatch(pattern, name))]
    if not found:
        pytest.skip(f"no array of this file is named like {pattern}")
    return found


def pieces(arrays: Arrays, rule: TiesRule) -> tuple[list[Tensor], list[Tensor]]:
    """Trimmed task vectors (n, d) and signs (d,) of the whole model, majority rule applied, as lists of pieces."""
    work = job(arrays)
    merge_in_memory(work, rule)  # counts the signs
    rule.unsettled()
    trimmed, signs = [], []
    for piece in work.all_pieces():
        rows = rule.trimmed(work, piece, work.base_values(piece))
        trimmed.append(torch.stack(rows))
        if rule.resolve != "none":
            signs.append(rule._settled(rule.elect(rows), rows, piece))
    return trimmed, signs


def test_task_vectors(arrays: Arrays) -> None:
    work = job(arrays)
    assert work.layout.numel == arrays["flat_base"].size
    rows = [
        torch.cat([work.difference(p, i, work.base_values(p)) for p in work.all_pieces()]) for i in range(work.count)
    ]
    np.testing.assert_array_equal(torch.stack(rows).numpy(), arrays["flat_tv"])


def test_trimmed(arrays: Arrays) -> None:
    for name, match in matching(arrays, r"K(\d+)__trimmed"):
        rule = TiesRule(keep=int(match[1]) / 100)
        trimmed = torch.cat(pieces(arrays, rule)[0], dim=1).numpy()
        np.testing.assert_array_equal(trimmed == 0, arrays[name] == 0, err_msg=name)
        np.testing.assert_allclose(trimmed, arrays[name], **CLOSE)


def test_kept_fraction(arrays: Arrays) -> None:
    for name, match in matching(arrays, r"K(\d+)__kept_fraction"):
        rule = TiesRule(keep=int(match[1]) / 100)
        rule.survey(job(arrays))
        magnitudes = np.abs(arrays["flat_tv"])
        kept = [(row >= np.float32(cut.value)).mean() for row, cut in zip(magnitudes, rule.trim.cuts, strict=True)]
        np.testing.assert_allclose(kept, arrays[name], **CLOSE)


def test_signs(arrays: Arrays) -> None:
    for name, match in matching(arrays, r"K(\d+)__(mass|normfrac|normmass)__sign"):
        signs = torch.cat(pieces(arrays, TiesRule(keep=int(match[1]) / 100, resolve=match[2]))[1])
        np.testing.assert_array_equal(signs.numpy(), arrays[name], err_msg=name)


def test_merged_task_vectors(arrays: Arrays) -> None:
    for name, match in matching(arrays, r"K(\d+)__(\w+?)__(dis-\w+|mean|sum)__tv"):
        rule = TiesRule(None, keep=int(match[1]) / 100, resolve=match[2], merge=match[3])
        np.testing.assert_allclose(merged(arrays, rule), arrays[name], err_msg=name, **CLOSE)


def test_scaled(arrays: Arrays) -> None:
    for name, match in matching(arrays, r"K(\d+)__(\w+?)__(dis-\w+)__lam([\d.]+)__flat"):
        rule = TiesRule(float(match[4]), keep=int(match[1]) / 100, resolve=match[2], merge=match[3])
        np.testing.assert_allclose(merged(arrays, rule), arrays[name], err_msg=name, **CLOSE)


def test_unflattened(arrays: Arrays) -> None:
    for name, match in matching(arrays, r"K(\d+)__(\w+?)__(dis-\w+)__lam([\d.]+)__sd__(.+)"):
        rule = TiesRule(float(match[4]), keep=int(match[1]) / 100, resolve=match[2], merge=match[3])
        out = merge_in_memory(job(arrays), rule)[match[5]]
        np.testing.assert_allclose(out.numpy(), arrays[name], err_msg=name, **CLOSE)


def test_average(arrays: Arrays) -> None:
    for name, _ in matching(arrays, "avg__flat"):
        np.testing.assert_allclose(merged(arrays, AverageRule()), arrays[name], **CLOSE)


def test_task_arithmetic(arrays: Arrays) -> None:
    for name, _ in matching(arrays, "task_arith_sum__flat_tv"):
        np.testing.assert_allclose(merged(arrays, TaskArithmeticRule(None)), arrays[name], **CLOSE)
    for name, match in matching(arrays, r"task_arith__lam([\d.]+)__flat"):
        np.testing.assert_allclose(merged(arrays, TaskArithmeticRule(float(match[1]))), arrays[name], **CLOSE)


def test_per_tensor(arrays: Arrays) -> None:
    """Exactly int(density * numel) entries of each tensor; what peft and mergekit do when all weights are 1."""
    for name, match in matching(arrays, r"per_tensor_(?:peft|mergekit)__density([\d.]+)(?:__normalize)?__(.+)"):
        rule = TiesRule(1.0, keep=float(match[1]), scope="tensor", threshold="exact")
        base = StateDict({match[2]: torch.from_numpy(arrays[f"base__{match[2]}"])})
        work = job(arrays)
        models = [StateDict({match[2]: model.tensors[match[2]]}) for model in work.models]  # type: ignore[attr-defined]
        out = merge_in_memory(Job(models, base), rule)[match[2]]
        np.testing.assert_allclose(out.numpy(), arrays[name], err_msg=name, **CLOSE)


READ = (
    r"K\d+__(trimmed|kept_fraction)",
    r"K\d+__(mass|normfrac|normmass)__sign",
    r"K\d+__\w+?__(dis-\w+|mean|sum)__tv",
    r"K\d+__\w+?__dis-\w+__lam[\d.]+__(flat|sd__.+)",
    r"avg__flat|flat_base|flat_tv|sorted_keys|(base|ft\d+)__.+",
    r"task_arith__lam[\d.]+__flat|task_arith_sum__flat_tv",
    r"per_tensor_(peft|mergekit)__density[\d.]+(__normalize)?__.+",
)


def test_no_array_goes_unread(arrays: Arrays) -> None:
    assert [name for name in arrays if not any(re.fullmatch(pattern, name) for pattern in READ)] == []
