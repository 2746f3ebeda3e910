"""What `export` writes is loaded by the library it is written for, and gives the outputs of the trained model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import transfer_run
from transfer_run.backbones.base import Batch
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.models.export import export_run
from transfer_run.experiment.run import carry_out
from transfer_run.methods.base import Method

SHORT = ("hardware=cpu", "profiler=none", "trainer.max_steps=2", "trainer.progress=none", "dataset.batch_size=4")
TEXT = ("backbone=bert_tiny", "dataset=python_docs", "backbone.weights=random:0")
T5 = ("backbone=t5_tiny", "dataset=python_docs", "dataset.answers=names", "backbone.weights=random:0")
GPT2 = ("backbone=gpt2_tiny", "dataset=python_docs", "backbone.weights=random:0")
DIGITS = ("backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0")
QUICK = ("optimizer.lr=0.05", "optimizer.warmup=0")


def slow(value: str) -> Any:
    """A case that a quick round leaves out."""
    return pytest.param(value, marks=pytest.mark.slow)


def config(tmp_path: Path, *words: str) -> Run:
    return compose([*SHORT, *QUICK, f"output_dir={tmp_path}", *words])


def exported(tmp_path: Path, *words: str) -> tuple[Path, Method, dict[str, Any]]:
    """The exported folder, the model as the run saved it, and the description of the export."""
    run = carry_out(config(tmp_path, *words, f"export={tmp_path / 'out'}"))
    out = tmp_path / "out"
    return out, transfer_run.load(run), json.loads((out / "model.json").read_text(encoding="utf-8"))


def texts(rows: int = 3, length: int = 12) -> Batch:
    ids = torch.randint(3, 250, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def images() -> Batch:
    return {"pixel_values": torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


@torch.no_grad()
def hidden(method: Method, batch: Batch) -> Tensor:
    return method.backbone.finish(method.run(method.embed(batch, method.backbone.stacks[0])))


def close(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, atol=1e-5))


@torch.no_grad()
def check_again(out: Path, method: Method, batch: Batch) -> None:
    """`transfer_run.load` gives the whole model back, head included."""
    assert close(transfer_run.load(out)(batch), method(batch))
    assert (out / "README.md").read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("method", ["lora", "ia3", "peft/dora", slow("peft/vera"), slow("peft/adalora")])
def test_peft_loads_its_own_tuners(method: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    words = ["method.settings.target_r=4", "method.settings.init_r=6"] if method == "peft/adalora" else []
    steps = ["trainer.max_steps=4", *words] if words else []
    out, trained, about = exported(tmp_path, *TEXT, f"method={method}", *steps)
    assert about["library"] == "peft"
    assert {"adapter_config.json", "adapter_model.safetensors", "head.safetensors"} <= {p.name for p in out.iterdir()}
    base = AutoModel.from_pretrained(out / "base", add_pooling_layer=False).eval()
    batch = texts()
    with torch.no_grad():
        plain = base(**batch).last_hidden_state
        model = PeftModel.from_pretrained(base, str(out)).eval()
        assert close(model(**batch).last_hidden_state, hidden(trained, batch))
    assert not close(plain, hidden(trained, batch)), "the adapter does something"
    check_again(out, trained, batch)


@pytest.mark.parametrize("method", ["full", slow("lora")])
def test_barts_encoder_stands_in_the_librarys_whole_model(method: str, tmp_path: Path) -> None:
    """As the page beside it says: `BartModel.from_pretrained(...).encoder`; and BART's own head comes along."""
    from peft import PeftModel
    from transformers import BartModel

    bart = ("backbone=bart_tiny", "dataset=python_docs", "backbone.weights=random:0")
    out, trained, about = exported(tmp_path, *bart, f"method={method}")
    assert about["library"] == ("peft" if method == "lora" else "transformers")
    assert '").encoder' in (out / "README.md").read_text(encoding="utf-8")
    model = BartModel.from_pretrained(out / "base" if method == "lora" else out).encoder.eval()
    if method == "lora":
        model = PeftModel.from_pretrained(model, str(out)).eval()
    batch = texts()
    with torch.no_grad():
        assert close(model(**batch).last_hidden_state, hidden(trained, batch))
    assert {"head.dense.weight", "head.out_proj.weight"} <= set(load_file(out / "head.safetensors"))
    check_again(out, trained, batch)


