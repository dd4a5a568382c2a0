# SPDX-License-Identifier: LGPL-2.1-or-later
"""One domain's inactive definition on libvirt: read it, place or revert it, define it if it changed. Blocking; runs in a
thread.

A definition is read with its passwords (SECURE), together with the number of libvirt's last write
(:mod:`~pcinuma.daemon.definition_files`); if somebody changed it since, the work starts over from theirs. What is changed between that
last look and libvirt's lock is put back (:mod:`~pcinuma.daemon.overwritten`), and who *undefines* within it gets his way in the end
(see the reconciler). Never defined: a domain that is not persistent, or one with a managed-save image. A running guest's live definition
is never touched: what is defined here counts from its next start.

Somebody may start a domain right after he defined it, so what lies between the event and the define is kept short: the first two
questions may have been asked already when the work begins (:class:`Prefetched`), and the XML is not parsed but for the engine where
nobody's settings are in it.
"""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Callable, Iterator, NamedTuple, Optional

import libvirt

from pcinuma import engine
from pcinuma.address import PciAddress
from pcinuma.daemon.contention import Addresses
from pcinuma.daemon.current_layout import as_it_is, foreign_devices, with_current_layout
from pcinuma.daemon.definition_files import DefinitionFiles, Followed
from pcinuma.daemon.hypervisor import hypervisor_of
from pcinuma.daemon.overwritten import mended, read, replace_definition
from pcinuma.daemon.pools import Pools
from pcinuma.daemon.stale import Stale
from pcinuma.domain.read import parse_domain
from pcinuma.domain.summary import mentions_pcinuma
from pcinuma.engine import Request, Result
from pcinuma.errors import LibvirtError, PcinumaError
from pcinuma.log import log
from pcinuma.printable import command
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import Policy

PAUSES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04)
"""Seconds after each try that somebody else's change came in between of."""
FRESH = 0.1
"""Seconds for which an answer that was prefetched counts."""
LATER = "try again when that program is done"
TRANSIENT = "the domain is transient: it has no definition to change"

Allows = Callable[[Optional[Policy]], bool]
"""Whether a domain may be touched whose own metadata has this policy."""


@dataclass(frozen=True)
class Job:
    """What to do. ``allows`` is asked with the domain's own policy, ``may_define`` when a definition turned out to be necessary, with
    what tells where the devices are now.

    ``give_way`` is called before each piece of work that takes a millisecond of the processor; it may block.
    """

    request: Request
    allows: Allows
    may_define: Callable[[Callable[[], Addresses]], bool] = lambda found: True
    dry_run: bool = False
    give_way: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Change:
    """What was done, or with ``dry_run`` would be. ``owner`` is the policy in the domain's own metadata; ``defines``: how many
    definitions it took; ``number``: libvirt's write of what was looked at, or of the last one."""

    changed: bool
    before: bytes
    after: bytes
    result: Result
    owner: Optional[Policy]
    name: str
    defines: int = 0
    number: Optional[int] = None


class Prefetched(NamedTuple):
    """Questions about a domain that libvirt is answering: its inactive definition, as of which write, and whether it has a managed-save
    image."""

    definition: Future[tuple[bytes, Optional[int]]]
    saved: Future[bool]
    asked: float

    @property
    def fresh(self) -> bool:
        """Whether the answers may still be used: nobody starts a guest and saves it in that time."""
        return time.monotonic() - self.asked < FRESH


def prefetch(domain: libvirt.virDomain, files: DefinitionFiles, executor: Executor) -> Prefetched:
    """Put the questions now, so that the answers are there when the work begins."""

    def definition() -> tuple[bytes, Optional[int]]:
        number = files.now()
        return read(domain), number

    return Prefetched(executor.submit(definition), executor.submit(has_managed_save, domain), time.monotonic())


def has_managed_save(domain: libvirt.virDomain) -> bool:
    """Whether the domain has a managed-save image."""
    return bool(domain.hasManagedSaveImage(0))


