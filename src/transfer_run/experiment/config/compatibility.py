"""Do method, backbone and dataset fit together, and do the files that a config names exist?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_run.backbones.declared import HAS, PAIRS, TEXT, Family, families, family_of, lacks, takes
from transfer_run.data.images.operations import operations
from transfer_run.data.long_tail import check_long_tail
from transfer_run.data.loss import check_loss
from transfer_run.data.oversample import check_oversample
from transfer_run.data.scores.names import BY_CLASS, MOST_CLASSES, check_metrics
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.reads import value_at
from transfer_run.files import user_path
from transfer_run.methods.known_forms import check_form
from transfer_run.run_folder import is_run

PHRASES = {PAIRS: "images or videos with captions"}
"""What messages say for a kind of data whose name does not say it."""

PACKAGE = f"{__name__.partition('.')[0]}."
NO_DATA = "none"
"""The form of `dataset=none`: checkpoints or finished runs are all that the method works on."""


def without_data(cfg: Mapping[str, Any]) -> bool:
    """Has the run of this composed config no data set?"""
    return str(cfg["dataset"]["form"]) == NO_DATA


def check_fit(values: Mapping[str, Any], folders: Sequence[Path] = ()) -> None:
    """Refuse a method on a backbone it is not defined on, and a dataset that the backbone cannot read or answer.

    Args:
        values: the composed config as plain containers.
        folders: the user's own config folders, for the names in the message.

    Raises:
        UserError: naming both and what would fit instead.
    """
    _check_together(values["method"])
    if without_data(values):
        _check_without_data(values["method"], values.get("sources") or {})
        return
    method, backbone, dataset = values["method"], values["backbone"], values["dataset"]
    _check_backbone(method, backbone, folders)
    _check_kind(method, backbone, dataset, folders)
    for key in ("beside", "tests"):
        for name, node in (dataset.get(key) or {}).items():
            _check_readable(method, backbone, node, list(family_of(backbone).reads), folders, f"dataset.{key}.{name}")
    _check_scored(dataset)
    _check_form(method, backbone, dataset, folders)
    own_scores = not str((dataset.get("about") or {}).get("target")).startswith(PACKAGE)
    check_metrics(str(dataset.get("form")), dataset.get("metrics") or (), own_scores)
    _check_task(method, backbone, dataset, folders)
    _check_features(method, dataset, folders)
    _check_augment(values, folders)
    _check_taps(values)
    _check_chunk(values.get("hardware") or {})
    check_long_tail(dataset)
    check_oversample(dataset)
    if any(dataset.get(key) not in (None, False) for key in ("class_weights", "label_smoothing", "balanced_softmax")):
        check_loss(dataset, family_of(backbone).form(dataset))


def _check_together(method: Mapping[str, Any]) -> None:
    """A key of the method's that means something only where another one is set (`about.together`)."""
    for key, other in ((method.get("about") or {}).get("together") or {}).items():
        if method.get(key) and not method.get(other):
            raise UserError(
                f"method.{key} goes with method.{other}, which is not set.",
                where=f"method.{key}={str(method[key]).lower()}",
                remedy=f"set method.{other}, too",
            )


def _check_chunk(hardware: Mapping[str, Any]) -> None:
    """Shards are gathered where a module is called once a pass; chunks of a loss call the language head often."""
    if hardware.get("loss_chunk") is not None and hardware.get("strategy") == "fsdp":
        raise UserError(
            "The language head's shards are gathered once a pass, and chunks of a loss call it many times.",
            where="hardware.loss_chunk, hardware.strategy=fsdp",
            remedy="hardware.loss_chunk=null, or hardware.strategy=ddp",
        )


