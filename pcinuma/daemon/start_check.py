"""The hook's question: a domain is about to boot; is its XML placed as the host is now?

Answered from the XML, sysfs and what is in memory; libvirt waits meanwhile, so it is never asked, and only what decides the
answer is worked out before it is given (:func:`judge`); what is merely remembered comes after it (:meth:`Boot.standing`).
libvirt boots the XML as it is, so what counts is the XML as given, not what the engine would make of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Optional

from pcinuma import engine
from pcinuma.address import PciAddress
from pcinuma.daemon.current_layout import all_stand, as_it_is, strangers, with_standing
from pcinuma.domain.read import parse_domain
from pcinuma.domain.summary import glance, mentions_us
from pcinuma.engine import Request, Result
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import Policy

UNPLACED = "it starts with its devices where they were before; the placement counts from its next start"


@dataclass(frozen=True)
class Boot:
    """What is about to boot.

    ``allowed``: whether pcinuma may touch it. ``wished``: what the engine makes of it. ``placed``: the XML that it should be, None
    if it is that already or must not be touched. ``refusal``: the sentence that refuses the start.
    """

    xml: bytes
    name: str
    uuid: Optional[str]
    policy: Policy
    allowed: bool
    wished: Result
    placed: Optional[bytes] = None
    refusal: Optional[str] = None

    def standing(self) -> tuple[Result, frozenset[PciAddress]]:
        """The report on the XML as it is, and the strangers on our ports that the guest runs with from now on."""
        wished = self.wished
        if self.allowed and wished.xml == self.xml and not mentions_us(self.xml):
            return wished, frozenset()
        domain = parse_domain(self.xml)
        if not self.allowed:
            result = as_it_is(domain, self.xml, wished, Reason.NOT_ENABLED, f"pcinuma enable {self.name}")
        elif wished.xml == self.xml:
            result = wished
        else:
            result = with_standing(domain, self.xml, wished)
            if all_stand(wished, result):
                right = Reason.ALREADY_PLACED
                result = replace(result, outcome=Outcome.UNCHANGED, reason=right, message=right.sentence)
            elif self.refusal is not None:
                result = replace(result, outcome=Outcome.FALLBACK, reason=Reason.REQUIRED, message=self.refusal, refused=True)
            else:
                result = replace(result, outcome=Outcome.FALLBACK, reason=None, message=UNPLACED)
        return result, strangers(domain)


def judge(
    xml: bytes,
    request_for: Callable[[Optional[str]], Request],
    allows: Callable[[Optional[str], Optional[Policy]], bool],
    is_persistent: Callable[[Optional[str]], bool],
) -> Boot:
    """Judge the XML of a domain that is about to boot. Raises UnusableInput."""
    name, uuid, owner = glance(xml)
    request = request_for(uuid)
    wished = engine.place(xml, request)
    boot = Boot(xml, name, uuid, owner or request.settings.policy, allows(uuid, owner), wished)
    if not boot.allowed:
        return boot
    if wished.refused:
        return replace(boot, refusal=f"domain {name}: {wished.message}")
    if wished.xml == xml:
        return boot
    if boot.policy is Policy.REQUIRED and not all_stand(wished, with_standing(parse_domain(xml), xml, wished)):
        mend = (
            "its definition is being placed now: start it again"
            if is_persistent(uuid)
            else "it is transient: create it through pcinuma-proxy, or pass its XML through 'pcinuma place' first"
        )
        text = f"{Reason.REQUIRED.sentence}: its devices are not placed as the host is now; {mend}"
        return replace(boot, placed=wished.xml, refusal=f"domain {name}: {text}")
    return replace(boot, placed=wished.xml)
