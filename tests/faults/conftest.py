"""How much of the faults is tried: some in `make test`, all in `make faults`, which sets TRANSFER_RUN_FAULTS=whole.

A test that tries many cases records how many (`record_property("cases", N)`); every other test is one case.
"""

from __future__ import annotations

import os
from typing import Any

WHOLE = os.environ.get("TRANSFER_RUN_FAULTS") == "whole"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not WHOLE:
        return
    done = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    done = [report for report in done if report.when == "call"]
    terminalreporter.line(f"faults: {sum(int(dict(report.user_properties).get('cases', 1)) for report in done)} cases")