def _check_without_data(method: Mapping[str, Any], sources: Mapping[str, Any]) -> None:
    """Only what combines models does without data, and then what the run's backbone would give must be named."""
    about = method.get("about") or {}
    if about.get("shape") != "combine":
        raise UserError(
            f"method={method['name']} needs a data set.",
            where="dataset=none",
            remedy="choose one (transfer-list datasets); only merging works on checkpoints alone",
        )
    runs = [words for name, words in sources.items() if words and not _is_plain(str(words), f"sources.{name}")]
    named = {"sources": runs, **{f"sources.{name}": words for name, words in sources.items()}}
    for listed, says in (about.get("alone") or {}).items():
        asked = str(listed).split(" or ")
        if not any(named.get(key) or value_at(method, key) for key in asked):
            shown = [key if key.partition(".")[0] == "sources" else f"method.{key}" for key in asked]
            raise UserError(
                f"method={method['name']} works without data only where {' or '.join(shown)} is given.",
                where=", ".join(shown),
                remedy=str(says),
            )


def _is_plain(words: str, where: str) -> bool:
    """Does a source name a folder that is no run: a model alone, without a task?"""
    folder = user_path(words, where) if "=" not in words else None
    return folder is not None and folder.is_dir() and not is_run(folder)


def check_family(values: Mapping[str, Any], folders: Sequence[Path] = ()) -> None:
    """Refuse a family of backbones that there is not, a method on one that it is not defined on, and data that it does
    not read; before keys are looked at, for a method's file may set keys that only its own backbones and data have."""
    if values["dataset"].get("form") != NO_DATA:
        _check_backbone(values["method"], values["backbone"], folders)
        readable = list(family_of(values["backbone"]).reads)
        _check_readable(values["method"], values["backbone"], values["dataset"], readable, folders, "dataset, backbone")


def _check_backbone(method: Mapping[str, Any], backbone: Mapping[str, Any], folders: Sequence[Path]) -> None:
    family, about = family_of(backbone), method.get("about") or {}
    if takes(about, family):
        return
    needs = about.get("needs") or " and ".join(HAS.get(what, what) for what in lacks(family, about))
    fitting = [name for name, other in known_families(folders).items() if takes(about, other)]
    raise UserError(
        f"method={method['name']} is not defined on {_named(backbone)}" + (f": it needs {needs}." if needs else "."),
        where="method, backbone",
        remedy=_instead(
            ("backbone", _backbones(fitting, folders)),
            ("method", _methods(lambda other: takes(other, family), folders)),
        ),
    )


def _check_kind(
    method: Mapping[str, Any], backbone: Mapping[str, Any], dataset: Mapping[str, Any], folders: Sequence[Path]
) -> None:
    kind, family = reads(dataset), family_of(backbone)
    readable = list(family.reads)
    if kind in readable and family.towers and "tower" in backbone:
        _check_tower(method, backbone, dataset)
        readable = readable if backbone["tower"] == "both" else family.towers[backbone["tower"]]
    _check_readable(method, backbone, dataset, readable, folders, "dataset, backbone")


def _check_readable(
    method: Mapping[str, Any],
    backbone: Mapping[str, Any],
    dataset: Mapping[str, Any],
    readable: Sequence[str],
    folders: Sequence[Path],
    where: str,
) -> None:
    kind = reads(dataset)
    if kind in ("", *readable) or not readable:
        return
    fitting = [
        f.name for f in known_families(folders).values() if kind in f.reads and takes(method.get("about") or {}, f)
    ]
    datasets = [e.name for e in registry.entries("dataset", folders) if reads(e.content.get("dataset", {})) in readable]
    raise UserError(
        f"dataset={dataset['name']} holds {phrase(kind)}, which {_named(backbone)} does not read.",
        where=where,
        remedy=_instead(("backbone", _backbones(fitting, folders)), ("dataset", datasets)),
    )


def _check_scored(dataset: Mapping[str, Any]) -> None:
    if dataset.get("metrics") == []:
        raise UserError(
            f"dataset={dataset['name']} has no metric: nothing would be scored.",
            where="dataset.metrics",
            remedy="name at least one; the first is the headline",
        )
    if (dataset.get("metrics") or [""])[0] == BY_CLASS:
        raise UserError(
            f"{BY_CLASS} is many numbers, and the first metric is the one that a run is known and chosen by.",
            where="dataset.metrics",
            remedy=f"name another one first: dataset.metrics=[accuracy,{BY_CLASS}]",
        )
    if BY_CLASS in (dataset.get("metrics") or ()) and (dataset.get("num_labels") or 0) > MOST_CLASSES:
        raise UserError(
            f"{BY_CLASS} counts every pair of classes, and there are {dataset['num_labels']}: at most {MOST_CLASSES}.",
            where="dataset.metrics",
            remedy="leave it out; trainer.predictions=true writes every row's answer",
        )


