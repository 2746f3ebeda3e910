"""A search: `sweep.trials=N` runs, each chosen by what the earlier ones reached on the validation split (Optuna).

transfer-run -m method=lora "method.rank=2,4,8" "optimizer.lr=tag(log,interval(1e-5,1e-2))" sweep.trials=20

study.db in the sweep's folder is Optuna's storage. A trial is a normal run; how it ended is asked of its folder, so a
search that was killed goes on with the trials it had begun. `sweep.prune` ends a run early whose validations lag behind
those of the others at the same step; its folder keeps what it has, and its words alone go on with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig

from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config.compose import Composer
from transfer_run.experiment.config.words import parse
from transfer_run.experiment.record.state import FINISHED, PRUNED, STATUS, state_of
from transfer_run.files import write_json
from transfer_run.run_folder import read_result
from transfer_run.sweeps.asked import Member, Sweep, member, plain

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

STORAGE, BEST = "study.db", "best.json"
ASKED = "asked"
"""Of a study: what it was begun for."""
HEADLINE = "validation/"
OF_SWEEP = tuple(
    f"sweep.{key}" for key in ("name", "parallel", "memory", "retry_failed", "stop_on_error", "trials", "prune")
)
"""Keys that say how a search is carried out and how far: with others it is the same one."""
DIGITS = 4
"""Significant digits of a number that is drawn, so that the words of a trial can be written again."""


class Search:
    """The trials of one search.

    Args:
        words: normalised, with the space in them.
        master: their composition, for `sweep.*`.
        metric: what is sought, `validation/METRIC`.
    """

    def __init__(self, sweep: Sweep, composer: Composer, words: Sequence[str], master: DictConfig, metric: str) -> None:
        self.metric = metric
        self.sweep, self.composer, self.settings = sweep, composer, master.sweep
        self.axes = axes_of(words)
        own = ("++sweep.", "sweep.", "hydra")  # of the search: a trial is a run by itself
        self.fixed = [w for w in words if not parse(w).is_sweep_override() and not w.startswith(own)]
        self.distributions = {name: distribution(axis) for name, axis in self.axes.items()}
        self.trials: dict[int, Trial] = {}
        self.study = self._study()
        self._refuse_another(f"{told(words)}\n{metric} {self.study.direction.name}")

    def _study(self) -> Study:
        import optuna
        from sqlalchemy.exc import DatabaseError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruners: dict[str, Any] = {
            "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4),
            "halving": optuna.pruners.SuccessiveHalvingPruner,
            "none": optuna.pruners.NopPruner,
        }
        file = (self.sweep.folder / STORAGE).absolute()
        try:
            return optuna.create_study(
                storage=f"sqlite:///{file}",
                study_name=self.sweep.name,
                direction=self.settings.direction or direction(self.metric),  # type: ignore[arg-type]
                pruner=pruners[self.settings.prune](),
                load_if_exists=True,
            )
        except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
            raise UserError(
                "The search's storage cannot be read: it is damaged, or no SQLite file.",
                where=str(file),
                remedy="put the file back, or delete it: the search begins anew, and finds runs that are finished",
            ) from error

    def _refuse_another(self, asked: str) -> None:
        """Values of another metric, or of words that say something else, are none of this search's.

        Raises:
            UserError: the search that stands under this name is another one.
        """
        if self.study.user_attrs.get(ASKED, asked) != asked:
            raise UserError(
                f"There is another search called {self.sweep.name!r}: its space, its other words or its metric differ.",
                where=f"sweep.name={self.sweep.name}",
                remedy=f"choose another sweep.name, or leave it out: it then follows from the words; or delete "
                f"{self.sweep.folder / STORAGE}",
            )
        self.study.set_user_attr(ASKED, asked)

    def members(self) -> Iterator[Member]:
        """The runs of all trials that are missing, each chosen when it is asked for; those under way first."""
        from optuna.trial import Trial, TrialState

        self._settle()
        for left in self.study.get_trials(states=[TrialState.RUNNING]):
            yield self._member(Trial(self.study, left._trial_id))
        while sum(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False)) < self._total():
            self.study.sampler = self._sampler()
            yield self._member(self.study.ask(self.distributions))

    def _total(self) -> int:
        """Trials to have in all; failed ones are replaced where `sweep.retry_failed` asks for it."""
        from optuna.trial import TrialState

        failed = len(self.study.get_trials(deepcopy=False, states=[TrialState.FAIL]))
        return int(self.settings.trials) + (failed if self.settings.retry_failed else 0)

    def _sampler(self) -> Any:
        """Begun anew for every trial, from its number: a search that was stopped chooses as one
        that was not."""
        import optuna

        number = len(self.study.get_trials(deepcopy=False))
        return optuna.samplers.TPESampler(seed=number, n_startup_trials=8)

    def _settle(self) -> None:
        """Trials that an earlier process began and whose runs have ended since; and members of all that there are."""
        from optuna.trial import Trial, TrialState

        for each in self.study.get_trials():
            if each.state == TrialState.RUNNING:
                self.ended(self._member(Trial(self.study, each._trial_id)))
            else:
                self._add(each.number, each.params)

    def _member(self, trial: Trial) -> Member:
        self.trials[trial.number + 1] = trial
        for name, found in self.distributions.items():
            trial._suggest(name, found)  # one that another process died over before all were drawn
        return self._add(trial.number, trial.params)

    def _add(self, number: int, params: dict[str, Any]) -> Member:
        """The run of a trial, which the sweep has from now on."""
        known = {each.number: each for each in self.sweep.members}
        if number + 1 not in known or known[number + 1].run is None:
            drawn = [word_of(self.axes[name], params[name]) for name in self.axes if name in params]
            known[number + 1] = member(self.composer, number + 1, [*self.fixed, *drawn])
            self.sweep.members = [known[each] for each in sorted(known)]
        return known[number + 1]

    def reported(self, member: Member, step: int, value: float) -> bool:
        """Told of a validation of a run under way; must it end?"""
        trial = self.trials[member.number]
        if step not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, step)
        return bool(trial.should_prune())

    def ended(self, member: Member) -> None:
        """Tell the study of a run that has ended, from its folder; a run that goes on with the next command stays."""
        from optuna.trial import TrialState

        state, trial = state_of(member.folder), self.trials[member.number]
        if state.status == FINISHED:
            value = (read_result(member.folder) or {}).get("metrics", {}).get(self.metric)
            if value is None:
                print(f"#{member.number} counts as failed: no {self.metric} (trainer.validate_every)", flush=True)
            self.study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
        elif state.status == PRUNED:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif state.status in (STATUS[1], STATUS[2]):
            self.study.tell(trial, state=TrialState.FAIL)

    def best(self) -> list[str]:
        """What to say of the best trial, which best.json has too; none where no trial has a value."""
        from optuna.trial import TrialState

        if not self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            return []
        best = self.study.best_trial
        found = next(each for each in self.sweep.members if each.number == best.number + 1)
        command = f"transfer-run {' '.join(each if ' ' not in each else repr(each) for each in found.overrides)}"
        content = {"run": found.number, "metric": self.metric, "value": best.value, "params": best.params}
        write_json(self.sweep.folder / BEST, {**content, "command": command, "folder": str(found.folder)})
        return [f"best by {self.metric}: run {found.number}, {best.value:.4f}, {found.folder}", f"  {command}"]


def axes_of(words: Sequence[str]) -> dict[str, Override]:
    """The words that say a space, by their keys.

    Raises:
        UserError: none does, or one says what cannot be drawn from.
    """
    found = {}
    for word in words:
        override = parse(word)
        if override.is_sweep_override():
            found[override.key_or_group] = override
            distribution(override)
    if not found:
        raise UserError(
            "A search needs something to choose.",
            where="sweep.trials",
            remedy='give a key several values: method.rank=2,4,8 or "optimizer.lr=tag(log,interval(1e-5,1e-2))"',
        )
    return found


def distribution(axis: Override) -> BaseDistribution:
    """What Optuna draws from: `a,b,c` and `choice(...)` one of them, `range(...)` a grid, `interval(...)` a number,
    evenly in its logarithm with `tag(log,...)`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = axis.value()
    try:
        if isinstance(value, ChoiceSweep):
            return CategoricalDistribution(list(map(str, axis.sweep_string_iterator())))
        log = "log" in getattr(value, "tags", ())
        if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
            last = value.stop - value.step  # Hydra's range ends before it
            if all(isinstance(each, int) for each in (value.start, value.stop, value.step)):
                return IntDistribution(int(value.start), int(last), log=log, step=int(value.step))
            return FloatDistribution(float(value.start), float(last), step=None if log else float(value.step), log=log)
        if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log)
            return FloatDistribution(float(value.start), float(value.end), log=log)
    except ValueError as error:
        line = str(axis.input_line).lstrip("+")
        raise UserError(f"Nothing can be drawn from {line}: {error}", where=line, remedy="mend its bounds") from error
    line = str(axis.input_line).lstrip("+")
    raise UserError(
        f"A search cannot draw from {line}.",
        where=line,
        remedy="a,b,c, range(FROM,TO,STEP), interval(FROM,TO) or tag(log,interval(FROM,TO))",
    )


