"""Where weights come from, what is checked about them, and what a user is told when they cannot be had."""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import transfer_run
from tests.backbones.conftest import CLIP
from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import backbone_class, build_backbone
from transfer_run.backbones.weights.settings import folder_architecture
from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.checkpoint import open_checkpoint

Configs = Callable[[str], dict[str, Any]]
CLIP_TEXT: Any = CLIP["text_config"]
KINDS = pytest.mark.parametrize("name", ["t5", "t5_v1_1", "bert", "roberta", "deberta", "gpt2", "llama", "clip"])


def tensors(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}


def same(left: Backbone, right: Backbone) -> bool:
    a, b = left.model.state_dict(), right.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---- random weights
def test_random_weights_depend_on_the_seed_alone(config_of: Configs) -> None:
    config = config_of("vit")
    torch.manual_seed(5)
    first = build_backbone(config)
    torch.rand(100)
    second = build_backbone(config)
    assert same(first, second)
    assert first.provenance["weights"] == "random:5"
    again = build_backbone(config | {"weights": first.provenance["weights"]})
    assert again.provenance["checksum"] == first.provenance["checksum"]
    torch.manual_seed(6)
    other = build_backbone(config)
    assert other.provenance["checksum"] != first.provenance["checksum"]
    assert same(build_backbone(config | {"weights": "hub"}, weights=False), other)


def test_building_does_not_disturb_the_random_state(config_of: Configs) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_backbone(config_of("bert"))
    assert torch.equal(torch.rand(3), expected)


def test_no_seed(config_of: Configs) -> None:
    with pytest.raises(UserError, match="no seed"):
        build_backbone(config_of("vit") | {"weights": "random:many"})


def test_meta_takes_no_memory(config_of: Configs) -> None:
    backbone = build_backbone(config_of("llama") | {"weights": "hub"}, device="meta")
    assert {p.device.type for p in backbone.parameters()} == {"meta"}
    assert "checksum" not in backbone.provenance


# ---- folders
@KINDS
def test_a_transformers_folder(config_of: Configs, tmp_path: Path, name: str) -> None:
    source = build_backbone(config_of(name) | {"weights": "random:3"})
    source.model.save_pretrained(tmp_path)
    for architecture in (source.config["architecture"], None):
        config = config_of(name) | {"weights": str(tmp_path), "architecture": architecture}
        loaded = build_backbone(config)
        assert same(loaded, source)
        assert loaded.provenance == {
            "source": "folder", "weights": str(tmp_path), "checksum": source.provenance["checksum"]
        }  # fmt: skip
    if name.startswith("t5"):
        last = torch.randn(1, 2, 32)
        torch.testing.assert_close(loaded.language_logits(last), source.language_logits(last), atol=0, rtol=0)


def test_settings_of_the_config_override_the_folder(config_of: Configs, tmp_path: Path) -> None:
    build_backbone(config_of("bert")).model.save_pretrained(tmp_path)
    config = config_of("bert")
    architecture = config["architecture"] | {"hidden_dropout_prob": 0.3}
    loaded = build_backbone(config | {"weights": str(tmp_path), "architecture": architecture})
    assert loaded.model.embeddings.dropout.p == 0.3


