"""From words to a valid config: Hydra composes, `schema.py` checks keys and types, `fit.py` whether the parts fit.

    words ── Hydra ──> config ── declared keys and types ──> fitting parts, files that exist ──> the run's config

Nothing heavy is imported, so that a mistake is answered at once. The same words give the same config wherever they
are written: on a command line, in a sweep, as a source of another run, in a table.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import version
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from transfer_run import targets
from transfer_run.backbones.weights.published import WHERE as PINNED
from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config import by_data as _by_data  # noqa: F401  configs speak of it
from transfer_run.experiment.config import registry, schema
from transfer_run.experiment.config.about import check_about, check_facts
from transfer_run.experiment.config.compatibility import NO_DATA, check_family, check_fit
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.config.default_backbone import standing_in
from transfer_run.experiment.config.files import (
    FOLDER,
    architecture_of_weights,
    check_files,
    check_places,
    check_weights,
)
from transfer_run.experiment.config.hydra_errors import CONFIG_NAME, user_errors
from transfer_run.experiment.config.hydra_node import check_hydra, check_hydra_word
from transfer_run.experiment.config.hydra_parts import (
    BasicSweeper,
    ConfigLoaderImpl,
    ConfigSearchPathImpl,
    create_config_search_path,
)
from transfer_run.experiment.config.origin import GROUPS, set_by, unusable
from transfer_run.experiment.config.own_files import check_own_file
from transfer_run.experiment.config.references import named_backbones, write_backbones, write_sources
from transfer_run.experiment.config.secrets import check_secrets
from transfer_run.experiment.config.stages import last_stage, stage_words, start_from, weights_of
from transfer_run.experiment.config.subdatasets import name_subdatasets, name_tests
from transfer_run.experiment.config.submethods import name_submethods
from transfer_run.experiment.config.tree import Composed, Sources
from transfer_run.experiment.config.words import parse, separate
from transfer_run.files import read_yaml
from transfer_run.words import split

HYDRA = "${hydra:"

LONGEST = 200
"""Characters of a choice: its file's name has no more."""

version.setbase("1.3")


def compose(overrides: Sequence[str], config_dir: str | None = None, search_path: Iterable[str] = ()) -> Run:
    """The run that words ask for, and all runs below it.

    Args:
        overrides: words as on the command line, `method=lst seed=1`.
        config_dir: a folder of the user's own configs (`--config-dir`).
        search_path: more such folders; `search_path` of an earlier config.

    Raises:
        UserError: a word is wrong, parts do not fit together, or a file that is named does not exist.
    """
    words, folders = separate(overrides, config_dir, search_path)
    return Composer(folders).compose(words)


def _refuse_taken_out(cfg: DictConfig, whole: DictConfig) -> None:
    """UserError for a key that `~` took out of what a sweep reads before any of its runs is composed."""
    for node in ("sweep", "hardware"):
        content: Any = OmegaConf.to_container(whole.get(node) or OmegaConf.create())
        left: Any = OmegaConf.to_container(cfg.get(node) or OmegaConf.create())
        for key in schema.flatten(content):
            if not schema.has(left, key):
                raise schema.taken_out(f"{node}.{key}")