def look_up(connection: libvirt.virConnect, name: str) -> libvirt.virDomain:
    """The domain called ``name``, or with that UUID. Raises LibvirtError if there is none."""
    try:
        if len(name) == 36 and name.count("-") == 4:
            try:
                return connection.lookupByUUIDString(name)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                    raise
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise LibvirtError("libvirt has no such domain", subject=name, hint="virsh list --all names them") from None
        raise failure(error, name) from None


def exists(domain: libvirt.virDomain) -> bool:
    """Whether libvirt has the domain. Where it is just being undefined, other calls fail with errors of all kinds."""
    try:
        domain.isPersistent()
    except libvirt.libvirtError as error:
        return bool(error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN)
    return True


def failure(error: libvirt.libvirtError, subject: Optional[str] = None) -> LibvirtError:
    """A failed libvirt call as an error of ours."""
    return LibvirtError(f"libvirt: {error.get_error_message() or error}", subject=subject)


@contextmanager
def although_disabled(name: str) -> Iterator[None]:
    """Whatever fails in here is told together with what was done before: the domain was disabled."""
    try:
        yield
    except (libvirt.libvirtError, PcinumaError) as error:
        cause = failure(error) if isinstance(error, libvirt.libvirtError) else error
        what = f"disabled, but its definition still is as it was placed: {cause.what}"
        raise LibvirtError(what, subject=cause.subject or name, hint=cause.hint) from None


def managed_save_hint(name: str) -> str:
    """What a person can do about a managed-save image."""
    return f"start it and shut it down, or: virsh managedsave-remove {name}"


class Definitions(NamedTuple):
    """What is known of definitions apart from libvirt's answers."""

    files: DefinitionFiles
    stale: Stale

    @classmethod
    def of(cls, files: DefinitionFiles) -> Definitions:
        """With nothing put back yet."""
        return cls(files, Stale(files))


def place(domain: libvirt.virDomain, job: Job, pools: Pools, known: Definitions, prefetched: Optional[Prefetched] = None) -> Change:
    """Place the inactive definition; only what changed is defined. Raises libvirtError, and LibvirtError if it keeps changing."""
    with known.files.follow(domain.UUIDString(), domain.name()) as followed:
        for pause in PAUSES:
            fresh = prefetched if prefetched is not None and prefetched.fresh else None
            change = _place_once(domain, job, pools, known.stale, followed, fresh)
            if change is not None:
                return change
            prefetched = None
            time.sleep(pause)
    raise LibvirtError(Reason.CONTENDED.sentence, subject=domain.name(), hint=LATER)


def _place_once(
    domain: libvirt.virDomain, job: Job, pools: Pools, stale: Stale, followed: Followed, prefetched: Optional[Prefetched]
) -> Optional[Change]:
    """Place the definition as it is at the moment; None if somebody else changed it meanwhile."""
    name: str = domain.name()
    found = prefetched.definition.result() if prefetched else _read_numbered(domain, followed)
    if not _holds(followed, found[1]):
        found = _read_numbered(domain, followed)
        if not _holds(followed, found[1]):
            return None
    before, number = found
    plan = result, owner = _plan(domain, job, pools, before)

    def again(xml: bytes) -> bytes:
        nonlocal result, owner
        result, owner = _plan(domain, job, pools, xml)
        if not job.allows(owner):
            result = as_it_is(parse_domain(xml), xml, result, Reason.NOT_ENABLED, command("enable", name))
        return result.xml

    def make(new: bytes) -> Optional[Change]:
        done = replace_definition(domain, followed, number, before, new, again, stale, meant)
        if done is None:
            return None
        final = replace(result, reason=Reason.RUNNING, message=Reason.RUNNING.sentence) if done.running else result
        return Change(True, before, read(domain), final, owner, name, done.defines, done.number)

    lately = None if job.dry_run else stale.seen(followed.uuid, number)
    meant = mended(name, *lately, again) if lately is not None else None
    if meant is not None:
        log.info("somebody defined what was read while a change was overwritten; both are kept", domain=name)
        return make(again(meant))
    result, owner = plan

    def left_alone(reason: Reason, hint: Optional[str] = None) -> Change:
        return Change(False, before, before, as_it_is(parse_domain(before), before, result, reason, hint), owner, name, 0, number)

    if not job.dry_run and not job.allows(owner):
        return left_alone(Reason.NOT_ENABLED, command("enable", name))
    for warning in result.warnings:
        log.warning(warning, domain=name)
    if result.xml == before:
        return Change(False, before, before, result, owner, name, 0, number)
    if domain.ID() != -1 and not domain.isPersistent():  # one that was not running is persistent, and the call would cost the race
        current = replace(with_current_layout(parse_domain(before), before, result), outcome=Outcome.UNCHANGED, message=TRANSIENT)
        return Change(False, before, before, current, owner, name, 0, number)
    if prefetched.saved.result() if prefetched and domain.ID() == -1 else has_managed_save(domain):
        return left_alone(Reason.MANAGED_SAVE, managed_save_hint(name))
    if job.dry_run:
        return Change(True, before, result.xml, result, owner, name)
    if not job.may_define(lambda: addresses(before)):
        return left_alone(Reason.CONTENDED)

    return make(result.xml)


