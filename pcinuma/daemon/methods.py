# SPDX-License-Identifier: LGPL-2.1-or-later
"""The methods of the interface io.pcinuma: what callers may ask, in terms of the reconciler, the link and the engine.

The hook's request is answered in a thread of its own kind, so that neither a slow libvirt nor a slow sysfs file of another
request makes a start wait. Requests that need libvirt fail with an error while there is no connection.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Awaitable, Callable, Mapping, Optional, TypeVar

import libvirt

from pcinuma import __version__, engine
from pcinuma.daemon import definition, hotplug, interface, start_check
from pcinuma.daemon.client import MAX_MESSAGE
from pcinuma.daemon.current_layout import as_it_is
from pcinuma.daemon.decisions import now
from pcinuma.daemon.definition import Change
from pcinuma.daemon.hypervisor import hypervisor_of
from pcinuma.daemon.link import Link
from pcinuma.daemon.pools import Pools
from pcinuma.daemon.reconciler import Reconciler
from pcinuma.daemon.state_file import StateFile
from pcinuma.domain.read import parse_domain
from pcinuma.domain.summary import summarise
from pcinuma.engine import cells_option
from pcinuma.errors import PcinumaError, UnusableInput
from pcinuma.log import log
from pcinuma.printable import command
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import GroupBy, Policy
from pcinuma.varlink.interface import Interface
from pcinuma.varlink.server import Handler, Parameters, Service
from pcinuma.varlink.wire import ErrorReply

LONGEST = 1 << 20
"""Characters of XML that are looked at before the hook gives up; 248 devices have 200 KB."""

T = TypeVar("T")
Reply = Mapping[str, Any]
_RIGHT: Reply = {"exit": 0, "xml": None, "message": None}


class Methods:
    """Answers the calls. ``hooks`` runs what a hook waits for, ``executor`` what may ask libvirt."""

    def __init__(
        self,
        reconciler: Reconciler,
        link: Link,
        pools: Pools,
        state_file: StateFile,
        hooks: Executor,
        executor: Executor,
        stuck: Callable[[], list[str]],
    ) -> None:
        self._reconciler = reconciler
        self._link = link
        self._pools = pools
        self._state_file = state_file
        self._hooks = hooks
        self._executor = executor
        self._stuck = stuck
        self._started = now()
        self._tasks: set[asyncio.Task[None]] = set()

    def service(self) -> Service:
        """What the daemon's socket answers: the interface io.pcinuma."""
        return Service(
            vendor="pcinuma",
            product="pcinumad",
            version=__version__,
            interfaces=(Interface.parse(interface.DESCRIPTION),),
            handlers=self._handlers(),
            urgent={f"{interface.NAME}.Hook": self.hook_urgently},  # somebody's start waits for it
            error_reply=error_reply,
            longest=MAX_MESSAGE,
        )

    def _handlers(self) -> dict[str, Handler]:
        methods: dict[str, Handler] = {
            "Place": self.place,
            "PlaceDomain": self.place_domain,
            "PrepareStart": self.prepare_start,
            "RevertDomain": self.revert_domain,
            "Enable": self.enable,
            "Disable": self.disable,
            "AttachAddress": self.attach_address,
            "Status": self.status,
            "Counters": self.counters,
        }
        return {f"{interface.NAME}.{name}": method for name, method in methods.items()}

    def hook_urgently(self, parameters: Parameters) -> tuple[Reply, Callable[[], None]]:
        """See the interface. Never asks libvirt, never waits for what does. The reply, and what is left to do in the event loop."""
        step = parameters["operation"], parameters["suboperation"]
        if step == ("release", "end"):
            uuid = summarise(parameters["xml"].encode()).uuid
            return _RIGHT, lambda: self._reconciler.start_ends(uuid) if uuid is not None else None
        if step != ("prepare", "begin"):
            return _RIGHT, lambda: None
        began = time.monotonic()
        if len(parameters["xml"]) > LONGEST:
            raise UnusableInput(
                f"an XML of more than {LONGEST >> 20} MiB is not looked at while a start waits", subject=parameters["domain"]
            )
        found = self._check_start(parameters["xml"].encode())
        refused = found.refusal is not None
        duration = time.monotonic() - began

        def then() -> None:
            self._reconciler.counters.hook.observe(duration)
            if found.uuid is not None:
                self._reconciler.start_begins(found.uuid, refused=refused, look_again=found.placed is not None)
                task = asyncio.get_running_loop().create_task(self._remember(found, began))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        placed = found.placed.decode() if found.placed is not None and not refused else None
        return {"exit": int(refused), "xml": placed, "message": found.refusal}, then

    def _check_start(self, xml: bytes) -> start_check.StartCheck:
        reconciler = self._reconciler
        pools = self._pools.known(xml)
        return start_check.check_start(
            xml,
            request_for=lambda uuid: replace(reconciler.placer.request(uuid), pools=pools),
            allows=reconciler.placer.allows,
            is_persistent=lambda uuid: uuid in reconciler.known,
        )

    async def _remember(self, found: start_check.StartCheck, began: float) -> None:
        answered = time.monotonic() - began
        layout, ran_with = await _run(self._hooks, found.current_layout)
        if found.uuid is not None:
            began = time.monotonic() - answered
            self._reconciler.placer.decisions.record(found.uuid, found.name, layout, found.policy, by="hook", began=began)
            self._reconciler.counters.start_is(found.uuid, found, layout, persistent=found.uuid in self._reconciler.known)
            if found.refusal is None:
                self._reconciler.placer.decisions.ran(found.uuid, ran_with)

    async def place(self, parameters: Parameters) -> Reply:
        """See the interface."""
        xml = parameters["xml"].encode()
        policy = _choice(Policy, "policy", parameters.get("policy"))
        group_by = _choice(GroupBy, "group_by", parameters.get("group_by"))
        caller = parameters["caller"]
        began = time.monotonic()

        def work() -> tuple[engine.Result, Optional[str], str]:
            name, uuid, owner = summarise(xml)
            request = replace(self._reconciler.placer.request(uuid), policy=policy, group_by=group_by, pools=self._pools.known(xml))
            if caller != "hook" and self._link.ready:
                connection = self._link.connection()
                request = replace(request, pools=self._pools.resolve(connection, xml), hypervisor=lambda: hypervisor_of(connection))
            result = engine.place(xml, request)
            # Who passes XML through on somebody's way to libvirt places what the daemon would place, and no more.
            if caller in ("proxy", "hook") and policy is None and not self._reconciler.placer.allows(uuid, owner):
                result = as_it_is(parse_domain(xml), xml, result, Reason.NOT_ENABLED, command("enable", name))
                result = replace(result, refused=False)
            return result, uuid, name

        result, uuid, name = await _run(self._hooks if caller == "hook" else self._executor, work)
        log.info(
            "placed an XML",
            domain=name,
            uuid=uuid,
            outcome=result.outcome.value,
            reason=result.reason.value if result.reason else None,
            by=caller,
            duration_ms=round((time.monotonic() - began) * 1000, 1),
        )
        if caller == "proxy" and result.outcome is Outcome.PLACED:
            self._reconciler.counters.placed(name, caller)
        placed = xml if result.refused else result.xml
        return {"xml": placed.decode(), "report": result.report(), "refused": result.refused}

    async def place_domain(self, parameters: Parameters) -> Reply:
        """See the interface."""
        domain = await self._domain(parameters["domain"])
        force, dry_run = bool(parameters.get("force")), bool(parameters.get("dry_run"))
        if force and not dry_run:
            self._reconciler.forget_contention(domain.UUIDString())
        change = await self._asking(
            domain,
            self._reconciler.placer.place(
                domain,
                by="command",
                force=force,
                replan=bool(parameters.get("replan")),
                dry_run=dry_run,
                cells=cells_option(parameters.get("cells"), parameters.get("memory")),
            ),
        )
        return {**_texts(change), "report": change.result.report()}

    async def prepare_start(self, parameters: Parameters) -> Reply:
        """See the interface."""
        uuid = parameters["domain_uuid"]
        known = self._reconciler.known.get(uuid)
        if known is not None and known.state not in (None, "shut off", "crashed") and await self._runs(known.domain):
            result = engine.Result(Outcome.UNCHANGED, Reason.RUNNING, "the guest is running already", None, (), b"")
            return {"changed": False, "report": result.report()}
        domain = await self._domain(uuid)
        change = await self._asking(domain, self._reconciler.prepare(domain, by="proxy"))
        return {"changed": change.changed, "report": change.result.report()}

    async def revert_domain(self, parameters: Parameters) -> Reply:
        """See the interface."""
        domain = await self._domain(parameters["domain"])
        change = await self._asking(domain, self._reconciler.placer.revert(domain, dry_run=True, by="command"))
        if change.changed and not parameters.get("dry_run"):
            change = (await self._disable(domain, revert=True))[1] or change
        return _texts(change)

    async def enable(self, parameters: Parameters) -> Reply:
        """See the interface."""
        domain = await self._domain(parameters["domain"])
        uuid = domain.UUIDString()
        news = await self._state_file.choose(uuid, domain.name(), enabled=True)
        self._reconciler.forget_contention(uuid)
        change = await self._asking(domain, self._reconciler.placer.place(domain, by="command"))
        return {"changed": news or change.changed, "report": change.result.report()}

    async def disable(self, parameters: Parameters) -> Reply:
        """See the interface."""
        domain = await self._domain(parameters["domain"])
        if parameters.get("revert"):  # both or neither
            await self._asking(domain, self._reconciler.placer.revert(domain, dry_run=True, by="command"))
        news, change = await self._disable(domain, revert=bool(parameters.get("revert")))
        self._reconciler.want(domain.UUIDString())
        return {"changed": news or (change is not None and change.changed)}

    async def _disable(self, domain: libvirt.virDomain, *, revert: bool) -> tuple[bool, Optional[Change]]:
        """Disable a domain, whether that is news, and revert it. First the one: nobody shall place it again in between."""
        name = domain.name()
        news = await self._state_file.choose(domain.UUIDString(), name, enabled=False)
        if not revert:
            return news, None
        with definition.although_disabled(name):
            return news, await self._asking(domain, self._reconciler.placer.revert(domain, dry_run=False, by="command"))

    async def attach_address(self, parameters: Parameters) -> Reply:
        """See the interface."""
        domain = await self._domain(parameters["domain_uuid"])
        device_xml = parameters["device_xml"]
        uuid = domain.UUIDString()

        def work() -> hotplug.AddressedDevice:
            live = domain.XMLDesc(0).encode()
            if not self._reconciler.placer.allows(uuid, parse_domain(live).policy):
                return hotplug.AddressedDevice(device_xml, False, Reason.NOT_ENABLED.sentence)
            pools = self._pools.resolve(self._link.connection(), b"<domain><devices>%b</devices></domain>" % device_xml.encode())
            pools.update(self._pools.resolve(self._link.connection(), live))
            return hotplug.assign_address(live, device_xml, replace(self._reconciler.placer.request(uuid), pools=pools))

        async with self._reconciler.placer.alone(uuid):
            addressed = await self._asking(domain, _run(self._executor, work))
        log.info("device to be plugged in", domain=domain.name(), changed=addressed.changed, message=addressed.message)
        return addressed._asdict()

    async def status(self, parameters: Parameters) -> Reply:
        """See the interface. Asks nobody."""
        link, reconciler = self._link, self._reconciler
        domains = []
        for uuid in reconciler.known if link.ready else reconciler.state.domains:
            known, record = reconciler.known.get(uuid), reconciler.state.domains.get(uuid)
            decision = record.decision if record else None
            unseen = reconciler.unseen_change(uuid)
            domains.append(
                {
                    "name": record.name if record else known.domain.name() if known else uuid,
                    "uuid": uuid,
                    "state": known.state if known else None,
                    "policy": decision.policy if decision else None,
                    "enabled": reconciler.placer.is_enabled(uuid),
                    "outcome": decision.outcome if decision else None,
                    "reason": decision.reason if decision and unseen is None else None,
                    "message": unseen or (decision.message if decision else None),
                    "devices": decision.devices if decision else 0,
                    "placed": decision.placed if decision else 0,
                    "when": decision.when if decision else None,
                    "by": decision.by if decision else None,
                    "unplaced": reconciler.placer.decisions.unplaced(uuid),
                    "contended": known is not None and known.contention.remaining() > 0,
                }
            )
        return {
            "version": __version__,
            "libvirt": {
                "connected": link.ready,
                "uri": link.uri,
                "version": link.version,
                "since": link.since if link.ready else None,
                "message": link.message,
            },
            "started": self._started,
            "pending": reconciler.pending,
            "problems": [*self._state_file.problems, *reconciler.problems, *self._stuck()],
            "definitions": reconciler.definitions_watched,
            "domains": sorted(domains, key=lambda domain: (domain["name"], domain["uuid"])),
        }

    async def counters(self, parameters: Parameters) -> Reply:
        """See the interface. Asks nobody."""
        return self._reconciler.counters.as_json()

    async def _runs(self, domain: libvirt.virDomain) -> bool:
        """What libvirt says now: it answers a destroy before the event about it arrives here."""
        return bool(await self._asking(domain, _run(self._executor, domain.isActive)))

    async def _domain(self, name: str) -> libvirt.virDomain:
        known = self._reconciler.known.get(name)
        if known is not None:
            return known.domain
        return await _run(self._executor, definition.look_up, self._link.connection(), name)

    async def _asking(self, domain: libvirt.virDomain, work: Awaitable[T]) -> T:
        try:
            return await work
        except libvirt.libvirtError as error:
            raise definition.failure(error, domain.name()) from None


def error_reply(method: str, error: Exception) -> ErrorReply:
    """What an error is to a caller: a message, and what to do about it. One that nobody expected is logged."""
    if isinstance(error, PcinumaError):
        return ErrorReply(interface.ERROR, message=f"{error.subject}: {error.what}" if error.subject else error.what, hint=error.hint)
    log.exception("call failed", method=method)
    message = f"pcinumad failed ({type(error).__name__}: {error})"
    return ErrorReply(interface.ERROR, message=message, hint="please report it, with: journalctl -u pcinuma")


async def _run(executor: Executor, function: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)


def _choice(kind: Callable[[str], T], name: str, text: Optional[str]) -> Optional[T]:
    try:
        return None if text is None else kind(text)
    except ValueError:
        raise UnusableInput(f"{text!r} is no {name}") from None


def _texts(change: Change) -> dict[str, Any]:
    return {"changed": change.changed, "xml": change.after.decode(), "before": change.before.decode()}
