"""Several processes that an outer launcher started for one run: the first one leads, the others do as it says.

    leader                                              follower
    words ─> lock ─> sources ─> launch ── order ──>     its workers of the run
                                       <── codes ──     have ended
    done, or broken                    ── leave ──>     ends with the same exit code

Only the leader composes, holds the folder and records. A connection ends when a process dies, however it dies: then a
follower kills its workers, and the leader gives up the run.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from transfer_run.errors import FAILED, Preempted, UserError, code_of
from transfer_run.experiment.training.place import Place, place_of
from transfer_run.experiment.training.processes import Order, Workers
from transfer_run.signals import stop_at_signals

PATIENCE = 300.0
"""Seconds in which all processes must have come."""
PARTING = 30.0
"""Seconds that one that ends waits for those that have not come yet."""


class Gone(Exception):
    """The other side has ended."""


class Link:
    """JSON lines over a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self._read = connection, b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises `Gone`."""
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise Gone from error

    def receive(self, seconds: float = 0.0) -> dict[str, Any] | None:
        """The next message; None where none comes in time. Raises `Gone`."""
        until = time.monotonic() + seconds
        while b"\n" not in self._read:
            if not select.select([self.connection], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            try:
                more = self.connection.recv(65536)
            except OSError as error:
                raise Gone from error
            if not more:
                raise Gone
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise Gone from error
        if not isinstance(message, dict):
            raise Gone
        return message

    def close(self) -> None:
        self.connection.close()


class Leader:
    """The first process; listens from the beginning, so that the others find it while it composes."""

    def __init__(self, place: Place) -> None:
        self.place, self.links = place, dict[tuple[int, int], Link]()
        self.listening, self._came = _listen(place), threading.Condition()
        threading.Thread(target=self._welcome, daemon=True).start()

    @property
    def count(self) -> int:
        """Processes beside this one."""
        return self.place.nodes * self.place.per_node - 1

    def assemble(self, seconds: float = PATIENCE) -> None:
        """Wait until all have come.

        Raises:
            UserError: some have not.
        """
        with self._came:
            if not self._came.wait_for(lambda: len(self.links) == self.count, seconds):
                raise UserError(
                    f"{len(self.links) + 1} of the run's {self.count + 1} processes came within {seconds:.0f} s.",
                    where=f"{self.place.by}, {self.place.host}",
                    remedy="start the same command on every machine; see that they reach each other",
                )

    def _welcome(self) -> None:
        """Those who come, as long as there is somebody to come; a stranger is sent away."""
        while len(self.links) < self.count:
            try:
                link = Link(self.listening.accept()[0])
            except OSError:
                return  # closed
            try:
                said = link.receive(5.0) or {}
                if said.get("token") != self.place.token:
                    raise Gone
                link.send({"token": self.place.token})
            except Gone:
                link.close()
                continue
            with self._came:
                self.links[int(said["node"]), int(said["local"])] = link
                self._came.notify_all()

    def order(self, order: Order) -> None:
        """Let every follower start its workers of a run. Raises `Gone`, UserError."""
        self.assemble()
        for (node, local), link in self.links.items():
            link.send({"order": order.at(node, local, self.place.per_node).as_json()})

    def codes(self, seconds: float = 0.0) -> dict[tuple[int, int], list[int]]:
        """Exit codes of the workers of those whose have ended since the last call. Raises `Gone`.

        Args:
            seconds: to wait for each.
        """
        told = {who: link.receive(seconds) for who, link in self.links.items()}
        return {who: message["codes"] for who, message in told.items() if message}

    def stop(self) -> None:
        """Let the followers kill their workers."""
        self._tell({"stop": True})

    def leave(self, code: int) -> None:
        """Let all end with this code, those too that come only now."""
        with suppress(UserError, Preempted):  # who comes later sees that nobody listens any more
            self.assemble(PARTING)
        self._tell({"leave": code})
        self.listening.close()

    def _tell(self, message: Mapping[str, Any]) -> None:
        for link in self.links.values():
            try:
                link.send(message)
            except Gone:
                continue


LEADER: list[Leader] = []
"""The one that this process is, if it is."""


def leader() -> Leader | None:
    return LEADER[-1] if LEADER else None


def check_machines(hardware: Mapping[str, Any]) -> None:
    """Refuse a run on several machines that nobody has started on the others.

    Raises:
        UserError
    """
    if leader() is None and int(hardware["nodes"]) > 1:
        raise UserError(
            f"The run takes {hardware['nodes']} machines, and nothing has started it on the others.",
            where=f"hardware.nodes={hardware['nodes']}",
            remedy="hydra/launcher=slurm; or start the same command on each machine with torchrun or srun, or with "
            "NODE_RANK, MASTER_ADDR and MASTER_PORT set (docs/cluster.md)",
        )


def together(hardware: Mapping[str, Any], command: Callable[[], int]) -> int:
    """Do what the command line asks for, at the place of this process; returns the exit code.

    Args:
        hardware: the composed node.
        command: of a process alone, or of the one that leads.

    Raises:
        UserError: there are not as many processes as the run takes, or the first one is not found.
    """
    place = place_of(os.environ, hardware)
    if place is None:
        return command()
    if not place.leads:
        return follow(place)
    LEADER.append(Leader(place))
    code = FAILED
    try:
        code = command()
    except BaseException as error:
        code = code_of(error)
        raise
    finally:
        LEADER.pop().leave(code)
    return code


def follow(place: Place) -> int:
    """Start workers as the leader says; returns the code that it ends with.

    Raises:
        UserError: it is not found. Preempted, KeyboardInterrupt: a signal, while no workers are there to answer it.
    """
    link, workers = _found(place), None
    try:
        while True:
            message = link.receive(0.2) or {}
            if "order" in message:
                workers = Workers(Order.of(message["order"], place.host))
            if workers is not None and (message.get("stop") or workers.ended):
                codes = workers.stop()
                workers = None
                stop_at_signals()
                link.send({"codes": codes})
            if "leave" in message:
                return int(message["leave"])
    except Gone:
        return FAILED  # the leader was killed: who started it says so
    finally:
        if workers is not None:
            workers.stop()
        link.close()


def _listen(place: Place) -> socket.socket:
    local = place.host in ("127.0.0.1", "localhost", "::1")
    for port in place.ports:
        try:
            return socket.create_server(("127.0.0.1" if local else "", port))
        except OSError:
            continue
    raise UserError(
        f"None of the ports {', '.join(map(str, place.ports))} is free for the processes of this run to meet at.",
        where=f"{place.by}, {place.host}",
        remedy="start it again; by hand, with another MASTER_PORT",
    )


def _found(place: Place) -> Link:
    """The connection to the leader, which may begin later than this process."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for port in place.ports:
            try:
                link = Link(socket.create_connection((place.host, port), timeout=5.0))
            except OSError:
                continue
            try:
                link.send({"token": place.token, "node": place.node, "local": place.local})
                if (link.receive(30.0) or {}).get("token") == place.token:
                    return link
            except Gone:
                pass  # somebody else listens there
            link.close()
        time.sleep(0.5)
    raise UserError(
        f"The first process of this run was not found within {PATIENCE:.0f} s.",
        where=f"{place.by}, {place.host}",
        remedy="start the same command there, too; see that the machines reach each other",
    )
