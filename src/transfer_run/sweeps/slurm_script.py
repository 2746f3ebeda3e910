"""The batch script that carries out the runs of a sweep on a Slurm cluster, one a task of an array: plain sbatch.

    transfer-run saves and exits with 75 ──> the job still runs (its time is ending, it makes room for another one):
                                         │       requeue it; where the cluster does not requeue, submit it again
                                         └─> it was cancelled, or is requeued already: leave it

Any other exit code ends the task with it. A requeued task goes on in the same run folder from its last checkpoint.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESTARTS = 1000
"""How often a task is started anew before it is given up."""

BODY = r"""
# The words of this task's run, one a line. One that is started again does not begin anew, whatever force= says.
TASK={folder}/$SLURM_ARRAY_TASK_ID
JOB=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID  # SLURM_JOB_ID of one task is the array's own: it names all
mapfile -t WORDS < "$TASK.words"
[ -e "$TASK.begun" ] && WORDS+=(force=false)
touch "$TASK.begun"

again() {{ sbatch --parsable --array="$SLURM_ARRAY_TASK_ID" {script}; }}

# Signals reach the run's own processes: this shell only has to outlive them.
trap : TERM USR1 USR2 HUP
srun --nodes={nodes} --ntasks-per-node=1 --cpus-per-task={cpus} --unbuffered --kill-on-bad-exit=0 \
  {command} "${{WORDS[@]}}" &
RUN=$!
CODE=
while wait "$RUN"; CODE=$?; kill -0 "$RUN" 2>/dev/null; do :; done
wait "$RUN"; LAST=$?; [ "$LAST" = 127 ] || CODE=$LAST

# 75: saved, to be started again. 128 + a signal's number: it came before the run had begun.
case $CODE in 75|129|138|140|143)
  if [ "$(squeue --noheader --jobs="$JOB" --format=%T 2>/dev/null)" = RUNNING ] \
    && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
    echo "job $JOB is started again and goes on from the last checkpoint"
    (trap '' TERM; exec scontrol requeue "$JOB") || again  # it ends this very job: scontrol outlives that
  elif scontrol show job "$JOB" 2>/dev/null | grep -q 'PreemptTime=[0-9]' \
    && scontrol show partition "$SLURM_JOB_PARTITION" | grep -q PreemptMode=CANCEL; then
    again
  fi ;;
esac
exit "$CODE"
"""


def script(hardware: Mapping[str, Any], name: str, path: Path, command: Sequence[str], work_dir: Path) -> str:
    """The text of the batch script.

    Args:
        hardware: the composed node of the runs.
        name: of the jobs.
        path: of the script; beside it are the words of each task (NUMBER.words), and its log comes there (NUMBER.log).
        command: what carries out a run, without its words.
        work_dir: where relative paths begin.
    """
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options(hardware, name, path.parent, work_dir))]
    body = BODY.format(
        folder=shlex.quote(str(path.parent)),
        nodes=hardware["nodes"],
        cpus=cpus(hardware),
        command=" ".join(map(shlex.quote, command)),
        restarts=RESTARTS,
        script=shlex.quote(str(path)),
    )
    return "\n".join(lines) + "\n" + body


def options(hardware: Mapping[str, Any], name: str, folder: Path, work_dir: Path) -> list[str]:
    """What is asked of the cluster, as options of sbatch."""
    asked = hardware["slurm"]
    found = {
        "job-name": name,
        "output": f"{folder}/%a.log",
        "open-mode": "append",
        "chdir": work_dir,
        "nodes": hardware["nodes"],
        "ntasks-per-node": 1,  # a run starts its own processes, one a device
        "cpus-per-task": cpus(hardware),
        "gpus-per-node": hardware["devices"] if hardware["accelerator"] not in ("cpu", "mps") else None,
        "mem": f"{asked['memory_gb']}G" if asked["memory_gb"] else None,
        "time": asked["minutes"],
        "signal": f"USR1@{asked['save_seconds']}",
        **{key: asked[key] for key in ("partition", "account", "constraint", "qos")},
    }
    return ["--requeue", *(f"--{key}={value}" for key, value in found.items() if value is not None), *asked["options"]]


def cpus(hardware: Mapping[str, Any]) -> int:
    """Of a machine."""
    return int(hardware["slurm"]["cpus_per_device"]) * int(hardware["devices"])
