# SPDX-License-Identifier: LGPL-2.1-or-later
"""Says how far a run of the tests is, by part, with an estimate; shows a failure at once, whole; and counts for the last line.

A plugin that ``tests/run`` gives to pytest. How long each test took is kept in the virtual environment's folder, and the next run's
estimate is made from that; a first run's is made from the averages in :data:`USUAL`, of two cores that have nothing else to do.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Optional

import pytest

EVERY = 20.0
USUAL = {"unit": 0.045, "golden": 0.016, "libvirt": 1.1, "guest": 5.7, "lab": 15.0, "packages": 0.13}
BESIDE = 2.9
"""How many seconds of tests a second of a run is worth, before this run shows it."""
ASSUMED = 15.0
"""How many seconds of a run that assumption is worth."""
DURATIONS = Path(__file__).parents[1] / ".venv" / "durations.json"


def part_of(nodeid: str) -> str:
    return nodeid.removeprefix("tests/").split("/")[0]


class Progress:
    """Lives in the process that pytest was started as; the tests run in others."""

    def __init__(self, config: pytest.Config) -> None:
        self.terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
        # Shown when they happened.
        self.terminal.summary_failures = self.terminal.summary_errors = lambda: None
        self.counts_file = os.environ.get("PCINUMA_TEST_COUNTS")
        self.known: dict[str, float] = _durations()
        self.took: Counter[str] = Counter()
        self.expected: dict[str, float] = {}
        self.all: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.began = self.last = time.monotonic()
        self.lock = threading.Lock()
        self.over = threading.Event()

    def collected(self, nodeids: list[str]) -> None:
        """All tests of this run; said by each of the processes that run them, and taken from the first."""
        if self.expected or not nodeids:
            return
        self.expected = {nodeid: self.known.get(nodeid, USUAL.get(part_of(nodeid), 1.0)) for nodeid in nodeids}
        self.all = Counter(part_of(nodeid) for nodeid in nodeids)
        self.began = self.last = time.monotonic()
        each = ", ".join(f"{part} {number}" for part, number in self.all.items())
        longest = sum(self.expected.values()) / BESIDE
        self.terminal.write_line(f"{sum(self.all.values())} tests ({each}), about {_minutes(longest)} where nothing else runs")
        self.terminal.flush()
        threading.Thread(target=self._beat, daemon=True).start()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.collected([nodeid.rpartition("@")[0] or nodeid for nodeid in ids])

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected([item.nodeid for item in session.items])

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> Optional[tuple[str, str, str]]:
        """The categories that pytest counts, without a character for each test."""
        if hasattr(report, "wasxfail"):
            return None
        if report.when == "call" or report.skipped:
            return report.outcome, "", ""
        return ("error", "", "") if report.failed else ("", "", "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        nodeid = report.nodeid.rpartition("@")[0] if "@" in report.nodeid.rpartition("]")[2] else report.nodeid
        self.took[nodeid] += report.duration
        if report.failed:
            with self.lock:
                self.terminal.write_sep("=", f"FAILED {nodeid}" + ("" if report.when == "call" else f" ({report.when})"), red=True)
                self.terminal.write_line(report.longreprtext)
                for title, text in report.sections:
                    self.terminal.write_sep("-", title)
                    self.terminal.write_line(text.rstrip())
                self.terminal.flush()
        if report.when == "teardown":
            part = part_of(nodeid)
            self.done[part] += 1
            if self.done[part] == self.all[part] or time.monotonic() - self.last > EVERY:
                self._say()

    def _beat(self) -> None:
        while not self.over.wait(1):
            if time.monotonic() - self.last > EVERY:
                self._say()

    def _say(self) -> None:
        with self.lock:
            self.last = time.monotonic()
            elapsed = self.last - self.began
            ready = sum(self.expected.get(nodeid, 0.0) for nodeid in list(self.took))
            left = max(sum(self.expected.values()) - ready, 1.0)
            worth = (ready + ASSUMED * BESIDE) / (elapsed + ASSUMED)
            parts = ", ".join(f"{part} {self.done[part]} of {number}" for part, number in self.all.items())
            estimate = "" if self.done == self.all else f"; about {_minutes(left / worth)} left"
            self.terminal.write_line(f"[{int(elapsed) // 60:2}:{int(elapsed) % 60:02}] {parts}{estimate}")
            self.terminal.flush()

    def pytest_sessionfinish(self) -> None:
        self.over.set()

    def pytest_unconfigure(self) -> None:
        stats = self.terminal.stats
        if self.took and DURATIONS.parent.is_dir():
            DURATIONS.write_text(json.dumps({**self.known, **{nodeid: round(took, 2) for nodeid, took in self.took.items()}}))
        if self.counts_file:
            counted = {name: len(stats.get(name, ())) for name in ("passed", "failed", "error", "skipped", "xfailed")}
            Path(self.counts_file).write_text("".join(f"{name}={number}\n" for name, number in counted.items()))


@pytest.hookimpl(trylast=True)  # when pytest's own reporter is there
def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(config))


def _durations() -> dict[str, float]:
    try:
        found = json.loads(DURATIONS.read_text())
        return {str(nodeid): float(took) for nodeid, took in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # a first run, or one that was broken off


def _minutes(seconds: float) -> str:
    return f"{round(seconds / 60)} min" if seconds >= 90 else f"{max(10, round(seconds, -1)):.0f} s"
