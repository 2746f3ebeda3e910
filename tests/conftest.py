"""One thread a test process: two processes share two cores, and more threads would only wait for each other.

With TRANSFER_RUN_TEST_BUDGET=FACTOR (make sets it) the tests of a method's family must not take more than `SECONDS`
times FACTOR a file. What is counted is processor time of the test process and those it waited for, which other work on
the machine does not lengthen; the files that took most are listed at the end.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

SECONDS = 20
"""Processor seconds of a file of tests/methods/; whole runs that several files need are shared (`finished_run`)."""
FACTOR = float(os.environ.get("TRANSFER_RUN_TEST_BUDGET") or 0)
SHARED = pytest.StashKey[float]()
"""Of a session: processor seconds that went into what all files share."""

_spent: Counter[str] = Counter()


def processor_seconds() -> float:
    """Of this process and of all that it has waited for."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    shared = item.session.stash.get(SHARED, 0.0)
    item.stash[SHARED] = processor_seconds() - shared
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if call.when == "teardown":  # an attribute of a report reaches the process that sums up
        report.processor_seconds = processor_seconds() - item.session.stash.get(SHARED, 0.0) - item.stash[SHARED]
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
