# SPDX-License-Identifier: LGPL-2.1-or-later
"""Making a definition without losing what somebody else changed at that moment.

libvirt has no "define if it is still that". Between the last look at a definition and libvirt's lock for ours lie a few milliseconds
(the call, parsing, validating), and what libvirt accepts from somebody in between is gone with our definition, though he was told that
it is done. So what was overwritten is put back: libvirt writes every version to a file
(:mod:`~pcinuma.daemon.definition_files`), and of those between the one that was read and ours the last one is what everybody had
changed until then. It is placed and defined, together with what was changed on top of ours meanwhile (:mod:`~pcinuma.domain.merge`; from
which version that was made: :mod:`~pcinuma.daemon.stale`); and since that definition may overwrite something in its turn, this goes on
until one did not. Each round waits longer for a quiet moment than the one before, and where others never pause that ends after
:data:`ROUNDS` or :data:`LONGEST`. Only while the daemon ends or is killed in those milliseconds is there nobody to do it.

Where nothing tells what libvirt writes, all that can be done is to compare right before the definition, as well as that goes.
"""

from __future__ import annotations

import time
from typing import Callable, NamedTuple, Optional, Sequence

import libvirt

from pcinuma.daemon.definition_files import Followed, Version
from pcinuma.daemon.stale import SEEN, Seen, Stale, made_from
from pcinuma.domain.merge import Differences, differences, merge, same
from pcinuma.domain.read import parse_domain
from pcinuma.domain.summary import summarise
from pcinuma.errors import UnusableInput
from pcinuma.log import log

ROUNDS = 50
FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.1
LONGEST = 10.0
"""Seconds for all rounds. A client that defines in a loop makes versions faster than they can be brought together: each round would have
more of them than the one before."""

Again = Callable[[bytes], bytes]
"""What to define of a definition that is another one than was thought."""


class Replaced(NamedTuple):
    """What was done: the definitions that it took, whether the guest ran at the last one, and the number of that write, where it is
    known."""

    defines: int
    running: bool
    number: Optional[int] = None


def replace_definition(
    domain: libvirt.virDomain,
    followed: Followed,
    number: Optional[int],
    before: bytes,
    new: bytes,
    again: Again,
    stale: Stale,
    meant: Optional[bytes] = None,
) -> Optional[Replaced]:
    """Replace the definition ``before``, which was there after write ``number``, by ``new``; None if it is there no more. ``meant``: what
    ``before`` was meant to be, where it lacks somebody's change that is in ``new``.

    Raises libvirtError where libvirt does not take ``new``.
    """
    if number is not None and not followed.there():
        followed.name = summarise(before).name  # it may have been renamed
        if not followed.there():
            number = None  # undefined, or libvirt writes somewhere else
    if number is None:
        if read(domain) != before:
            return None
        return Replaced(1, domain.connect().defineXMLFlags(new.decode(), 0).ID() != -1)
    work = _Work(domain, followed, number, before, meant, again)
    if work.catch_up():
        return None
    try:
        work.define(new)
    except libvirt.libvirtError:
        if work.catch_up():
            return None
        raise
    pause = FIRST_PAUSE
    while work.at_stake:
        if work.defines == ROUNDS or work.late:
            log.error("somebody's change was overwritten, and others come too fast to put it back", domain=followed.name)
            break
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
        if work.catch_up() and pause < LONGEST_PAUSE:
            continue  # whoever never pauses does not keep it from being put back
        if work.late:
            continue  # not everything was taken in: to define that would take back what others changed
        if not followed.there():  # undefined meanwhile: so nobody wants it back
            break
        work.put_back()
    if not work.at_stake:
        stale.defined(followed, work.seen, work.ours_number, lacking=meant is not None or work.lacking)
    return Replaced(work.defines, work.running, work.ours_number if work.seen[-1].ours else None)


def read(domain: libvirt.virDomain) -> bytes:
    """The inactive definition, passwords included."""
    xml: str = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    return xml.replace("\r", "&#13;").encode()  # libvirt writes it raw, which reads as the end of a line


