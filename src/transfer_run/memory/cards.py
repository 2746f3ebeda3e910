"""What a card really has: what its driver reports as total, which is less than its name says.

Each total stands in an out-of-memory message of PyTorch that somebody published ("GPU 0 has a total capacity of ...");
the same messages tell what the process held beside PyTorch's allocator (CUDA context, libraries): 0.12 GiB (T4) to
0.80 GiB (A100), mostly 0.4 to 0.5. Read in November 2026; a driver or ECC moves a total by some per cent.
"""

from __future__ import annotations

from dataclasses import dataclass

from transfer_run.errors import UserError, nearest_names

_GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A card's total in bytes as its driver reports it, and where that was read."""

    total: int
    source: str


def _card(gib: float, source: str) -> Card:
    return Card(int(gib * _GIB), f"github.com/{source}")


CARDS = {
    "a10g": _card(22.20, "XavierXiao/Dreambooth-Stable-Diffusion/issues/18"),
    "a100-40gb": _card(39.50, "TianheWu/CoSeR/issues/10"),
    "a100-80gb": _card(79.14, "lianqi1008/Control-GIC/issues/6"),
    "a30": _card(23.53, "google/RB-Modulation/issues/5"),
    "h100-80gb": _card(79.11, "vllm-project/vllm/issues/27508"),
    "l4": _card(22.03, "ArcInstitute/evo2/issues/190"),
    "l40": _card(44.40, "QwenLM/Qwen3-VL/issues/2097"),
    "rtx-3090": _card(23.69, "ucwxb/GraphAvatar/issues/4"),
    "rtx-4090": _card(23.52, "Soul-AILab/SoulX-FlashTalk/issues/5"),
    "rtx-5090": _card(31.37, "Wan-Video/Wan2.1/issues/465"),
    "rtx-6000-ada": _card(44.43, "DINGYANB/MTVCrafter/issues/21"),
    "rtx-a4000": _card(15.61, "DengKaiCQ/VGGT-Long/issues/6"),
    "t4": _card(14.56, "facebookresearch/tribev2/issues/28"),
}


def find_card(name: str) -> Card:
    """The card of that name, in any case, with spaces or underscores for dashes.

    Raises:
        UserError: no such card is known.
    """
    key = "-".join(str(name).lower().replace("_", " ").replace("-", " ").split())
    if key in CARDS:
        return CARDS[key]
    raise UserError(
        f"No card is known as {name!r}.",
        where="plan.card",
        nearest=nearest_names(key, CARDS) or tuple(CARDS),
        remedy="or plan.budget=AMOUNT, with the total that nvidia-smi shows for the card",
    )
