# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reconciler: which domain is looked at when. What a look does is :mod:`~pcinuma.daemon.placer`'s.

A domain is looked at when libvirt says that it was defined or has stopped, when libvirt wrote its definition without saying so, when a node
device or network that it waits for may have come, at the start and after a reconnect (all of them), after a change of the configuration,
and when a person asks. Several domains are looked at at once, those with an event before those of a sweep. Looking at a domain that is
right changes nothing, so our own definition needs no special care for its own sake. But other domains may be in a hurry, so where most
likely nothing is to be done (our own definition, a domain that stopped), that look comes later, and only if the definition is not what
another look has found right meanwhile (:meth:`Reconciler.check`). What libvirt writes while a domain is looked at or checked begins nothing
of its own: whoever looks sees to it at his end, so that the last decision is about the last definition.

A start in the same breath as the define (:meth:`Reconciler.prepare`, for the proxy) joins the look that the define has caused.

While a domain starts, libvirt holds it locked and every call about it would block a thread: looks at it wait until that is over
(:mod:`~pcinuma.daemon.starts`). Who changes one thing after the other is let finish (:mod:`~pcinuma.daemon.debounce`).
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import libvirt

from pcinuma.daemon import counters, definition, starts
from pcinuma.daemon.contention import Contention
from pcinuma.daemon.counters import Counters
from pcinuma.daemon.define_events import DefineEvents
from pcinuma.daemon.definition import Change, Prefetched
from pcinuma.daemon.definition_files import DefinitionFiles
from pcinuma.daemon.inventory import NOT_SETTLED, STATE_AFTER, Known, fingerprint, list_domains
from pcinuma.daemon.link import DomainEvent
from pcinuma.daemon.overwritten import read
from pcinuma.daemon.placer import Placed, Placer
from pcinuma.daemon.pools import Pools
from pcinuma.daemon.starts import Starts
from pcinuma.daemon.state import State
from pcinuma.daemon.state_file import StateFile
from pcinuma.daemon.sweep import Sweep
from pcinuma.daemon.work_queue import NOW, SOMETIME, WorkQueue
from pcinuma.errors import PcinumaError
from pcinuma.log import log
from pcinuma.reason import Reason
from pcinuma.settings import Settings

WORKERS = 3
"""libvirt answers five calls of one connection at a time; two are left for requests."""
HOST_SETTLES = 0.5
"""Seconds in which node-device events gather: a physical function that makes its virtual ones sends one event each."""
EVENT_TAKES = 0.03
EVENT_IS_LATE = 1.0
"""Seconds for which a definition of an unknown domain counts as one that libvirt will tell of: on a busy machine, or none if it is gone."""
LATER = 1.0
"""Seconds until a domain is looked at where most likely nothing is to be done: who defines and starts in one go is through by then."""
SETTLED = 10.0
"""Seconds for which a definition that a look found right counts as that."""
WATCH_AGAIN = 2.0
"""Seconds between two tries to watch libvirt's definitions, where the kernel refuses that."""

T = TypeVar("T")


