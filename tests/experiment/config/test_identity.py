"""The same result has the same identity, any other result another one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.config.composed import write_config
from transfer_run.experiment.config.identity import NEUTRAL, canonical, identity

USER = Path(__file__).parents[2] / "user_configs"
BASE = ("method=toy", "backbone=small", "dataset=sentences")

KEYS = st.text("abcdefgh_", min_size=1, max_size=6)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False), st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

CONFIGS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=6)


def turned(value: Any) -> Any:
    """The same config with every mapping written in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(list(value))}
    return [turned(item) for item in value] if isinstance(value, list) else value


def rewritten(value: Any) -> Any:
    """The same config with whole numbers as floats and whole floats as integers."""
    if isinstance(value, dict):
        return {key: rewritten(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rewritten(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def hashed(config: Any) -> str:
    """The identity of a config that names no run."""
    return identity(config, {}, {})


@few
@given(CONFIGS)
def test_order_and_formatting_change_nothing(config: dict[str, Any]) -> None:
    assert hashed(config) == hashed(turned(config)) == hashed(rewritten(config))


@few
@given(CONFIGS)
def test_a_round_through_yaml_changes_nothing(config: dict[str, Any]) -> None:
    try:
        text = OmegaConf.to_yaml(OmegaConf.create(config))
        read = OmegaConf.create(text)
    except Exception:  # texts that are YAML or interpolation syntax themselves cannot be written this way
        assume(False)
    assume(OmegaConf.to_container(read) == config)
    assert hashed(OmegaConf.to_container(read)) == hashed(config)


@few
@given(CONFIGS, st.sampled_from(NEUTRAL), VALUES)
def test_neutral_keys_change_nothing(config: dict[str, Any], key: str, value: Any) -> None:
    top, _, rest = key.partition(".")
    assume(not rest or isinstance(config.get(top, {}), dict))
    value = ["/a/folder"] if key == "search_path" else value
    changed = {**config, top: {**config.get(top, {}), rest: value} if rest else value}
    plain = {**config, top: config.get(top, {})} if rest else config
    assert hashed(changed) == hashed(plain)


@few
@given(CONFIGS, st.dictionaries(KEYS, SCALARS, max_size=3))
def test_descriptions_change_nothing(config: dict[str, Any], about: dict[str, Any]) -> None:
    assert hashed({**config, "method": {"rank": 1, "about": about}}) == hashed({**config, "method": {"rank": 1}})


@few
@given(CONFIGS, KEYS, VALUES)
def test_any_other_change_changes_the_identity(config: dict[str, Any], key: str, value: Any) -> None:
    changed = {**config, key: value}
    assume(canonical(changed) != canonical(config))
    assert hashed(changed) != hashed(config)


@few
@given(VALUES, VALUES)
def test_canonical_text_is_equal_exactly_for_equal_values(left: Any, right: Any) -> None:
    def typed(value: Any) -> Any:
        """Booleans apart from the numbers that Python takes them for."""
        if isinstance(value, dict):
            return {key: typed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [typed(item) for item in value]
        return ("bool", value) if isinstance(value, bool) else value

    assert (canonical(left) == canonical(right)) == (typed(left) == typed(right))


@cache
def of(*words: str) -> str:
    return compose([*BASE, *words], str(USER)).identity


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.lr=0.01"],
        ["optimizer.lr=1e-2"],
        ["method.scale=1"],
        ["force=true", "output_dir=elsewhere", "logger=tensorboard", "profiler=none", "export=out"],
        ["hardware=2gpu"],
        ["hardware=slurm", "hardware.slurm.minutes=5"],
        ["trainer.progress=none", "trainer.checkpoint_every=3", "trainer.tracked_steps=0"],
        ["plan.profile=paper", "dry_run=true"],
        ["plan.paper_method=false"],
    ],
)
def test_words_that_ask_for_the_same_result(words: list[str]) -> None:
    assert of(*words) == of()


@pytest.mark.parametrize(
    "word",
    ["seed=1", "optimizer.lr=0.02", "dataset.batch_size=9", "trainer.max_epochs=8", "trainer.accumulate=2",
     "method.depth=4", "method.inner.bias=false", "backbone.architecture.d_model=9",
     "hardware.precision=bf16-mixed", "optimizer=sgd", "trainer.gradient_clip=null", "sources.a=/some/folder"],
)  # fmt: skip
def test_words_that_ask_for_another_result(word: str) -> None:
    assert of(word) != of()


def test_a_source_counts_as_the_run_that_its_words_name() -> None:
    words = " ".join(BASE)
    asked = of(f"sources.t='{words}'")
    assert asked == of(f"sources.t='seed=0 force=true {words}'")
    assert asked != of(f"sources.t='{words} seed=1'")
    assert asked != of()
    assert asked != of(f"sources.other='{words}'")


def test_a_source_is_the_same_run_by_words_by_identity_and_by_folder(tmp_path: Path) -> None:
    words = " ".join([*BASE, "seed=5"])
    source = compose([*BASE, "seed=5"], str(USER))
    write_config(tmp_path, source.config)
    (tmp_path / "run.log").touch()
    assert of(f"sources.t='{words}'") == of(f"sources.t={source.identity}") == of(f"sources.t={tmp_path}")


def test_weights_of_a_run_are_a_source() -> None:
    words = " ".join(BASE)
    assert of(f"backbone.weights='run:{words}'") == of(f"backbone.weights='run:{words} seed=0'")
    assert of(f"backbone.weights='run:{words}'") != of(f"backbone.weights='run:{words} seed=1'")


def test_wrong_words_of_a_source_are_named() -> None:
    with pytest.raises(UserError, match="There is no method 'ty'") as error:
        of("sources.t='method=ty'")
    assert error.value.where == "sources.t: method=ty"


def test_a_run_that_needs_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    words = f"method=toy dataset=sentences backbone=circular hydra.searchpath=[{USER},{tmp_path}]"
    text = (USER / "backbone" / "small.yaml").read_text().replace("name: small", "name: circular")
    (tmp_path / "backbone" / "circular.yaml").write_text(text.replace("weights: random", f'weights: "run:{words}"'))
    with pytest.raises(UserError, match="needs itself"):
        compose(words.split())


def test_run_folder(tmp_path: Path) -> None:
    cfg = compose([*BASE, f"output_dir={tmp_path}"], str(USER))
    assert cfg.folder == tmp_path / "runs" / "sentences" / f"toy-small-{cfg.identity[:8]}"


def test_run_folder_keeps_the_datasets_path_and_flattens_the_others() -> None:
    named = {
        "method": {"name": "peft/dora"},
        "backbone": {"name": "google/flan-t5-base"},
        "dataset": {"name": "glue/rte"},
    }
    cfg = compose(BASE, str(USER)).changed(**named)
    assert cfg.folder.parent == Path("outputs/runs/glue/rte")
    assert cfg.folder.name.startswith("peft_dora-google_flan-t5-base-")


@pytest.mark.parametrize(("key", "value"), [("patience", 3), ("validate_steps", 50)])
def test_a_key_that_came_later_changes_nothing_while_it_is_null(key: str, value: int) -> None:
    cfg = compose(["method=linear_probe", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random"])
    trainer = {name: setting for name, setting in cfg.config["trainer"].items() if name != key}
    assert cfg.identity == hashed({**cfg.config, "trainer": trainer})
    assert cfg.identity != hashed({**cfg.config, "trainer": {**trainer, key: value}})


@pytest.mark.parametrize(
    ("key", "nothing", "values"),
    [
        ("augment", None, (["invert"], ["invert p=1"])),
        ("augment", [], (["invert"],)),
        ("class_weights", None, ("balanced", [1, 2])),
        ("label_smoothing", None, (0.1, 0.2)),
    ],
)
def test_what_changes_training_is_in_the_identity_only_where_it_is_set(
    key: str, nothing: Any, values: tuple[Any, ...]
) -> None:
    plain = {"dataset": {"name": "pictures"}, "seed": 0}
    assert hashed({**plain, "dataset": {"name": "pictures", key: nothing}}) == hashed(plain)
    set_so = [hashed({**plain, "dataset": {"name": "pictures", key: value}}) for value in values]
    assert len({*set_so, hashed(plain)}) == len(values) + 1


@pytest.mark.parametrize(
    ("one", "other"), [("random:", "random"), ("random:007", "random:7"), ("random:0", "random:00")]
)
def test_weights_that_are_the_same_are_one_run(one: str, other: str) -> None:
    words = ["method=full", "backbone=vit_tiny", "dataset=digits"]
    runs = [compose([*words, f"backbone.weights={each}"]) for each in (one, other)]
    assert runs[0].identity == runs[1].identity