@pytest.mark.parametrize("biases", ["none", "all"])
def test_a_tuned_encoder_decoder_is_peft_or_merged_where_peft_would_drop_its_position_biases(
    biases: str, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

    out, trained, about = exported(tmp_path, *T5, "method=lora", f"method.bias={biases}", "optimizer.lr=1e-3")
    assert about["library"] == ("peft" if biases == "none" else "transformers")
    model = T5ForConditionalGeneration.from_pretrained(out / "base" if biases == "none" else out).eval()
    if biases == "none":
        model = PeftModel.from_pretrained(model, str(out)).eval()
    batch = texts()
    labels = torch.randint(3, 250, (3, 5))
    with torch.no_grad():
        ours = trained({**batch, "labels": labels})
        assert close(model(**batch, labels=labels).logits, ours)


@pytest.mark.parametrize("method", ["lora", "ia3", "bitfit", slow("partial"), slow("layernorm")])
def test_what_peft_has_no_form_for_is_merged_into_timms_model(method: str, tmp_path: Path) -> None:
    """timm fuses q, k and v in one projection, which peft could only adapt as a whole."""
    import timm

    out, trained, about = exported(tmp_path, *DIGITS, f"method={method}")
    assert about["library"] == "timm"
    model = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        features = model(images()["pixel_values"])
        assert close(features, trained.features(images()))
    check_again(out, trained, images())


@pytest.mark.parametrize("words", [("method=lora", "method.targets=[q,v,mlp_in]"), ("method=ia3",), ("method=bitfit",)])
def test_fused_projections_of_gpt2_are_merged(words: tuple[str, ...], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out, trained, about = exported(tmp_path, *GPT2, *words)
    assert about["library"] == "transformers"
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    batch = texts()
    with torch.no_grad():
        assert close(model.transformer(**batch).last_hidden_state, hidden(trained, batch))
    check_again(out, trained, batch)


@pytest.mark.parametrize("words", [TEXT, T5, ("backbone=cnn_tiny", *DIGITS[1:])], ids=["bert", "t5", "cnn"])
def test_a_fully_trained_model_opens_in_its_own_library(words: tuple[str, ...], tmp_path: Path) -> None:
    import timm
    from transformers import AutoModel, T5ForConditionalGeneration

    out, trained, about = exported(tmp_path, *words, "method=full", "optimizer.lr=1e-3")
    batch = images() if "cnn" in words[0] else texts()
    with torch.no_grad():
        if about["library"] == "timm":
            model = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0).eval()
            assert close(model(batch["pixel_values"]), trained.features(batch))
            check_again(out, trained, batch)
        elif "t5" in words[0]:
            labels = torch.randint(3, 250, (3, 5))
            whole = T5ForConditionalGeneration.from_pretrained(out).eval()
            assert close(whole(**batch, labels=labels).logits, trained({**batch, "labels": labels}))
            assert close(transfer_run.load(out)({**batch, "labels": labels}), trained({**batch, "labels": labels}))
        else:
            encoder = AutoModel.from_pretrained(out, add_pooling_layer=False).eval()
            assert close(encoder(**batch).last_hidden_state, hidden(trained, batch))
            check_again(out, trained, batch)


@pytest.mark.parametrize("method", ["lst", "adapter", "prompt_tuning"])
def test_what_no_library_holds_comes_with_a_loader(method: str, tmp_path: Path) -> None:
    words = {"lst": ["method.init=random"], "prompt_tuning": ["method.length=3"]}.get(method, [])
    out, trained, about = exported(tmp_path, *TEXT, f"method={method}", *words)
    assert about["library"] == ""
    assert "transfer_run.load" in (out / "README.md").read_text(encoding="utf-8")
    check_again(out, trained, texts())


def test_an_export_is_a_backbone_for_later_runs(tmp_path: Path) -> None:
    for words in (("method=lora", "method.targets=[q]"), ("method=bitfit",)):
        out, trained, _ = exported(tmp_path / words[0], *TEXT, *words)
        probe = config(
            tmp_path, *TEXT[:2], "method=linear_probe", f"backbone.weights={out}", "backbone.tokenizer=bytes"
        )
        assert close(hidden(transfer_run.load(carry_out(probe)), texts()), hidden(trained, texts()))


def test_a_finished_runs_folder_is_exported_by_a_command(tmp_path: Path) -> None:
    run = carry_out(config(tmp_path, *TEXT, "method=linear_probe"))
    command = [str(Path(sys.executable).parent / "transfer-run"), f"run={run}"]
    done = subprocess.run([*command, f"export={tmp_path / 'out'}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    check_again(tmp_path / "out", transfer_run.load(run), texts())
    wrong = subprocess.run([*command, "seed=1"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert "export=DIR" in wrong.stderr


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    run = carry_out(config(tmp_path, *TEXT, "method=linear_probe"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        export_run(run, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").is_file()
