"""The pool of a scoring method: names become configs, configs become sources and part of the run's identity."""

from __future__ import annotations

from typing import Any

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.pool import candidate_configs
from transfer_run.experiment.models.handover import resolved_backbone
from transfer_run.experiment.sources.resolve import sources_of

WORDS = ("method=tmi", "dataset=digits", "backbone=vit_tiny", "backbone.weights=random")


def pool(*members: str, shape: str = "score") -> dict[str, Any]:
    return {"method": {"about": {"shape": shape}, "pool": list(members)}}


def test_members_are_backbones_with_their_own_or_with_other_weights() -> None:
    found = candidate_configs(pool("cnn_tiny", "vit_tiny", "vit_tiny:random:3"))
    assert list(found) == ["cnn_tiny", "vit_tiny", "vit_tiny:random:3"]
    assert found["cnn_tiny"]["family"] == "cnn"
    assert found["vit_tiny"]["weights"].startswith("run:method=pretrain")
    assert found["vit_tiny:random:3"] == {**found["vit_tiny"], "weights": "random:3"}


@pytest.mark.parametrize("values", [{}, {"method": {}}, pool("mean", shape="tune"), {"method": {"pool": None}}])
def test_other_methods_have_no_pool(values: dict[str, Any]) -> None:
    assert candidate_configs(values) == {}


def test_an_unknown_member_is_refused_by_composition() -> None:
    with pytest.raises(UserError, match="no backbone 'cnn_tniy'") as error:
        compose([*WORDS, "method.pool=[cnn_tniy]"])
    assert error.value.nearest[0] == "cnn_tiny"
    assert error.value.where == "method.pool: cnn_tniy"


def test_a_member_that_cannot_read_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="dataset=digits holds images, which backbone=bert_tiny"):
        compose([*WORDS, "method.pool=[bert_tiny]"])


def test_the_pool_and_its_weights_are_part_of_the_identity() -> None:
    pools = ("null", "[cnn_tiny]", "[cnn_tiny:random:1]", "[vit_tiny]", "[cnn_tiny,vit_tiny]")
    found = [compose([*WORDS, f"method.pool={members}"]).identity for members in pools]
    assert len(set(found)) == len(pools)


def test_weights_that_name_a_run_are_a_source() -> None:
    cfg = compose([*WORDS, "method.pool=[cnn_tiny,vit_tiny]"])
    (source,) = sources_of(cfg)
    assert source.name == "pool.vit_tiny"
    assert source.run is not None
    assert source.run.config["method"]["name"] == "pretrain"


def test_weights_of_a_source_are_found_in_its_folder(tmp_path: Any) -> None:
    node = candidate_configs(pool("vit_tiny"))["vit_tiny"]
    (tmp_path / "config.yaml").touch()
    (tmp_path / "run.log").touch()
    found = resolved_backbone(node, {"pool.vit_tiny": tmp_path}, "pool.vit_tiny")
    assert found == {**node, "weights": str(tmp_path / "checkpoints" / "model")}
    assert resolved_backbone(node, {"backbone": tmp_path}, "pool.vit_tiny") == node
