"""What holds for every tuning method on T5, BERT and ViT: it trains what it says, starts where it says, reloads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from transfer_run.errors import UserError
from transfer_run.experiment.config.registry import config_root
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method

ROOT = config_root() / "method"
SMALL: dict[str, dict[str, Any]] = {  # what the defaults are too large for
    "adapter": {"reduction": 8},
    "bitfit": {"add_biases": True},
    "mam_adapter": {"length": 3, "hidden": 8, "bottleneck": 6},
    "parallel_adapter": {"bottleneck": 6},
    "prefix_tuning": {"length": 3, "hidden": 8},
    "prompt_tuning": {"length": 3},
    "peft/boft": {"settings": {"boft_block_size": 4}},
    "peft/c3a": {"settings": {"block_size": 4}},
    "peft/fourierft": {"settings": {"n_frequency": 100, "init_weights": True}},
    "peft/oft": {"settings": {"r": 0, "oft_block_size": 4}},
    "peft/road": {"settings": {"group_size": 4}},
    "peft/vblora": {"settings": {"r": 4, "num_vectors": 32, "vector_length": 4}},
    "peft/waveft": {"settings": {"n_frequency": 100}},
}
BACKBONES = ("t5", "bert", "vit")
FAMILY = {"t5": "t5", "bert": "encoder", "vit": "vit"}
STARTS_ELSEWHERE = {  # not at the pretrained function
    "adapter", "prefix_tuning", "mam_adapter", "prompt_tuning", "peft/p_tuning", "peft/c3a", "peft/vblora",
    "peft/unilora",
}  # fmt: skip
ROUNDS = {"peft/hra", "peft/deft", "peft/psoft"}  # at it, but for rounding


def configs() -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(ROOT.rglob("*.yaml")):
        node = yaml.safe_load(path.read_text(encoding="utf-8")).get("method", {})
        if node.get("about", {}).get("family") == "tuning":
            found[path.relative_to(ROOT).with_suffix("").as_posix()] = node
    return found


CONFIGS = configs()
CASES = [(n, b) for n, c in CONFIGS.items() for b in BACKBONES if FAMILY[b] in c["about"].get("backbones", [FAMILY[b]])]


@pytest.fixture
def make(build: Callable[..., Any], task: Callable[..., Any]) -> Callable[..., Method]:
    def made(name: str, key: str, draw: int = 1, device: str = "cpu") -> Method:
        """The method on the same backbone weights every time; `draw` seeds what it adds."""
        backbone = build(key, device=device)
        torch.manual_seed(draw)
        return build_method({**CONFIGS[name], **SMALL.get(name, {})}, backbone, task(key))

    return made


@pytest.mark.parametrize(("name", "key"), CASES)
def test_trains_what_it_says_and_reloads(
    name: str, key: str, make: Callable[..., Method], batch: Callable[..., Any]
) -> None:
    tuned, data = make(name, key), batch(key)
    start = {n: p.detach().clone() for n, p in tuned.named_parameters()}
    trained = {n for n, p in tuned.named_parameters() if p.requires_grad}
    tuned.start_fit(4)
    optimizer = torch.optim.Adam(tuned.parameter_groups(), lr=1e-3)
    touched: set[str] = set()
    for step in range(3):
        optimizer.zero_grad()
        tuned.train().loss(data).backward()
        touched |= {n for n in trained if tuned.get_parameter(n).grad is not None and tuned.get_parameter(n).grad.any()}
        assert all(p.grad is None for n, p in tuned.named_parameters() if n not in trained)
        optimizer.step()
        tuned.after_step(step + 1)
    assert touched == trained, "every trained tensor gets a gradient"
    assert all(torch.equal(start[n], p) for n, p in tuned.named_parameters() if n not in trained)

    tuned.settle()
    before = tuned.eval()(data)
    again = make(name, key, draw=2)
    again.settle()
    wanted = again.shipped()
    tensors = tuned.shipped()
    assert wanted.keys() == tensors.keys()
    with torch.no_grad():
        for tensor, value in zip(wanted.values(), tensors.values(), strict=True):
            tensor.copy_(value)
    torch.testing.assert_close(again.eval()(data), before, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "key"), [c for c in CASES if c[0] not in ("pretrain",)])
def test_starts_at_the_pretrained_function(
    name: str, key: str, make: Callable[..., Method], build: Callable[..., Any], batch: Callable[..., Any],
    task: Callable[..., Any],
) -> None:  # fmt: skip
    """Check 2: bit for bit, but for methods that are known to start elsewhere, and those do."""
    tuned = make(name, key).eval()
    plain = Method(build(key), task(key)).eval()
    plain.backbone.head.load_state_dict(tuned.backbone.head.state_dict())
    with torch.no_grad():
        difference = (tuned(batch(key)) - plain(batch(key))).abs().max()
    untied = name == "linear_probe" and key == "t5"  # the head's factor is folded into its weights
    bound = 1e-5 if name in ROUNDS or untied else 0.0
    assert (difference > 0) if name in STARTS_ELSEWHERE else (difference <= bound)


@pytest.mark.parametrize(("name", "key"), CASES)
def test_can_be_built_on_meta(name: str, key: str, make: Callable[..., Method]) -> None:
    tuned = make(name, key, device="meta")
    assert all(p.is_meta for p in tuned.parameters())
    real = {n: (p.shape, p.requires_grad) for n, p in make(name, key).named_parameters()}
    assert {n: (p.shape, p.requires_grad) for n, p in tuned.named_parameters()} == real


@pytest.mark.parametrize("name", ["lora", "ia3", "adapter", "parallel_adapter", "prefix_tuning", "mam_adapter"])
def test_a_copy_is_independent(name: str, make: Callable[..., Method], batch: Callable[..., Any]) -> None:
    """Hooks and prefixes of a copy are its own."""
    tuned, data = make(name, "bert").eval(), batch("bert")
    before = tuned(data)
    twin = copy.deepcopy(tuned)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    torch.testing.assert_close(tuned(data), before, rtol=0, atol=0)
    assert (twin(data) - before).abs().max() > 1e-4


@pytest.mark.parametrize("key", ["deberta", "gpt2", "llama", "clip"])
@pytest.mark.parametrize(
    "name", ["bitfit", "layernorm", "lora", "ia3", "adapter", "parallel_adapter", "prefix_tuning", "prompt_tuning",
             "mam_adapter", "partial", "full", "linear_probe"])  # fmt: skip
def test_other_families(name: str, key: str, make: Callable[..., Method], batch: Callable[..., Any]) -> None:
    if key == "deberta" and name in ("prefix_tuning", "mam_adapter"):
        with pytest.raises(UserError, match="cannot take a prefix"):
            make(name, key)
        return
    tuned, data = make(name, key), batch(key)
    loss = tuned.train().loss(data)
    loss.backward()
    assert loss.isfinite()
    reached = [p.grad is not None for p in tuned.parameters() if p.requires_grad]
    assert all(reached)
    assert tuned.eval().predict(data).shape == (4,)


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if "cnn" in c["about"].get("backbones", ["cnn"])])
def test_convolutional_networks(name: str, make: Callable[..., Method], batch: Callable[..., Any]) -> None:
    tuned, data = make(name, "cnn"), batch("cnn")
    frozen = {n: b.clone() for n, b in tuned.named_buffers()}
    tuned.train().loss(data).backward()
    moved = {n for n, b in tuned.named_buffers() if not torch.equal(b, frozen[n])}
    moving = {"full", "pretrain", "layernorm", "partial"}  # batch norms that are trained gather statistics
    assert bool(moved) == (name in moving)
    assert moved <= set(tuned.shipped())


def test_the_packaged_configs_were_found() -> None:
    assert Path(ROOT / "full.yaml").is_file()
    assert len(CONFIGS) > 30
