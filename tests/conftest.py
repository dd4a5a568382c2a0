# SPDX-License-Identifier: LGPL-2.1-or-later
"""Options, and what holds for every part of the tests: the same surroundings everywhere, and no test is skipped in silence.

Of a user's environment only :data:`KEPT` reaches the tests, with a home of their own, UTC and the usual umask. Where ``CI=true`` a skipped
test is a failure of the run: it means that something the tests need is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import needs

PARTS = ("lab", "guest", "libvirt", "unit", "golden", "packages")
SHARE_A_HOST = ("tests/lab/test_life_on_a_host.py", "tests/lab/test_what_the_guest_sees.py")
SKIPS_FAIL = os.environ.get("CI") == "true"

KEPT = re.compile(
    r"PATH|TERM|CI|USER|LOGNAME|PCINUMA_(TEST|LAB)_\w+|PCINUMA_(CHROOTS|THOROUGH)|PYTEST_\w+"
    r"|(?i:https?|no)_proxy|\w*_CA_?BUNDLE|PIP_\w+|SSL_CERT_\w+"
)
"""The variables of the environment that say what there is to run and how to get it, and nothing about how it ought to look or behave."""

_seconds: Counter[str] = Counter()
_tests: Counter[str] = Counter()
_skipped: dict[str, list[str]] = {}  # reason -> tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write the golden files anew; look at the difference before you commit it")


def pytest_configure(config: pytest.Config) -> None:
    # How long an example takes is decided by what else the machine has to do.
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    settings.load_profile("any machine")
    os.umask(0o022)
    if hasattr(config, "workerinput"):
        # Its environment is that of the process that started it; its files go when it has no more to run, while others still have.
        config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))
        return
    for name in [name for name in os.environ if not KEPT.fullmatch(name)]:
        del os.environ[name]
    home = tempfile.mkdtemp(prefix="pcinuma-home-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ.update(HOME=home, LANG="C.UTF-8", PYTHONNOUSERSITE="1")
    tempfile.tempdir = None
    if config.option.basetemp is None:
        # Not pytest's own place for all runs of a user: there each run deletes what earlier ones left, and waits for that.
        config.option.basetemp = tempfile.mkdtemp(prefix="pcinuma-tests-")
        config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))
    config.add_cleanup(sys.stdout.flush)  # the result is seen before that
    time.tzset()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are what is spread over processes, those that last longest first; what shares a virtual host is one."""
    items.sort(key=lambda item: _first(item.nodeid))
    for item in items:
        file = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group("a virtual host" if file in SHARE_A_HOST else file))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without its groups xdist would deal out single tests, and each process would start every host."""
    if hasattr(session.config, "workerinput") and any("@" not in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist does not group the tests by file: its release does not fit pytest's")


def _first(nodeid: str) -> int:
    if nodeid.partition("::")[0] in SHARE_A_HOST:
        return 0
    return 1 + PARTS.index(_part(nodeid)) if _part(nodeid) in PARTS else len(PARTS) + 1


def _part(nodeid: str) -> str:
    return nodeid.removeprefix("tests/").split("/")[0]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that imports a module which is a package of the distribution's, and which is not installed, is skipped with that reason."""
    report = yield
    if report.failed and (missing := re.search(r"ModuleNotFoundError: No module named '(libvirt|libvirtaio)'", str(report.longrepr))):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {needs.module(missing.group(1))}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that calls a program which is a package of the distribution's, and which is not installed, is skipped with that reason."""
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    program = str(error.filename) if isinstance(error, FileNotFoundError) else ""
    if report.failed and program in needs.PACKAGES and (reason := needs.program(program, needs.PACKAGES[program])):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: {reason}")
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[_part(report.nodeid)] += report.duration
    if report.when == "call":
        _tests[_part(report.nodeid)] += 1
    if report.skipped and not hasattr(report, "wasxfail"):
        _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _note_skip(report)


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    _skipped.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _skipped and SKIPS_FAIL and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for part, seconds in _seconds.items():
        terminalreporter.write_line(f"{part}: {_tests[part]} tests in {seconds:.1f} s")
    for reason, nodeids in _skipped.items():
        terminalreporter.write_line(f"NOT RUN {len(nodeids)}{' (which fails this run)' if SKIPS_FAIL else ''}: {reason}", red=True)
        files = Counter(nodeid.partition("::")[0] for nodeid in nodeids)
        for file, number in files.items():
            terminalreporter.write_line(f"  {file}: {number}", red=True)