class MergedChanges:
    """What everybody's changes come to. ``definition``: that; ``seen``: the versions that were there, of which the last is there now.
    ``meant``: what that one was meant to be, if something else."""

    def __init__(self, name: str, seen: Sequence[Seen], again: Again, meant: Optional[bytes] = None) -> None:
        self.name = name
        self.definition = seen[-1].text if meant is None else meant
        self.seen = list(seen)
        self._again = again

    def take_in(self, theirs: bytes) -> None:
        """Somebody made this of a definition that was there."""
        visible = self.seen[-1].text
        try:
            if self.definition == visible and len(self.seen) == 1:
                self.definition = theirs
            else:
                self._merge(theirs)
        except UnusableInput as error:
            log.error("changes cannot be brought together; the later one counts", domain=self.name, error=error.sentence())
            self.definition = theirs
        self.saw(theirs, ours=False)

    def saw(self, text: bytes, *, ours: bool) -> None:
        """That was there: somebody may have read it."""
        self.seen.append(Seen(text, ours))
        del self.seen[:-SEEN]

    def _merge(self, theirs: bytes) -> None:
        base = made_from(self.seen, theirs)
        if base is None:
            self.definition = theirs
            return
        onto = self.definition
        if onto != base:
            placement = parse_domain(base).placement
            if placement is not None and parse_domain(onto).placement != placement == parse_domain(theirs).placement:
                onto = self._again(onto)  # theirs is made for the ports of that placement
        merged = merge(base, theirs, onto)
        for conflict in merged.conflicts:
            log.warning("changed twice at the same moment; the later change counts", domain=self.name, what=conflict)
        self.definition = merged.xml


def mended(name: str, seen: Sequence[Seen], since: Sequence[bytes], again: Again) -> Optional[bytes]:
    """What the last of ``since`` was meant to be, if that is something else: some of those were made from one that lacked a change.
    The last of ``seen`` lacks none."""
    merged_changes = MergedChanges(name, seen, again)
    for theirs in since:
        merged_changes.take_in(theirs)
    return merged_changes.definition if since and not same(merged_changes.definition, since[-1]) else None


class _Work:
    """``at_stake``: what is wanted is not what is there."""

    def __init__(
        self, domain: libvirt.virDomain, followed: Followed, number: int, before: bytes, meant: Optional[bytes], again: Again
    ) -> None:
        self._connection = domain.connect()
        self._followed = followed
        self._number = number
        self._again = again
        self._merged = MergedChanges(followed.name, [Seen(before, ours=False)], again, meant)
        self._until = time.monotonic() + LONGEST
        self.at_stake = False
        self.lacking = False  # something was at stake
        self.defines = 0
        self.running = False
        self.ours_number = number

    @property
    def seen(self) -> list[Seen]:
        return self._merged.seen

    def catch_up(self) -> bool:
        """Take in what others changed since; return whether they did."""
        self._followed.now()
        if self._followed.last() <= self._number:
            return False
        versions = self._followed.since(self._number)
        self._number = self._followed.last()
        if self.at_stake:
            self._take_in(versions)
        return True

    def define(self, new: bytes) -> None:
        """Define, and see what that overwrote."""
        before = self.seen[-1].text
        self.running = bool(self._connection.defineXMLFlags(new.decode(), 0).ID() != -1)
        self.defines += 1
        self._followed.now()
        versions = self._followed.since(self._number)
        self.at_stake = False
        if not versions:
            self._followed.unseen()
            return
        self._number = versions[-1].number
        index = _index_of(before, new, versions)
        self.ours_number = versions[index].number
        ours = versions[index].text or new
        if index:
            self.at_stake = self.lacking = True
            self._take_in(versions[:index])
            self._merged.saw(ours, ours=True)
            self._take_in(versions[index + 1 :])
        else:
            self._merged.saw(ours, ours=True)
            self._merged.definition = ours

    def put_back(self) -> None:
        """Define what is wanted."""
        placed = self._again(self._merged.definition)
        if same(placed, self.seen[-1].text):  # who made the change took it back
            self.at_stake, self.ours_number = False, self._number
            return
        log.info("somebody's change was overwritten, and is put back", domain=self._followed.name, round=self.defines)
        try:
            self.define(placed)
        except libvirt.libvirtError as error:
            if placed == self._merged.definition:
                raise
            log.warning("put back without a placement", domain=self._followed.name, error=error.get_error_message())
            self.define(self._merged.definition)

    @property
    def late(self) -> bool:
        """Whether it takes so long that it ends, with whatever is there by then."""
        return time.monotonic() > self._until

    def _take_in(self, versions: Sequence[Version]) -> None:
        for version in versions:
            if self.late:
                return
            if version.text is None:
                log.warning("a change that was overwritten could not be read in time", domain=self._followed.name)
            else:
                self._merged.take_in(version.text)
                self._followed.name = summarise(version.text).name


def _index_of(before: bytes, sent: bytes, versions: Sequence[Version]) -> int:
    """Which of the versions libvirt made of what was sent: the first of those that come nearest to it. Libvirt adds to what it is sent;
    what was defined before ours lacks something of it, or has something that ours took out or overwrote; what was built on ours comes after
    it and is farther off."""
    if len(versions) == 1:
        return 0
    missed = Differences(len(sent), 0, 0)
    found = [differences(before, sent, version.text) if version.text is not None else missed for version in versions]
    return found.index(min(found))
