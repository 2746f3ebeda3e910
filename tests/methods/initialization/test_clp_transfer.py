"""CLP-Transfer: body, embeddings and head of the result; what it refuses; a language under other names; whole runs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.methods.merging.test_runs import carried_out
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.methods.base import Context, Method
from transfer_run.methods.initialization.clp_transfer import CLPTransfer
from transfer_run.task import Task

TASK = Task("language_modeling", 0, metrics=("perplexity",))
WORDS = 40
OLD = [f"w{n}" for n in range(WORDS)]
NEW = [*OLD[: WORDS // 2], *(f"x{n}" for n in range(WORDS // 2, WORDS))]
"""The second half of the words has other names."""


def tokenizer(folder: Path, words: Sequence[str], **special: str) -> Path:
    """A tokenizer of whole words; special tokens first, and a continuation that says what kind it is."""
    special = special or {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {name: number for number, name in enumerate([*special.values(), *words, "##a"])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "old": str(tokenizer(folder / "old", OLD)),
        "new": str(tokenizer(folder / "new", NEW)),
        "turned": str(tokenizer(folder / "turned", OLD[::-1])),
        "strange": str(tokenizer(folder / "strange", [f"y{n}" for n in range(200)])),
        "ends": str(tokenizer(folder / "ends", OLD, unk_token="<unk>", eos_token="<|end|>", pad_token="<pad>")),
    }


def speaker(words: str, seed: int = 0, kind: str = "gpt2_tiny", **architecture: Any) -> Method:
    node: dict[str, Any] = dict(registry.entry("backbone", kind).content["backbone"])
    shape = {"gpt2_tiny": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_inner": 48},
             "llama_tiny": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}}[kind]  # fmt: skip
    settings = node["architecture"] | shape | {"vocab_size": WORDS + 4} | architecture
    node |= {"tokenizer": words, "weights": f"random:{seed}", "architecture": settings}
    return Method(build_backbone(node), TASK).eval()


def transferred(
    folder: Path, source: Method, words: str, helper: Method | None = None, *, architecture: Any = (), **settings: Any
) -> CLPTransfer:
    """The method on a fresh backbone of the source's kind, prepared."""
    there = source.backbone.config
    shape = there["architecture"] | dict(architecture)
    node = {**there, "tokenizer": words, "weights": "random:9", "architecture": shape}
    method = CLPTransfer(build_backbone(node), TASK, **settings)
    models_ = {"source": source, "helper": helper or speaker(words, 5, n_embd=16)}
    context = Context(0, folder, lambda *_: iter(()), load_source=models_.__getitem__, log=lambda line: None)
    method.prepare(context)
    return method.eval()


def table(method: Method) -> Tensor:
    found: Tensor = method.backbone.model.get_input_embeddings().weight
    return found.detach()


def head(method: Method) -> Tensor:
    found: Tensor = method.backbone.model.get_output_embeddings().weight
    return found.detach()


