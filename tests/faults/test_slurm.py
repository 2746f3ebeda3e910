"""A real Slurm on this machine (`scripts/slurm_single_node.sh`): without accounting; with it, where it is installed.

Jobs that are preempted, cancelled, out of time or on a node that fails go on to the bytes of an undisturbed run, and
one's end touches no other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out

pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(
        os.name != "posix" or os.getuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))),
        reason="a Slurm of our own needs root and the packages slurm-wlm and munge",
    ),
]

ROOT = Path(__file__).parents[2]
METHOD = """# @package _global_
# A linear probe that waits in a job's first start, until it is told to stop.
method:
  name: waits
  about: {title: It waits, target: waits.Waits, family: tuning, shape: tune, backbones: [vit], options: {event: str}}
  event: none
"""
MODULE = """
import os, signal, time
from pathlib import Path
from transfer_run.methods.tuning.linear_probe import LinearProbe

class Waits(LinearProbe):
    def __init__(self, backbone, task, *, event="none"):
        super().__init__(backbone, task)
        self.event = event

    def after_step(self, step):
        reached = Path(os.environ.get("EVENTS", "/")) / self.event
        if step == 4 and self.event != "none" and "SLURM_JOB_ID" in os.environ and not reached.exists():
            array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
            reached.write_text(f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"])
            while signal.getsignal(signal.SIGTERM).__self__.asked is None:
                time.sleep(0.05)
"""
WORDS = ("method=waits", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0", "hardware=cpu",
         "profiler=none", "trainer.progress=none", "trainer.log_every=1", "trainer.max_steps=8",
         "trainer.checkpoint_minutes=1e-9")  # fmt: skip
SLURM = ("hydra/launcher=slurm", "hardware.slurm.cpus_per_device=1", "hardware.slurm.minutes=50")
CPUS = 8


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from started(tmp_path_factory.mktemp("slurm"))


def started(folder: Path, **environment: str) -> Iterator[Path]:
    """A cluster, which all commands ask as long as it stands."""
    script = ROOT / "scripts" / "slurm_single_node.sh"
    environment = {**os.environ, "SLURM_TEST_CPUS": str(CPUS), **environment}
    subprocess.run([script, "start", folder], check=True, env=environment, stdout=subprocess.DEVNULL, timeout=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
        subprocess.run([script, "stop", folder], check=True, timeout=60)


@pytest.fixture
def own(tmp_path: Path, cluster: Path) -> Iterator[Path]:
    """A folder to work in; no job outlives the test."""
    yield from place(tmp_path)


def place(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "own" / "method").mkdir(parents=True)
    (tmp_path / "own" / "method" / "waits.yaml").write_text(METHOD)
    (tmp_path / "own" / "waits.py").write_text(MODULE)
    (tmp_path / "events").mkdir()
    until(all_nodes_idle)
    yield tmp_path
    slurm("scancel", "--me")
    until(lambda: not slurm("squeue", "--noheader").strip())


def all_nodes_idle() -> bool:
    """Slurm drains a node where a job that failed with it has not gone yet: each test begins with all of them."""
    states = [line.split() for line in slurm("sinfo", "--Node", "--noheader", "--format=%N %T").splitlines()]
    away = {name for name, state in states if state.rstrip("*") != "idle"}
    for name in away if not steps() else ():
        subprocess.run(["scontrol", "update", f"NodeName={name}", "State=RESUME"], capture_output=True)
    return not away


def begin(own: Path, *words: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).parent / "transfer-run"), "--config-dir", str(own / "own"), *WORDS, *words]
    return subprocess.Popen(
        command, cwd=own, env={**os.environ, "EVENTS": str(own / "events")}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


HURRIED: dict[str, float] = {}
"""When a job was last told to begin soon."""


def until(true: Callable[[], object], seconds: float = 500) -> None:
    """Wait; what is requeued need not wait for the two minutes that Slurm gives a node to recover, but some seconds: a
    node refuses a job whose credential is as old as the one that it has just revoked."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, slurm("squeue")
        for line in slurm("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r").splitlines():
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime" and time.monotonic() - HURRIED.get(job, -60) > 30:
                HURRIED[job] = time.monotonic()
                subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+5"], capture_output=True)
        time.sleep(0.5)


def ended(command: subprocess.Popen[str]) -> tuple[int, str]:
    until(lambda: command.poll() is not None)
    return command.returncode, command.communicate()[0]


def reached(own: Path, event: str) -> str:
    """The id of the job that waits for this event."""
    file = own / "events" / event
    until(lambda: file.is_file() and file.read_text())
    return file.read_text()


def same(own: Path, *events: str) -> None:
    """The runs of these events have the bytes of runs that were never disturbed."""
    for event in events:
        words = [*WORDS, f"method.event={event}"]
        folder = own / compose(words, str(own / "own")).folder
        whole = carry_out(compose([*words, f"output_dir={own / 'whole'}"], str(own / "own")))
        for file in ("metrics.csv", "checkpoints/model/model.safetensors"):
            assert (folder / file).read_bytes() == (whole / file).read_bytes(), (event, file)
        metrics = [json.loads((each / "result.json").read_text())["metrics"] for each in (folder, whole)]
        assert metrics[0] == metrics[1]
        assert ("going on from" in (folder / "run.log").read_text()) == (event != "none")


def test_preempted_jobs_go_on(own: Path) -> None:
    """One that Slurm requeues, and those on partitions that cancel what they preempt."""
    partitions = {"requeue": "low", "grace": "cancelled", "resubmit": "killed"}
    commands = [
        begin(own, *SLURM, f"method.event={event}", f"hardware.slurm.partition={partition}")
        for event, partition in partitions.items()
    ]
    for event in partitions:
        reached(own, event)
    slurm("sbatch", "--partition=high", f"--ntasks={CPUS}", "--output=/dev/null", "--wrap=sleep 1")
    for command in commands:
        code, said = ended(command)
        assert code == 0, said
    same(own, *partitions)


def test_time_limit_and_cancel(own: Path) -> None:
    """What runs out of time is requeued; what a user cancels is not, until the same command asks for it."""
    words = [
        *SLURM,
        "-m",
        "method.event=limit,cancel,none",
        "hardware.slurm.minutes=2",
        "hardware.slurm.save_seconds=50",
    ]
    command = begin(own, *words)
    slurm("scancel", reached(own, "cancel"))
    code, said = ended(command)
    assert code == 75, said
    assert "2 of 3 runs finished" in said
    assert said.partition("Not finished:")[2].count("\n- ") == 1
    assert "preempted: stopped by SIGTERM" in said
    code, said = ended(begin(own, *words))
    assert code == 0, said
    assert "runs 2\n" in said, "the others are shown from their records"
    same(own, "limit", "cancel", "none")


def test_a_node_that_fails_and_a_command_that_is_left(own: Path) -> None:
    """Ctrl-C leaves the job and says how to cancel it; the same command waits for it and submits nothing."""
    command = begin(own, *SLURM, "method.event=node")
    job = reached(own, "node")
    command.send_signal(signal.SIGINT)
    code, said = ended(command)
    assert code == 130, said
    assert "The jobs go on." in said
    assert "scancel --name=" in said
    name = next(word for word in said.split() if word.startswith("sweep.status="))
    again = begin(own, *SLURM, "method.event=node")
    status = begin_status(own, name)
    assert "running" in status
    host = slurm("hostname", "-s").strip()
    slurm("scontrol", "update", f"NodeName={host}", "State=DOWN", "Reason=test")
    until(lambda: "PENDING" in slurm("squeue", "--noheader", "--format=%T", "--array"))
    assert job in slurm("squeue", "--noheader", "--format=%i", "--array")
    until(lambda: "queued" in begin_status(own, name))  # its process may take a moment to end
    until(lambda: not steps())  # a node that is back before these have gone fails once more, and stays away
    subprocess.run(["scontrol", "update", f"NodeName={host}", "State=RESUME"])  # or it has come back by itself
    code, said = ended(again)
    assert code == 0, said
    assert "submitted" not in said
    assert "1 of the runs are with the cluster already" in said
    same(own, "node")


def steps() -> list[str]:
    """What Slurm carries out on this node."""
    names = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            names.append(path.read_bytes().decode(errors="replace"))
    return [name for name in names if name.startswith("slurmstepd")]


def begin_status(own: Path, word: str) -> str:
    command = [str(Path(sys.executable).parent / "transfer-run"), word]
    return subprocess.run(command, cwd=own, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["hardware.slurm.partition=norml"], "hardware.slurm.partition"),
        (["hardware.slurm.cpus_per_device=640"], "hardware.slurm.cpus_per_device"),
        (["hardware.accelerator=gpu"], "hardware=cpu asks for no GPU"),
        (["hardware.slurm.partition=low", "hardware.slurm.minutes=100"], "hardware.slurm.minutes"),
    ],
)
def test_what_cannot_be_is_one_message(own: Path, words: list[str], where: str) -> None:
    """At once, or where Slurm itself only keeps such a job waiting, as soon as it says so."""
    code, said = ended(begin(own, *SLURM, *words))
    assert code == 2, said
    assert where in said
    assert "Traceback" not in said
    until(lambda: not slurm("squeue", "--noheader").strip(), 60)


