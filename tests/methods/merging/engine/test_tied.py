"""Language heads of their own beside heads that are the table of tokens: never one where the other was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.engine.opening import open_models
from transfer_run.methods.merging.engine.stream import Job, merge_in_memory
from transfer_run.methods.merging.task_arithmetic import TaskArithmeticRule

LLAMA: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                         "num_key_value_heads": 2, "intermediate_size": 24}  # fmt: skip
IDS = torch.arange(8)[None]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two tied and two untied models of one size."""
    for name in ("tied_a", "tied_b", "own_a", "own_b"):
        LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings="tied" in name)).save_pretrained(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("base", "models"), [
    (None, ["tied_a", "own_a"]), (None, ["own_a", "tied_a"]), ("tied_a", ["own_a", "own_b"]),
    ("own_a", ["tied_a", "tied_b"]),
])  # fmt: skip
def test_some_tied_and_some_not(base: str | None, models: list[str], folders: Path) -> None:
    opened, start = open_models([folders / name for name in models], base and str(folders / base))
    with pytest.raises(UserError, match="language head of their own") as error:
        Job(opened, start)
    assert "tied: " + str(folders / "tied_a") in error.value.where
    assert "tie_word_embeddings=False" in error.value.remedy


def test_a_file_that_holds_both_names_is_told_by_its_settings(folders: Path) -> None:
    """The tied model's lm_head stands in the file, and loading it would pass it over."""
    from safetensors.torch import load_file, save_file

    file = folders / "tied_a" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    opened, start = open_models([folders / "own_a", folders / "tied_a"], None)
    with pytest.raises(UserError, match="language head of their own"):
        Job(opened, start)


@pytest.mark.parametrize("kind", ["tied", "own"])
def test_all_alike_merge(kind: str, folders: Path) -> None:
    opened, start = open_models([folders / f"{kind}_a", folders / f"{kind}_b"], None)
    assert ("lm_head.weight" in merge_in_memory(Job(opened, start), AverageRule())) == (kind == "own")


@pytest.mark.parametrize("first", ["tied_a", "own_a"])
def test_a_head_that_is_left_out_is_the_first_models(first: str, folders: Path) -> None:
    """The result loads with the first model's head, whichever kind that is."""
    second = "own_b" if first == "tied_a" else "tied_b"
    words = ["method=average", f"method.models=[{folders / first},{folders / second}]", "dataset=none",
             "method.exclude=[lm_head.weight]", f"output_dir={folders / 'out'}", "trainer.progress=none"]  # fmt: skip
    out = AutoModelForCausalLM.from_pretrained(carry_out(compose(words)) / "checkpoints" / "model")
    one = AutoModelForCausalLM.from_pretrained(folders / first)
    both = (
        one.model.embed_tokens.weight + AutoModelForCausalLM.from_pretrained(folders / second).model.embed_tokens.weight
    ) / 2
    assert torch.allclose(out.model.embed_tokens.weight, both, atol=1e-6)
    assert torch.allclose(out.lm_head.weight, both if first == "tied_a" else one.lm_head.weight, atol=1e-6)


def test_a_changed_version_keeps_the_targets_head(folders: Path) -> None:
    """diff_vector copies the tuned model's settings, and the head that is left out is the target's."""
    sources = ("source_tuned=tied_a", "source_base=tied_b", "target_base=own_a")
    named = [f"sources.{name}={folders / folder}" for name, _, folder in (each.partition("=") for each in sources)]
    words = ["method=diff_vector", *named, "dataset=none", f"output_dir={folders / 'out'}", "trainer.progress=none"]
    with pytest.raises(UserError, match="language head of their own"):
        carry_out(compose(words))
    folder = carry_out(compose([*words, "method.exclude=[lm_head.weight]"])) / "checkpoints" / "model"
    out, target = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, folders / "own_a"))
    assert torch.equal(out.lm_head.weight, target.lm_head.weight)


@pytest.mark.parametrize("touched", ["embed_tokens", "lm_head"])
def test_an_adapter_of_one_use_of_a_tied_table(touched: str, folders: Path) -> None:
    """peft itself merges such an adapter into both uses, which is not what was trained; an untied copy is right."""

    def adapted(base: Path, load: Path | None) -> Any:
        model = AutoModelForCausalLM.from_pretrained(base)
        if load is not None:
            return peft.PeftModel.from_pretrained(model, load)
        settings: Any = {"r": 2, "target_modules": [touched, "q_proj"], "task_type": "CAUSAL_LM"}
        return peft.get_peft_model(model, peft.LoraConfig(**settings, init_lora_weights=False))

    torch.manual_seed(0)
    wrapped = adapted(folders / "tied_a", None)
    wanted = wrapped(IDS).logits
    wrapped.save_pretrained(folders / "lora")
    with pytest.raises(UserError, match="one of these uses") as error:
        open_models([folders / "lora"], str(folders / "tied_a"))
    assert touched in error.value.where
    untied = AutoModelForCausalLM.from_pretrained(folders / "tied_a", tie_word_embeddings=False)
    untied.lm_head.weight.data = untied.model.embed_tokens.weight.data.clone()
    untied.save_pretrained(folders / "untied")
    (model,), base = open_models([folders / "lora"], str(folders / "untied"))
    out = merge_in_memory(Job([model], base), TaskArithmeticRule(1.0))
    untied.load_state_dict(out)
    assert torch.allclose(untied(IDS).logits, wanted, atol=1e-4)