class Composer:
    """Composes runs from the packaged configs and the user's folders.

    Args:
        folders: the user's own config folders; they also become importable in the run (`cfg.search_path`).
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        setup_globals()
        self.sources = Sources(_composed)
        self.folders = list(folders)
        self.search_path = _search_path(folders)
        self.loader = ConfigLoaderImpl(self.search_path)
        self._chosen: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, words: Sequence[str]) -> Run:
        """One run, and all runs below it, each composed once.

        Args:
            words: without `hydra.searchpath`.

        Raises:
            UserError: see `compose`.
        """
        return self.sources.followed(*self.composed(words))

    def composed(self, words: Sequence[str]) -> Composed:
        """The valid config of one run alone, and the backbones that its method's keys name.

        Raises:
            UserError: see `compose`.
        """
        words = self.normalise(words)
        words = [*standing_in(words), *words]
        _refuse_pins(words)
        cfg = self._load_run(words)
        before = None
        if runs := stage_words(OmegaConf.to_container(cfg).get("stages")):  # type: ignore[union-attr]
            before = weights_of(words, runs)
            words = self.normalise(last_stage(words, runs))
            _refuse_pins(words)
            cfg = self._load_run(words)
        choices = _choices(cfg)
        contents = self._contents(choices)
        values = _resolved(cfg)
        missing = next((key for key, value in schema.flatten(values).items() if value == "???"), None)
        if missing:
            raise UserError(f"{missing} must be given.", where=missing, remedy=f"add {missing}=VALUE")
        declared = self._declared(contents)
        unchosen = next((group for group in GROUPS if group != "experiment" and not choices.get(group)), None)
        if unchosen is not None:
            raise unusable(unchosen, None, self.folders)
        for group in ("method", "backbone", "dataset"):
            if (
                not isinstance(values.get(group), dict)
                or values[group].get("name") != choices.get(group)
                or declared.get(group, {}).get("name") != choices.get(group)
            ):
                raise unusable(group, choices.get(group), self.folders)

        def where(key: str) -> str:
            return set_by(key, words, contents, choices, self.folders)

        if values.get("contents"):
            raise UserError("contents is filled in: no word sets it.", where=where("contents"), remedy="leave it out")
        check_secrets(values)
        check_facts(values, declared, where)
        check_about(values, where, self.folders)
        if values["backbone"].get("architecture") == FOLDER:
            values["backbone"]["architecture"] = architecture_of_weights(values["backbone"], where)
        check_family(values, self.folders)
        schema.check(values, declared, where, _general())
        name_subdatasets(values, self.folders)
        name_tests(values, self.folders)
        if before is not None:
            check_weights(values["backbone"], "backbone.weights", where)  # the first stage's, which give way here
            start_from(values, before)
        write_sources(values)
        name_submethods(values, self.folders, words, contents)
        if values["method"].get("about", {}).get("pretrained", True) is False:
            _refuse_unread_weights(words, values["method"]["name"])
            values["backbone"]["weights"] = "random"  # what it names is not read, so it is no part of the run
        if values["dataset"].get("form") == NO_DATA:
            values["backbone"] = {"name": "none", "family": "none", "weights": "random"}  # none is built
        values["search_path"] = list(dict.fromkeys([*map(str, self.folders), *values["search_path"]]))
        write_backbones(values["method"])
        backbones = named_backbones(values, self.folders)
        for backbone in (values["backbone"], *(node for nodes in backbones.values() for node in nodes.values())):
            check_fit({**values, "backbone": backbone}, self.folders)
        check_places(values, where)
        check_files(values, where)
        for key, nodes in backbones.items():
            for words, node in nodes.items():
                check_weights(node, f"method.{key}: {words}", str)
        return values, backbones

    def types(self, words: Sequence[str]) -> dict[str, schema.Type]:
        """What every key of the words' choices may be, where that is said and not only shown by its default.

        Raises:
            UserError: the words cannot be composed.
        """
        cfg = self.load(self.normalise(words), RunMode.MULTIRUN)
        return schema.all_types(self._declared(self._contents(_choices(cfg))), _general())

    def jobs(self, words: Sequence[str]) -> list[list[str]]:
        """The words of every run of a sweep, as Hydra's basic sweeper makes them.

        Raises:
            UserError: a word cannot be read, or sweeps over what the basic sweeper cannot.
        """
        words = self.normalise(words)
        parsed = [parse(word) for word in words]
        hydra = [word for word, override in zip(words, parsed, strict=True) if override.is_hydra_override()]
        task = [override for override in parsed if not override.is_hydra_override()]
        for override in task:
            if override.is_interval_sweep():
                line = str(override.input_line).lstrip("+")
                raise UserError(
                    f"{line} has no end of values: a sweep carries out every one.",
                    where=line,
                    remedy="add sweep.trials=N for a search, or write values: a,b,c or range(FROM,TO,STEP)",
                )
        with user_errors(words, self.folders):
            batches = BasicSweeper.split_arguments(task, None)
        return [[*hydra, *job] for job in batches[0]]

    def load(self, words: Sequence[str], mode: RunMode) -> DictConfig:
        """Hydra's composition of normalised words, its own node included.

        Raises:
            UserError: a choice does not exist, Hydra cannot compose the words, or what a sweep itself reads is missing.
        """
        with user_errors(words, self.folders):
            cfg = self.loader.load_configuration(CONFIG_NAME, list(words), mode)
            kept = [word for word in words if not word.startswith("~")]
            if mode == RunMode.MULTIRUN and len(kept) < len(words):  # of a run the schema says what is missing
                _refuse_taken_out(cfg, self.loader.load_configuration(CONFIG_NAME, kept, mode))
        check_hydra(cfg, self.folders)
        return cfg

    def _load_run(self, words: Sequence[str]) -> DictConfig:
        """`load` of one run. Runs that choose the same files share their composition: values are set on a copy of it,
        by Hydra and in its order.

        Raises:
            UserError: see `load`.
        """
        values = [word for word in words if word.startswith("++")]
        chosen = tuple(word for word in words if not word.startswith("++"))
        if any(word.startswith("~") for word in chosen):
            return self.load(words, RunMode.RUN)
        if chosen not in self._chosen:
            self._chosen[chosen] = self.load(chosen, RunMode.RUN)
        parsed = [parse(word) for word in values]
        told = (*values, *_texts(self._chosen[chosen]))
        if any(override.is_sweep_override() for override in parsed) or any(HYDRA in text for text in told):
            return self.load(words, RunMode.RUN)  # a mistake, or what asks for all words
        cfg = copy.deepcopy(self._chosen[chosen])
        with user_errors(words, self.folders):
            self.loader._apply_overrides_to_config(parsed, cfg)
        return cfg

    def normalise(self, words: Sequence[str]) -> list[str]:
        """Words in the one form that never depends on how they were written.

        `+experiment=x` is `experiment=x`; every value is set by `++key=value`, so that an unknown key reaches our
        own check, which knows the near ones, and a key below an open node (`sources.teacher=...`) needs no plus.
        """
        return [form for word in words if (form := self._normalised(parse(word)))]

    def _normalised(self, override: Override) -> str:
        line, key = str(override.input_line), override.key_or_group
        if override.is_hydra_override():
            check_hydra_word(override)
        if override.is_hydra_override() or override.is_delete():
            return line
        if key.startswith("sources.") and isinstance(override.value(), int | float):
            return f"++{line.lstrip('+').partition('=')[0]}='{line.partition('=')[2]}'"  # an identity, as 6e123456
        if self.loader.repository.group_exists(key):
            if override.value() is None and key == "experiment":
                return ""
            several = key == "experiment" and isinstance(override.value(), list)
            named = isinstance(override.value(), str) and "${" not in line
            if not override.is_sweep_override() and len(str(override.value())) > LONGEST:
                raise registry.unknown_choice(key, f"{str(override.value())[:60]}...", self.folders)
            if not named and not several and not override.is_sweep_override():
                names = registry.names(key, self.folders)
                raise UserError(
                    f"{line} chooses no {key}.", where=line, nearest=nearest_names(str(override.value()), names)
                )
            return line.lstrip("+") if key in GROUPS and override.package is None else line
        return f"++{line.lstrip('+')}"

    def _contents(self, choices: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What the file of every choice adds to the config; the user's files must not hide behind packaged ones."""
        contents = {}
        for key, chosen in choices.items():
            group, _, package = key.partition("@")
            for name in chosen if isinstance(chosen, list) else [chosen]:
                files = registry.find(group, name, self.folders)
                if not files and group in GROUPS:  # `full.yaml` is no name, though Hydra reads it
                    raise registry.unknown_choice(group, str(name), self.folders)
                if len(files) > 1:
                    raise UserError(
                        f"{group}={name} stands in two places, and the packaged file would be read.",
                        where=str(files[1]),
                        remedy="give your file another name",
                    )
                content = dict(registry.entry(group, name, self.folders).content) if files else {}
                check_own_file(group, str(name), content, self.folders)
                contents[f"{key}={name}"] = {package: content.get(group, content)} if package else content
        return contents

    def _declared(self, contents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """All keys that a run of these choices has, with their defaults.

        A method's file declares its `method` node and a dataset's its `dataset` node; what else they hold sets
        keys of other files, and so may an experiment.
        """
        root = read_yaml(registry.config_root() / f"{CONFIG_NAME}.yaml")
        declared = {key: value for key, value in root.items() if key not in ("defaults", "hydra")}
        for choice, content in contents.items():
            group = choice.partition("=")[0]
            if group in ("method", "dataset"):
                declared[group] = {**root.get(group, {}), **content.get(group, {})}
            elif group != "experiment":
                declared = registry.merged(declared, content)
        return declared


def _refuse_pins(words: Sequence[str]) -> None:
    """No word sets which files are the published ones: that is no part of the identity, the name and revision are."""
    for word in words:
        if word.lstrip("+~").startswith(PINNED):
            raise UserError(
                f"{PINNED} is a fact of the backbone's file, no word sets it.",
                where=word.lstrip("+"),
                remedy="backbone.weights=PATH for other files, or a file of your own: backbone/NAME.yaml, --config-dir",
            )


def _refuse_unread_weights(words: Sequence[str], method: str) -> None:
    """What a word names is read, or refused: a method that brings its own weights, or makes them, reads none."""
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if key == "backbone.weights" and not value.strip("'\"").startswith("random"):
            raise UserError(
                f"method={method} does not read the backbone's weights.",
                where=word.lstrip("+"),
                remedy="leave it out; method=full goes on from them",
            )


def _texts(cfg: DictConfig) -> Iterator[str]:
    """Every text of a config but Hydra's own."""
    own = {str(key): cfg._get_node(key) for key in cfg if key != "hydra"}
    for node in own.values():
        content = OmegaConf.to_container(node) if OmegaConf.is_config(node) else getattr(node, "_value", lambda: "")()
        flat = schema.flatten(content) if isinstance(content, dict) else {"": content}
        yield from map(str, flat.values())


def _general() -> dict[str, Any]:
    """What the values of the keys that every run has may be."""
    return read_yaml(registry.config_root() / "options.yaml")


@cache
def _composed(words: str, search_path: tuple[str, ...]) -> Composed:
    """Composed once, whoever names it; what its files hold is looked at every time."""
    others, folders = separate(split(words, words, "method=full dataset=glue/rte"), None, search_path)
    return Composer(folders).composed(others)


def saved(folder: Path) -> Run:
    """The run whose folder this is."""
    return Sources(_composed).saved(folder)


def make_importable(run: Run) -> None:
    """Let modules in the user's folders be imported (`about.target: toy.Toy`), after everything that is installed."""
    targets.make_importable(run.config["search_path"])


def _search_path(folders: Sequence[Path]) -> ConfigSearchPath:
    path = create_config_search_path(f"file://{registry.config_root()}")
    assert isinstance(path, ConfigSearchPathImpl)
    for folder in folders:
        path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    return path


def _choices(cfg: DictConfig) -> dict[str, Any]:
    choices: dict[str, Any] = OmegaConf.to_container(cfg.hydra.runtime.choices)  # type: ignore[assignment]
    return {group: choice for group, choice in choices.items() if choice and not group.startswith("hydra/")}


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, without Hydra's node; `${hydra:...}` still sees it."""
    before, singleton = HydraConfig.instance().cfg, HydraConfig.instance()
    try:
        singleton.set_config(cfg)
        own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        own._set_parent(cfg)
        return OmegaConf.to_container(own, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        raise UserError(f"{key} cannot be resolved: {str(error).splitlines()[0]}.", where=key) from error
    finally:
        singleton.cfg = before
