"""Where this process stands among those that torchrun, srun or a person started for one run. Nothing heavy.

    torchrun --nproc-per-node=2 ...    RANK, LOCAL_RANK, GROUP_RANK, ...         a process a device, or a machine
    srun --ntasks-per-node=1 ...       SLURM_PROCID, SLURM_LOCALID, ...          the same
    NODE_RANK=1 MASTER_ADDR=a ...      by hand, with MASTER_PORT                 a process a machine

A run on the devices of one machine needs none of them. What they started for a run of one device are runs of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transfer_run.errors import UserError

TORCHRUN, SRUN, HAND = "torchrun", "srun", "NODE_RANK"
PORTS = 8
"""How many ports the processes try, in an order that they share, until they meet."""


@dataclass(frozen=True)
class Place:
    """One of `nodes * per_node` processes.

    Attributes:
        by: who started them.
        node, local: which machine, and which of its processes; (0, 0) leads.
        host: of the process that leads.
        port: which it listens at, if that is free; None: one that follows from `group`.
        group: what tells these processes from all others.
    """

    by: str
    node: int
    local: int
    nodes: int
    per_node: int
    host: str
    port: int | None
    group: str

    @property
    def leads(self) -> bool:
        return self.node == 0 and self.local == 0

    @property
    def token(self) -> str:
        return hashlib.sha256(f"transfer-run {self.group}".encode()).hexdigest()

    @property
    def ports(self) -> list[int]:
        """Where the first process may be listening, in order."""
        drawn = [20_000 + int(self.token[4 * k : 4 * k + 4], 16) % 12_000 for k in range(PORTS)]
        return drawn if self.port is None else [self.port, *drawn]


def place_of(environment: Mapping[str, str], hardware: Mapping[str, Any]) -> Place | None:
    """The place of this process; None where nobody has started several, or the run takes one device.

    Args:
        hardware: the composed node; says how many there must be.

    Raises:
        UserError: there are not as many as the run takes.
    """
    devices, nodes = int(hardware["devices"]), int(hardware["nodes"])
    found = _torchrun(environment) or _srun(environment) or _by_hand(environment, nodes)
    if found is None or (devices * nodes == 1 and found.by != TORCHRUN):
        return None
    if found.nodes != nodes or found.per_node not in (1, devices):
        raise UserError(
            f"{found.by} has started {found.per_node} processes on each of {found.nodes} machines, and the run takes "
            f"{devices} devices on each of {nodes}.",
            where=f"hardware={hardware['name']} hardware.devices={devices} hardware.nodes={nodes}",
            remedy="start one process a machine, or one a device, and set hardware.devices and hardware.nodes to match",
        )
    return found if found.nodes * found.per_node > 1 else None


def _torchrun(environment: Mapping[str, str]) -> Place | None:
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    number = {name: int(environment[name]) for name in ("LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    return Place(
        TORCHRUN,
        number["GROUP_RANK"],
        number["LOCAL_RANK"],
        number["WORLD_SIZE"] // number["LOCAL_WORLD_SIZE"],
        number["LOCAL_WORLD_SIZE"],
        environment["MASTER_ADDR"],
        None,  # torchrun itself listens at MASTER_PORT
        " ".join(environment.get(name, "") for name in names),
    )


def _srun(environment: Mapping[str, str]) -> Place | None:
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) < 2:
        return None
    tasks, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
    names = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    return Place(
        SRUN,
        int(environment["SLURM_NODEID"]),
        int(environment["SLURM_LOCALID"]),
        nodes,
        tasks // nodes,
        first_host(environment["SLURM_STEP_NODELIST"]) if nodes > 1 else "127.0.0.1",
        None,
        " ".join(environment.get(name, "") for name in names),
    )


def _by_hand(environment: Mapping[str, str], nodes: int) -> Place | None:
    if nodes < 2 or "NODE_RANK" not in environment:
        return None
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing or not (environment["NODE_RANK"] + environment.get("MASTER_PORT", "")).isdecimal():
        raise UserError(
            "NODE_RANK goes with MASTER_ADDR and MASTER_PORT.",
            where=", ".join(missing) or "NODE_RANK, MASTER_PORT",
            remedy="the same address and a free port of the first machine on all machines, and NODE_RANK=0, 1, ...",
        )
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    return Place(HAND, int(environment["NODE_RANK"]), 0, nodes, 1, host, port, f"{host} {port}")


def first_host(nodes: str) -> str:
    """The first name of Slurm's list: `a[007-009,12],b` is `a007`."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.partition(",")[0]
    inside, _, after = rest.partition("]")
    first = inside.partition(",")[0].partition("-")[0]
    return head + first + after.partition(",")[0]
