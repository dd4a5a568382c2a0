"""Who does what a command asks for: the daemon, or, where it is not running, this process with libvirt and the same engine.

Both give the same values, so the commands cannot tell them apart. Without the daemon ``plan``, ``apply`` and ``revert`` work the same (an
uninstall must be able to revert everything with the daemon stopped); what only the daemon keeps (which domains are enabled, what was
decided when) does not. An error of a *running* daemon is an error: it is never papered over by doing the work here.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Protocol

from pcinuma import engine
from pcinuma.cli.connect import connection, find_domain, host_root, libvirt_module
from pcinuma.cli.sources import DomainSource, read_pools
from pcinuma.daemon import client
from pcinuma.errors import DaemonError, DomainError, LibvirtError
from pcinuma.placement.reason import Reason


@dataclass(frozen=True)
class Definition:
    """What was, or would be, done to a domain's inactive definition. ``report`` is that of ``place``; None for a revert.

    ``enabled``: whether pcinuma places the domain without being asked; None where that is not known.
    """

    domain: str
    changed: bool
    before: bytes
    after: bytes
    report: Optional[Mapping[str, Any]]
    running: bool
    enabled: Optional[bool] = None


class Backend(Protocol):
    """What plan, apply and revert need."""

    def names(self) -> list[str]:
        """The names of all persistent domains, sorted."""

    def place(self, domain: str, *, replan: bool = False, force: bool = False, dry_run: bool = False) -> Definition:
        """Place the inactive definition."""

    def revert(self, domain: str, *, dry_run: bool = False) -> Definition:
        """Take pcinuma's placement out of the inactive definition."""


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
    if write:
        print("pcinuma: the daemon is not running: working on libvirt directly", file=sys.stderr)
    with connection(write=write) as opened:
        yield _Libvirt(opened, write)


def daemon_is_down(error: DaemonError) -> bool:
    """Whether there is no daemon, as opposed to one that answered with an error or not in time."""
    return error.hint == client.START_HINT


def may_not_ask(error: DaemonError) -> bool:
    """Whether this user may not talk to the daemon; reading from libvirt may still be allowed."""
    return isinstance(error.__context__, PermissionError) or error.hint == "use sudo"


class _Daemon:
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._domains: Mapping[str, Mapping[str, Any]] = {domain["name"]: domain for domain in status["domains"]}

    def names(self) -> list[str]:
        return sorted(self._domains)

    def place(self, domain: str, *, replan: bool = False, force: bool = False, dry_run: bool = False) -> Definition:
        reply = client.call("PlaceDomain", {"domain": domain, "replan": replan, "force": force, "dry_run": dry_run}, timeout=120)
        return self._definition(domain, reply, reply["report"])

    def revert(self, domain: str, *, dry_run: bool = False) -> Definition:
        return self._definition(domain, client.call("RevertDomain", {"domain": domain, "dry_run": dry_run}, timeout=120), None)

    def _definition(self, domain: str, reply: Mapping[str, Any], report: Optional[Mapping[str, Any]]) -> Definition:
        known = next((entry for entry in self._domains.values() if domain in (entry["name"], entry["uuid"])), None)
        running = known is not None and known["state"] not in (None, "shut off", "crashed")
        name = domain if known is None else str(known["name"])
        enabled = None if known is None else bool(known["enabled"])
        return Definition(name, reply["changed"], reply["before"].encode(), reply["xml"].encode(), report, running, enabled)


class _Libvirt:
    def __init__(self, opened: Any, write: bool) -> None:
        self._opened = opened
        self._libvirt = libvirt_module()
        # Without SECURE a definition comes without its passwords; a read-only connection may not have them, and does not define.
        self._flags = self._libvirt.VIR_DOMAIN_XML_INACTIVE | (self._libvirt.VIR_DOMAIN_XML_SECURE if write else 0)

    def names(self) -> list[str]:
        domains = self._opened.listAllDomains(self._libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
        return sorted(domain.name() for domain in domains)

    def place(self, domain: str, *, replan: bool = False, force: bool = False, dry_run: bool = False) -> Definition:
        found, before = self._read(domain)
        source = DomainSource(found.name(), before, read_pools(self._opened, before), False)
        result = engine.place(before, source.request(Path(host_root()), replan=replan))
        return self._finish(found, before, result.xml, result.report(), dry_run)

    def revert(self, domain: str, *, dry_run: bool = False) -> Definition:
        found, before = self._read(domain)
        return self._finish(found, before, engine.revert(before).xml, None, dry_run)

    def _read(self, domain: str) -> tuple[Any, bytes]:
        found = find_domain(self._opened, domain)
        if not found.isPersistent():
            raise LibvirtError("is transient: it has no definition to change", subject=found.name())
        return found, found.XMLDesc(self._flags).encode()

    def _finish(
        self, found: Any, before: bytes, after: bytes, report: Optional[Mapping[str, Any]], dry_run: bool
    ) -> Definition:
        changed = after != before
        if changed and not dry_run:
            if found.hasManagedSaveImage():
                hint = f"start it and shut it down, or `virsh managedsave-remove {found.name()}`"
                raise DomainError(Reason.MANAGED_SAVE.sentence, subject=found.name(), hint=hint)
            self._opened.defineXML(after.decode())
        return Definition(found.name(), changed, before, after, report, bool(found.isActive()))
