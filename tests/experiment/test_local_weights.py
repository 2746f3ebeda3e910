"""The README's command for the hub's models, on local weights as their library saves them, and local data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out

SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
PAIRS = [
    ("A cat sleeps on the red chair.", "An animal sleeps.", "entailment"),
    ("The train left at nine.", "The train never left.", "not_entailment"),
    ("Two boys carry a boat to the lake.", "A boat is carried.", "entailment"),
    ("She sold her house last year.", "She bought a house last year.", "not_entailment"),
]


def words_of(folder: Path) -> Tokenizer:
    """A tokenizer of whole words with T5's special tokens, saved as the library saves one."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [" ".join(pair) for pair in PAIRS] + ["rte sentence1 sentence2 : 0 1"]
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A T5's weights with its tokenizer, and RTE's columns as local files."""
    weights, data = tmp_path_factory.mktemp("t5"), tmp_path_factory.mktemp("rte")
    words_of(weights)
    config = T5Config(vocab_size=32128, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **SIZES)
    T5ForConditionalGeneration(config).save_pretrained(weights)
    for split in ("train", "validation"):
        rows = [{"sentence1": a, "sentence2": b, "label": label} for a, b, label in PAIRS * 4]
        lines = "\n".join(json.dumps(row) for row in rows)
        (data / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return weights, data


def lst(weights: Path, data: Path, *more: str) -> list[str]:
    sizes = [f"backbone.architecture.{key}={value}" for key, value in SIZES.items()]
    words = ["method=lst", "backbone=t5-base", "dataset=glue/rte", f"backbone.weights={weights}", "hardware=cpu"]
    return [*words, f"dataset.path={data}", "method.reduction_factor=2", "trainer.progress=none", *sizes, *more]


@pytest.mark.slow
def test_lst_on_local_weights_and_data(folders: tuple[Path, Path], tmp_path: Path) -> None:
    words = lst(
        *folders,
        "trainer.max_steps=4",
        "dataset.batch_size=8",
        "dataset.max_source_length=20",
        f"output_dir={tmp_path}",
    )
    result = json.loads((carry_out(compose(words)) / "result.json").read_text(encoding="utf-8"))
    assert (result["method"], result["backbone"], result["dataset"]) == ("lst", "t5-base", "glue/rte")
    assert 0 <= result["metrics"]["test/accuracy"] <= 1
    assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.6)  # shorter texts
    about = json.loads(next(tmp_path.rglob("model.json")).read_text(encoding="utf-8"))
    assert about["provenance"]["source"] == "folder"


def test_weights_of_another_size_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    words = [w for w in lst(*folders, f"output_dir={tmp_path}") if not w.startswith("backbone.architecture.d_ff")]
    with pytest.raises(UserError, match="other settings than the backbone's: d_ff"):
        carry_out(compose(words))


def test_the_architecture_of_the_folder(tmp_path: Path) -> None:
    """Written out when the run is composed: a plan, the identity and a model that is loaded again have it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    rope = {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
    LlamaForCausalLM(LlamaConfig(vocab_size=400, rope_parameters=rope, **sizes)).save_pretrained(tmp_path)
    words = ["method=full", "backbone=llama_tiny", "dataset=python_docs", "backbone.architecture=folder"]
    run = compose([*words, f"backbone.weights={tmp_path}"])
    architecture = run.config["backbone"]["architecture"]
    assert {**architecture, **sizes, "rope_parameters": rope, "vocab_size": 400} == architecture
    assert architecture["model_type"] == "llama"
    for weights in ("random", f"{tmp_path / 'model.safetensors'}"):
        with pytest.raises(UserError, match="Only a folder says which architecture"):
            compose([*words, f"backbone.weights={weights}"])
