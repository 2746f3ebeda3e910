"""One thread a test process: two processes share two cores, and more threads would only wait for each other.

With TRANSFER_RUN_TEST_BUDGET=FACTOR (make sets it) the tests of a method's family must not take more than `SECONDS`
times FACTOR a file. What is counted is processor time of the test process and those it waited for, which other work on
the machine does not lengthen; the files that took most are listed at the end.

Every fixture and every test begins at a seed of its own name: what it draws is the same alone, in any order and in any
number of processes.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: what is ignored, runs ignore, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

SECONDS = 20
"""Processor seconds of a file of tests/methods/; whole runs that several of them need are shared (`shared_runs`)."""
FACTOR = float(os.environ.get("TRANSFER_RUN_TEST_BUDGET") or 0)
STARTED = pytest.StashKey[float]()

_spent: Counter[str] = Counter()


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder that all tests and all test processes of a session share: a run that several of them need, as
    itself or as a source, is carried out once, for the runner knows a finished one and waits for one under way.

    Nothing in it may be changed by hand, and nothing of it be expected to be missing.
    """
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"


def processor_seconds() -> float:
    """Of this process and of all that it has waited for."""
    return sum(os.times()[:4])


def begin_at(name: str) -> None:
    """Seed Python's generator, and NumPy's and torch's where the test's file has imported them."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    begin_at(f"{fixturedef.baseid}::{fixturedef.argname}{getattr(request, 'param_index', 0)}")
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """At its seed; what a test does to logging (Hydra sets it up on the streams of the moment) ends with it."""
    begin_at(item.nodeid)
    handlers, level = list(logging.root.handlers), logging.root.level
    try:
        return (yield)
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    item.stash[STARTED] = processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if call.when == "teardown":  # an attribute of a report reaches the process that sums up
        report.processor_seconds = processor_seconds() - item.stash[STARTED]
    return report


def pytest_runtest_logreport(report: Any) -> None:
    _spent[report.nodeid.partition("::")[0]] += getattr(report, "processor_seconds", 0.0)


def over_budget(spent: Counter[str], factor: float) -> list[str]:
    """A line for every file of tests/methods/ that took too long."""
    return [
        f"{file} took {seconds:.0f} processor seconds, of {SECONDS * factor:.0f}"
        for file, seconds in spent.items()
        if file.startswith("tests/methods/") and seconds > SECONDS * factor
    ]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if FACTOR and over_budget(_spent, FACTOR) and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FACTOR:
        terminalreporter.section(f"processor seconds: {sum(_spent.values()):.0f}")
        for file, seconds in _spent.most_common(25):
            terminalreporter.line(f"{seconds:7.1f}  {file}")
        for line in over_budget(_spent, FACTOR):
            terminalreporter.line(f"OVER BUDGET: {line}", red=True)
