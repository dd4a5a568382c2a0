# SPDX-License-Identifier: LGPL-2.1-or-later
"""The unit files that put the proxy on libvirt's own socket: pure functions from libvirt's socket unit to texts.

libvirt's socket unit (``libvirtd.socket``, or ``virtqemud.socket`` where the daemons are modular) gets a drop-in that
moves it aside, to the same name with ``-direct``; libvirt recognises its sockets by the unit's name, not by their
path. A socket unit of ours listens in its place, with the same mode, user and group, and hands over to
``pcinuma-proxy.service``; the descriptor's name tells the proxy what is behind it. Should the proxy fail for good
(systemd's start limit), a third unit gives libvirt its socket back: a broken proxy must not lock a host out of
libvirt.

On modular hosts ``virtproxyd`` needs nothing: whoever comes to it (``libvirt-sock``, TLS, TCP) it connects to
``virtqemud-sock``, and is there. The read-only and the administration sockets stay libvirt's: nothing can be started
through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping, Optional

UNIT_FOLDERS = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
"""systemd.unit(5), the most important first."""

OURS = "50-pcinuma.conf"
PROXY_SERVICE = "pcinuma-proxy.service"
RESCUE_SERVICE = "pcinuma-proxy-off.service"
_HEAD = '# Written by "pcinuma proxy enable"; "pcinuma proxy disable" removes it.\n'


@dataclass(frozen=True)
class Daemon:
    """A libvirt daemon that runs QEMU guests, by its systemd units."""

    name: str

    @property
    def service(self) -> str:
        return f"{self.name}.service"

    @property
    def socket(self) -> str:
        return f"{self.name}.socket"

    @property
    def siblings(self) -> tuple[str, ...]:
        """Socket units that systemd stops along with the main one."""
        return f"{self.name}-ro.socket", f"{self.name}-admin.socket"

    @property
    def ours(self) -> str:
        """Our socket unit in its place."""
        return f"pcinuma-proxy-{self.name}.socket"


DAEMONS = (Daemon("virtqemud"), Daemon("libvirtd"))


@dataclass(frozen=True)
class SocketUnit:
    """What a socket unit says, as far as it matters to whoever listens in its place."""

    streams: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    """SocketMode, SocketUser, SocketGroup, Backlog: those that are set, in this order."""


_MIRRORED = ("SocketMode", "SocketUser", "SocketGroup", "Backlog")


def read_socket_unit(texts: Iterable[str]) -> SocketUnit:
    """A socket unit from its file and drop-ins, in the order in which systemd reads them. An empty assignment resets
    a list."""
    streams: list[str] = []
    found: dict[str, str] = {}
    for text in texts:
        section = ""
        for raw in text.splitlines():
            line = raw.strip()
            if line.startswith("["):
                section = line
            name, separator, value = (part.strip() for part in line.partition("="))
            if section != "[Socket]" or not separator or line.startswith(("#", ";")):
                continue
            if name == "ListenStream":
                streams = [*streams, value] if value else []
            elif name in _MIRRORED:
                found[name] = value
    # /var/run is what old units say for /run.
    paths = tuple(stream.replace("/var/run/", "/run/", 1) if stream.startswith("/var/run/") else stream for stream in streams)
    return SocketUnit(paths, tuple((name, found[name]) for name in _MIRRORED if found.get(name)))


def direct(path: str) -> str:
    """Where libvirt's socket goes."""
    return f"{path}-direct"


def files(daemon: Daemon, unit: SocketUnit) -> Mapping[str, str]:
    """The files to write, below ``/etc/systemd/system``. ``unit`` listens on exactly one path."""
    (path,) = unit.streams
    mirrored = "".join(f"{name}={value}\n" for name, value in unit.settings)
    return {
        f"{daemon.socket}.d/{OURS}": f"{_HEAD}[Socket]\nListenStream=\nListenStream={direct(path)}\n",
        daemon.ours: (
            f"{_HEAD}[Unit]\nDescription=libvirt's socket, through pcinuma's proxy\nBefore={daemon.service}\nAfter={daemon.socket}\n\n"
            f"[Socket]\nListenStream={path}\n{mirrored}Service={PROXY_SERVICE}\nFileDescriptorName={direct(path)}\nRemoveOnStop=yes\n\n"
            "[Install]\nWantedBy=sockets.target\n"
        ),
        f"{PROXY_SERVICE}.d/{OURS}": f"{_HEAD}[Unit]\nOnFailure={RESCUE_SERVICE}\n",
        RESCUE_SERVICE: _rescue(daemon),
    }


def _rescue(daemon: Daemon) -> str:
    """What ``disable`` does, without Python: whatever broke the proxy may have broken the command too. One process: systemd forgets
    the commands that are still to come of a unit whose file is gone."""
    etc = "/etc/systemd/system"
    names = [f"{daemon.socket}.d/{OURS}", f"{PROXY_SERVICE}.d/{OURS}", daemon.ours, f"sockets.target.wants/{daemon.ours}"]
    sockets = " ".join([daemon.socket, *daemon.siblings])
    commands = [
        f"systemctl stop {daemon.ours}",
        f"systemctl stop --job-mode=ignore-dependencies {sockets} {daemon.service}",
        "rm -f " + " ".join(f"{etc}/{name}" for name in names),
        "systemctl daemon-reload",
        f"systemctl start {sockets} {daemon.service}",
        f"rm -f {etc}/{RESCUE_SERVICE}",
    ]
    return (
        f"{_HEAD}[Unit]\nDescription=Give libvirt its socket back, since pcinuma's proxy failed\n\n[Service]\nType=oneshot\n"
        f"ExecStart=/bin/sh -c '{'; '.join(commands)}'\n"
    )


def unit_texts(root: Path, name: str) -> Optional[list[str]]:
    """The file of a unit and its drop-ins but ours, in order; None if there is no such unit, or it is masked."""
    main = next((root / folder / name for folder in UNIT_FOLDERS if (root / folder / name).exists()), None)
    if main is None or main.resolve() == Path("/dev/null"):
        return None
    dropins: dict[str, Path] = {}
    for folder in reversed(UNIT_FOLDERS):
        dropins.update({file.name: file for file in (root / folder / f"{name}.d").glob("*.conf")})
    others = [file for dropin, file in sorted(dropins.items()) if dropin != OURS]
    return [file.read_text(encoding="utf-8", errors="replace") for file in [main, *others]]
