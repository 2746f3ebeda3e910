"""Wrong command lines without end: every group of choices and every key, each wrong in one way, from a seed.

    base words (one for each method, backbone, data set, ...) ── one word made wrong ──> Line(words, named)

What is made wrong follows from what a key may be (`schema.Type`): another type, out of its bounds, misspelt, taken out,
several values, a word that is none. A line is only given where it is surely wrong, so that it must be refused and the
message must hold `named`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.matrix.smallest import methods
from tests.matrix.smallest import words as smallest_run
from transfer_run.backbones.declared import families
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import Composer
from transfer_run.experiment.config.schema import ABOUT, Type, flatten, type_of

ALL_SHAPES = ("tune", "stage", "combine", "distil", "score", "reshape")
GROUPS = ("method", "backbone", "dataset", "optimizer", "hardware", "logger", "profiler", "experiment")
PLACES = ("dataset.path", "dataset.rows", "backbone.weights", "backbone.tokenizer")
LONG = "x" * 300
"""Longer than the name of a file may be."""


@dataclass(frozen=True)
class Line:
    """A command line that is wrong.

    Attributes:
        words: as on the command line.
        named: what the message must hold, the key's last part or the group.
    """

    words: tuple[str, ...]
    named: str


@cache
def bases() -> list[tuple[str, ...]]:
    """Valid words that between them choose every file of every group."""
    found = [tuple(smallest_run(method, "outputs")) for method in methods(*ALL_SHAPES)]
    text, image = ("method=linear_probe", "backbone=bert_tiny"), ("method=linear_probe", "backbone=vit_tiny")
    pairs = ("method=linear_probe", "backbone=clip_tiny")
    for entry in registry.entries("backbone"):
        family = families()[entry.family]
        data = "digits" if "images" in family.reads else "python_docs"
        found.append(("method=full", f"backbone={entry.name}", f"dataset={data}"))
    for dataset in registry.names("dataset"):
        found += [(*own, f"dataset={dataset}") for own in (text, image, pairs)]
    for group in ("optimizer", "hardware", "logger", "profiler"):
        found += [(*image, "dataset=digits", f"{group}={name}") for name in registry.names(group)]
    found += [(f"experiment={name}",) for name in registry.names("experiment")]
    return found


@cache
def keys(base: tuple[str, ...]) -> dict[str, tuple[Type, Any]]:
    """What every key of a run of these words may be, and what it is; empty where they do not fit together."""
    composer = Composer()
    try:
        values, types = dict(composer.composed(list(base))[0]), composer.types(base)
    except Exception:
        return {}
    leaves = {key: value for key, value in flatten(values).items() if f".{ABOUT}." not in key}
    return {key: (types.get(key) or type_of(value), value) for key, value in leaves.items()}


@cache
def open_keys(base: tuple[str, ...]) -> frozenset[str]:
    """Keys below which any key may stand."""
    said = Composer().types(base)
    return frozenset({key for key, kind in said.items() if kind.name == "dict"}) | frozenset(
        {"sources", "contents", "backbone.architecture", "dataset.nodes", "dataset.beside", "dataset.tests"}
    )


def lines(seed: str) -> Iterator[Line]:
    """Wrong command lines, without end: of one run after the other each kind of mistake."""
    dice = random.Random(seed)
    while True:
        base = dice.choice(bases())
        if keys(base):
            for kind in dice.sample(KINDS, len(KINDS)):
                made = kind(dice, base)
                if made is not None:
                    yield made


# ---- one word made wrong
def wrong_choice(dice: random.Random, base: tuple[str, ...]) -> Line:
    """A choice that there is not."""
    group = dice.choice(GROUPS)
    name = dice.choice(registry.names(group))
    value = dice.choice([_misspelt(dice, name), f"{name}/", f"../{group}/{name}", f"{name}.yaml", name.upper() + "X",
                         LONG, "../../../etc/passwd", "''", "' '", "é", "_base"])  # fmt: skip
    return Line((*base, f"{group}={value}"), group)


def no_choice(dice: random.Random, base: tuple[str, ...]) -> Line:
    """A group that is given something else than a name."""
    group = dice.choice(GROUPS[:-1])
    value = dice.choice(["[]", "[null]", "null", "{a:1}", "[lst,lora]", "1", "true", "1.5", "choice(1,2)", "range(1,3)",
                         "a,b", "{}", "???", "${seed}"])  # fmt: skip
    return Line((*base, f"{group}={value}"), group)


def misspelt_key(dice: random.Random, base: tuple[str, ...]) -> Line | None:
    key = dice.choice(sorted(keys(base)))
    parent, dot, last = key.rpartition(".")
    wrong = f"{parent}{dot}{_misspelt(dice, last)}"
    if wrong in keys(base) or not parent or _open(base, parent):
        return None
    return Line((*base, f"{wrong}=1"), wrong.rpartition(".")[2])


def below_a_value(dice: random.Random, base: tuple[str, ...]) -> Line | None:
    """A key below one that holds a value."""
    key = _some_key(dice, base, lambda kind: kind.name in ("int", "float", "bool", "choice"))
    return key and Line((*base, f"{key}.{dice.choice(['x', 'name', '0'])}={dice.choice(['1', 'null'])}"), _last(key))


def taken_out(dice: random.Random, base: tuple[str, ...]) -> Line | None:
    """A key, a group of keys or a choice that a run needs."""
    key = dice.choice(sorted(key for key in keys(base) if not _open(base, key.rpartition(".")[0])))
    parts = key.split(".")
    name = dice.choice([key, key, ".".join(parts[: max(1, len(parts) - 1)]), parts[0]])
    return None if name in ("experiment", "hydra") else Line((*base, f"~{name}"), _last(name))


def wrong_type(dice: random.Random, base: tuple[str, ...]) -> Line | None:
    """A value of another type than the key's."""
    key = _some_key(dice, base, lambda kind: kind.name != "any")
    if key is None:
        return None
    kind = keys(base)[key][0]
    return Line((*base, f"{key}={dice.choice(_not_of(kind))}"), _last(key))