@pytest.mark.parametrize("name", ["vit", "vit_average", "resnet", "mobilenet"])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_timm_folder_or_file(config_of: Configs, tmp_path: Path, name: str, as_file: bool) -> None:
    source = build_backbone(config_of(name) | {"weights": "random:3"})
    save_file(tensors(source), tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors" if as_file else tmp_path
    assert same(build_backbone(config_of(name) | {"weights": str(path)}), source)


def test_a_pretrained_timm_classifier_is_kept_beside_the_model(config_of: Configs, tmp_path: Path) -> None:
    source = build_backbone(config_of("vit"))
    head = {"head.weight": torch.randn(10, 32), "head.bias": torch.randn(10)}
    save_file(tensors(source) | head, tmp_path / "model.safetensors")
    loaded = build_backbone(config_of("vit") | {"weights": str(tmp_path)})
    assert same(loaded, source)
    assert loaded.source_head is not None
    assert all(torch.equal(*pair) for pair in zip(loaded.source_head, head.values(), strict=True))


@pytest.mark.parametrize("kind", ["BartModel", "BartForConditionalGeneration", "BartForSequenceClassification"])
def test_the_encoder_out_of_a_whole_bart(config_of: Configs, tmp_path: Path, kind: str) -> None:
    import transformers

    source = build_backbone(config_of("bart") | {"weights": "random:3"})
    whole = getattr(transformers, kind)(source.model.config)
    encoder = whole.get_submodule("encoder" if kind == "BartModel" else "model.encoder")
    encoder.load_state_dict(source.model.state_dict())
    whole.save_pretrained(tmp_path / "safe")
    assert same(build_backbone(config_of("bart") | {"weights": str(tmp_path / "safe")}), source)
    (tmp_path / "old").mkdir()  # old files hold the shared table three times
    source.model.config.save_pretrained(tmp_path / "old")
    torch.save(whole.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    assert same(build_backbone(config_of("bart") | {"weights": str(tmp_path / "old")}), source)


def test_an_exported_bart_is_the_encoder_of_the_librarys_whole_model(config_of: Configs, tmp_path: Path) -> None:
    from transformers import BartModel

    source = build_backbone(config_of("bart") | {"weights": "random:3"})
    source.save_library(tmp_path)
    there = BartModel.from_pretrained(tmp_path).encoder.state_dict()
    assert all(torch.equal(there[name], tensor) for name, tensor in source.model.state_dict().items())


@pytest.mark.parametrize("name", ["t5", "bert", "bart", "vit_average", "resnet_deep", "clip"])
def test_what_the_library_saved(config_of: Configs, tmp_path: Path, name: str) -> None:
    source = build_backbone(config_of(name) | {"weights": "random:3"})
    source.save_library(tmp_path)
    loaded = build_backbone(config_of(name) | {"weights": str(tmp_path)})
    assert same(loaded, source)
    assert loaded.source_head is None


def test_timm_weights_for_another_image(config_of: Configs, tmp_path: Path) -> None:
    """Larger images get their positions by interpolation, grey ones the sum of the colours' filters."""
    source = build_backbone(config_of("vit"))
    save_file(tensors(source), tmp_path / "model.safetensors")
    config = config_of("vit") | {"weights": str(tmp_path)}
    larger = build_backbone(config | {"architecture": config["architecture"] | {"img_size": 12}})
    assert larger.model.pos_embed.shape[1] == 37
    assert torch.equal(larger.model.pos_embed[:, 0], source.model.pos_embed[:, 0])
    grey = build_backbone(config | {"architecture": config["architecture"] | {"in_chans": 1}})
    summed = source.model.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.model.patch_embed.proj.weight, summed)


def test_no_pickle_is_executed(config_of: Configs, tmp_path: Path) -> None:
    """An old pytorch_model.bin is read as tensors; one that would run code is refused and does not run it."""
    source = build_backbone(config_of("bert"))
    source.model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors(source), tmp_path / "pytorch_model.bin")
    config = config_of("bert") | {"weights": str(tmp_path)}
    assert same(build_backbone(config), source)

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"embeddings": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="could run code"):
        build_backbone(config)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(UserError, match="could run code"):
        build_backbone(config)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["bert", "vit"])
@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_damaged_files(config_of: Configs, tmp_path: Path, name: str, content: bytes) -> None:
    backbone = build_backbone(config_of(name))
    if name == "bert":
        backbone.model.config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        build_backbone(config_of(name) | {"weights": str(tmp_path)})


# ---- what does not fit
def test_nothing_there(config_of: Configs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder nor a file") as error:
        build_backbone(config_of("bert") | {"weights": "rndom"})
    assert error.value.nearest == ["random"]
    for name in ("bert", "vit"):
        with pytest.raises(UserError, match=r"config\.json is missing|no weights"):
            build_backbone(config_of(name) | {"weights": str(tmp_path)})


def test_another_model(config_of: Configs, tmp_path: Path) -> None:
    build_backbone(config_of("gpt2")).model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="of a model of type 'gpt2', the backbone is of type 'bert'"):
        build_backbone(config_of("bert") | {"weights": str(tmp_path)})