def batch(rows: int = 2, length: int = 6) -> dict[str, Tensor]:
    ids = torch.randint(3, WORDS + 3, (rows, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2_tiny", "llama_tiny"])
def test_with_the_sources_tokenizer_it_is_the_source(
    kind: str, tied: bool, tokenizers: dict[str, str], tmp_path: Path
) -> None:
    """Check 1, 7 and 8."""
    source = speaker(tokenizers["old"], kind=kind, tie_word_embeddings=tied)
    result = transferred(tmp_path, source, tokenizers["old"])
    given = batch()
    assert torch.equal(result(given), source(given))
    for name, tensor in source.backbone.model.state_dict().items():
        assert torch.equal(result.backbone.model.state_dict()[name], tensor)
    assert (head(result).data_ptr() == table(result).data_ptr()) == tied


def test_numbers_in_another_order_are_the_source_under_these(tokenizers: dict[str, str], tmp_path: Path) -> None:
    """Check 1, by number."""
    source = speaker(tokenizers["old"])
    result = transferred(tmp_path, source, tokenizers["turned"])
    order = torch.tensor([0, 1, 2, *range(WORDS + 2, 2, -1), WORDS + 3])
    given = batch()
    turned = {**given, "input_ids": order[given["input_ids"]]}
    torch.testing.assert_close(result(turned)[..., order], source(given))


@pytest.mark.parametrize("tied", [True, False])
def test_shared_rows_are_copied_and_the_others_are_means(
    tied: bool, tokenizers: dict[str, str], tmp_path: Path
) -> None:
    source = speaker(tokenizers["old"], tie_word_embeddings=tied)
    helper = speaker(tokenizers["new"], 5, n_embd=16)
    table(helper).abs_()  # no similarity is negative
    result = transferred(tmp_path, source, tokenizers["new"], helper)
    shared = [*range(3 + WORDS // 2), WORDS + 3]
    narrow = torch.nn.functional.normalize(table(helper))
    for new, old in ((table(result), table(source)), (head(result), head(source))):
        assert torch.equal(new[shared], old[shared])
        for v in range(3 + WORDS // 2, WORDS + 3):
            weights = narrow[shared] @ narrow[v]
            torch.testing.assert_close(new[v], weights / weights.sum() @ old[shared], rtol=1e-3, atol=1e-4)
    assert result.results["tokens"] == {
        "new": WORDS + 4, "old": WORDS + 4, "shared": WORDS // 2 + 4, "missing": WORDS // 2, "by_role": 0,
        "spare_rows": 0,
    }  # fmt: skip


def test_the_head_as_the_released_code_leaves_it(tokenizers: dict[str, str], tmp_path: Path) -> None:
    source = speaker(tokenizers["old"], tie_word_embeddings=False)
    result = transferred(tmp_path, source, tokenizers["old"], head="random")
    assert torch.equal(table(result), table(source))
    assert not torch.isclose(head(result), head(source)).any(1).all()
    assert float(head(result).std()) == pytest.approx(float(head(source).std()), rel=0.1)


def test_controls(tokenizers: dict[str, str], tmp_path: Path) -> None:
    """They read no helper; copied overlap keeps what is shared, random nothing."""
    source, shared = speaker(tokenizers["old"]), [*range(3 + WORDS // 2), WORDS + 3]
    for init, kept in (("copy_overlap_random_rest", True), ("random", False)):
        result = transferred(tmp_path, source, tokenizers["new"], helper=source, init=init)
        assert torch.equal(table(result)[shared], table(source)[shared]) == kept
        missing = table(result)[3 + WORDS // 2 : WORDS + 3]
        assert float(missing.std()) == pytest.approx(float(table(source).std()), rel=0.2)
        assert not torch.isclose(missing, table(source).mean(0), atol=1e-4).all()


def test_more_rows_than_tokens(tokenizers: dict[str, str], tmp_path: Path) -> None:
    source = speaker(tokenizers["old"])
    result = transferred(tmp_path, source, tokenizers["old"], architecture={"vocab_size": 64}.items())
    assert table(result).shape == (64, 32)
    torch.testing.assert_close(table(result)[WORDS + 4 :], table(source).mean(0).expand(64 - WORDS - 4, -1))
    assert result.results["tokens"]["spare_rows"] == 64 - WORDS - 4


def test_special_tokens_of_other_names(tokenizers: dict[str, str], tmp_path: Path) -> None:
    """The end is the end, whatever it is called; its number must be the backbone's."""
    source = speaker(tokenizers["old"])
    result = transferred(tmp_path, source, tokenizers["ends"], architecture={"pad_token_id": 2}.items())
    assert torch.equal(table(result)[1], table(source)[1])
    assert torch.equal(table(result)[0], table(source)[2])  # <unk> has changed places with <pad>
    assert result.results["tokens"]["by_role"] == 1


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        ("strange", {}, "Of the 204 tokens the source has 4"),
        ("ends", {}, "other numbers than the tokenizer's"),
        ("old", {"architecture": {"n_inner": 64}.items()}, "n_inner is 48 there, 64 here"),
        ("old", {"architecture": {"layer_norm_epsilon": 1e-3}.items()}, "layer_norm_epsilon is 1e-05 there"),
        ("old", {"architecture": {"n_layer": 2}.items()}, "another model than the backbone"),
        ("old", {"head": "transfer"}, "head is its embedding"),
        ("old", {"head": "tied", "architecture": {"tie_word_embeddings": False}.items()}, "weights of its own"),
    ],
)
def test_what_it_refuses(
    words: str, settings: dict[str, Any], said: str, tokenizers: dict[str, str], tmp_path: Path
) -> None:
    if words == "strange":
        settings = {"architecture": {"vocab_size": 204}.items()}
    with pytest.raises(UserError, match=said):
        transferred(tmp_path, speaker(tokenizers["old"]), tokenizers[words], **settings)


def test_a_helper_of_another_tokenizer_is_refused(tokenizers: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The helper has another tokenizer"):
        transferred(tmp_path, speaker(tokenizers["old"]), tokenizers["new"], speaker(tokenizers["old"], 5))


# ---- a language
def sentences(count: int, generator: torch.Generator) -> Tensor:
    """A walk: after a word comes one of the three behind it; the same language under both names."""
    ids = torch.randint(WORDS, (count, 1), generator=generator)
    for _ in range(15):
        ids = torch.cat([ids, (ids[:, -1:] + torch.randint(1, 4, (count, 1), generator=generator)) % WORDS], 1)
    return ids + 3


def train(method: Method, steps: int, rate: float = 3e-3) -> float:
    """The loss of the last of so many steps, each with sentences of its own."""
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=rate)
    generator, loss = torch.Generator().manual_seed(1), torch.zeros(())
    for _ in range(steps):
        ids = sentences(32, generator)
        loss = method.loss({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_a_language_under_other_names_begins_lower_and_stays_lower(tokenizers: dict[str, str], tmp_path: Path) -> None:
    """Check 9, with the guard: a helper of 16 numbers has cosines that nearly cancel, and begins at 32 without."""
    source, helper = speaker(tokenizers["old"]), speaker(tokenizers["new"], 5, n_embd=16)
    assert train(source, 200) < 2.0
    train(helper, 150, 1e-2)
    ids = sentences(64, torch.Generator().manual_seed(7))
    held_out = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    losses: dict[str, list[float]] = {}
    for init in ("clp", "copy_overlap_random_rest", "random"):
        method = transferred(tmp_path, source, tokenizers["new"], helper, init=init, weights={"guard": 0.5})
        start = float(method.loss(held_out).detach())
        train(method, 15)
        losses[init] = [start, float(method.loss(held_out).detach())]
    assert losses["clp"][0] < losses["copy_overlap_random_rest"][0] < losses["random"][0], losses
    assert losses["clp"][1] < losses["random"][1], losses


# ---- through the runner
LINES = "\n".join(f"the {a} cat sat on the {b} mat, and {a} dogs ran to it" for a in ("red", "old", "big") for b in OLD)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A text that needs no time to be read, and a model for it."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(LINES, encoding="utf-8")
    data = ("dataset=text_files", f"dataset.path={file}", "dataset.form=language_modeling", "dataset.batch_size=4")
    small = ("backbone.architecture.n_layer=1", "backbone.architecture.n_embd=32", "backbone.architecture.n_inner=48")
    return ("backbone=gpt2_tiny", "dataset.max_source_length=16", *data, *small)


def run_of(*more: str) -> str:
    """Words of a run as one word; those of runs below it are quoted."""
    quoted = (f'"{each}"' if "'" in each else f"'{each}'" for each in more)
    return " ".join(word if " " in each else each for each, word in zip(more, quoted, strict=True))


def test_a_run_leaves_a_model_for_transformers_and_for_later_runs(words: tuple[str, ...], tmp_path: Path) -> None:
    """Check 8: the folder that is exported, the curve, the plan, and a run that goes on from it."""
    new = f"run:{run_of('method=train_tokenizer', 'method.size=300', *words)}"
    once = ("trainer.max_steps=1", "trainer.progress=none")
    source = run_of("method=pretrain", *words, *once)
    own = (*words, f"backbone.tokenizer={new}", "backbone.architecture.vocab_size=300")
    helper = run_of("method=pretrain", *own, *once, "backbone.architecture.n_embd=16")
    asked = (
        "method=clp_transfer", *own, f"sources.source={source}", f"sources.helper={helper}", "trainer.max_steps=4",
        "trainer.validate_steps=2", "trainer.log_every=1",
    )  # fmt: skip
    run, result = carried_out(tmp_path / "runs", *asked, f"export={tmp_path / 'out'}")
    assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.02)
    assert result["extra"]["tokens"]["shared"] == 256 + 3
    assert result["extra"]["tokenizers"] == {"new": "byte_level", "old": "bytes"}
    assert [row["tokens"] for row in result["extra"]["learning"]] == [0, 128, 256]
    start = result["extra"]["learning"][0]["perplexity"]
    assert result["metrics"]["start/perplexity"] == pytest.approx(start, abs=1e-5)
    with (run / "learning.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["tokens"]) for row in rows] == [0, 64, 128, 192, 256]
    assert (run / "learning.png").stat().st_size > 1000

    there = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert model.config.vocab_size == 300
    ids = there("the old cat sat", return_tensors="pt")["input_ids"]
    assert there.decode(ids[0]) == "the old cat sat"
    later = f"backbone.weights=run:{run_of(*asked)}"
    _, after = carried_out(tmp_path / "runs", "method=linear_probe", *own, later, "trainer.max_steps=1")
    assert after["metrics"]["test/perplexity"] == pytest.approx(result["metrics"]["test/perplexity"], rel=0.2)
    bytes_ = [word for word in own if not word.startswith("backbone.tokenizer")]
    with pytest.raises(UserError, match="reads text by bytes, its weights have learned tokens"):
        compose(["method=linear_probe", *bytes_, later, f"output_dir={tmp_path / 'runs'}"])


def test_a_plan_names_a_source_of_another_shape_before_anything_is_read(words: tuple[str, ...], tmp_path: Path) -> None:
    source = run_of("method=pretrain", *words, "backbone.architecture.n_layer=2", "trainer.max_steps=1")
    with pytest.raises(UserError, match="another model than the backbone"):
        carried_out(tmp_path, "method=clp_transfer", *words, f"sources.source={source}", f"sources.helper={source}")
    assert not list(tmp_path.rglob("result.json"))
