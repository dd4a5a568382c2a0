# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd as the first process of namespaces, on a copy-on-write view of this machine's programs: units run as they do on a host.

What :class:`~tests.libvirt.harness.PrivateLibvirt` has no room for: the hardening of the units, readiness, socket activation, and
what install.sh does where systemd runs. libvirtd runs inside as its own unit. Nothing that happens inside outlives it. Boots in a
few seconds, to basic.target and no further.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Optional

import psutil

from pcinuma.lab import userland
from tests.waiting import CHECKOUT, PATIENCE, HarnessError, names_below, until

SCRIPT = Path(__file__).with_name("booted.sh")


class Booted:
    """A booted systemd. A context manager; ends with every process in it, also when the test process dies in any way.

    ``root``: what it boots from is not this machine's programs but another root directory with its own configuration and state.
    """

    def __init__(self, root: Optional[Path] = None) -> None:
        self._root = root
        self.base = Path(tempfile.mkdtemp(prefix="pcinuma-booted-"))
        self._log = self.base.with_suffix(".log")
        self._given = self.base.with_suffix(".given")
        self._script: Optional[subprocess.Popen[bytes]] = None
        self._init = 0

    def __enter__(self) -> Booted:
        self._given.mkdir()
        userland.write_etc(self._given / "etc", Path("/"))
        userland.write_packages(self._given / "dpkg", Path("/"))
        (self._given / "hidden").write_text("".join(f"{file}\n" for file in userland.installed(Path("/"))))
        with self._log.open("wb") as log:
            self._script = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount"),
                    *("sh", str(SCRIPT), str(self.base), str(CHECKOUT), str(self._given), *([str(self._root)] if self._root else [])),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._init = until(self._systemd, "systemd to start", interval=0.05)
            until(self._ready, "systemd to have booted", interval=0.1)
        except BaseException as error:
            said = self._log.read_text(errors="replace")
            self.close()
            raise HarnessError(f"{error}; it said: {said[-2000:]}") from error
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it and everything in it."""
        if self._script is not None:
            if self._init and psutil.pid_exists(self._init):
                psutil.Process(self._init).kill()
            try:
                self._script.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._script.kill()
                self._script.wait()
            self._script = None
            # Everything in it was mounted in the script's namespace: here it is empty.
            self.base.rmdir()
        self._log.unlink(missing_ok=True)
        shutil.rmtree(self._given, ignore_errors=True)

    def _systemd(self) -> Optional[int]:
        assert self._script is not None
        if self._script.poll() is not None:
            raise HarnessError(f"booted.sh ended with {self._script.returncode}")
        for pid, name in names_below(self._script.pid).items():
            if name == "systemd" and _program_of(pid).endswith("systemd"):
                return pid
        return None

    def _ready(self) -> bool:
        # Neither answers before systemd listens.
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded", "starting") and self.active("basic.target")

    def run(self, *argv: str, check: bool = True, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` inside, from the checkout. ``check``: a non-zero exit raises HarnessError with what it said."""
        enter = ["nsenter", "-t", str(self._init), "-m", "-p", "-u", "-i", "-n", "-C", "-r"]
        environment = ["env", "-i", "-C", str(CHECKOUT), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"]
        process = subprocess.run(
            [*enter, *environment, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, cwd="/"
        )
        if check and process.returncode != 0:
            raise HarnessError(f"{' '.join(argv)}: exit {process.returncode}: {process.stdout}{process.stderr}")
        return process

    def shell(self, script: str, check: bool = True) -> str:
        """What a shell script prints inside."""
        return self.run("sh", "-c", script, check=check).stdout

    def active(self, unit: str) -> bool:
        return self.run("systemctl", "-q", "is-active", unit, check=False).returncode == 0

    def main_pid(self, unit: str) -> int:
        return int(self.run("systemctl", "show", "-p", "MainPID", "--value", unit).stdout)

    def path(self, inside: str) -> Path:
        """A file inside, as this process can reach it."""
        return Path(f"/proc/{self._init}/root") / inside.lstrip("/")

    def written(self) -> set[str]:
        """The files below / (but not /run and other mounts) that were written inside since it booted, and are still there."""
        assert self._script is not None
        upper = Path(f"/proc/{self._script.pid}/root{self.base}/upper")
        return {f"/{path.relative_to(upper)}" for path in upper.rglob("*") if path.is_file()}


def _program_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:  # it has just ended
        return ""