def word_of(axis: Override, value: Any) -> str:
    """The word that sets a drawn value."""
    shown = f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)
    return f"{str(axis.input_line).partition('=')[0]}={shown}"


def corners(words: Sequence[str]) -> list[list[str]]:
    """Words of runs at the ends of the space, every choice among them, one axis moved at a time."""
    axes = axes_of(words)
    fixed = [word for word in words if not parse(word).is_sweep_override()]
    ends: dict[str, list[str]] = {}
    for name, axis in axes.items():
        found = distribution(axis)
        values = getattr(found, "choices", None) or (found.low, found.high)  # type: ignore[attr-defined]
        ends[name] = [word_of(axis, value) for value in values]
    first = {name: values[0] for name, values in ends.items()}
    moved = [{**first, name: value} for name, values in ends.items() for value in values[1:]]
    return [[*fixed, *each.values()] for each in (first, *moved)]


def metric_of(composer: Composer, words: Sequence[str], master: DictConfig) -> str:
    """What is sought: `sweep.metric`, or the headline metric on the validation split.

    Raises:
        UserError: it is one of the test split, or runs have no metric.
    """
    asked = master.sweep.metric
    if asked is not None and not str(asked).startswith(HEADLINE):
        raise UserError(
            f"A search chooses by the validation split, and {asked} is none of its metrics.",
            where="sweep.metric",
            remedy=f"{HEADLINE}METRIC; what is chosen by the test split says nothing of other data",
        )
    run = composer.compose(corners(words)[0])
    metrics = run.config["dataset"].get("metrics") or []
    if asked is None and not metrics:
        raise UserError(f"dataset={run.chosen('dataset')} has no metric to choose by.", where="sweep.metric")
    _check_sought(asked, metrics)
    hardware = run.config["hardware"]
    if master.sweep.prune != "none" and int(hardware["devices"]) * int(hardware["nodes"]) > 1:
        raise UserError(
            "Runs on several devices are not watched while they train, so they cannot be ended early.",
            where="sweep.prune",
            remedy="sweep.prune=none, or one device a run",
        )
    return str(asked or f"{HEADLINE}{metrics[0]}")


def _check_sought(asked: str | None, metrics: Sequence[str]) -> None:
    """A metric that no run will have would be noticed when the first trial has been trained."""
    name = str(asked or "").removeprefix(HEADLINE)
    if asked is not None and name not in metrics:
        raise UserError(
            f"The runs of this search are not scored by '{name}'.",
            where=f"sweep.metric={asked}",
            nearest=nearest_names(name, metrics),
            remedy=f"{HEADLINE} and one of dataset.metrics: {', '.join(metrics)}",
        )


def direction(metric: str) -> str:
    """The metric's own: an error is sought small."""
    from transfer_run.data.scores.labels import better_by

    return "maximize" if better_by(metric.removeprefix(HEADLINE))(1.0, 0.0) else "minimize"


def told(words: Sequence[str]) -> str:
    """What makes a search this one: its words but those of how it is carried out and how far."""
    how = (*OF_SWEEP, "trainer.progress", "output_dir", "force", "hydra", "logger", "profiler", "hardware.num_workers")
    return "\n".join(sorted(word for word in plain(words) if not word.startswith(how)))
