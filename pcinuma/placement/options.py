# SPDX-License-Identifier: LGPL-2.1-or-later
"""What decides on a plan besides the domain and the host, for every part of placement: a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from pcinuma.address import PciAddress
from pcinuma.placement.aperture import Aperture
from pcinuma.settings import GroupBy


@dataclass(frozen=True)
class PlanOptions:
    """The grouping that was asked for, and how many ports to keep free on each expander.

    ``replan``: lay a placed domain out afresh (:mod:`pcinuma.placement.replan`). ``ran_with``: addresses of foreign devices that the guest
    already ran with. ``aperture``: what the devices' windows must fit in.
    """

    group_by: GroupBy = GroupBy.ROOT_COMPLEX
    spare_ports: int = 0
    replan: bool = False
    ran_with: frozenset[PciAddress] = frozenset()
    aperture: Optional[Aperture] = None
