"""Peak memory: measured tensor by tensor, predicted on fake tensors, explained.

`plan` answers for a script of anybody's own, see `memory/script.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transfer_run.memory.script import plan

__all__ = ["plan"]


def __getattr__(name: str) -> Any:
    """`plan` needs torch, which nothing else here may import before the command line is known to be valid."""
    if name == "plan":
        from transfer_run.memory.script import plan

        return plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
