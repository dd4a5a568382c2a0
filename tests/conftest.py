"""Options, and what holds for every part of the tests: no test is skipped in silence, and the time that each part took is told.

Where ``CI=true`` a skipped test is a failure of the run: it means that something the tests need is missing.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

SKIPS_FAIL = os.environ.get("CI") == "true"

_seconds: Counter[str] = Counter()
_tests: Counter[str] = Counter()
_skipped: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write the golden files anew; look at the difference before you commit it")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    part = report.nodeid.removeprefix("tests/").split("/")[0]
    _seconds[part] += report.duration
    if report.when == "call":
        _tests[part] += 1
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _skipped and SKIPS_FAIL and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for part, seconds in _seconds.items():
        terminalreporter.write_line(f"{part}: {_tests[part]} tests in {seconds:.1f} s")
    if _skipped:
        verdict = "and where CI=true that fails the run" if not SKIPS_FAIL else "which fails this run"
        terminalreporter.write_line(f"SKIPPED {len(_skipped)} tests, {verdict}:", red=True)
        for nodeid in _skipped:
            terminalreporter.write_line(f"  {nodeid}", red=True)
