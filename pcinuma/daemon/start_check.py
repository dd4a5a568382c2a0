# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook's question: a domain is about to boot; is its XML placed as the host is now?

Answered from the XML, sysfs and what is in memory; libvirt waits meanwhile, so it is never asked, and only what decides the
answer is worked out before it is given (:func:`check_start`); what is merely remembered comes after it (:meth:`StartCheck.current_layout`).
libvirt boots the XML as it is, so what counts is the XML as given, not what the engine would make of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Optional

from pcinuma import engine
from pcinuma.address import PciAddress
from pcinuma.daemon.current_layout import all_in_place, as_it_is, foreign_devices, with_current_layout
from pcinuma.domain.read import parse_domain
from pcinuma.domain.summary import mentions_pcinuma, summarise
from pcinuma.engine import Request, Result
from pcinuma.printable import command
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import Policy

UNPLACED = "it starts with its devices where they were before; the placement counts from its next start"


@dataclass(frozen=True)
class StartCheck:
    """What is about to boot.

    ``allowed``: whether pcinuma may touch it. ``wanted``: what the engine makes of it. ``placed``: the XML that it should be, None
    if it is that already or must not be touched. ``refusal``: the sentence that refuses the start.
    """

    xml: bytes
    name: str
    uuid: Optional[str]
    policy: Policy
    allowed: bool
    wanted: Result
    placed: Optional[bytes] = None
    refusal: Optional[str] = None

    def current_layout(self) -> tuple[Result, frozenset[PciAddress]]:
        """The report on the XML as it is, and the foreign devices on our ports that the guest runs with from now on."""
        wanted = self.wanted
        if self.allowed and wanted.xml == self.xml and not mentions_pcinuma(self.xml):
            return wanted, frozenset()
        domain = parse_domain(self.xml)
        if not self.allowed:
            result = as_it_is(domain, self.xml, wanted, Reason.NOT_ENABLED, command("enable", self.name))
        elif wanted.xml == self.xml:
            result = wanted
        else:
            result = with_current_layout(domain, self.xml, wanted)
            if all_in_place(wanted, result):
                right = Reason.ALREADY_PLACED
                result = replace(result, outcome=Outcome.UNCHANGED, reason=right, message=right.sentence)
            elif self.refusal is not None:
                result = replace(result, outcome=Outcome.FALLBACK, reason=Reason.REQUIRED, message=self.refusal, refused=True)
            else:
                result = replace(result, outcome=Outcome.FALLBACK, reason=None, message=UNPLACED)
        return result, foreign_devices(domain)


def check_start(
    xml: bytes,
    request_for: Callable[[Optional[str]], Request],
    allows: Callable[[Optional[str], Optional[Policy]], bool],
    is_persistent: Callable[[Optional[str]], bool],
) -> StartCheck:
    """Check the XML of a domain that is about to boot. Raises UnusableInput."""
    name, uuid, owner = summarise(xml)
    request = request_for(uuid)
    wanted = engine.place(xml, request)
    check = StartCheck(xml, name, uuid, owner or request.settings.policy, allows(uuid, owner), wanted)
    if not check.allowed:
        return check
    if wanted.refused:
        return replace(check, refusal=f"domain {name}: {wanted.message}")
    if wanted.xml == xml:
        return check
    if check.policy is Policy.REQUIRED and not all_in_place(wanted, with_current_layout(parse_domain(xml), xml, wanted)):
        mend = (
            "its definition is being placed now: start it again"
            if is_persistent(uuid)
            else "it is transient: create it through pcinuma-proxy, or pass its XML through 'pcinuma place' first"
        )
        text = f"{Reason.REQUIRED.sentence}: its devices are not placed as the host is now; {mend}"
        return replace(check, placed=wanted.xml, refusal=f"domain {name}: {text}")
    return replace(check, placed=wanted.xml)
