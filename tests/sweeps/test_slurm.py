"""A sweep's jobs, with a stand-in for the commands of Slurm; `tests/faults/test_slurm.py` has the real ones."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import Composer
from transfer_run.experiment.record.state import KILLED, State
from transfer_run.sweeps import record, slurm
from transfer_run.sweeps.asked import Sweep, members_of
from transfer_run.sweeps.slurm import Jobs

WORDS = ("method=full", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu")


class Cluster:
    """Remembers what it is asked; `queue` is what squeue answers, call by call, the last one for ever."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.queue: list[list[str]] = [[]]
        self.refuses = ""

    def __call__(self, command: str, *arguments: str, partition: str | None = None) -> str:
        self.asked.append((command, *arguments))
        if command == "squeue":
            answer = self.queue.pop(0) if len(self.queue) > 1 else self.queue[0]
            if answer == ["down"]:
                raise UserError("Unable to contact.")
            return "\n".join(answer)
        if self.refuses and self.refuses in " ".join(arguments):
            raise UserError("Slurm refuses")
        return f"{len(self.of('sbatch')) + 10};cluster\n" if command == "sbatch" else ""

    def of(self, command: str) -> list[tuple[str, ...]]:
        return [each for each in self.asked if each[0] == command and "--test-only" not in each]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    stand_in = Cluster()
    monkeypatch.setattr(slurm, "asked", stand_in)
    monkeypatch.setattr(slurm, "PACE", 0.0)
    monkeypatch.chdir(tmp_path)
    return stand_in


def sweep(folder: Path, *words: str) -> Sweep:
    composer = Composer([])
    return Sweep(folder, list(words), [], "slurm", members_of(composer, composer.normalise([*WORDS, *words])))


