"""What `transfer-run --help` prints."""

from __future__ import annotations

from transfer_run.experiment.config.registry import KINDS, config_root, names

GROUPS = {
    "method": "how to transfer",
    "backbone": "the pretrained model",
    "dataset": "the data and the task",
    "hardware": "devices, precision, cluster",
    "optimizer": "optimizer and schedule",
    "logger": "where metrics go besides metrics.csv",
    "profiler": "whether memory is measured",
    "experiment": "a ready combination of all of these",
}

TEXT = """\
transfer-run [KEY=VALUE ...]    compose, train, test and record one transfer-learning run

  transfer-run                                                      the default: real data, no network, no GPU
  transfer-run method=lora backbone=t5-base dataset=glue/rte seed=1
  transfer-run method=lst method.reduction_factor=4 optimizer.lr=1e-3 dry_run=true
  transfer-run -m method=full,lora,lst seed=0,1,2                   a sweep: one run of every combination
  transfer-run -m seed=0,1,2 sweep.parallel=2                       several at a time (hardware=slurm: on a cluster)
  transfer-run -m "optimizer.lr=interval(1e-4,1e-2)" sweep.trials=9 a search by validation results
  transfer-run sweep.status=NAME                                    how far a sweep is, from any terminal
  transfer-run method=full 'stages=[[dataset=A],[dataset=B]]'       runs that go on from each other, B from A's model
  transfer-run run=FOLDER export=DIR                                a finished run's model, for peft, transformers, timm
  transfer-run run=FOLDER test=PATH                                 its model tested again, on other data (or test=own)
  transfer-run run=FOLDER match=TEXT among=FILE                     which known text asks the same (runs on pairs)
  transfer-run run=FOLDER report=html                               a page of a finished run: curves, memory, comparison

Choices, as GROUP=NAME (`transfer-list methods` explains them, likewise backbones, datasets, ...):
{groups}

Keys, as KEY=VALUE: seed, trainer.max_epochs, dataset.batch_size, optimizer.lr, hardware.precision, backbone.weights,
method.KEY for the method's own, and more: `transfer-run method=NAME --cfg job` shows them all, and this file
explains those that every run has:
  {run}

Flags:
  -m, --multirun          a run for each of several values: KEY=a,b or KEY=range(1,4)
  --cfg job               print the composed config and stop (--resolve, --package KEY)
  --config-dir DIR        your own method/, dataset/, ... configs and modules beside the packaged ones
  --info [KIND]           how the config was composed: defaults, defaults-tree, searchpath, plugins
  --shell-completion install=bash     completion: eval "$(transfer-run --shell-completion install=bash)"
  --hydra-help, --version, --help

Results: OUTPUT_DIR/runs/DATASET/METHOD-BACKBONE-ID/ with result.json, metrics.csv, run.log, config.yaml, checkpoints/.
A sweep ends with a table of its runs; OUTPUT_DIR/sweeps/NAME/ has it as sweep.json, sweep.csv, table.md, plot.png.
A finished run is not repeated, an unfinished one goes on from its checkpoint: just give the same command again.
Exit codes: 0 done, 2 wrong words or something missing, 1 failed (see run.log), 130 interrupted, 75 preempted."""


def help_text(width: int = 66) -> str:
    """The help, with the names of every group as far as they fit in `width` characters."""
    assert set(GROUPS) <= set(KINDS.values())
    lines = []
    for group, what in GROUPS.items():
        found = names(group)
        shown, rest = "", len(found)
        for name in found:
            if len(shown) + len(name) > width:
                break
            shown, rest = f"{shown}{', ' if shown else ''}{name}", rest - 1
        lines += [f"  {group:<11} {what}", f"  {'':<11}   {shown}{f', ... ({len(found)} in all)' if rest else ''}"]
    return TEXT.format(groups="\n".join(lines), run=config_root() / "run.yaml")
