"""Counting as CUDA does, against what the kernels are documented to keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.memory.attention import cuda_kernel
from transfer_run.memory.cuda import CountsAsCuda, cublas_workspace
from transfer_run.memory.fake import AnswersNo, fake_mode
from transfer_run.memory.tracker import MemoryTracker

ROWS, HEADS, LENGTH, WIDTH = 2, 3, 40, 16


def kept_by(make: Callable[[], tuple[Tensor, ...]], run: Callable[..., Tensor], as_cuda: bool = True) -> int:
    """Bytes that are alive after `run` beyond its inputs and while its result is."""
    with fake_mode(), AnswersNo(), MemoryTracker() as tracker:
        inputs = make()
        before = tracker.current
        if as_cuda:
            with CountsAsCuda():
                result = run(*inputs)
        else:
            result = run(*inputs)
        kept = tracker.current - before
        assert result.requires_grad
        return kept


def one(dtype: torch.dtype = torch.float32) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(1000, dtype=dtype, requires_grad=True),)


def test_dropout_keeps_one_byte_an_element() -> None:
    assert kept_by(one(), lambda x: F.dropout(x, 0.1)) == 1000 * (4 + 1)
    assert kept_by(one(), lambda x: nn.Dropout(0.1)(x)) == 1000 * (4 + 1)
    assert kept_by(one(), lambda x: F.dropout(x, 0.1), as_cuda=False) == 1000 * (4 + 4)


def test_dropout_that_drops_nothing_keeps_nothing() -> None:
    assert kept_by(one(), lambda x: nn.Dropout(0.1).eval()(x)) == 0
    assert kept_by(one(), lambda x: F.dropout(x, 0.0, True)) == kept_by(one(), lambda x: F.dropout(x, 0.0, True), False)


def heads(dtype: torch.dtype, length: int = LENGTH) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(ROWS, HEADS, length, WIDTH, dtype=dtype, requires_grad=True) for _ in range(3))


@pytest.mark.parametrize(("dtype", "rounded"), [(torch.float32, 64), (torch.bfloat16, LENGTH)])
def test_attention_keeps_output_and_log_sum_exp_not_the_matrix(dtype: torch.dtype, rounded: int) -> None:
    """The efficient kernel (float32) stores its log-sum-exp in multiples of 32, flash (half) as it is."""
    output = ROWS * HEADS * LENGTH * WIDTH * dtype.itemsize
    log_sum_exp, random_state = ROWS * HEADS * rounded * 4, 16
    for dropout in (0.0, 0.1):
        kept = kept_by(heads(dtype), lambda q, k, v, p=dropout: F.scaled_dot_product_attention(q, k, v, dropout_p=p))
        assert kept == output + log_sum_exp + random_state


def test_attention_makes_and_keeps_a_float_mask_from_a_boolean_one() -> None:
    mask = torch.ones(ROWS, 1, LENGTH, LENGTH, dtype=torch.bool)
    plain = kept_by(heads(torch.float32), lambda q, k, v: F.scaled_dot_product_attention(q, k, v))
    masked = kept_by(heads(torch.float32), lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask))
    assert masked - plain == pytest.approx(4 * mask.numel(), abs=ROWS * LENGTH * LENGTH + 8)


def test_attention_has_gradients_of_the_right_shapes() -> None:
    with fake_mode(), AnswersNo(), CountsAsCuda():
        q, k, v = heads(torch.float32, 33)()
        bias = torch.randn(1, HEADS, 33, 33, requires_grad=True)
        out = F.scaled_dot_product_attention(q, k, v, bias, dropout_p=0.1)
        assert out.shape == q.shape
        out.sum().backward()
        for tensor in (q, k, v, bias):
            assert tensor.grad is not None
            assert tensor.grad.shape == tensor.shape


def test_shapes_that_no_fused_kernel_takes_are_computed_in_full() -> None:
    with fake_mode():
        odd = torch.randn(ROWS, HEADS, LENGTH, 6)
        even, half = torch.randn(ROWS, HEADS, LENGTH, 8), torch.randn(ROWS, HEADS, LENGTH, 8, dtype=torch.float16)
        mask = torch.zeros(LENGTH, LENGTH)
        assert cuda_kernel(odd, odd, odd, None, False, False) == "math"
        assert cuda_kernel(even, even, even, None, True, False) == "efficient"
        assert cuda_kernel(half, half, half, None, True, False) == "flash"
        assert cuda_kernel(half, half, half, mask.half(), False, False) == "efficient"
        assert cuda_kernel(half, half[:, :1], half[:, :1], None, True, True) == "flash"
    matrix = ROWS * HEADS * LENGTH * LENGTH * 4
    made = lambda: tuple(torch.randn(ROWS, HEADS, LENGTH, 6, requires_grad=True) for _ in range(3))  # noqa: E731
    assert kept_by(made, lambda q, k, v: F.scaled_dot_product_attention(q, k, v)) > matrix


def test_grouped_heads_keep_the_few_keys_and_values() -> None:
    def grouped() -> tuple[Tensor, ...]:
        few = [torch.randn(ROWS, 1, LENGTH, WIDTH, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
        return (torch.randn(ROWS, HEADS, LENGTH, WIDTH, dtype=torch.bfloat16, requires_grad=True), *few)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    output = ROWS * HEADS * LENGTH * WIDTH * 2
    assert kept_by(grouped, attend) == output + ROWS * HEADS * LENGTH * 4 + 16


@pytest.mark.parametrize("name", ["softmax", "layer_norm", "gelu"])
def test_autocast_takes_to_float32_what_it_does_on_cuda(name: str) -> None:
    run = {"softmax": lambda x: F.softmax(x, -1), "layer_norm": lambda x: F.layer_norm(x, (10,)), "gelu": F.gelu}[name]
    with fake_mode(), CountsAsCuda(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(torch.randn(4, 10, dtype=torch.bfloat16))
        product = torch.randn(4, 10) @ torch.randn(10, 4)
    assert out.dtype is (torch.bfloat16 if name == "gelu" else torch.float32)
    assert product.dtype is torch.bfloat16


def test_autocast_keeps_one_cast_of_a_trained_weight_and_one_a_use_of_a_frozen_one() -> None:
    def twice(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.linear(F.linear(x, weight), weight)

    def inputs(trained: bool) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (torch.randn(4, 64, requires_grad=True), torch.randn(64, 64, requires_grad=trained))

    more = kept_by(inputs(False), twice) - kept_by(inputs(True), twice)
    assert 64 * 64 * 2 - 4 * 64 * 2 * 2 <= more <= 64 * 64 * 2


def test_the_workspace_is_that_of_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cublas_workspace() == 8_519_680
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, size in (((8, 6), 8_519_680), ((9, 0), 32 * 2**20), ((10, 0), 8_519_680)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        assert cublas_workspace() == size