def test_each_run_is_a_task_with_its_words(cluster: Cluster, tmp_path: Path) -> None:
    jobs = Jobs(sweep(tmp_path / "s", "seed=4,5", "hardware.slurm.parallel=7"))
    assert list(jobs.submit(jobs.sweep.members)) == ["11"]
    (submitted,) = cluster.of("sbatch")
    assert "--array=1,2%7" in submitted
    words = (jobs.folder / "2.words").read_text().splitlines()
    assert [word.lstrip("+") for word in words if "seed" in word] == ["seed=5"]
    assert words[-1] == "hydra/launcher=basic"
    done = subprocess.run(["bash", "-n", submitted[-1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = [
        line for line in Path(submitted[-1]).read_text().splitlines() if not line.lstrip().startswith(("#", "JOB="))
    ]
    assert "SLURM_JOB_ID" not in "".join(commands), "one task has the array's own id, which names every task of it"


@pytest.mark.parametrize(
    ("words", "there", "absent"),
    [
        (["hardware.slurm.partition=gpu", "hardware.slurm.qos=q", "hardware.slurm.constraint=a100"],
         ["--partition=gpu", "--qos=q", "--constraint=a100", "--requeue", "--signal=USR1@120", "--time=240"],
         ["--gpus-per-node", "--account", "--mem"]),
        (["hardware=2gpu", "hardware.slurm.cpus_per_device=3", "hardware.slurm.memory_gb=5"],
         ["--gpus-per-node=2", "--cpus-per-task=6", "--mem=5G", "--nodes=1"], []),
        (["hardware.slurm.options=[--exclusive]", "hardware.slurm.save_seconds=30"],
         ["--exclusive", "--signal=USR1@30"], []),
        (["hardware=ddp", "hardware.accelerator=cpu", "hardware.nodes=2"],
         ["--nodes=2", "--ntasks-per-node=1"], ["--gpus-per-node"]),
    ],
    ids=["cpu", "gpus", "more", "machines"],
)  # fmt: skip
def test_what_is_asked_of_the_cluster(
    words: list[str], there: list[str], absent: list[str], cluster: Cluster, tmp_path: Path
) -> None:
    jobs = Jobs(sweep(tmp_path / "s", *words))
    jobs.submit(jobs.sweep.members)
    options = [line.removeprefix("#SBATCH ") for line in Path(cluster.of("sbatch")[0][-1]).read_text().splitlines()]
    assert set(there) <= set(options)
    assert not [option for option in options for name in absent if option.startswith(name)]


def test_the_same_command_attaches_however_its_words_are_ordered(cluster: Cluster, tmp_path: Path) -> None:
    first = Jobs(sweep(tmp_path / "s", "seed=4,5"))
    first.submit(first.sweep.members)
    cluster.queue = [["2|11_2|RUNNING|None"]]
    again = Jobs(sweep(tmp_path / "s", "seed=5,4,6"))
    (array,) = again.submit(again.sweep.members).values()
    assert [member.told.partition("seed=")[2] for member in array] == ["4", "6"]
    assert "--array=1,3%16" in cluster.of("sbatch")[-1], "seed 5 is at work as task 2"
    rows = again.as_rows(record.rows_of(again.sweep))
    assert [row.state.status for row in rows] == ["queued", "waiting", "waiting"]
    assert "job 11_2 (running)" in rows[0].state.reason


def test_runs_that_ask_for_different_machines_are_arrays_of_their_own(cluster: Cluster, tmp_path: Path) -> None:
    """And where the cluster refuses one, none is left behind."""
    jobs = Jobs(sweep(tmp_path / "s", "seed=1,2", "hardware.slurm.minutes=10,20"))
    assert len(jobs.submit(jobs.sweep.members)) == 1, "one run, whatever it is given"
    cluster.refuses = "job5.sh"
    other = Jobs(sweep(tmp_path / "t", "seed=1,2,3,4,5", "hardware.slurm.minutes=10"))
    other.sweep.members[4:] = sweep(tmp_path / "t", "seed=5", "hardware.slurm.minutes=20").members
    with pytest.raises(UserError):
        other.submit(other.sweep.members)
    assert cluster.of("scancel") == [("scancel", "12")]


def test_it_is_followed_until_nobody_has_a_job(cluster: Cluster, tmp_path: Path) -> None:
    """A job that can never start is cancelled; one that is gone without a word says where its log is."""
    jobs = Jobs(sweep(tmp_path / "s", "seed=4,5"))
    jobs.submit(jobs.sweep.members)
    (jobs.folder / "2.log").write_text("srun: error: it broke\n")
    never = "1|11_1|PENDING|PartitionTimeLimit"
    cluster.queue = [[never, "2|11_2|RUNNING|None"], [], ["2|11_2|RUNNING|None"], [], []]
    said: list[str] = []
    seen = jobs.follow(jobs.sweep.members, said.append)
    first, second = (seen[member.identity] for member in jobs.sweep.members)
    assert cluster.of("scancel") == [("scancel", "11_1")]
    assert first.status == "refused"
    assert "hardware.slurm.minutes" in first.reason
    assert second == State(KILLED, f"its job has ended: srun: error: it broke\n  log: {jobs.folder / '2.log'}")
    assert said.count("#2 queued, job 11_2 (running)") == 2, "requeued in between"


def test_a_cluster_that_is_silent_for_a_while_is_asked_again(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its controller is started anew: the jobs go on, and so does who waits for them."""
    jobs = Jobs(sweep(tmp_path / "s", "seed=4"))
    jobs.submit(jobs.sweep.members)
    cluster.queue = [["1|11_1|RUNNING|None"], ["down"], ["down"], ["1|11_1|RUNNING|None"], [], []]
    said: list[str] = []
    assert jobs.follow(jobs.sweep.members, said.append)
    assert [line for line in said if "asked again" in line] == ["Unable to contact. The jobs go on; it is asked again."]
    cluster.queue = [["down"]]
    monkeypatch.setattr(slurm, "PATIENCE", 5)
    with pytest.raises(UserError, match="Unable to contact"):
        jobs.follow(jobs.sweep.members, said.append)
    assert [row.state.status for row in jobs.as_rows(record.rows_of(jobs.sweep))] == ["waiting"]
    assert "What waits there is not told" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ("sbatch: error: invalid partition specified: norml\nsbatch: error: Batch job submission failed", "partition"),
        ("allocation failure: Requested node configuration is not available", "hardware.devices"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "hardware.slurm.qos"),
        ("slurm_load_jobs error: Unable to contact slurm controller", "hydra/launcher=slurm"),
    ],
)
def test_what_slurm_refuses_is_one_message(
    said: str, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(arguments: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        names = arguments[0] == "sinfo"
        return subprocess.CompletedProcess(arguments, int(not names), "normal\nlong\n" if names else "", said)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="Slurm refuses") as error:
        slurm.asked("sbatch", "x", partition="norml")
    assert where in error.value.where
    assert error.value.nearest == (["normal"] if where == "partition" else [])
