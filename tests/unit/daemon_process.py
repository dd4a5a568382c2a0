# SPDX-License-Identifier: LGPL-2.1-or-later
"""pcinumad as a process without a libvirt to talk to: what it answers from sysfs, and how it starts and stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import psutil

from tests import needs
from tests.waiting import CHECKOUT, until

NO_LIBVIRT = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"


def write_state(folder: Path, **content: Any) -> None:
    """A state in which nothing existed before the first start."""
    folder.mkdir(exist_ok=True)
    state = {"version": 1, "existing": [], "enabled": [], "disabled": [], "domains": {}, **content}
    (folder / "state.json").write_text(json.dumps(state))


class DaemonProcess:
    """A running pcinumad below ``base``, which gets ``socket``, ``state/`` and ``daemon.log``. Use it as a context manager."""

    def __init__(self, base: Path, root: Path) -> None:
        needs.require(needs.module("libvirt"))
        self.base = base
        self.root = root
        self.socket = base / "socket"
        self.state = base / "state"
        self.process: Optional[subprocess.Popen[bytes]] = None

    def command(self, *options: str) -> list[str]:
        places = ["--socket", str(self.socket), "--state", str(self.state), "--root", str(self.root), "--uri", NO_LIBVIRT]
        return [sys.executable, "-m", "pcinuma.daemon", *places, *options]

    def __enter__(self) -> DaemonProcess:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def start(self, environment: Optional[dict[str, str]] = None) -> None:
        """Start it and wait until it listens."""
        with (self.base / "daemon.log").open("ab") as log:
            env = {**os.environ, **(environment or {})}
            self.process = subprocess.Popen(self.command(), cwd=CHECKOUT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.await_log("started")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it by a signal; its exit code."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(120)

    def log(self) -> str:
        return (self.base / "daemon.log").read_text()

    def await_log(self, text: str, times: int = 1) -> None:
        """Wait until it has logged ``text``."""

        def logged() -> bool:
            ended = self.process is not None and self.process.poll() is not None
            there = self.log().count(text) >= times
            assert there or not ended, f"the daemon ended: {self.log()}"
            return there

        until(logged, f"{text!r} in the log of pcinumad")

    def resident(self) -> int:
        """Its memory in bytes."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)
