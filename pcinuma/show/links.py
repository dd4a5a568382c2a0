# SPDX-License-Identifier: LGPL-2.1-or-later
"""What root ports are made to tell of their links (``link = host``), in words."""

from __future__ import annotations

from collections import Counter
from typing import Optional

from pcinuma.domain.links import read_link
from pcinuma.host.links import Link
from pcinuma.model import Domain

QEMUS = Link(16.0, 32)
"""What QEMU's root port shows unless it is told something else."""


def shown_links(domain: Domain) -> tuple[str, ...]:
    """The links that ports of pcinuma's show because they were told to: each once, the commonest first, and how many ports show it."""
    links = [link for _, text in (domain.placement.links if domain.placement is not None else ()) if (link := read_link(text)) is not None]
    counted = Counter(Link(link.speed or QEMUS.speed, link.width or QEMUS.width).text for link in links)
    return tuple(link if len(counted) == 1 else f"{link} ({number})" for link, number in counted.most_common())


def links_sentence(domain: Domain) -> Optional[str]:
    """The same as a sentence with its price; None where there is nothing to say."""
    links = shown_links(domain)
    if not links:
        return None
    told = f"Root ports show the host's links: {', '.join(links)}."
    return f"{told} That is done by <qemu:override>, for which libvirt logs the running guest as tainted (custom-device)."
