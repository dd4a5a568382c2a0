# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon does for a command, done by this process while no daemon runs: the same functions, on the same state.

What a person decides lasts, whoever was there to hear it: ``enable``, ``disable`` and ``revert`` put it into the daemon's state folder, and
``plan`` and ``apply`` go by what is there. A command that writes holds the daemon's lock until it is through, so a daemon that starts
meanwhile waits for it and then reads what was written. Where a daemon has the lock already it is about to answer: it holds the state in
memory, and would not see what is changed behind its back, so the answer is an error that says to try again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

import libvirt

from pcinuma.cli.connect import connection, find_domain, host_root
from pcinuma.cli.definition import Definition, Enabled
from pcinuma.daemon import choices, definition, lock, state
from pcinuma.daemon.definition import Change, Definitions, Job
from pcinuma.daemon.definition_files import DefinitionFiles
from pcinuma.daemon.permission import allowed
from pcinuma.daemon.pools import Pools
from pcinuma.daemon.state import State
from pcinuma.daemon.state_file import StateFile
from pcinuma.engine import AS_SET_UP, CellsOption, Request, cells_option
from pcinuma.errors import LibvirtError
from pcinuma.log import configure
from pcinuma.settings import Policy, load_settings

_AGAIN = "it has just been started: give the command again"


@contextmanager
def without_daemon(*, write: bool) -> Iterator[WithoutDaemon]:
    """libvirt, and the state: all of it for oneself to ``write``, else as far as this user may read it."""
    configure(sys.stderr)
    folder = Path(os.environ.get("PCINUMA_STATE") or state.DEFAULT_FOLDER)
    with ExitStack() as stack:
        if write:
            stack.callback(os.close, lock.take(folder, _AGAIN))
        opened = stack.enter_context(connection(write=write))
        files = DefinitionFiles(lambda uuid: None)
        stack.callback(files.close)
        if write:
            files.watch()
        yield WithoutDaemon(opened, folder, state.load(folder) if write else _seen(folder), files, write=write)


def _seen(folder: Path) -> Optional[State]:
    """The state, without mending anything of it; None where this user may not look."""
    if folder.exists() and not os.access(folder, os.R_OK | os.X_OK):
        return None
    known, records = choices.read(folder), {}
    try:
        content = state.from_json((folder / state.FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        pass  # what is in there beside choices of an older version is not worth a word; a daemon that starts has one
    else:
        known, records = content.old or known, content.domains
    return State(known.existing, known.enabled, known.disabled, known.unsure, known.lost, records)


class WithoutDaemon:
    """See :class:`~pcinuma.cli.definition.Backend`. ``known``: the state, None where it is not known, and then nothing is written."""

    def __init__(self, opened: Any, folder: Path, known: Optional[State], files: DefinitionFiles, *, write: bool) -> None:
        self._opened = opened
        self._folder = folder
        self._known = known
        self._write = write
        self._settings = load_settings(host_root())
        self._pools = Pools(host_root())
        self._definitions = Definitions.of(files)

    def names(self) -> list[str]:
        """All persistent domains."""
        return sorted(domain.name() for domain in self._opened.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT))

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
        """As the daemon's PlaceDomain."""
        found = self._find(domain)
        change = self._place(found, replan=replan, force=force, dry_run=dry_run, cells=cells_option(cells, memory))
        return self._definition(found, change, change.result.report())

    def revert(self, domain: str, *, dry_run: bool = False) -> Definition:
        """As the daemon's RevertDomain."""
        found = self._find(domain)
        change = definition.revert(found if self._write else _WithoutSecrets(found), self._definitions, dry_run=True)
        if change.changed and not dry_run:
            self._choose(found, enabled=False)
            with definition.although_disabled(found.name()):
                change = definition.revert(found, self._definitions, dry_run=False)
        return self._definition(found, change, None)

    def enable(self, domain: str) -> Enabled:
        """As the daemon's Enable."""
        found = self._find(domain)
        news = self._choose(found, enabled=True)
        change = self._place(found)
        return Enabled(news or change.changed, change.result.report())

    def disable(self, domain: str, *, revert: bool) -> bool:
        """As the daemon's Disable."""
        found = self._find(domain)
        reverts = revert and self.revert(domain, dry_run=True).changed
        news = self._choose(found, enabled=False)
        return self.revert(domain).changed or news if reverts else news

    def _find(self, domain: str) -> Any:
        found = find_domain(self._opened, domain)
        if not found.isPersistent():
            raise LibvirtError("is transient: it has no definition to change", subject=found.name())
        return found

    def _place(
        self, found: Any, *, replan: bool = False, force: bool = False, dry_run: bool = False, cells: CellsOption = AS_SET_UP
    ) -> Change:
        uuid = found.UUIDString()
        record = self._known.domains.get(uuid) if self._known else None
        ran_with = record.ran_with if record else frozenset()
        request = Request(host_root(), settings=self._settings, replan=replan, ran_with=ran_with, **cells._asdict())
        job = Job(request, allows=lambda owner: force or bool(self._allows(uuid, owner)), dry_run=dry_run)
        return definition.place(found if self._write else _WithoutSecrets(found), job, self._pools, self._definitions)

    def _allows(self, uuid: str, owner: Optional[Policy]) -> Optional[bool]:
        return None if self._known is None else allowed(self._known, self._settings.adopt, uuid, owner)

    def _choose(self, found: Any, *, enabled: bool) -> bool:
        """Put a person's choice on the disk; whether it is a new one. Raises DaemonError, and then nothing was chosen."""
        assert self._known is not None
        keeper = StateFile(self._folder, self._known)

        async def choose() -> bool:
            news = await keeper.choose(found.UUIDString(), found.name(), enabled=enabled)
            await keeper.written()
            return news

        return asyncio.run(choose())

    def _definition(self, found: Any, change: Change, report: Optional[Mapping[str, Any]]) -> Definition:
        enabled = self._allows(found.UUIDString(), change.owner)
        return Definition(change.name, change.changed, change.before, change.after, report, bool(found.isActive()), enabled)


class _WithoutSecrets:
    """A domain of a read-only connection, which may not be asked for passwords."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._domain, name)

    def XMLDesc(self, flags: int = 0) -> Any:  # libvirt's name
        return self._domain.XMLDesc(flags & ~libvirt.VIR_DOMAIN_XML_SECURE)