def test_a_run_on_two_nodes_is_requeued(own: Path) -> None:
    """One task a node, one run: asked to save it ends on both, begins again on both, and is what two devices make."""
    words = ["method.event=nodes", "hardware=ddp", "hardware.accelerator=cpu"]
    command = begin(own, *words, *SLURM, "hardware.devices=1", "hardware.nodes=2", "hardware.slurm.partition=two")
    slurm("scancel", "--signal=USR1", reached(own, "nodes"))
    code, said = ended(command)
    assert code == 0, said
    folder = own / compose([*WORDS, *words], str(own / "own")).folder
    whole = carry_out(compose([*WORDS, *words, f"output_dir={own / 'whole'}"], str(own / "own")))
    for file in ("metrics.csv", "checkpoints/model/model.safetensors"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    assert "going on from" in (folder / "run.log").read_text()
    assert "is started again" in next((own / "outputs" / "sweeps").glob("*/slurm/1.log")).read_text()


def test_the_batch_script_of_the_page(own: Path) -> None:
    """docs/cluster.md's own, with these words: asked to save it is requeued once, and ends with the same bytes."""
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    block = page.partition("```bash\n")[2].partition("```")[0]
    words = " ".join(["--config-dir", str(own / "own"), *WORDS, "method.event=script"])
    command = f"{Path(sys.executable).parent / 'transfer-run'} {words}"
    text = block.replace("transfer-run method=full backbone=vit_tiny dataset=digits hardware=1gpu", command)
    text = text.replace("--cpus-per-task=8 --gpus-per-node=1", "--cpus-per-task=1")
    assert text.count(command) == 1
    (own / "job.sh").write_text(text)
    environment = {**os.environ, "EVENTS": str(own / "events")}
    subprocess.run(["sbatch", "job.sh"], cwd=own, env=environment, check=True, capture_output=True)
    slurm("scancel", "--signal=USR1", reached(own, "script"))
    until(lambda: not slurm("squeue", "--noheader").strip())
    same(own, "script")


@pytest.fixture
def charged(tmp_path: Path) -> Iterator[Path]:
    """A folder as `own`, on a cluster that keeps accounts."""
    if not all(map(shutil.which, ("slurmdbd", "mariadbd", "mariadb-install-db"))):
        pytest.skip("accounting needs the packages slurmdbd and mariadb-server")
    clusters = started(tmp_path / "slurm", SLURM_TEST_ACCOUNTING="1")
    next(clusters)
    yield from place(tmp_path)
    next(clusters, None)


def test_a_cluster_that_keeps_accounts(charged: Path) -> None:
    """One that is preempted goes on, its job is charged; an account that there is not is one message."""
    command = begin(charged, *SLURM, "hardware.slurm.account=lab", "method.event=lab", "hardware.slurm.partition=low")
    job = reached(charged, "lab").partition("_")[0]
    slurm("sbatch", "--partition=high", "--account=lab", f"--ntasks={CPUS}", "--output=/dev/null", "--wrap=sleep 1")
    code, said = ended(command)
    assert code == 0, said
    same(charged, "lab")
    until(lambda: "COMPLETED" in slurm("sacct", "--noheader", f"--jobs={job}", "--format=account,state"))
    assert slurm("sacct", "--noheader", f"--jobs={job}", "--allocations", "--format=account").split() == ["lab"]
    code, said = ended(begin(charged, *SLURM, "hardware.slurm.account=lub"))
    assert code == 2, said
    assert "hardware.slurm.account" in said
    assert "Traceback" not in said