@pytest.mark.parametrize(("name", "change"), [("bert", {"intermediate_size": 40}), ("vit", {"embed_dim": 64})])
def test_another_shape(config_of: Configs, tmp_path: Path, name: str, change: dict[str, int]) -> None:
    source = build_backbone(config_of(name))
    if name == "bert":
        source.model.save_pretrained(tmp_path)
    else:
        save_file(tensors(source), tmp_path / "model.safetensors")
    config = config_of(name) | {"weights": str(tmp_path)}
    if name == "bert":  # the folder's settings say nothing of it
        stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        (tmp_path / "config.json").write_text(json.dumps(stored | change), encoding="utf-8")
    with pytest.raises(UserError, match=r"of another shape \(.* in the file, .* here"):
        build_backbone(config | {"architecture": config["architecture"] | change})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("bert", {"num_hidden_layers": 5}, "num_hidden_layers"),
        ("bert", {"num_attention_heads": 8}, "num_attention_heads"),
        ("bert", {"layer_norm_eps": 1e-3}, "layer_norm_eps"),
        ("bert", {"hidden_act": "relu"}, "hidden_act"),
        ("roberta", {"pad_token_id": 2}, "pad_token_id"),
        ("deberta", {"position_buckets": 4}, "position_buckets"),
        ("bart", {"encoder_attention_heads": 8}, "encoder_attention_heads"),
        ("gpt2", {"n_head": 8}, "n_head"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters"),
        ("llama", {"rms_norm_eps": 1e-3}, "rms_norm_eps"),
        ("llama", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("mistral", {"sliding_window": 8}, "sliding_window"),
        ("t5", {"relative_attention_max_distance": 64}, "relative_attention_max_distance"),
        ("t5", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("clip", {"text_config": {**CLIP_TEXT, "hidden_act": "gelu"}}, r"text_config\.hidden_act"),
        ("vit", {"num_heads": 8}, "num_heads"),
    ],
)
def test_settings_of_the_folder_are_not_overruled(
    config_of: Configs, tmp_path: Path, name: str, change: dict[str, Any], said: str
) -> None:
    """Whatever has the same shapes and computes something else is refused by name, and read with the folder's own."""
    config = config_of(name)
    other = {**config["architecture"], **change}
    source = build_backbone(config | {"weights": "random:3", "architecture": other})
    source.save_library(tmp_path)
    with pytest.raises(UserError, match=rf"other settings than the backbone's: .*{said} is") as error:
        build_backbone(config | {"weights": str(tmp_path)})
    assert "backbone.architecture=folder" in error.value.remedy
    architecture = folder_architecture(tmp_path)
    taken = config | {"weights": str(tmp_path), "architecture": architecture}
    loaded = build_backbone(taken)
    assert same(loaded, source)
    with torch.device("meta"):
        assert (
            backbone_class(taken).from_architecture(taken).model.state_dict().keys() == source.model.state_dict().keys()
        )
    if name == "llama":
        assert torch.equal(loaded.model.model.rotary_emb.inv_freq, source.model.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_missing_tensors(config_of: Configs, tmp_path: Path, name: str) -> None:
    source = build_backbone(config_of(name))
    if name == "vit":
        save_file(tensors(source), tmp_path / "model.safetensors")
    else:
        source.model.save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    gone = sorted(key for key in kept if ".1." in key)[0]
    del kept[gone]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 missing") as error:
        build_backbone(config_of(name) | {"weights": str(tmp_path)})
    assert gone.removeprefix("model.") in str(error.value)


def test_missing_shard(config_of: Configs, tmp_path: Path) -> None:
    build_backbone(config_of("bert")).model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    config = config_of("bert") | {"weights": str(tmp_path)}
    assert build_backbone(config).provenance["source"] == "folder"
    shards[1].unlink()
    with pytest.raises(UserError, match="no complete weights"):
        build_backbone(config)


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ({"family": "vitt"}, "vit"),
        ({"architecture": {"model": "resnet81"}}, "resnet18"),
        ({"architecture": {"model": "vit_tiny_patch16_224", "imgsize": 8}}, None),
        ({"family": "encoder", "architecture": {"model_type": "brt"}}, "bert"),
        ({"family": "encoder", "architecture": {"model_type": "bert", "hiden_size": 8}}, "hidden_size"),
        ({"family": "encoder", "architecture": {"model_type": "bert"}, "pooling": "means"}, "mean"),
        ({"family": "decoder", "architecture": {"model_type": "lama"}}, "llama"),
        ({"family": "clip", "architecture": {}, "tower": "images"}, "image"),
        ({"family": "vit", "architecture": {"model": "resnet18"}}, None),
        ({"family": "cnn", "architecture": {"model": "vit_tiny_patch16_224"}}, None),
    ],
)
def test_wrong_words(config_of: Configs, change: dict[str, Any], nearest: str | None) -> None:
    with pytest.raises(UserError) as error:
        build_backbone(config_of("vit") | change, device="meta")
    assert nearest is None or nearest in error.value.nearest


