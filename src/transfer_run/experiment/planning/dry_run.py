"""`dry_run=true`: everything that can be known before a run, and nothing carried out."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from transfer_run.errors import UserError
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.planning.plan import Plan, plan_run
from transfer_run.experiment.record.summary import size
from transfer_run.experiment.sources.combine import NotPlanned
from transfer_run.experiment.sources.resolve import source_tree
from transfer_run.experiment.sources.source import Tree

LAST = "checkpoints/last.ckpt"


def show_dry_run(run: Run) -> None:
    """Print the tree of runs, the batch's shapes, the trained parameters and the plan of the run itself."""
    console = Console()
    tree = source_tree(run)
    table = Table(title="what would run")
    for column in ("run", "method", "backbone", "dataset", "state", "planned peak"):
        table.add_column(column)
    plans: dict[str, str] = {}  # by folder: a run that stands in two places is planned once
    for depth, each in tree.walk():
        table.add_row(*_row(depth, each, plans))
    console.print(table)
    try:
        _show_plan(plan_run(run), console)
    except NotPlanned as error:
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


def _row(depth: int, tree: Tree, plans: dict[str, str]) -> tuple[str, ...]:
    name, run, folder = "  " * depth + (tree.name or "this run"), tree.run, str(tree.folder)
    if run is None:
        return name, "", "", folder, "exists" if tree.finished else "would be fetched", ""
    if tree.finished:
        state = "finished"
    elif (tree.folder / LAST).is_file():
        state = "would go on"
    else:
        state = "would run, once" if folder in plans else "would run"
    if folder not in plans:
        plans[folder] = _peak(run)
    return name, *(run.chosen(group) for group in ("method", "backbone", "dataset")), state, plans[folder]


def _peak(run: Run) -> str:
    """The run's planned peak, or why it has none; one run that cannot be planned does not hide the others."""
    try:
        memory = plan_run(run).memory
        return size(memory["peak"]) + "".join(f", without {phase}" for phase in memory.get("not_planned", ()))
    except (UserError, NotImplementedError, RuntimeError) as error:
        return f"not known: {error.what if isinstance(error, UserError) else error}"
