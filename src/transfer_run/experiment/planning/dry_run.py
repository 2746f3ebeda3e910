"""`dry_run=true`: everything that can be known before a run, and nothing carried out."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from transfer_run.errors import UserError
from transfer_run.experiment.config.compatibility import without_data
from transfer_run.experiment.planning.plan import Plan, plan_run
from transfer_run.experiment.record.summary import size
from transfer_run.experiment.sources.resolve import source_tree
from transfer_run.experiment.sources.source import Tree

LAST = "checkpoints/last.ckpt"


def show_dry_run(cfg: DictConfig) -> None:
    """Print the tree of runs, the batch's shapes, the trained parameters and the plan of the run itself."""
    console = Console()
    tree = source_tree(cfg)
    table = Table(title="what would run")
    for column in ("run", "method", "backbone", "dataset", "state", "planned peak"):
        table.add_column(column)
    plans: dict[str, str] = {}  # by folder: a run that stands in two places is planned once
    for depth, run in tree.walk():
        table.add_row(*_row(depth, run, plans))
    console.print(table)
    try:
        _show_plan(plan_run(cfg), console)
    except UserError as error:
        if not without_data(cfg):
            raise
        console.print(f"no plan: {error.what}", highlight=False)
    console.print(f"folder:  {tree.folder}")
    console.print("dry_run=true: nothing was carried out")


def _show_plan(plan: Plan, console: Console) -> None:
    counts = plan.parameters
    if plan.shapes:
        console.print(f"batch:   {', '.join(f'{name} {tuple(shape)}' for name, (shape, _) in plan.shapes.items())}")
        console.print(
            f"trained: {counts['trainable']:,} of {counts['total']:,} parameters ({counts['trainable_pct']:.2f} %)",
            highlight=False,
        )
    console.print(plan.report, highlight=False)


def _row(depth: int, run: Tree, plans: dict[str, str]) -> tuple[str, ...]:
    name = "  " * depth + (run.name or "this run")
    if run.cfg is None:
        return name, "", "", str(run.folder), "exists" if run.finished else "would be fetched", ""
    if run.finished:
        state = "finished"
    elif (run.folder / LAST).is_file():
        state = "would go on"
    else:
        state = "would run, once" if str(run.folder) in plans else "would run"
    if str(run.folder) not in plans:
        plans[str(run.folder)] = _peak(run.cfg)
    return name, run.cfg.method.name, run.cfg.backbone.name, run.cfg.dataset.name, state, plans[str(run.folder)]


def _peak(cfg: DictConfig) -> str:
    """The run's planned peak, or why it has none; one run that cannot be planned does not hide the others."""
    try:
        memory = plan_run(cfg).memory
        return size(memory["peak"]) + "".join(f", without {phase}" for phase in memory.get("not_planned", ()))
    except (UserError, NotImplementedError, RuntimeError) as error:
        return f"not known: {error.what if isinstance(error, UserError) else error}"