# ---- the model of an earlier run
def save_run(folder: Path, backbone: Backbone, complete: bool = True) -> None:
    folder.mkdir()
    shared: set[int] = set()
    kept = {}
    for name, parameter in (*backbone.named_parameters(), *backbone.named_buffers()):
        if parameter.data_ptr() not in shared and name in backbone.state_dict():
            shared.add(parameter.data_ptr())
            kept[f"backbone.{name}"] = parameter.detach().clone()
    head = {"backbone.head.weight": torch.ones(2, backbone.feature_width), "backbone.head.bias": torch.zeros(2)}
    save_file(kept | head, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps({"complete": complete}))


@pytest.mark.parametrize("name", ["t5", "t5_v1_1", "vit", "resnet"])
def test_an_earlier_run(config_of: Configs, tmp_path: Path, name: str) -> None:
    source = build_backbone(config_of(name) | {"weights": "random:3"})
    save_run(tmp_path / "model", source)
    loaded = build_backbone(config_of(name) | {"weights": str(tmp_path / "model")})
    assert same(loaded, source)
    assert loaded.provenance["source"] == "run"
    assert loaded.source_head is not None
    assert loaded.source_head[0].shape == (2, loaded.feature_width)
    assert loaded.provenance["checksum"] == source.provenance["checksum"]


def test_a_run_that_froze_its_backbone(config_of: Configs, tmp_path: Path) -> None:
    save_run(tmp_path / "model", build_backbone(config_of("vit")), complete=False)
    with pytest.raises(UserError, match="no whole backbone"):
        build_backbone(config_of("vit") | {"weights": str(tmp_path / "model")})


def test_an_untied_head_does_not_overwrite_the_embedding(config_of: Configs, tmp_path: Path) -> None:
    """Two different tensors for what is one here: refused, not the last one taken."""
    save_run(tmp_path / "model", build_backbone(config_of("t5_v1_1")))
    config = config_of("t5") | {"weights": str(tmp_path / "model")}
    architecture = config_of("t5_v1_1")["architecture"] | {"tie_word_embeddings": True}
    with pytest.raises(UserError, match="one and the same here"):
        build_backbone(config | {"architecture": architecture})


