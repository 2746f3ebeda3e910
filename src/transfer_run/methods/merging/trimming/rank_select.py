"""The exact r-th smallest magnitude of a stream of values, without holding them: histograms of 16 bits at a time."""

from __future__ import annotations

import torch
from torch import Tensor

_DIGIT = 16
_BINS = 1 << _DIGIT
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class RankSelect:
    """Radix selection of a magnitude over passes of the same stream.

    The bits of non-negative floats, read as integers, order like the values. Each pass counts the next 16 bits among
    the values that share the bits found so far; the bin that holds the rank gives 16 more. Two passes give a float32 to
    the last bit, four a float64.

    Args:
        rank: r, 1-based.
        dtype: float32 or float64.
    """

    def __init__(self, rank: int, dtype: torch.dtype = torch.float32) -> None:
        self.rank, self.dtype = rank, dtype
        self.passes = dtype.itemsize * 8 // _DIGIT
        self.below = 0  # values known to be smaller than the r-th
        self.equal = 0  # values equal to it, known after the last pass
        self._prefix, self._found = 0, 0
        self._counts = torch.zeros(_BINS, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count the magnitudes of `values`, flat, in this pass."""
        integer = _INTEGERS[self.dtype]
        bits = values.view(integer) & torch.iinfo(integer).max  # without the sign
        left = _DIGIT * (self.passes - self._found)
        if not self._found:
            self._counts += torch.bincount(bits.bitwise_right_shift_(left - _DIGIT), minlength=_BINS)
            return
        # values of another prefix fall into one bin before and one after the digits: cheaper than picking out the rest
        digits = bits.sub_(self._prefix << left).bitwise_right_shift_(left - _DIGIT).clamp_(-1, _BINS).add_(1)
        self._counts += torch.bincount(digits, minlength=_BINS + 2)[1:-1]

    @property
    def not_finite(self) -> bool:
        """Has the first pass met an infinity or a value that is no number?"""
        exponent = 0x7F80 if self.dtype == torch.float32 else 0x7FF0
        return not self._found and bool(self._counts[exponent:].any())

    def narrow(self) -> None:
        """End a pass."""
        before = torch.cumsum(self._counts, 0) + self.below
        digit = int(torch.searchsorted(before, self.rank))
        self.equal = int(self._counts[digit])
        self.below = int(before[digit]) - self.equal
        self._prefix, self._found = self._prefix << _DIGIT | digit, self._found + 1
        self._counts.zero_()

    @property
    def done(self) -> bool:
        return self._found == self.passes

    @property
    def value(self) -> float:
        """The r-th smallest value, exact, once all passes are done."""
        bits = torch.tensor(self._prefix, dtype=_INTEGERS[self.dtype])
        return bits.view(self.dtype).item()
