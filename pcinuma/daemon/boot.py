"""The hook's question: a domain is about to boot; is its XML placed as the host is now?

Answered from the XML, sysfs and what is in memory; libvirt waits meanwhile, so it is never asked. libvirt boots the XML as it
is, so what counts is the XML as given, not what the engine would make of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Optional

from pcinuma import engine
from pcinuma.address import PciAddress
from pcinuma.daemon.standing import all_stand, as_it_is, parse, strangers, with_standing
from pcinuma.domain.model import Domain
from pcinuma.engine import Request, Result
from pcinuma.placement.reason import Outcome, Reason
from pcinuma.settings import Policy

UNPLACED = "it starts with its devices where they were before; the placement counts from its next start"


@dataclass(frozen=True)
class Boot:
    """What is about to boot.

    ``standing``: the report on the XML as it is. ``placed``: the XML that it should be, None if it is that already.
    ``refusal``: the sentence that refuses the start.
    """

    domain: Domain
    policy: Policy
    standing: Result
    placed: Optional[bytes]
    refusal: Optional[str]
    ran_with: frozenset[PciAddress]


def examine(
    xml: bytes,
    request_for: Callable[[Optional[str]], Request],
    allows: Callable[[Optional[str], Optional[Policy]], bool],
    is_persistent: Callable[[Optional[str]], bool],
) -> Boot:
    """Examine the XML of a domain that is about to boot. Raises UnusableInput."""
    domain = parse(xml)
    request = request_for(domain.uuid)
    wished = engine.place(xml, request)
    policy = domain.policy or request.settings.policy
    ran_with = strangers(domain)
    if not allows(domain.uuid, domain.policy):
        standing = as_it_is(domain, xml, wished, Reason.NOT_ENABLED, f"pcinuma enable {domain.name}")
        return Boot(domain, policy, standing, None, None, ran_with)
    if wished.refused:
        return Boot(domain, policy, wished, None, f"domain {domain.name}: {wished.message}", ran_with)
    if wished.xml == xml:
        return Boot(domain, policy, wished, None, None, ran_with)
    standing = with_standing(domain, xml, wished)
    if all_stand(wished, standing):
        standing = replace(standing, outcome=Outcome.UNCHANGED, reason=Reason.ALREADY_PLACED, message=Reason.ALREADY_PLACED.sentence)
        return Boot(domain, policy, standing, wished.xml, None, ran_with)
    if policy is Policy.REQUIRED:
        mend = (
            "its definition is being placed now: start it again"
            if is_persistent(domain.uuid)
            else "it is transient: create it through pcinuma-proxy, or pass its XML through 'pcinuma place' first"
        )
        text = f"{Reason.REQUIRED.sentence}: its devices are not placed as the host is now; {mend}"
        refused = replace(standing, outcome=Outcome.FALLBACK, reason=Reason.REQUIRED, message=text, refused=True)
        return Boot(domain, policy, refused, wished.xml, f"domain {domain.name}: {text}", ran_with)
    standing = replace(standing, outcome=Outcome.FALLBACK, reason=None, message=UNPLACED)
    return Boot(domain, policy, standing, wished.xml, None, ran_with)
