# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who does what a command asks for: the daemon, or, where it is not running, this process with libvirt and the daemon's own functions.

Both give the same values, so the commands cannot tell them apart, and both go by what people decided before, which lasts whoever was there
to hear it (:mod:`pcinuma.cli.without_daemon`). An error of a *running* daemon is an error: it is never papered over by doing the work here.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import Any, Iterator, Mapping, Optional

from pcinuma.cli.definition import Backend, Definition, Enabled
from pcinuma.daemon import client
from pcinuma.errors import DaemonError

_STOPPED = (None, "shut off", "crashed")


@contextmanager
def backend(*, write: bool) -> Iterator[Backend]:
    """The daemon if it runs, else libvirt (said on stderr where something is written)."""
    try:
        status = client.call("Status")
    except DaemonError as error:
        if not daemon_is_down(error) and (write or not may_not_ask(error)):
            raise
    else:
        yield _Daemon(status)
        return
    from pcinuma.cli.without_daemon import without_daemon  # imports libvirt

    if write:
        print("pcinuma: the daemon is not running: working on libvirt directly", file=sys.stderr)
    with without_daemon(write=write) as worker:
        yield worker


def daemon_is_down(error: DaemonError) -> bool:
    """Whether there is no daemon, as opposed to one that answered with an error or not in time."""
    return error.hint == client.START_HINT


def may_not_ask(error: DaemonError) -> bool:
    """Whether this user may not talk to the daemon; reading from libvirt may still be allowed."""
    return error.hint == client.SUDO_HINT


class _Daemon:
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._domains: Mapping[str, Mapping[str, Any]] = {domain["name"]: domain for domain in status["domains"]}

    def names(self) -> list[str]:
        return sorted(self._domains)

    def place(
        self,
        domain: str,
        *,
        replan: bool = False,
        force: bool = False,
        dry_run: bool = False,
        cells: Optional[str] = None,
        memory: Optional[str] = None,
    ) -> Definition:
        asked: dict[str, Any] = {"domain": domain, "replan": replan, "force": force, "dry_run": dry_run}
        asked.update({name: value for name, value in (("cells", cells), ("memory", memory)) if value is not None})
        reply = client.call("PlaceDomain", asked, timeout=120)
        return self._definition(domain, reply, reply["report"])

    def revert(self, domain: str, *, dry_run: bool = False) -> Definition:
        return self._definition(domain, client.call("RevertDomain", {"domain": domain, "dry_run": dry_run}, timeout=120), None)

    def enable(self, domain: str) -> Enabled:
        reply = client.call("Enable", {"domain": domain}, timeout=120)
        return Enabled(reply["changed"], reply["report"])

    def disable(self, domain: str, *, revert: bool) -> bool:
        return bool(client.call("Disable", {"domain": domain, "revert": revert}, timeout=120)["changed"])

    def _definition(self, domain: str, reply: Mapping[str, Any], report: Optional[Mapping[str, Any]]) -> Definition:
        known = next((entry for entry in self._domains.values() if domain in (entry["name"], entry["uuid"])), None)
        running = known is not None and known["state"] not in _STOPPED
        name = domain if known is None else str(known["name"])
        enabled = None if known is None else bool(known["enabled"])
        return Definition(name, reply["changed"], reply["before"].encode(), reply["xml"].encode(), report, running, enabled)