# ---- imports
@pytest.mark.long
def test_a_family_imports_its_own_library_only() -> None:
    script = """
import sys
from transfer_run.backbones.load import backbone_class
[backbone_class({"family": family}) for family in ("t5", "encoder", "decoder")]
assert "timm" not in sys.modules, "timm"
"""
    other = """
import sys
from transfer_run.backbones.load import backbone_class
[backbone_class({"family": family}) for family in ("vit", "cnn")]
assert "transformers" not in sys.modules, "transformers"
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for text in (script, other):
        done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_backbone_is_told_by_its_builder_alone() -> None:
    """What a backbone knows of itself is set where it is built, or by itself: nothing else reaches in."""
    own = {"provenance", "activation_checkpointing", "replay", "in_bf16", "stream", "source_head"}
    root = Path(transfer_run.__file__).parent
    allowed = {
        root / "backbones" / "base.py",
        root / "backbones" / "load.py",
        *(root / "backbones/families").glob("*.py"),
    }
    reaching = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in own
        if path not in allowed and ast.unparse(node.value) != "self"
    ]
    assert reaching == []


def test_a_backbone_may_be_built_with_checkpointing() -> None:
    config = {"name": "tiny", "family": "vit", "architecture": {"model": "vit_tiny_patch16_224", "depth": 1}}
    built = [build_backbone(config, device="meta", checkpointing=checkpointing) for checkpointing in (False, True)]
    assert [backbone.activation_checkpointing for backbone in built] == [False, True]


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_weights_that_are_no_numbers(config_of: Configs, tmp_path: Path, name: str) -> None:
    source = build_backbone(config_of(name) | {"weights": "random:3"})
    broken = next(n for n in source.model.state_dict() if n.endswith(".weight") and ".1." in n)
    source.model.state_dict()[broken].view(-1)[3] = float("inf")
    source.save_library(tmp_path)
    with pytest.raises(UserError, match=rf"no finite numbers \({broken}\)"):
        build_backbone(config_of(name) | {"weights": str(tmp_path)})


# ---- files as people have them
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["bert", "llama", "bart", "t5", "vit", "resnet"])
def test_names_of_torchs_wrappers(config_of: Configs, tmp_path: Path, name: str, prefix: str) -> None:
    source = build_backbone(config_of(name) | {"weights": "random:3"})
    source.save_library(tmp_path)
    kept = {f"{prefix}{key}": tensor for key, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert same(build_backbone(config_of(name) | {"weights": str(tmp_path)}), source)


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_classifiers_body(config_of: Configs, tmp_path: Path, prefixed: bool) -> None:
    """`bert.` before its names, and a head of its own, in a file with or without."""
    source = build_backbone(config_of("bert") | {"weights": "random:3"})
    source.save_library(tmp_path)
    own = load_file(tmp_path / "model.safetensors")
    kept = {f"bert.{key}" if prefixed else key: tensor for key, tensor in own.items()}
    save_file(
        {**kept, "classifier.weight": torch.ones(2, 32)}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    assert same(build_backbone(config_of("bert") | {"weights": str(tmp_path)}), source)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_programs_checkpoint(config_of: Configs, tmp_path: Path, key: str) -> None:
    source = build_backbone(config_of("resnet") | {"weights": "random:3"})
    wrapped = {f"module.{name}": tensor for name, tensor in tensors(source).items()}
    torch.save({key: wrapped, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "last.pth")
    assert same(build_backbone(config_of("resnet") | {"weights": str(tmp_path / "last.pth")}), source)
    torch.save({"epoch": 3, "optimizer": {"state": {}}}, tmp_path / "last.pth")
    with pytest.raises(UserError, match="no table of tensors"):
        build_backbone(config_of("resnet") | {"weights": str(tmp_path / "last.pth")})


def test_a_distilled_deit(tmp_path: Path) -> None:
    """Two tokens, two classifiers: the features are timm's own."""
    import timm

    words = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 4}
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, **words).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    architecture = {"model": "deit_tiny_distilled_patch16_224", **words}
    config = {"name": "deit", "family": "vit", "weights": str(tmp_path), "architecture": architecture}
    loaded = build_backbone(config).eval()
    assert loaded.source_head is None
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        state = loaded.run(loaded.embed({"pixel_values": images}))
        wanted = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        torch.testing.assert_close(loaded.pool(loaded.finish(state), state), wanted, atol=1e-5, rtol=0)


def test_positions_without_a_class_token(config_of: Configs, tmp_path: Path) -> None:
    config = config_of("vit")
    bare = {**config["architecture"], "class_token": False, "global_pool": "avg"}
    source = build_backbone(config | {"architecture": bare})
    save_file(tensors(source), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"positions of the weights do not fit .* cls_token not there") as error:
        build_backbone(config | {"weights": str(tmp_path)})
    assert "class_token=false" in error.value.remedy
    assert same(build_backbone(config | {"weights": str(tmp_path), "architecture": bare}), source)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_images_of_other_channels(config_of: Configs, name: str) -> None:
    backbone = build_backbone(config_of(name))
    with pytest.raises(UserError, match="Images of 1 channels reached a model for 3"):
        backbone.embed({"pixel_values": torch.zeros(2, 1, 8, 8)})


