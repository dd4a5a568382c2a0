"""The engine: one function from a domain's XML to the XML to start, behind every caller.

Flow: ``domain.read`` parses the XML; for the devices that count ``host`` reads their places, live, below the request's root;
``placement.plan`` decides; ``domain.edit`` applies. The caller gets a :class:`Result`, always: whatever goes wrong on the way ends in
:func:`place` as outcome ``fallback`` with the input byte for byte. Only input that is no domain XML raises
(:class:`~pcinuma.errors.UnusableInput`).

No call here ever asks libvirt; what only libvirt knows (the members of hostdev pools) is part of the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional

from pcinuma.address import PciAddress
from pcinuma.placement.reason import Outcome, Reason
from pcinuma.settings import GroupBy, Policy, Settings


@dataclass(frozen=True)
class Request:
    """What to place for and where to read the host.

    ``root``: the directory that holds ``sys/``. ``group_by`` and ``policy``: a caller's explicit wish; None leaves it to the
    domain's metadata and then to ``settings``. ``pools``: network name -> host addresses of a hostdev pool's members, for those networks
    that libvirt was asked about. ``replan``: lay a placed domain out afresh. ``ran_with``: guest addresses of devices that somebody put on one of
    our ports and that the guest already ran with: they stay.
    """

    root: Path = Path("/")
    group_by: Optional[GroupBy] = None
    policy: Optional[Policy] = None
    settings: Settings = Settings()
    pools: Mapping[str, tuple[PciAddress, ...]] = field(default_factory=dict)
    replan: bool = False
    ran_with: frozenset[PciAddress] = frozenset()


@dataclass(frozen=True)
class DeviceReport:
    """One passthrough device in a report; the fields are those of the frozen format."""

    device: Optional[str]
    source: str
    form: str
    host_node: Optional[int]
    guest_cell: Optional[int]
    guest_address: Optional[str]
    placed: bool
    reason: Optional[Reason]


@dataclass(frozen=True)
class Result:
    """What :func:`place` made of a domain.

    ``xml`` is the XML to start (the input's own bytes unless something changed); ``refused`` says that policy ``required`` is not met.
    ``warnings`` are whole sentences for the log.
    """

    outcome: Outcome
    reason: Optional[Reason]
    message: Optional[str]
    group_by: Optional[GroupBy]
    devices: tuple[DeviceReport, ...]
    xml: bytes
    refused: bool = False
    warnings: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        """The report as ``pcinuma place --report`` writes it (a frozen format)."""
        return {
            "outcome": self.outcome.value,
            "reason": self.reason.value if self.reason else None,
            "message": self.message,
            "group_by": self.group_by.value if self.group_by else None,
            "devices": [
                {
                    "device": device.device,
                    "source": device.source,
                    "form": device.form,
                    "host_node": device.host_node,
                    "guest_cell": device.guest_cell,
                    "guest_address": device.guest_address,
                    "placed": device.placed,
                    "reason": device.reason.value if device.reason else None,
                }
                for device in self.devices
            ],
        }


def place(xml: bytes, request: Request = Request()) -> Result:
    """Place the passthrough devices of the domain ``xml``. Raises UnusableInput for input that is no domain XML, and nothing else."""
    raise NotImplementedError


def revert(xml: bytes) -> Result:
    """Take pcinuma's placement back out of the domain ``xml``: outcome ``placed`` if the XML changed, else ``unchanged``."""
    raise NotImplementedError
