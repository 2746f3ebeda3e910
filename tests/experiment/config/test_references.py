"""Backbones that a method's key names: words become configs, configs become sources and part of the run's identity."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config import compose as compose_module
from transfer_run.experiment.config import composed as composed_module
from transfer_run.experiment.config import tree as tree_module
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.references import named_backbones, recorded_runs
from transfer_run.experiment.models.handover import resolved_backbone
from transfer_run.experiment.planning import dry_run
from transfer_run.experiment.sources.resolve import source_tree, sources_of

WORDS = ("method=tmi", "dataset=digits", "backbone=vit_tiny", "backbone.weights=random")


def pool(*members: str, reads: str = "backbones") -> dict[str, Any]:
    return {"method": {"about": {"reads": {"pool": reads}}, "pool": list(members)}}


def test_members_are_backbones_with_their_own_or_with_other_weights() -> None:
    found = named_backbones(pool("cnn_tiny", "vit_tiny", "vit_tiny:random:3"))["pool"]
    assert list(found) == ["cnn_tiny", "vit_tiny", "vit_tiny:random:3"]
    assert found["cnn_tiny"]["family"] == "cnn"
    assert found["vit_tiny"]["weights"].startswith("run:method=pretrain")
    assert found["vit_tiny:random:3"] == {**found["vit_tiny"], "weights": "random:3"}


@pytest.mark.parametrize("values", [{}, {"method": {}}, pool("mean", reads="paths"), {"method": {"pool": None}}])
def test_other_methods_have_no_pool(values: dict[str, Any]) -> None:
    assert named_backbones(values) == {}


def test_an_unknown_member_is_refused_by_composition() -> None:
    with pytest.raises(UserError, match="no backbone 'cnn_tniy'") as error:
        compose([*WORDS, "method.pool=[cnn_tniy]"])
    assert error.value.nearest[0] == "cnn_tiny"
    assert error.value.where == "method.pool: cnn_tniy"


def test_weights_of_a_member_must_be_there_and_are_told_by_their_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"weights\.safetensors does not exist") as error:
        compose([*WORDS, 'method.pool=["vit_tiny:weights.safetensors"]'])
    assert error.value.where == "method.pool: vit_tiny:weights.safetensors"
    Path("weights.safetensors").write_bytes(b"some")
    first = compose([*WORDS, 'method.pool=["vit_tiny:weights.safetensors"]'])
    Path("weights.safetensors").write_bytes(b"others")
    assert compose([*WORDS, 'method.pool=["vit_tiny:weights.safetensors"]']).identity != first.identity


def test_a_seed_of_random_weights_is_a_number() -> None:
    with pytest.raises(UserError, match="'many' is no seed") as error:
        compose([*WORDS[:3], "backbone.weights=random:many"])
    assert error.value.where == "backbone.weights=random:many"


@pytest.mark.parametrize("word", ["backbone.weights=run:", "dataset.rows=run:", "sources.teacher=null", "sources.a=''"])
def test_a_key_that_reads_a_run_names_one(word: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(UserError, match=f"{key} names no run") as error:
        compose([*WORDS[:3], word])
    assert error.value.where == key


def test_a_member_that_cannot_read_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="dataset=digits holds images, which backbone=bert_tiny"):
        compose([*WORDS, "method.pool=[bert_tiny]"])


def test_the_pool_and_its_weights_are_part_of_the_identity() -> None:
    pools = ("null", "[cnn_tiny]", "[cnn_tiny:random:1]", "[vit_tiny]", "[cnn_tiny,vit_tiny]")
    found = [compose([*WORDS, f"method.pool={members}"]).identity for members in pools]
    assert len(set(found)) == len(pools)


def test_a_member_is_one_however_it_is_written() -> None:
    forms = (
        "[cnn_tiny,vit_tiny:random:1]",
        "[cnn_tiny,vit_tiny weights=random:1]",
        "['cnn_tiny','vit_tiny weights=random:1']",
    )
    found = [compose([*WORDS, f"method.pool={members}"]) for members in forms]
    assert found[2].config["method"]["pool"] == ["cnn_tiny", "vit_tiny:random:1"]
    assert len({run.identity for run in found}) == 1


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("vit_tiny weight=random", "Only the weights of a backbone can be set here"),
        ("vit_tiny random", "not KEY=VALUE"),
    ],
)
def test_words_of_a_member_that_cannot_be_read(member: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        compose([*WORDS, f"method.pool=['{member}']"])
    assert error.value.where == f"method.pool: {member}"


def test_weights_that_name_a_run_are_a_source() -> None:
    cfg = compose([*WORDS, "method.pool=[cnn_tiny,vit_tiny]"])
    (source,) = sources_of(cfg)
    assert source.name == "pool.vit_tiny"
    assert source.run is not None
    assert source.run.config["method"]["name"] == "pretrain"


def test_weights_of_a_source_are_found_in_its_folder(tmp_path: Any) -> None:
    node = named_backbones(pool("vit_tiny"))["pool"]["vit_tiny"]
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "run.log").touch()
    found = resolved_backbone(node, {"pool.vit_tiny": tmp_path}, "pool.vit_tiny")
    assert found == {**node, "weights": str(tmp_path / "checkpoints" / "model")}
    assert resolved_backbone(node, {"backbone": tmp_path}, "pool.vit_tiny") == node


# ---- finished runs that a method looks for
def finished(output: Path, method: str, identity: str) -> Path:
    folder = output / "runs" / "digits" / f"{method}-vit_tiny-{identity[:8]}"
    folder.mkdir(parents=True)
    result = {"status": "finished", "method": method, "identity": identity}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def test_the_same_words_after_a_new_run_are_a_new_run(tmp_path: Path) -> None:
    words = [*WORDS, f"output_dir={tmp_path}"]
    alone = compose(words)
    assert alone.config["contents"] == {}
    finished(tmp_path, "lora", "1" * 64)  # of another method than method.reference_method
    finished(tmp_path, "tmi", "2" * 64)  # of its own
    assert compose(words).identity == alone.identity
    folder = finished(tmp_path, "full", "3" * 64)
    first = compose(words)
    assert first.identity != alone.identity
    assert first.config["contents"] == {"method.tuned": "33333333"}
    assert recorded_runs(first.config) == {"tuned": [folder]}
    other = finished(tmp_path, "full", "4" * 64)
    second = compose(words)
    assert second.identity not in (first.identity, alone.identity)
    assert recorded_runs(first.config) == {"tuned": [folder]}, "what came later is not read by the run before"
    assert recorded_runs(second.config) == {"tuned": [folder, other]}
    assert compose([*words, "method.reference_method=null"]).config["contents"] == {}


@pytest.mark.parametrize(
    ("method", "word", "message"),
    [
        ("tmi", "method.reference_method=fll", "There is no method 'fll'"),
        ("auto_distiller", "method.runs=nowhere", "method.runs=nowhere does not exist"),
        ("auto_distiller", f"method.runs={__file__}", r"test_references\.py is no folder"),
    ],
)
def test_finished_runs_of_nobody_or_nowhere(method: str, word: str, message: str) -> None:
    bert = ("backbone=bert_tiny", "dataset=python_docs", "sources.teacher=method=full", "sources.baseline=method=full")
    with pytest.raises(UserError, match=message) as error:
        compose([f"method={method}", *(WORDS[1:3] if method == "tmi" else bert), "backbone.weights=random", word])
    assert error.value.where.startswith(word.partition("=")[0])


def test_a_source_looks_for_finished_runs_where_it_will_stand(tmp_path: Path) -> None:
    finished(tmp_path, "full", "3" * 64)
    words = ["method=tmi", *WORDS[1:], f"output_dir={tmp_path}"]
    asking = compose([*words, f"sources.x='{' '.join(WORDS)}'"])
    assert asking.sources["x"].identity == compose(words).identity


# ---- one composition, one digest, one hash for each run of a tree
def test_every_run_of_a_tree_is_composed_digested_and_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transfer_run.experiment.run import carry_out

    seed = abs(hash(str(tmp_path))) % 10**6  # words that nobody has composed before
    teacher = f"method=full backbone=bert_tiny backbone.weights=random:0 dataset=python_docs seed={seed}"
    words = ["method=distiller", *teacher.split()[1:], f"sources.teacher={teacher}"]
    words += [f"sources.baseline={teacher}", f"output_dir={tmp_path}", "hardware=cpu", "dry_run=true"]
    calls = Counter[str]()

    def counted(where: Any, name: str) -> None:
        made = getattr(where, name)

        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return made(*arguments, **named)

        monkeypatch.setattr(where, name, call)

    counted(tree_module, "digests")
    counted(compose_module.Composer, "composed")
    counted(composed_module, "identity")
    monkeypatch.setattr(dry_run, "plan_run", lambda run: (_ for _ in ()).throw(NotImplementedError("no plan")))
    run = compose(words)
    with pytest.raises(NotImplementedError):
        carry_out(run)
    assert dict(calls) == {"digests": 2, "composed": 2, "identity": 2}  # the run and the one that it names twice


A, B = 'sources.a="method=adapter backbone=bert_tiny seed=1"', 'sources.b="method=adapter backbone=bert_tiny seed=2"'
OF_SOURCES = ("method=scalearn", "backbone=bert_tiny")


def test_a_key_of_sources_is_filled_in_with_all_that_are_named() -> None:
    run = compose([*OF_SOURCES, A, B])
    assert run.config["method"]["tasks"] == ["a", "b"]
    assert compose([*OF_SOURCES, A, B, "method.tasks=[a,b]"]).identity == run.identity
    assert compose([*OF_SOURCES, B, A]).config["method"]["tasks"] == ["b", "a"]


def test_a_key_of_sources_chooses_from_a_pool() -> None:
    chosen = compose([*OF_SOURCES, A, B, "method.tasks=[b]"])
    assert list(chosen.config["sources"]) == ["b"]
    assert [source.name for source in sources_of(chosen)] == ["b"]
    assert compose([*OF_SOURCES, B]).identity == chosen.identity
    turned = compose([*OF_SOURCES, A, B, "method.tasks=[b,a]"])
    assert list(turned.config["sources"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("tasks", "words", "nearest"),
    [
        ("[aa]", "lists a source 'aa', and none of that name is given", "a"),
        ("[a,b,a]", "lists the source 'a' twice", ""),
    ],
)
def test_a_key_of_sources_lists_what_is_named_once(tasks: str, words: str, nearest: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        compose([*OF_SOURCES, A, B, f"method.tasks={tasks}"])
    assert refused.value.where == "method.tasks"
    assert "".join(refused.value.nearest[:1]) == nearest


def test_a_method_of_sources_without_any_is_refused_before_it_is_built() -> None:
    with pytest.raises(UserError, match="method=scalearn works on sources, and the run names none"):
        source_tree(compose([*OF_SOURCES]))