def _read_numbered(domain: libvirt.virDomain, followed: Followed) -> tuple[bytes, Optional[int]]:
    number = followed.now()
    return read(domain), number


def _holds(followed: Followed, number: Optional[int]) -> bool:
    """Whether what was read after write ``number`` is that version and no later one."""
    now = followed.now()
    return now is None if number is None else now is not None and followed.last() <= number


def _plan(domain: libvirt.virDomain, job: Job, pools: Pools, xml: bytes) -> tuple[Result, Optional[Policy]]:
    """What is to become of a definition, and the policy in its metadata."""
    owner: Optional[Policy] = None
    ran_with = job.request.ran_with
    job.give_way()
    if mentions_pcinuma(xml):
        known = parse_domain(xml)
        owner = known.policy
        if foreign_devices(known) - ran_with:
            ran_with = ran_with | _running_foreign_devices(domain)
        job.give_way()
    connection = domain.connect()
    found = pools.resolve(connection, xml)
    request = replace(job.request, pools=found, ran_with=ran_with, hypervisor=lambda: hypervisor_of(connection))
    return engine.place(xml, request), owner


def revert(domain: libvirt.virDomain, definitions: Definitions, *, dry_run: bool) -> Change:
    """Take the placement out of the inactive definition. Raises libvirtError, and LibvirtError where that may not be done."""
    name: str = domain.name()
    with definitions.files.follow(domain.UUIDString(), name) as followed:
        for pause in PAUSES:
            before, number = _read_numbered(domain, followed)
            if not _holds(followed, number):
                continue
            known = parse_domain(before)
            result = engine.revert(before)
            if result.xml == before or not domain.isPersistent():
                return Change(False, before, before, result, known.policy, name)
            if domain.hasManagedSaveImage(0):
                raise LibvirtError(Reason.MANAGED_SAVE.sentence, subject=name, hint=managed_save_hint(name))
            if dry_run:
                return Change(True, before, result.xml, result, known.policy, name)
            done = replace_definition(domain, followed, number, before, result.xml, lambda xml: engine.revert(xml).xml, definitions.stale)
            if done is not None:
                return Change(True, before, read(domain), result, known.policy, name, done.defines, done.number)
            time.sleep(pause)
    raise LibvirtError(Reason.CONTENDED.sentence, subject=name, hint=LATER)


def addresses(definition: bytes) -> Addresses:
    """Where each passthrough device is."""
    return {device.source: str(device.address) if device.address else None for device in parse_domain(definition).devices}


def undefine(domain: libvirt.virDomain, ours: Change, files: DefinitionFiles) -> bool:
    """Undefine the domain if its definition is still ours; return whether it was. What else it left behind stays."""
    if read(domain) != ours.after:
        return False
    if ours.number is not None and (files.now() is None or files.last(domain.UUIDString()) != ours.number):
        return False
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    return True


def _running_foreign_devices(domain: libvirt.virDomain) -> frozenset[PciAddress]:
    """What sits on our ports in the guest that runs now (it may have started while nobody was there to note it)."""
    if not domain.isActive():
        return frozenset()
    return foreign_devices(parse_domain(domain.XMLDesc(0).encode()))
