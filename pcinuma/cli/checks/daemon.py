# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon: does it answer, is it this version, does it reach libvirt; and the proxy, where it is on libvirt's socket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Mapping

from pcinuma import __version__
from pcinuma.cli.checks.finding import Finding, fail, passed, warn
from pcinuma.daemon import choices, client, state
from pcinuma.errors import DaemonError, PcinumaError
from pcinuma.proxy import activation as switch


def check() -> list[Finding]:
    """Everything that the daemon tells, and whether the proxy runs."""
    return [*_daemon_itself(), *_proxy()]


def _proxy() -> list[Finding]:
    try:
        now = switch.state(Path("/"))
    except PcinumaError as error:
        return [warn("proxy", error.what, error.hint)]
    if not now.enabled:
        return [passed("proxy", "off: guests that are defined and started in one breath are placed at their next start")]
    if now.proxy == "failed":  # inactive is fine: its socket starts it
        return [fail("proxy", "on libvirt's socket, but its service failed", "journalctl -u pcinuma-proxy; or pcinuma proxy disable")]
    return [passed("proxy", f"on {now.path}")]


def _daemon_itself() -> list[Finding]:
    try:
        status = client.call("Status", timeout=10)
    except DaemonError as error:
        if isinstance(error.__context__, PermissionError):
            return [warn("daemon", "answers only root", "run this as root")]
        return [fail("daemon", error.what, error.hint), *_lost()]
    return [_daemon(status), *[_problem(text) for text in status.get("problems", ())], *_link(status)]


def _lost() -> list[Finding]:
    """What a daemon that runs would complain of."""
    lost = choices.read(Path(os.environ.get("PCINUMA_STATE") or state.DEFAULT_FOLDER)).lost
    return [_problem(lost)] if lost is not None else []


def _daemon(status: Mapping[str, Any]) -> Finding:
    if status["version"] != __version__:
        message = f"version {status['version']} runs, version {__version__} is installed"
        return warn("daemon", message, "systemctl restart pcinuma")
    return passed("daemon", f"version {status['version']}, running since {str(status['started'])[:19].replace('T', ' ')}")


def _problem(text: str) -> Finding:
    message, _, hint = text.partition(": ")
    return fail("daemon", message, hint or None)


def _link(status: Mapping[str, Any]) -> list[Finding]:
    libvirt = status["libvirt"]
    if libvirt["connected"]:
        return []
    message = f"not connected to {libvirt['uri']}: {libvirt['message']}"
    return [fail("daemon's libvirt", message, "is libvirt running? see journalctl -u pcinuma")]
