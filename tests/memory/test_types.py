"""A rehearsal refuses the types that the device's kernels refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.memory import small
from transfer_run.errors import UserError
from transfer_run.memory.fake import AnswersNo, fake_mode
from transfer_run.memory.planner import Rehearsal, Setting
from transfer_run.memory.types import in_words
from transfer_run.methods.tuning.full import Full

HALF = torch.bfloat16
PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "matmul": (lambda x, w: x @ w, (4, 4)),
    "batched": (lambda x, w: x[None] @ w[None], (4, 4)),
    "vector": (lambda x, w: x @ w, (4,)),
    "linear": (lambda x, w: F.linear(x, w, w[0]), (4, 4)),
    "convolution": (lambda x, w: F.conv1d(x[None], w[:, :, None]), (4, 4)),
}


def refused(work: Callable[[], Tensor], cuda: bool) -> bool:
    with fake_mode(), AnswersNo(cuda, lambda: "block.q"):
        try:
            work()
        except UserError as error:
            return "bfloat16 and float32 in block.q" in error.what
    return False


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_want_one_type(name: str) -> None:
    work, shape = PRODUCTS[name]
    for cuda in (True, False):
        assert refused(lambda: work(torch.ones(4, 4), torch.ones(shape, dtype=HALF)), cuda)
        assert not refused(lambda: work(torch.ones(4, 4, dtype=HALF), torch.ones(shape, dtype=HALF)), cuda)
    with pytest.raises(RuntimeError):  # so do the CPU's kernels
        work(torch.ones(4, 4), torch.ones(shape, dtype=HALF))


def test_only_cuda_wants_one_type_in_a_norm() -> None:
    norm = lambda: F.layer_norm(torch.ones(2, 4, dtype=HALF), (4,), torch.ones(4), torch.zeros(4))  # noqa: E731
    assert refused(norm, cuda=True)
    assert not refused(norm, cuda=False)
    assert norm().dtype is HALF  # what a CPU answers


def test_autocast_casts_before() -> None:
    def work() -> Tensor:
        with torch.autocast("cpu", dtype=HALF):
            return torch.ones(4, 4) @ torch.ones(4, 4, dtype=HALF)

    assert not refused(work, cuda=True)


def test_a_rehearsal_ends_where_the_run_would() -> None:
    method = Full(small.backbone("vit", "meta"), small.task("vit"))
    block = method.backbone.blocks("image")[1]
    assert isinstance(block.mlp, nn.Module)
    block.mlp.to(HALF)
    rehearsal = Rehearsal(method, list, lambda n: small.shapes("vit", n), Setting(target="cpu"), trains=False)
    with pytest.raises(UserError, match=r"a linear layer of bfloat16 and float32 in backbone\.model\.blocks\.1\.mlp"):
        rehearsal.measure(2)


def test_what_no_kernel_does_is_said_in_words() -> None:
    with fake_mode(), pytest.raises(UserError, match=r"would fail: Unsupported dtype BFloat16"), in_words():
        torch.fft.rfft(torch.ones(8, dtype=HALF))
    with pytest.raises(NotImplementedError), in_words():
        raise NotImplementedError("a method's own")
    with pytest.raises(UserError, match="would fail"), in_words(), torch.autocast("cpu", dtype=torch.float16):
        torch.cat([torch.ones(1, dtype=HALF), torch.ones(1, dtype=torch.float16)])
