# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's hook: there, ours, executable, and known to the libvirt that runs.

libvirt looks for hook scripts when its daemon starts and when it is told to reload, and never again (``virHookInitialize``). The file's
time says since when a hook of ours is there (host-setup keeps it over upgrades), and host-setup notes each reload that it asked for.
Where neither settles it, a decision that the daemon made for the hook does.
"""

from __future__ import annotations

import os
import stat
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional

import psutil

from pcinuma.cli.checks.finding import Finding, fail, passed, warn
from pcinuma.daemon import client
from pcinuma.errors import DaemonError

HOOKS = "etc/libvirt/hooks"
SEEN = "run/pcinuma/hook-seen"
_MARK = b"pcinuma"
_DAEMONS = ("virtqemud", "libvirtd")
_START = 19  # of the fields behind the name: starttime, in ticks since boot
_INSTALL = "/usr/share/pcinuma/host-setup installed"


class _Process(NamedTuple):
    """A libvirt daemon; ``started`` in seconds since the epoch."""

    pid: int
    name: str
    started: float


def check(root: Path = Path("/")) -> list[Finding]:
    """The hook's file below ``root``, and whether a libvirt that runs here with that file calls it."""
    try:
        hook = find(root)
    except PermissionError:
        return [warn("hook", f"/{HOOKS} cannot be read", "run this as root")]
    if hook is None:
        return [fail("hook", f"pcinuma's hook is neither /{HOOKS}/qemu nor in /{HOOKS}/qemu.d", _INSTALL)]
    mode = hook.stat().st_mode
    if not mode & stat.S_IXUSR:
        return [fail("hook", f"{hook} is not executable, so libvirt ignores it", f"chmod 755 {hook}")]
    if mode & stat.S_IWOTH:
        return [fail("hook", f"{hook} can be written by anybody, and runs as root", f"chmod 755 {hook}")]
    return [passed("hook", str(hook)), _seen(root, hook)]


def find(root: Path) -> Optional[Path]:
    """Our hook's file, None if it is not installed."""
    candidates = [root / HOOKS / "qemu"]
    folder = root / HOOKS / "qemu.d"
    if folder.is_dir():
        candidates += sorted(folder.iterdir())
    return next((path for path in candidates if path.is_file() and _MARK in path.read_bytes()[:4096]), None)


def _seen(root: Path, hook: Path) -> Finding:
    what = "hook in use"
    processes = _libvirt_processes(hook)
    if not processes:
        return warn(what, "no libvirtd or virtqemud runs here at the moment; the next one sees the hook when it starts")
    since = hook.stat().st_mtime
    noted = _noted(root / SEEN)
    stale = [p for p in processes if p.started <= since and p.pid not in noted and not _called_since(p.started)]
    if stale:
        units = " ".join(sorted({process.name for process in stale}))
        return fail(what, f"started before the hook was there: {_names(stale)}", f"systemctl reload {units} (guests keep running)")
    return passed(what, f"looked for hooks after it was there: {_names(processes)}")


def _names(processes: list[_Process]) -> str:
    return ", ".join(f"{process.name} (pid {process.pid})" for process in processes)


def _libvirt_processes(hook: Path) -> list[_Process]:
    """libvirt's QEMU daemons that see the same hook file as we do (not those of a container or of a test)."""
    found = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] not in _DAEMONS:
            continue
        try:
            if os.path.samefile(f"/proc/{process.pid}/root{hook.resolve()}", hook):
                found.append(_Process(process.pid, process.info["name"], _started(process.pid)))
        except OSError:
            continue  # another root without that file, or already gone
    return found


def _started(pid: int) -> float:
    """When a process started, in seconds since the epoch, to the kernel's tick.

    psutil adds the ticks to ``btime``, which is a whole second; a hook that was installed half a second before a restart matters here.
    """
    uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return time.time() - uptime + int(_stat(pid)[_START]) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()


def _noted(seen: Path) -> set[int]:
    """Processes that host-setup told to reload: lines of ``pid start``, the start as in /proc/PID/stat."""
    pids = set()
    try:
        lines = seen.read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    for line in lines:
        pid, _, start = line.partition(" ")
        try:
            if _stat(int(pid))[_START] == start.strip():
                pids.add(int(pid))
        except (OSError, ValueError):
            continue  # no longer there, or no such line
    return pids


def _called_since(started: float) -> bool:
    """Whether the daemon made a decision for the hook after libvirt's process started."""
    try:
        domains: list[Mapping[str, Any]] = client.call("Status", timeout=5)["domains"]
    except DaemonError:
        return False
    for domain in domains:
        if domain["by"] == "hook" and domain["when"]:
            try:
                if datetime.fromisoformat(str(domain["when"]).replace("Z", "+00:00")).timestamp() > started:
                    return True
            except ValueError:
                continue
    return False
