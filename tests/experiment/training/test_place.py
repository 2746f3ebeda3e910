"""Where a process stands, as torchrun, srun and people say it."""

from __future__ import annotations

from typing import Any

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.training.place import HAND, SRUN, TORCHRUN, first_host, place_of

TORCH = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "a", "MASTER_PORT": "29400", "RANK": "3", "LOCAL_RANK": "1",
         "GROUP_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "0"}  # fmt: skip
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2",
         "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "n[07-08]"}  # fmt: skip
OWN = {"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29400"}


def hardware(devices: int, nodes: int) -> dict[str, Any]:
    return {"name": "ddp", "devices": devices, "nodes": nodes}


def test_each_launcher_is_read() -> None:
    torch = place_of(TORCH, hardware(2, 2))
    assert torch is not None
    assert (torch.by, torch.node, torch.local, torch.nodes, torch.per_node) == (TORCHRUN, 1, 1, 2, 2)
    assert not torch.leads
    slurm = place_of(SLURM, hardware(4, 2))
    assert slurm is not None
    assert (slurm.by, slurm.node, slurm.local, slurm.per_node, slurm.host) == (SRUN, 1, 0, 1, "n07")
    own = place_of(OWN, hardware(2, 2))
    assert own is not None
    assert (own.by, own.node, own.ports[0]) == (HAND, 1, 29400)
    first = place_of({**TORCH, "LOCAL_RANK": "0", "GROUP_RANK": "0"}, hardware(2, 2))
    assert first is not None
    assert first.leads


def test_processes_of_one_start_meet_and_no_others_do() -> None:
    """torchrun's own port is taken by itself; another start, or another restart, has another token."""
    one, other = (place_of({**TORCH, "GROUP_RANK": rank}, hardware(2, 2)) for rank in "01")
    assert one is not None
    assert other is not None
    assert (one.token, one.ports) == (other.token, other.ports)
    assert 29400 not in one.ports
    for name in ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"):
        again = place_of({**TORCH, name: "29500"}, hardware(2, 2))
        assert again is not None
        assert again.token != one.token, name


@pytest.mark.parametrize(
    ("environment", "devices", "nodes"),
    [({}, 2, 1), ({}, 1, 2), ({"NODE_RANK": "0"}, 2, 1), (SLURM, 1, 1), ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, 2, 1)],
    ids=["nobody", "nobody on the others", "one machine", "tasks that are runs of their own", "a single task"],
)
def test_a_process_may_be_alone(environment: dict[str, str], devices: int, nodes: int) -> None:
    assert place_of(environment, hardware(devices, nodes)) is None


@pytest.mark.parametrize(
    ("environment", "devices", "nodes"),
    [(TORCH, 1, 1), (TORCH, 4, 2), (TORCH, 2, 1), (SLURM, 2, 1), (SLURM, 2, 3)],
)
def test_as_many_as_the_run_takes_or_a_message(environment: dict[str, str], devices: int, nodes: int) -> None:
    with pytest.raises(UserError, match="has started") as error:
        place_of(environment, hardware(devices, nodes))
    assert f"hardware.devices={devices}" in error.value.where


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_what_a_person_must_say(missing: str) -> None:
    with pytest.raises(UserError, match="NODE_RANK goes with"):
        place_of({name: value for name, value in OWN.items() if name != missing}, hardware(2, 2))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a[007-009,12],b", "a007"), ("node1", "node1"), ("x,y[1-2]", "x"), ("g[1,3]-ib", "g1-ib"), ("a[1-2],b[3]", "a1")],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
