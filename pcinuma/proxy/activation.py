# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma proxy enable|disable|status``: the proxy on libvirt's own socket, and off it again.

What is written is in :mod:`~pcinuma.proxy.dropins`; this is the part that looks and acts. With ``--root`` it only writes or removes files
below a directory, as for an image that is being built. Enabling restarts libvirt's daemon, as an update of it would (clients connect
anew, guests are not touched), then asks libvirt a question through the proxy, and undoes everything if there is no answer.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Iterator, Optional, Sequence

from pcinuma.errors import EXIT_DONE, PcinumaError, UnusableInput
from pcinuma.proxy import wire
from pcinuma.proxy.dropins import (
    DAEMONS,
    OURS,
    PROXY_SERVICE,
    RESCUE_SERVICE,
    Daemon,
    SocketUnit,
    direct,
    files,
    read_socket_unit,
    unit_texts,
)

_ETC = "etc/systemd/system"
_WANTS = f"{_ETC}/sockets.target.wants"
_OWN_SOCKET = "qemu+unix:///system?socket=/run/pcinuma/libvirt-sock"
_ANSWER_TIMEOUT = 20.0
_AUTH_LIST = 66  # REMOTE_PROC_AUTH_LIST: what every client asks first


class ActivationError(PcinumaError):
    """The proxy cannot be put on libvirt's socket, or taken off it."""


@dataclass(frozen=True)
class State:
    """Where things stand. ``path``: libvirt's socket that the proxy is on; ``upstream``: where libvirt listens then; ``proxy``:
    systemd's word for the service, None where systemd does not run."""

    enabled: bool
    daemon: Optional[str] = None
    path: Optional[str] = None
    upstream: Optional[str] = None
    proxy: Optional[str] = None


def main(argv: Sequence[str]) -> int:
    """Run ``pcinuma proxy`` with the words after it. Errors are PcinumaError."""
    parser = argparse.ArgumentParser(prog="pcinuma proxy")
    parser.add_argument("action", choices=("enable", "disable", "status"))
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="write below DIR and leave the running system alone")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    live = arguments.root == Path("/")
    if arguments.json and arguments.action != "status":
        raise UnusableInput(f"{arguments.action} has no --json")
    if arguments.action == "status":
        _print_state(state(arguments.root), as_json=arguments.json)
        return EXIT_DONE
    if live and os.geteuid() != 0:
        raise ActivationError("only root can do that", hint=f"sudo pcinuma proxy {arguments.action}")
    if arguments.action == "enable":
        enable(arguments.root, live)
    else:
        disable(arguments.root, live)
    return EXIT_DONE


def state(root: Path) -> State:
    """How things stand below ``root``."""
    running = _show(PROXY_SERVICE, "ActiveState") if root == Path("/") and _systemd_runs() else None
    for daemon in DAEMONS:
        if (root / _ETC / daemon.ours).exists():
            (path,) = read_socket_unit([(root / _ETC / daemon.ours).read_text(encoding="utf-8")]).streams
            return State(True, daemon.name, path, direct(path), running)
    return State(False, proxy=running)


def enable(root: Path, live: bool) -> None:
    """Put the proxy on libvirt's socket. Raises SwitchError with the reason where that cannot work, and leaves nothing behind then."""
    if state(root).enabled:
        print("nothing to do: the proxy is on libvirt's socket already")
        return
    daemon, unit = _choose(root, live)
    texts = files(daemon, unit)
    for name, text in texts.items():
        file = root / _ETC / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(f"written: /{_ETC}/{name}")
    link = root / _WANTS / daemon.ours
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(f"/{_ETC}/{daemon.ours}")
    if not live:
        return
    (path,) = unit.streams
    try:
        _take_over(daemon)
        _ask(path)
    except PcinumaError as error:
        disable(root, live)
        raise ActivationError(f"{error.what}, so everything was put back", subject=error.subject, hint=error.hint) from error
    print(f"{path} goes through the proxy now; libvirt is behind it on {direct(path)}")


def disable(root: Path, live: bool) -> None:
    """Give libvirt its socket back."""
    now = state(root)
    daemon = next((known for known in DAEMONS if now.daemon == known.name), None)
    if daemon is None:
        print("nothing to do: the proxy is not on libvirt's socket")
    elif live and _systemd_runs():
        _systemctl("stop", daemon.ours, PROXY_SERVICE)
        with _stopped(daemon):
            _remove(root, daemon)
            _systemctl("daemon-reload")
        Path(now.upstream or "").unlink(missing_ok=True)
        print("libvirt's socket is libvirt's again")
    else:
        _remove(root, daemon)


def _remove(root: Path, daemon: Daemon) -> None:
    etc = root / _ETC
    for name in (
        f"sockets.target.wants/{daemon.ours}",
        f"{daemon.socket}.d/{OURS}",
        f"{PROXY_SERVICE}.d/{OURS}",
        RESCUE_SERVICE,
        daemon.ours,
    ):
        file = etc / name
        if file.exists() or file.is_symlink():
            file.unlink()
            print(f"removed: /{_ETC}/{name}")
        if file.parent.name.endswith(".d") and file.parent.is_dir() and not any(file.parent.iterdir()):
            file.parent.rmdir()