def out_of_bounds(dice: random.Random, base: tuple[str, ...]) -> Line | None:
    key = _some_key(dice, base, lambda kind: bool(kind.bounds))
    if key is None:
        return None
    kind = keys(base)[key][0]
    sign, bound = dice.choice(kind.bounds)
    step = dice.choice([1, 1000, 10**30])
    beyond = -step if sign in (">=", ">") else step
    values = {">=": bound + beyond, "<=": bound + beyond}
    values |= {strict: bound + dice.choice([0, beyond]) for strict in (">", "<")}
    value = values[sign]
    written = str(int(value)) if kind.name == "int" or kind.item == "int" else repr(float(value))
    if kind.name == "list":
        written = f"[{','.join([written] * (kind.length or 1))}]"
    return Line((*base, f"{key}={written}"), _last(key))


def several_values(dice: random.Random, base: tuple[str, ...]) -> Line:
    """A sweep over a key, without -m."""
    key = dice.choice(sorted(keys(base)))
    value = dice.choice(["1,2", "range(1,3)", "choice(1,2)", "glob(*)", "interval(0,1)", "a,b", "shuffle(1,2)",
                         "[1],[2]", "tag(a,choice(1,2))"])  # fmt: skip
    return Line((*base, f"{key}={value}"), _last(key))


def no_word(dice: random.Random, base: tuple[str, ...]) -> Line:
    """Something that is no KEY=VALUE."""
    key = str(_some_key(dice, base, lambda kind: kind.name != "any"))
    word = dice.choice([key, f"={key}", f"{key} =1", f"{key}=[1", f"{key}='1", f'{key}="1', f"{key}={{a", f"{key}=${{",
                        f"{key}=${{nope}}", f"{key}=${{oc.env:NOT_SET_ANYWHERE}}", f"{key}=${{nope:1}}", f"{key}=???",
                        f"--{key}", f"++{key}", f"{key}@x=1", f"@{key}=1", f".{key}=1", f"{key}.=1",
                        f"{key}..x=1", f"{key}[0]=1", f"{key}:1", f"{key}=[[]"])  # fmt: skip
    return Line((*base, word), _last(key))


def wrong_place(dice: random.Random, base: tuple[str, ...]) -> Line | None:
    """A file or folder that is not there."""
    places = [key for key in keys(base) if key in PLACES]
    if not places:
        return None
    key = dice.choice(places)
    value = dice.choice(["./nowhere", "/nowhere/at/all", f"/{LONG}", LONG, "~nobody_of_that_name/x", "/etc/passwd/x",
                         "run:nowhere", "run:seed=x", "run:method=nope", "[a]", "run:method", "stage:", "**/nowhere",
                         "run:", "run:seed=1 seed"])  # fmt: skip
    return Line((*base, f"{key}={value}"), _last(key))