def test_a_bare_decoder_and_an_encoder_without_pooler(config_of: Configs, tmp_path: Path) -> None:
    config = config_of("llama")
    source = build_backbone(config | {"weights": "random:3"})
    source.model.model.save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match=r"1 missing \(lm_head.weight\)") as error:
        build_backbone(config | {"weights": str(tmp_path / "llama")})
    assert "tie_word_embeddings=true" in error.value.remedy
    tied = config["architecture"] | {"tie_word_embeddings": True}
    loaded = build_backbone(config | {"weights": str(tmp_path / "llama"), "architecture": tied})
    body = source.model.model.state_dict()
    assert all(torch.equal(tensor, body[name]) for name, tensor in loaded.model.model.state_dict().items())
    bert = config_of("bert")
    plain = build_backbone(bert | {"weights": "random:3", "pooling": "mean"})
    plain.save_library(tmp_path / "bert")
    with pytest.raises(UserError, match=r"2 missing \(pooler") as error:
        build_backbone(bert | {"weights": str(tmp_path / "bert")})
    assert "backbone.pooling=mean" in error.value.remedy
    assert same(build_backbone(bert | {"weights": str(tmp_path / "bert"), "pooling": "mean"}), plain)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "pytorch_model.bin"])
def test_damaged_files_beside_and_half_a_file(config_of: Configs, tmp_path: Path, file: str) -> None:
    source = build_backbone(config_of("bert"))
    source.model.save_pretrained(tmp_path, max_shard_size="20KB")
    if file == "pytorch_model.bin":
        for path in tmp_path.glob("model*"):
            path.unlink()
        torch.save(tensors(source), tmp_path / file)
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    else:
        (tmp_path / file).write_text("{ nothing", encoding="utf-8")
    with pytest.raises(UserError, match=r"damaged|cannot be read"):
        build_backbone(config_of("bert") | {"weights": str(tmp_path)})
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {}}', encoding="utf-8")
    source.model.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="weight_map"):
        build_backbone(config_of("bert") | {"weights": str(tmp_path)})


def test_one_file_and_an_index_are_one_model(config_of: Configs, tmp_path: Path) -> None:
    """A single file stands before an index, for every reader."""
    whole, shards = (build_backbone(config_of("bert") | {"weights": f"random:{seed}"}) for seed in (3, 4))
    shards.model.save_pretrained(tmp_path, max_shard_size="20KB")
    save_file(tensors(whole), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert same(build_backbone(config_of("bert") | {"weights": str(tmp_path)}), whole)
    merging = open_checkpoint(tmp_path)
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(merging.read(name, 0, 64), whole.model.state_dict()[name].flatten()[:64])


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("place", ["folder", "file"])
def test_codes_are_no_weights_whatever_the_settings_say(
    config_of: Configs, tmp_path: Path, kind: torch.dtype, place: str
) -> None:
    """A config.json without `quantization_config`, or none: they would be read as numbers, and scales averaged."""
    build_backbone(config_of("llama")).model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    held = load_file(file)
    name = next(each for each in held if each.endswith("q_proj.weight"))
    save_file({**held, name: held[name].to(kind)}, file, metadata={"format": "pt"})
    where = tmp_path if place == "folder" else file
    with pytest.raises(UserError, match=rf"quantised \({name} are codes"):
        open_checkpoint(where)
    if place == "folder":
        with pytest.raises(UserError, match=rf"quantised \({name} are codes"):
            build_backbone(config_of("llama") | {"weights": str(where)})


def test_quantised_weights_are_refused(config_of: Configs, tmp_path: Path) -> None:
    build_backbone(config_of("llama")).model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    stored["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(UserError, match=r"quantised \(bitsandbytes load_in_4bit\)"):
        build_backbone(config_of("llama") | {"weights": str(tmp_path)})
    with pytest.raises(UserError, match="quantised"):
        open_checkpoint(tmp_path)