def _choose(root: Path, live: bool) -> tuple[Daemon, SocketUnit]:
    """The daemon whose socket is to be taken over."""
    if live and not _systemd_runs():
        raise ActivationError("systemd does not run here", hint=f"let the clients connect to {_OWN_SOCKET} instead")
    if unit_texts(root, PROXY_SERVICE) is None:
        raise ActivationError("the unit is not installed", subject=PROXY_SERVICE, hint="install the package of pcinuma first")
    known = [(daemon, texts) for daemon in DAEMONS for texts in [unit_texts(root, daemon.socket)] if texts is not None]
    if not known:
        raise ActivationError(
            "neither virtqemud.socket nor libvirtd.socket is there", hint="libvirt is not installed, or not by systemd's ways"
        )
    used = [(daemon, texts) for daemon, texts in known if _in_use(root, live, daemon)]
    if not used:
        names = " and ".join(daemon.socket for daemon, _ in known)
        raise ActivationError(
            "libvirt's sockets are not systemd's here: it was started without socket activation",
            subject=names,
            hint=f"systemctl enable --now {known[-1][0].socket} (with {known[-1][0].service} stopped), or let clients use {_OWN_SOCKET}",
        )
    daemon, texts = used[0]
    unit = read_socket_unit(texts)
    if len(unit.streams) != 1 or not unit.streams[0].startswith("/"):
        paths = ", ".join(unit.streams) or "nothing"
        raise ActivationError(f"it listens on {paths}, and only one path can be moved", subject=daemon.socket)
    return daemon, unit


def _in_use(root: Path, live: bool, daemon: Daemon) -> bool:
    if live:
        return _show(daemon.socket, "ActiveState") == "active"
    return (root / _WANTS / daemon.socket).is_symlink() or (root / _WANTS / daemon.socket).exists()


def _take_over(daemon: Daemon) -> None:
    with _stopped(daemon):
        _systemctl("stop", PROXY_SERVICE)  # a socket cannot start under a running service
        _systemctl("daemon-reload")
    _systemctl("start", daemon.ours)
    _systemctl("start", PROXY_SERVICE)


@contextmanager
def _stopped(daemon: Daemon) -> Iterator[None]:
    """libvirt's sockets and its daemon are down within, and up again afterwards as they were. Guests do not notice.

    A restart would not do: a client that connects anew at once makes systemd start the daemon before its sockets have moved. Nothing that
    requires libvirt is stopped along with it (``ignore-dependencies``): it sees a libvirt that is away for a moment.
    """
    sockets = [unit for unit in (daemon.socket, *daemon.siblings) if _show(unit, "ActiveState") == "active"]
    running = _show(daemon.service, "ActiveState") in ("active", "activating", "reloading")
    _systemctl("stop", "--job-mode=ignore-dependencies", *sockets, daemon.service)
    try:
        yield
    finally:
        _systemctl("start", *sockets)
        if running:
            _systemctl("start", daemon.service)


def _ask(path: str) -> None:
    """Ask libvirt through the proxy, as a client does first of all."""
    request = wire.Header(wire.HEADER_SIZE, wire.REMOTE_PROGRAM, wire.VERSION, _AUTH_LIST, wire.Kind.CALL, 0, 0).encode()
    deadline = time.monotonic() + _ANSWER_TIMEOUT
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_ANSWER_TIMEOUT)
        try:
            client.connect(path)
            client.sendall(request)
            answer = b""
            while len(answer) < wire.HEADER_SIZE and time.monotonic() < deadline:
                part = client.recv(4096)
                if not part:
                    hint = f"see: journalctl -u {PROXY_SERVICE}"
                    raise ActivationError("libvirt does not answer through the proxy", subject=path, hint=hint)
                answer += part
        except OSError as error:
            raise ActivationError(f"libvirt does not answer through the proxy ({error})", subject=path) from error


def _systemd_runs() -> bool:
    return Path("/run/systemd/system").is_dir()


def _show(unit: str, name: str) -> str:
    found = subprocess.run(["systemctl", "show", "--value", f"--property={name}", unit], capture_output=True, text=True)
    return found.stdout.strip()


def _systemctl(*words: str) -> None:
    run = subprocess.run(["systemctl", *words], capture_output=True, text=True)
    if run.returncode != 0:
        complaint = " ".join(run.stderr.split()) or f"exit {run.returncode}"
        raise ActivationError(f"systemctl {' '.join(words)} failed: {complaint}")


def _print_state(now: State, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(now), indent=2))
    elif now.enabled:
        print(f"on: {now.path} goes through the proxy to {now.upstream} ({now.daemon})")
    else:
        print(f"off: libvirt's socket is libvirt's own; clients may use {_OWN_SOCKET}")
    if not as_json and now.proxy is not None:
        print(f"{PROXY_SERVICE}: {now.proxy}")
