# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real command in a process of its own, on a machine below a directory of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from tests.hosts import forked_command
from tests.hosts.forked_command import CHECKOUT
from tests.hosts.machines import MACHINES


@dataclass
class Answer:
    code: int
    out: bytes
    err: str
    report: Optional[dict[str, Any]]

    def line(self, source: str) -> dict[str, Any]:
        """The report's line on a device."""
        assert self.report is not None
        return next(line for line in self.report["devices"] if line["source"] == source)

    def leaves(self, xml: bytes, outcome: str, reason: Optional[str]) -> None:
        """Assert that nothing was placed and the output is the input ``xml``."""
        assert (self.code, self.out == xml) == (0, True), self.err
        assert self.report is not None
        assert (self.report["outcome"], self.report["reason"]) == (outcome, reason)
        assert not any(line["placed"] for line in self.report["devices"])


class Command:
    """The command on a machine below a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"

    def on(self, machine: str) -> Command:
        MACHINES[machine]().write(self.root)
        return self

    def configure(self, text: str) -> Command:
        file = self.root / "etc/pcinuma/pcinuma.conf"
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")
        return self

    def place(self, xml: bytes, *arguments: str, file: bool = False) -> Answer:
        report = self.directory / "report.json"
        report.unlink(missing_ok=True)
        given = self.directory / "given.xml"
        given.write_bytes(xml)
        done = self.run("place", "--root", str(self.root), "--report", str(report), *arguments, *([str(given)] if file else []), stdin=xml)
        if report.exists():
            done.report = json.loads(report.read_bytes())
        return done

    def run(self, *arguments: str, stdin: bytes = b"") -> Answer:
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(CHECKOUT),
            "LANG": "C.UTF-8",
            "PCINUMA_SOCKET": str(self.directory / "none"),
        }
        code, out, err = forked_command.run(list(arguments), stdin, self.directory, environment, timeout=120)
        return Answer(code, out, err.decode(), None)