def _check_tower(method: Mapping[str, Any], backbone: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
    """Pairs ask both towers, anything else one of them; only a method that says so (`about.tower`) uses the other."""
    kind, tower = reads(dataset), backbone["tower"]
    paired, both = kind == PAIRS, tower == "both"
    if paired == both or (both and (method.get("about") or {}).get("tower") == "both"):
        return
    wanted = "both" if paired else "text" if kind == TEXT else "image"
    one = f"{wanted} tower alone: the other one would take memory and do nothing"
    raise UserError(
        f"dataset={dataset['name']} holds {phrase(kind)}, which ask {'both towers' if paired else f'the {one}'}.",
        where=f"backbone.tower={tower}",
        remedy=f"backbone.tower={wanted}",
    )


def _check_form(
    method: Mapping[str, Any], backbone: Mapping[str, Any], dataset: Mapping[str, Any], folders: Sequence[Path]
) -> None:
    form, family = str(dataset.get("form")), family_of(backbone)
    known = known_families(folders).values()
    check_form(form, {NO_DATA, *family.answers, *(word for f in known for word in f.answers)}, folders)
    if form in family.answers or not family.answers:
        return
    able = [f for f in known if form in f.answers]
    if not able:  # a form of the user's own
        return
    fitting = [f.name for f in able if takes(method.get("about") or {}, f)]
    raise UserError(
        f"dataset={dataset['name']} asks for {form}, which {_named(backbone)} does not answer.",
        where="dataset, backbone",
        remedy=_instead(("backbone", _backbones(fitting, folders))),
    )


def _check_task(
    method: Mapping[str, Any], backbone: Mapping[str, Any], dataset: Mapping[str, Any], folders: Sequence[Path]
) -> None:
    """What is answered in text is text-to-text, whatever was asked: a method for either of the two trains on it."""
    form, tasks = str(dataset.get("form")), (method.get("about") or {}).get("tasks")
    forms = {form, "text_to_text"} if family_of(backbone).writes else {form}
    if not tasks or forms & set(tasks):
        return
    methods = _methods(lambda about: forms & set(about.get("tasks", forms)), folders)
    raise UserError(
        f"method={method['name']} does not train on dataset={dataset['name']}, a task of {form}.",
        where="method, dataset",
        remedy=f"choose a dataset of {' or '.join(tasks)}; {_instead(('method', methods))}",
    )


def _check_features(method: Mapping[str, Any], dataset: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """What a data set holds beside its examples is what the method takes in: equal widths, or none on both sides.

    `dataset.about.gives: {WIDTH: what it is}`, `method.about.takes: {WIDTH: its own key}`; a width of 0 is none.
    """
    given, taken = ((node.get("about") or {}).get(key) or {} for node, key in ((dataset, "gives"), (method, "takes")))
    for width in {**given, **taken}:
        own = f"method.{taken[width]}" if width in taken else ""
        held, asked = int(dataset.get(width) or 0), int(method.get(taken.get(width, "")) or 0)
        if held != asked:
            raise _no_fit(method["name"], dataset["name"], width, held, asked, own, folders)


def _no_fit(
    method: str, dataset: str, width: str, held: int, asked: int, own: str, folders: Sequence[Path]
) -> UserError:
    nodes = {e.name: e.content.get("dataset", {}) for e in registry.entries("dataset", folders)}
    what = {name: ((node.get("about") or {}).get("gives") or {}).get(width) for name, node in nodes.items()}
    able, says = [name for name in nodes if what[name]], next((text for text in what.values() if text), width)
    data, where = f"dataset={dataset}", f"{own}, dataset.{width}".removeprefix(", ")
    if not own:
        takers = {e.name: e.content.get("method", {}).get("about") or {} for e in registry.entries("method", folders)}
        keys = [f"method={name} with method.{about['takes'][width]}={held}" for name, about in takers.items()
                if width in (about.get("takes") or {})]  # fmt: skip
        said = f"{data} holds {says}, which method={method} does not take in."
        return UserError(said, where=where, remedy=f"choose {', '.join(keys)}, or another dataset")
    if not held:
        said = f"{data} holds no {says}, which {own}={asked} asks for."
        return UserError(said, where=where, remedy=f"{own}=0, or choose dataset={', '.join(able)}")
    said = f"{data} holds {says}, {held} wide, {own} is {asked}."
    return UserError(said, where=where, remedy=f"{own}={held}")


def _check_augment(values: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """`dataset.augment` varies images, in training: text has none, and stored taps would be those of one view."""
    dataset = values["dataset"]
    for name, node in (dataset.get("beside") or {}).items():
        operations(node.get("augment") or (), f"dataset.beside.{name}: augment")
    if not dataset.get("augment"):
        return
    operations(dataset["augment"])
    if reads(dataset) == TEXT:
        held = [e.name for e in registry.entries("dataset", folders) if reads(e.content.get("dataset", {})) != TEXT]
        raise UserError(
            f"dataset={dataset['name']} holds text; the operations of dataset.augment vary images.",
            where="dataset.augment",
            remedy="dataset.augment=null, or " + _instead(("dataset", held)),
        )
    if (values.get("cache") or {}).get("taps", "none") != "none":
        raise UserError(
            "Stored taps are those of one view of each image, dataset.augment shows another one in every epoch.",
            where="dataset.augment, cache.taps",
            remedy="set cache.taps=none, or dataset.augment=null",
        )


def _check_taps(values: Mapping[str, Any]) -> None:
    """What can be known before the method is built; `training/taps.py` asks it for the rest."""
    method, taps = values["method"], (values.get("cache") or {}).get("taps", "none")
    if taps != "none" and (method.get("about") or {}).get("trains_inside"):
        raise taps_change(method["name"], taps)


def taps_change(method: str, taps: str) -> UserError:
    """The error for a method whose backbone does not stand still."""
    return UserError(
        f"method={method} trains inside the backbone: what its blocks make changes with every step.",
        where=f"cache.taps={taps}",
        remedy="set cache.taps=none, or choose a method that leaves the backbone alone (lst, unipt, linear_probe)",
    )


def known_families(folders: Sequence[Path] = ()) -> dict[str, Family]:
    """The families of this package and of the user's folders, by name."""
    nodes = [entry.content.get("backbone") or {} for entry in registry.entries("backbone", folders)] if folders else []
    own = [family_of(node) for node in nodes if node.get("about")]
    return {**families(), **{family.name: family for family in own}}


def _named(backbone: Mapping[str, Any]) -> str:
    return f"backbone={backbone['name']} (family {backbone.get('family')})"


def phrase(kind: str) -> str:
    """A kind of data in words."""
    return PHRASES.get(kind, kind)


def reads(dataset: Mapping[str, Any]) -> str:
    """What a data set's examples are: `about.holds` says it (text, images, pairs, a kind of the user's own).

    Where nothing is said a length in tokens tells of text; "" is not known, and not checked.
    """
    said = (dataset.get("about") or {}).get("holds")
    if said or dataset.get("form") == "retrieval":
        return str(said or PAIRS)
    return TEXT if dataset.get("max_source_length") is not None else ""


def _backbones(families: Any, folders: Sequence[Path]) -> list[str]:
    return [entry.name for entry in registry.entries("backbone", folders) if entry.family in families]


def _methods(fits: Callable[[Mapping[str, Any]], Any], folders: Sequence[Path]) -> list[str]:
    about = {e.name: e.content.get("method", {}).get("about") or {} for e in registry.entries("method", folders)}
    return [name for name, what in about.items() if fits(what)]


def _instead(*choices: tuple[str, Sequence[str]]) -> str:
    """`choose backbone=a, b, ... or method=c, d`, at most six of each."""
    parts = [f"{group}={', '.join(names[:6])}{', ...' if len(names) > 6 else ''}" for group, names in choices if names]
    return "choose " + ", or ".join(parts) if parts else ""