def wrong_source(dice: random.Random, base: tuple[str, ...]) -> Line:
    """Words inside words."""
    key = dice.choice(["sources.teacher", "sources.a", "stages", "dataset.tests.a", "dataset.beside.a", "sources",
                       "dataset.tests", "dataset.beside"])  # fmt: skip
    value = dice.choice(["nope", "method=nope", "method=full seed=x", "[1]", "[[1]]", "[[seed=x]]", "1", "choice(1,2)",
                         "{a:1}", "{a:{b:c}}", "[[dataset=nope]]", "[[method=full],[method=nope]]", "{a: nope}", "true",
                         "{1: 2}", "1.5", LONG, "'digits classes=[0'", "'digits nope=1'", "'digits classes=a'",
                         "/nowhere", "[[~method]]", "[{seed: x}]"])  # fmt: skip
    named = "" if key == "stages" else key.partition(".")[0]  # what is wrong in a stage has a key of its own
    return Line((*base, f"{key}={value}"), named)


def wrong_hydra(dice: random.Random, base: tuple[str, ...]) -> Line:
    """Hydra's own node."""
    word = dice.choice(["hydra/launcher=nope", "hydra/launcher=[]", "hydra/launcher=[joblib]", "hydra/sweeper=nope",
                        "hydra.nope=1", "hydra.sweeper.params.seed=1", "hydra.searchpath=[nowhere]", "~hydra",
                        "hydra.searchpath=nowhere", "hydra.searchpath=[pkg://nope]", "hydra.mode=nope", "hydra.run=1",
                        "hydra.run.dir=[1]", "hydra.job.nope=1", "hydra.searchpath={a:1}", "hydra=1",
                        "hydra.launcher=1",
                        "hydra.sweep.dir=[1]", "hydra.verbose=[[", "hydra/nope=1", "hydra/job_logging=nope",
                        "hydra.searchpath=1", "hydra.output_subdir={a:1}"])  # fmt: skip
    return Line((*base, word), "hydra")


KINDS: tuple[Callable[[random.Random, tuple[str, ...]], Line | None], ...] = (
    wrong_choice, no_choice, misspelt_key, below_a_value, taken_out, wrong_type, out_of_bounds, several_values, no_word,
    wrong_place, wrong_source, wrong_hydra,
)  # fmt: skip


# ---- parts
def _misspelt(dice: random.Random, name: str) -> str:
    place = dice.randrange(len(name))
    return dice.choice([
        name[:place] + name[place + 1 :] + "q",
        name[:place] + "zq" + name[place:],
        name + name[-1] + "q",
        name[::-1] + "q",
    ])  # fmt: skip


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _open(base: tuple[str, ...], key: str) -> bool:
    """May any key stand below this one?"""
    parts = key.split(".")
    return any(".".join(parts[:length]) in open_keys(base) for length in range(1, len(parts) + 1))


def _some_key(dice: random.Random, base: tuple[str, ...], fits: Callable[[Type], bool]) -> str | None:
    closed = {key: kind for key, (kind, _) in keys(base).items() if not _open(base, key.rpartition(".")[0])}
    fitting = sorted(key for key, kind in closed.items() if fits(kind))
    return dice.choice(fitting) if fitting else None


def _not_of(kind: Type) -> list[str]:
    """Values that are of another type."""
    group, lists = ["{a:1}", "{}"], ["[]", "[a,b]", "[null]", "[[1]]", "[{a:1}]"]
    words, null = ["word", "''", "'1'", "é"], [] if kind.nullable else ["null"]
    nothing = [] if None in kind.choices else ["null"]
    return {
        "int": [*words, *lists, *group, *null, "true", "1.5", "inf", "nan", "1e-3"],
        "float": [*words, *lists, *group, *null, "true", "False"],
        "bool": [*words, *lists, *group, *null, "1", "0", "yes", "1.0"],
        "str": [*lists, *group, *null, "true", "1.5"],
        "choice": [*lists, *group, *nothing, "no_such_choice", "7.25"],
        "dict": [*words, *lists, *null, "1", "true"],
        "list": ["word", "1", "true", "{a:1}", *null, *(["[[1]]", "[{a:1}]", "[null]"] if kind.item else [])],
    }[kind.name]
