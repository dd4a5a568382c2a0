# SPDX-License-Identifier: LGPL-2.1-or-later
"""One domain's definition: placed or reverted, alone with it in this process, and what became of it recorded.

Raises libvirtError and PcinumaError, which the reconciler or the caller of a method turns into a decision or an answer. A definition that
arrives just when somebody undefines the domain would bring it back; :mod:`~pcinuma.daemon.undefine_race` sees to that. Everything here runs
in the event loop; ``executor`` runs what blocks.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Mapping, NamedTuple, Optional, TypeVar
from weakref import WeakValueDictionary

import libvirt

from pcinuma.daemon import definition
from pcinuma.daemon.contention import Addresses
from pcinuma.daemon.counters import Counters
from pcinuma.daemon.decisions import Decisions
from pcinuma.daemon.define_events import DefineEvents
from pcinuma.daemon.definition import Change, Definitions, Job, Prefetched
from pcinuma.daemon.definition_files import DefinitionFiles
from pcinuma.daemon.inventory import NOT_SETTLED, Known, fingerprint
from pcinuma.daemon.permission import allowed
from pcinuma.daemon.pools import Pools
from pcinuma.daemon.state import State
from pcinuma.daemon.state_file import StateFile
from pcinuma.daemon.undefine_race import UndefineRaces
from pcinuma.engine import AS_SET_UP, CellsOption, Request
from pcinuma.log import log
from pcinuma.reason import Reason
from pcinuma.settings import Policy, Settings

_WAITING = (Reason.DEVICE_ABSENT, Reason.POOL_UNRESOLVED, Reason.BACKING_UNKNOWN)

T = TypeVar("T")


class Placed(NamedTuple):
    """What placing came to. ``newest``: our definition is the last one that was made, as the only one that libvirt told of since that
    began: libvirt tells in order, and this one was told of."""

    change: Change
    newest: bool


class Placer:
    """``known``: the domains that libvirt has; ``files``: their definitions as libvirt writes them. ``ended`` is called with a domain's
    UUID when it was placed, or not, and that is recorded. ``placing``: how often a domain is being placed, until then."""

    def __init__(
        self,
        state: State,
        state_file: StateFile,
        settings: Settings,
        root: Path,
        pools: Pools,
        executor: Executor,
        known: Mapping[str, Known],
        files: DefinitionFiles,
        define_events: DefineEvents,
        counters: Counters,
        ended: Callable[[str], object],
    ) -> None:
        self.settings = settings
        self.state = state
        self.decisions = Decisions(state, state_file)
        self.undefine_races = UndefineRaces()
        self._root = root
        self._pools = pools
        self._executor = executor
        self._known = known
        self._files = files
        self._definitions = Definitions.of(files)
        self._define_events = define_events
        self._counters = counters
        self._ended = ended
        self.placing: Counter[str] = Counter()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def alone(self, uuid: str) -> AsyncIterator[None]:
        """Nobody else in this process works on the domain meanwhile."""
        lock = self._locks.get(uuid)
        if lock is None:
            lock = self._locks[uuid] = asyncio.Lock()
        async with lock:
            yield

    def request(self, uuid: Optional[str]) -> Request:
        """What the engine needs to know about a domain that is not in its XML."""
        record = self.state.domains.get(uuid) if uuid else None
        return Request(self._root, settings=self.settings, ran_with=record.ran_with if record else frozenset())

    def allows(self, uuid: Optional[str], owner: Optional[Policy]) -> bool:
        """Whether a domain may be placed without a person asking for it."""
        return allowed(self.state, self.settings.adopt, uuid, owner)

    def is_enabled(self, uuid: str) -> bool:
        """Whether the domain is placed without a person asking for it, as far as its metadata is known."""
        known = self._known.get(uuid)
        return self.allows(uuid, known.owner if known else None)

    async def place(
        self,
        domain: libvirt.virDomain,
        *,
        by: str,
        force: bool = False,
        replan: bool = False,
        dry_run: bool = False,
        cells: CellsOption = AS_SET_UP,
        may_define: Callable[[Callable[[], Addresses]], bool] = lambda found: True,
        prefetched: Optional[Prefetched] = None,
        on_placed: Callable[[Placed], None] = lambda placed: None,
        give_way: Callable[[], object] = lambda: None,
    ) -> Change:
        """Place a definition, alone with it, and record what became of it. Raises libvirtError and PcinumaError.

        ``on_placed`` is called before it is recorded.
        """
        uuid = domain.UUIDString()
        async with self.alone(uuid):
            job = Job(
                request=replace(self.request(uuid), replan=replan, **cells._asdict()),
                allows=lambda owner: force or self.allows(uuid, owner),
                may_define=may_define,
                dry_run=dry_run,
                give_way=give_way,
            )
            began = time.monotonic()
            self.placing[uuid] += 1
            try:
                with self._define_events.counting(uuid) as defined, self.undefine_races.watching(uuid) as check_later:
                    change = await self._in_thread(definition.place, domain, job, self._pools, self._definitions, prefetched)
                    on_placed(Placed(change, change.defines == 1 and self._define_events.so_far(uuid) == 1))
                    if change.changed and not dry_run:
                        defined(change.defines)
                        check_later(lambda: self._undefine(domain, uuid, change), change.number is None)
                if not dry_run:
                    asyncio.get_running_loop().call_soon(self._record, uuid, change, by, began)  # after whoever waited goes on
                return change
            finally:
                asyncio.get_running_loop().call_soon(self._placed, uuid)

    def _placed(self, uuid: str) -> None:
        self.placing[uuid] -= 1
        if not self.placing[uuid]:
            del self.placing[uuid]
        self._ended(uuid)

    async def revert(self, domain: libvirt.virDomain, *, dry_run: bool, by: str) -> Change:
        """Take the placement out of a definition, alone with it. Raises libvirtError and PcinumaError."""
        uuid = domain.UUIDString()
        async with self.alone(uuid):
            began = time.monotonic()
            with self.undefine_races.watching(uuid) as check_later:
                change = await self._in_thread(lambda: definition.revert(domain, self._definitions, dry_run=dry_run))
                if change.changed and not dry_run:
                    check_later(lambda: self._undefine(domain, uuid, change), change.number is None)
                    log.info("reverted", domain=change.name, by=by, duration_ms=round((time.monotonic() - began) * 1000, 1))
            return change

    async def _undefine(self, domain: libvirt.virDomain, uuid: str, ours: Change) -> bool:
        async with self.alone(uuid):
            return await self._in_thread(definition.undefine, domain, ours, self._files)

    def _record(self, uuid: str, change: Change, by: str, began: float) -> None:
        known = self._known.get(uuid)
        if known is not None:
            known.owner = change.owner
            known.looked_at = max(known.looked_at, change.number or 0)
            known.changed = self._files.last(uuid) > known.looked_at if change.number is not None else False
            # What libvirt made of a definition of ours may hold somebody's change of the moment after.
            known.settled = NOT_SETTLED if change.changed else (fingerprint(change.after), time.monotonic())
            known.absent = any(device.reason in _WAITING for device in change.result.devices)
        if change.changed:
            self._counters.placed(change.name, by)
        if by == "reconciler":
            self._counters.reconcile.observe(time.monotonic() - began)
        policy = change.owner or self.settings.policy
        self.decisions.record(uuid, change.name, change.result, policy, by=by, began=began, changed=change.changed)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