class Reconciler:
    """Keeps definitions placed. Everything here runs in the event loop; ``executor`` runs what blocks."""

    def __init__(self, state: State, state_file: StateFile, settings: Settings, root: Path, pools: Pools, executor: Executor) -> None:
        self.known: dict[str, Known] = {}
        self.state = state
        self.counters = Counters()
        self._state_file = state_file
        self._pools = pools
        self._executor = executor
        self._work_queue = WorkQueue(self._may_look)
        self._starts = Starts(self._start_is_over, self._is_active)
        self._files = DefinitionFiles(self._definition_written)
        self._written = 0  # definitions that libvirt wrote and may yet send an event for
        self._define_events = DefineEvents(self.known, self.want, self.check_later)
        self.placer = Placer(
            state,
            state_file,
            settings,
            root,
            pools,
            executor,
            self.known,
            self._files,
            self._define_events,
            self.counters,
            self._look_if_written,
        )
        self._under_way: dict[str, asyncio.Future[Optional[Placed]]] = {}  # looks
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._host_changed: Optional[asyncio.TimerHandle] = None
        self._sweep = Sweep()

    @property
    def problems(self) -> list[str]:
        """What a person should know, and what to do."""
        return [self._files.problem] if self._files.problem is not None else []

    @property
    def definitions_watched(self) -> Optional[str]:
        """How libvirt's writing of definitions is watched."""
        return self._files.kind

    # What libvirt tells (link.Owner).

    async def connected(self, connection: libvirt.virConnect) -> None:
        """A new connection: list everything, and look at all of it."""
        self.counters.connections += 1
        self._pools.forget()
        self._files.watch()
        domains = await self._in_thread(list_domains, connection)
        for uuid, (domain, state) in domains.items():
            self.known.setdefault(uuid, Known(domain, state))  # an event that came meanwhile knows better
        for uuid in set(self.state.domains) - set(self.known):
            self.placer.decisions.forget(uuid)
        await self._state_file.take_stock(self.known)
        self.sweep()

    def disconnected(self) -> None:
        """The connection is gone, and with it what it knew."""
        self._work_queue.clear()
        self._sweep.clear()
        self._starts.clear()
        self.counters.disconnected()
        self.known.clear()
        self._files.forget()
        self._pools.forget()

    def domain_event(self, event: DomainEvent) -> None:
        """A lifecycle event."""
        uuid = event.domain.UUIDString()
        if event.event in (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED):
            self.placer.undefine_races.event(uuid, event.event, event.detail)
        if event.event == libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
            if event.detail != libvirt.VIR_DOMAIN_EVENT_UNDEFINED_RENAMED:
                self._forget(uuid)
            return
        known = self.known.get(uuid)
        if known is None:
            known = self.known[uuid] = Known(event.domain, "shut off")
        known.domain = event.domain
        known.state = STATE_AFTER.get(event.event, known.state)
        if event.event == libvirt.VIR_DOMAIN_EVENT_DEFINED:
            known.prefetched = event.prefetched
            self._files.watch()
            self._starts.lock_was_free(uuid)
            if not self._define_events.came(uuid, known):
                known.changed = True
                self._want_debounced(uuid, known)
        elif event.event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self.counters.start_ended(uuid, counters.FAILED)  # of one that ran, that was counted
            self._starts.is_over(uuid)
            if self._decided(uuid, Reason.RUNNING):
                self.want(uuid)  # not any more
            else:
                self.check_later(uuid)
        elif event.event == libvirt.VIR_DOMAIN_EVENT_STARTED:
            self.counters.start_ended(uuid, counters.RUNNING)
            self._starts.is_over(uuid)
            if self._decided(uuid, Reason.MANAGED_SAVE):
                self.want(uuid)  # the saved state is used up

    def _decided(self, uuid: str, reason: Reason) -> bool:
        decision = self.placer.decisions.of(uuid)
        return decision is not None and decision.reason == reason.value

    def defined(self, domain: libvirt.virDomain) -> Optional[Prefetched]:
        """A definition has just arrived (called in libvirt's thread): if nothing else is to be done, the questions about it are asked at
        once. A crowd gains nothing by that."""
        idle = self._define_events.idle and self._work_queue.idle
        return definition.prefetch(domain, self._files, self._executor) if idle else None

    def _definition_written(self, uuid: Optional[str], patience: float = EVENT_IS_LATE) -> None:
        """libvirt wrote a definition (None: perhaps any). Most often an event is on its way that says the same."""
        self._written += 1
        asyncio.get_running_loop().call_later(EVENT_TAKES, self._look_without_event, uuid, patience)

    def _look_without_event(self, uuid: Optional[str], patience: float) -> None:
        self._written -= 1
        if uuid is not None and uuid not in self.known and patience > 0:
            self._definition_written(uuid, patience - EVENT_TAKES)  # of a new domain only the event tells
            return
        for each in [uuid] if uuid is not None else list(self.known):
            known = self.known.get(each)
            if known is not None and self._files.last(each) > max(known.looked_at, known.noted):
                self._starts.lock_was_free(each)
                self._look_if_written(each)

    def _ends_with_a_look(self, uuid: str) -> bool:
        """Whether the domain is just being placed, at the end of which what is written meanwhile is seen to."""
        return uuid in self.placer.placing and self.definitions_watched is not None

    def _look_if_written(self, uuid: str) -> None:
        """Look at a domain if what libvirt wrote last has not been looked at and is not about to be. Called when it was written, and when
        the domain was placed: what was written in between may be as another look found it, but it is not what this one saw."""
        known = self.known.get(uuid)
        if known is None or self._ends_with_a_look(uuid) or self._files.last(uuid) <= max(known.looked_at, known.noted):
            return
        if known.debounce_timer is not None:
            self._want_debounced(uuid, known)
        else:
            self.check(uuid)

    def _want_debounced(self, uuid: str, known: Known) -> None:
        """Look at a domain that somebody changed, when he is done."""
        if known.debounce_timer is not None:
            known.debounce_timer.cancel()
            known.debounce_timer = None
        known.noted = self._files.last(uuid)
        delay = known.debounce.delay(time.monotonic())
        if not delay:
            self.want(uuid)
            return
        known.debounce_timer = asyncio.get_running_loop().call_later(delay, self._debounced, uuid)

    def _debounced(self, uuid: str) -> None:
        known = self.known.get(uuid)
        if known is not None:
            known.debounce_timer = None
            self.want(uuid)

    def nodes_changed(self) -> None:
        """Host devices came or went."""
        self._pools.mdevs.changed()
        if self._host_changed is None:
            self._host_changed = asyncio.get_running_loop().call_later(HOST_SETTLES, self._look_at_waiting)

    def networks_changed(self) -> None:
        """A network was defined, started or stopped."""
        self._pools.forget()
        self.nodes_changed()

    # What is looked at.

    def sweep(self) -> None:
        """Look at every domain."""
        self._sweep.begin(self.known)
        for uuid in sorted(self.known):
            self.want(uuid, SOMETIME)

    def want(self, uuid: str, priority: int = NOW) -> None:
        """Look at a domain as soon as possible."""
        self._work_queue.want(uuid, priority)

    def _may_look(self, uuid: str) -> bool:
        return uuid not in self._starts

    @property
    def pending(self) -> int:
        """How many looks are due or under way. A change that libvirt has made counts from the moment in which its call returns, since its
        file is written by then. The look that comes later for safety's sake (:meth:`check_later`) does not count."""
        self._files.now()
        debounced = sum(known.debounce_timer is not None for known in self.known.values())
        written = self._written + self._files.untold
        looks = len(self._work_queue.domains | self.placer.placing.keys())
        return looks + len(self._checks) + written + debounced + (self._host_changed is not None)

    def check_later(self, uuid: str) -> None:
        """:meth:`check` when nobody is in a hurry any more."""
        asyncio.get_running_loop().call_later(LATER, self.check, uuid)

    def check(self, uuid: str) -> None:
        """Look at a domain unless its definition is one that a look has found right."""
        known = self.known.get(uuid)
        if known is None or uuid in self._work_queue or uuid in self._checks:
            return
        if self._ends_with_a_look(uuid):
            return
        if uuid in self._starts or time.monotonic() - known.settled[1] > SETTLED:
            self.want(uuid, SOMETIME)
            return
        self._checks[uuid] = asyncio.get_running_loop().create_task(self._check(uuid, known))

    async def _check(self, uuid: str, known: Known) -> None:
        """A definition counts as the one that was found right only if nothing was written between the reading and now: while this goes on,
        nothing else is begun for what is written."""
        try:
            number = self._files.now()
            try:
                same = fingerprint(await self._in_thread(read, known.domain)) == known.settled[0]
            except libvirt.libvirtError:
                same = False  # a look knows what to do about it
            if self.known.get(uuid) is not known or self._ends_with_a_look(uuid):
                return
            if number is not None:
                self._files.now()
                same = same and self._files.last(uuid) <= number
            if same:
                known.looked_at = max(known.looked_at, number or 0)
                known.changed = False
            else:
                known.changed = True
                self._want_debounced(uuid, known)
        finally:
            del self._checks[uuid]

    async def run(self) -> None:
        """Look at what is wanted, until cancelled."""
        await asyncio.gather(self._keep_watching(), *(self._worker() for _ in range(WORKERS)))

    async def _keep_watching(self) -> None:
        while True:
            await asyncio.sleep(WATCH_AGAIN)
            if self._files.watch_again():
                self.sweep()

    async def _worker(self) -> None:
        while True:
            uuid = await self._work_queue.next()
            known = self.known.get(uuid)
            try:
                if known is not None:
                    await self._look(uuid, known)
            finally:
                self._sweep.looked_at(uuid)
                self._work_queue.done(uuid)
                del known  # a worker that waits would keep the connection that the domain is of

    async def _look(self, uuid: str, known: Known) -> None:
        if known.contention.remaining():
            return  # what began the pause also set a timer for its end
        prefetched, known.prefetched = known.prefetched, None
        known.noted = max(known.noted, self._files.last(uuid))
        under_way = self._under_way[uuid] = asyncio.get_running_loop().create_future()

        def on_placed(placed: Optional[Placed]) -> None:
            if not under_way.done():  # nor given up by who waited for it
                under_way.set_result(placed)

        try:
            change = await self.placer.place(
                known.domain,
                by="reconciler",
                may_define=known.contention.may_define,
                prefetched=prefetched,
                on_placed=on_placed,
                give_way=self._work_queue.give_way(uuid),
            )
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN or not await self._in_thread(definition.exists, known.domain):
                if self.known.get(uuid) is known:  # else it was defined again meanwhile, and that one is to be looked at
                    self._forget(uuid)
            else:
                self._failed(uuid, known, definition.failure(error).what)
        except PcinumaError as error:
            self._failed(uuid, known, error.sentence())
        except Exception as error:  # a fault of ours, in one domain: the others go on
            log.exception("looking at a domain failed", domain=known.domain.name())
            self._failed(uuid, known, f"pcinumad failed ({type(error).__name__}: {error})")
        else:
            if change.changed:
                known.contention.defined(
                    {device.source: device.guest_address for device in change.result.devices if device.placed}
                )
            elif change.result.reason is Reason.CONTENDED:
                asyncio.get_running_loop().call_later(known.contention.remaining() + 0.1, self.want, uuid)
        finally:
            del self._under_way[uuid]
            on_placed(None)

    def _failed(self, uuid: str, known: Known, message: str) -> None:
        known.settled = NOT_SETTLED  # a definition that is as before is to be looked at all the same
        self.placer.decisions.failed(uuid, known.domain.name(), message, self.placer.settings.policy, by="reconciler")

    def _look_at_waiting(self) -> None:
        self._host_changed = None
        for uuid, known in sorted(self.known.items()):
            if known.absent:
                self.want(uuid)

    # Starts.

    async def prepare(self, domain: libvirt.virDomain, *, by: str) -> Change:
        """Place a definition that is about to be started. Raises libvirtError and PcinumaError.

        A look that is under way is waited for, and is enough if the definition is still what it left.
        """
        uuid = domain.UUIDString()
        under_way = self._under_way.get(uuid)
        if under_way is not None:
            placed = await under_way
            if placed is not None and (placed.newest or await self._in_thread(read, domain) == placed.change.after):
                return placed.change
        self._work_queue.drop(uuid)  # this look is that look
        try:
            return await self.placer.place(domain, by=by)
        except BaseException:
            self.want(uuid)
            raise

    def start_begins(self, uuid: str, *, refused: bool, look_again: bool) -> None:
        """The hook tells that a domain is about to start: leave it alone until it runs."""
        self.counters.start_begins(uuid)
        if refused:
            self.counters.start_ended(uuid, counters.REFUSED)
        known = self.known.get(uuid)
        if known is None:  # a transient domain; if its start fails, no event will say so
            patience = starts.REFUSAL_TAKES if refused else starts.TAKES
            asyncio.get_running_loop().call_later(patience, self._forget_unless_known, uuid)
            return
        self._starts.begins(uuid, refused=refused)
        if look_again:
            self.want(uuid)

    def start_ends(self, uuid: str) -> None:
        """The hook tells that a domain does not run any more."""
        self._starts.is_over(uuid)

    def _start_is_over(self, uuid: str, failed: bool) -> None:
        """Do what waited for it."""
        if failed:
            self.counters.start_ended(uuid, counters.FAILED)
        if uuid in self._work_queue:
            self.want(uuid)

    async def _is_active(self, uuid: str) -> bool:
        known = self.known.get(uuid)
        return known is not None and bool(await self._in_thread(known.domain.isActive))

    def unseen_change(self, uuid: str) -> Optional[str]:
        """What is to be said of a domain whose definition was changed after the last decision about it; None if it was not."""
        known = self.known.get(uuid)
        if known is None or not known.changed:
            return None
        when = "when its start is over" if uuid in self._starts else "next"
        return f"its definition has changed since that was decided; it is looked at {when}"

    def forget_contention(self, uuid: str) -> None:
        """A person took an interest in the domain: forget that it was contended."""
        if uuid in self.known:
            self.known[uuid].contention = Contention()

    def _forget_unless_known(self, uuid: str) -> None:
        if uuid not in self.known:
            self.counters.start_ended(uuid, counters.FAILED)
            self.placer.decisions.forget(uuid)

    def _forget(self, uuid: str) -> None:
        known = self.known.pop(uuid, None)
        if known is not None and known.debounce_timer is not None:
            known.debounce_timer.cancel()
        self._starts.forget(uuid)
        self._work_queue.drop(uuid)
        self._sweep.looked_at(uuid)
        self.placer.decisions.forget(uuid)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
