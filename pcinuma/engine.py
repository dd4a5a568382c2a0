"""The engine: one function from a domain's XML to the XML to start, behind every caller.

Flow: ``domain.read`` parses the XML; ``survey`` reads, live and below the request's root, the places of the devices that count;
``placement.plan`` decides; ``domain.edit`` applies. The caller gets a :class:`Result`, always: whatever goes wrong on the way ends in
:func:`place`, the one boundary, as outcome ``fallback``. Only input that is no domain XML raises (UnusableInput).

No call here ever asks libvirt; what only libvirt knows (members of hostdev pools, parents of inactive mediated devices) is part of
the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Optional

from pcinuma.address import PciAddress
from pcinuma.domain.edit import apply_plan, withdraw
from pcinuma.domain.model import Domain, MachineKind
from pcinuma.domain.read import Elements, read_domain
from pcinuma.domain.xml import Document
from pcinuma.placement.aperture import NoAperture
from pcinuma.placement.attempt import Wish
from pcinuma.placement.layout import EXPANDERS, Layout
from pcinuma.placement.plan import make_plan
from pcinuma.placement.plan_model import NoRoom, Plan
from pcinuma.placement.reason import Outcome, Reason
from pcinuma.report import DeviceReport, Result, device_reports, unmet
from pcinuma.settings import GroupBy, Policy, Settings
from pcinuma.survey import Survey, survey

__all__ = ["DeviceReport", "Request", "Result", "place", "revert"]

_DEFAULTS = Settings()
_REASON_OF_MACHINE = {MachineKind.NONE: Reason.MACHINE_TYPE, MachineKind.UNNAMED: Reason.NO_MACHINE}


@dataclass(frozen=True)
class Request:
    """What to place for and where to read the host.

    ``root``: the directory that holds ``sys/``. ``group_by`` and ``policy``: a caller's explicit wish; None leaves it to the domain's
    metadata and then to ``settings``. ``pools``: what libvirt was asked about: network name -> host addresses of a hostdev pool's members,
    UUID of an inactive mediated device -> its parent's. ``replan``: lay a placed domain out afresh. ``ran_with``: guest addresses of
    devices that somebody put on one of our ports and that the guest already ran with: they stay.
    """

    root: Path = Path("/")
    group_by: Optional[GroupBy] = None
    policy: Optional[Policy] = None
    settings: Settings = _DEFAULTS
    pools: Mapping[str, tuple[PciAddress, ...]] = field(default_factory=dict)
    replan: bool = False
    ran_with: frozenset[PciAddress] = frozenset()


def place(xml: bytes, request: Optional[Request] = None) -> Result:
    """Place the passthrough devices of the domain ``xml``. Raises UnusableInput for input that is no domain XML, and nothing else."""
    request = request or Request()
    document = Document(xml)
    try:
        return _Job(xml, document, request).run()
    except Exception as error:  # the boundary: no failure of pcinuma stops a guest
        message = f"{Reason.INTERNAL.sentence} ({type(error).__name__}: {error})"
        required = request.policy is Policy.REQUIRED
        return Result(Outcome.FALLBACK, Reason.INTERNAL, message, None, (), xml, required, (message,))


def revert(xml: bytes) -> Result:
    """Take pcinuma's placement back out of the domain ``xml``: outcome ``placed`` if the XML changed, else ``unchanged``."""
    document = Document(xml)
    domain, elements = read_domain(document)
    if domain.placement is None:
        return Result(Outcome.UNCHANGED, None, "pcinuma has not placed this domain", None, (), xml)
    withdraw(document, domain, elements)
    return Result(Outcome.PLACED, None, "reverted to the layout before pcinuma", None, (), document.serialise())


class _Job:
    """One domain on its way through the engine."""

    def __init__(self, xml: bytes, document: Document, request: Request) -> None:
        self.xml = xml
        self.document = document
        self.request = request
        self.domain: Domain
        self.elements: Elements
        self.domain, self.elements = self._read(document)
        self.seen = Survey.nothing()

    def _read(self, document: Document) -> tuple[Domain, Elements]:
        return read_domain(document, frozenset(self.request.pools), self.request.settings.near_backing)

    @property
    def policy(self) -> Policy:
        if self.domain.policy is Policy.OFF:
            return Policy.OFF
        return self.request.policy or self.domain.policy or self.request.settings.policy

    @property
    def group_by(self) -> GroupBy:
        return self.request.group_by or self.domain.group_by or self.request.settings.group_by

    def run(self) -> Result:
        settings = self.request.settings
        switches = self.group_by is GroupBy.SWITCH
        if self.domain.placement is not None and not self.request.replan:
            switches = self.domain.placement.group_by is GroupBy.SWITCH
        self.seen = survey(self.domain, self.request.root, self.request.pools, settings.unaligned, switches)
        leave = self._reason_to_leave_alone()
        if leave is not None:
            return self._as_it_is(Outcome.UNCHANGED, *leave)
        if self.domain.problem is not None:
            return self._as_it_is(Outcome.FALLBACK, Reason.BAD_VALUE, self.domain.problem)
        if self.seen.trouble is not None:
            return self._as_it_is(Outcome.FALLBACK, *self.seen.trouble)
        return self._place()

    def _reason_to_leave_alone(self) -> Optional[tuple[Reason, str]]:
        domain = self.domain
        if self.policy is Policy.OFF:
            return Reason.POLICY_OFF, Reason.POLICY_OFF.sentence
        if domain.problem is not None:
            return None
        if not domain.devices and domain.placement is None:
            return Reason.NOTHING_TO_PLACE, "the domain passes no PCI device through"
        of_machine = _REASON_OF_MACHINE.get(domain.machine)
        if of_machine is not None:
            name = f" ({domain.machine_name})" if domain.machine_name else ""
            return of_machine, of_machine.sentence + name
        if domain.blind:
            return Reason.NO_ACPI, Reason.NO_ACPI.sentence
        if domain.commandline_pci is not None:
            return Reason.QEMU_COMMANDLINE, f"{Reason.QEMU_COMMANDLINE.sentence} ({domain.commandline_pci})"
        if domain.root_iommu:
            return Reason.IOMMU_BUS, Reason.IOMMU_BUS.sentence
        foreign = _foreign_expander(domain)
        if foreign is not None:
            return Reason.FOREIGN_EXPANDER, f"{Reason.FOREIGN_EXPANDER.sentence} (controller {foreign})"
        if not domain.cells and domain.placement is None:
            return Reason.NO_CELLS, Reason.NO_CELLS.sentence
        return None

    def _place(self) -> Result:
        if not self.domain.cells:
            return self._taken_back(Reason.NO_CELLS, Reason.NO_CELLS.sentence)
        freed: tuple[int, ...] = ()
        before = self.domain
        if self.request.replan and self.domain.placement is not None:
            freed = withdraw(self.document, self.domain, self.elements)
            self.domain, self.elements = self._read(self.document)
        wish = Wish(self.group_by, self.request.settings.spare_ports, freed, self.request.ran_with, self.seen.aperture)
        try:
            plan = make_plan(self.domain, self.seen.verdicts, self.seen.hosts, self.seen.virtual, wish)
        except NoRoom as error:
            return self._no_room(before, error)
        if plan.doubt is not None:
            doubt = self._doubtful(plan.doubt, before.placement is not None)
            before = self.domain = self.domain._replace(warnings=(*self.domain.warnings, doubt))
        if before.placement is None and not plan.seats:
            return self._as_it_is(Outcome.UNCHANGED, Reason.NOTHING_TO_PLACE, Reason.NOTHING_TO_PLACE.sentence, plan)
        if self.policy is Policy.REQUIRED:
            lacking = unmet(device_reports(self.domain, self.seen, plan))
            if lacking is not None:
                self.domain = before
                return self._refuse(lacking)
        if plan.empty and plan.placement == before.placement:
            return self._as_it_is(Outcome.UNCHANGED, Reason.ALREADY_PLACED, Reason.ALREADY_PLACED.sentence, plan)
        devices = device_reports(self.domain, self.seen, plan)
        apply_plan(self.document, self.elements, plan)
        xml = self.document.serialise()
        if self.request.replan and xml == self.xml:
            return self._as_it_is(Outcome.UNCHANGED, Reason.ALREADY_PLACED, Reason.ALREADY_PLACED.sentence, plan)
        grouping = plan.placement.group_by
        message = plan.stepped_down or (None if plan.doubt is None else self._doubtful(plan.doubt, before.placement is not None))
        return Result(Outcome.PLACED, None, message, grouping, devices, xml, False, self.domain.warnings)

    def _doubtful(self, why: str, standing: bool) -> str:
        if not standing:
            return f"UEFI firmware may leave devices without memory: {why}"
        hint = f"'pcinuma apply {self.domain.name or 'DOMAIN'} --replan' takes the layout back if it does not fit"
        return f"UEFI firmware may leave devices of the standing layout without memory: {why}; {hint}"

    def _no_room(self, before: Domain, error: NoRoom) -> Result:
        reason = Reason.NO_APERTURE if isinstance(error, NoAperture) else Reason.NO_ROOM
        message = f"{reason.sentence} ({error})"
        self.domain = before
        if before.placement is None:
            return self._as_it_is(Outcome.FALLBACK, reason, message)
        return self._taken_back(reason, message)

    def _taken_back(self, reason: Reason, message: str) -> Result:
        """A placed domain back in its default layout: the one fallback that differs from its input."""
        if self.policy is Policy.REQUIRED:
            return self._as_it_is(Outcome.FALLBACK, reason, message)
        document = Document(self.xml)
        domain, elements = self._read(document)
        withdraw(document, domain, elements)
        domain, _ = self._read(document)
        devices = device_reports(domain, self.seen, None, fallback=reason)
        message = f"the standing placement is wrong and no other fits, so it was taken back: {message}"
        return Result(Outcome.FALLBACK, reason, message, None, devices, document.serialise(), False, domain.warnings)

    def _as_it_is(self, outcome: Outcome, reason: Reason, message: str, plan: Optional[Plan] = None) -> Result:
        """The input byte for byte; under ``required`` only if that is good enough."""
        devices = device_reports(self.domain, self.seen, plan, fallback=reason)
        if self.policy is Policy.REQUIRED:
            lacking = unmet(devices)
            if lacking is not None or outcome is Outcome.FALLBACK:
                return self._refuse(lacking, message, reason)
        grouping = self.domain.placement.group_by if self.domain.placement else None
        return Result(outcome, reason, message, grouping, devices, self.xml, False, self.domain.warnings)

    def _refuse(self, lacking: Optional[DeviceReport], message: Optional[str] = None, reason: Optional[Reason] = None) -> Result:
        devices = device_reports(self.domain, self.seen, None, fallback=reason)
        grouping = self.domain.placement.group_by if self.domain.placement else None
        if lacking is None:
            why = message or Reason.REQUIRED.sentence
        else:
            detail = lacking.reason.sentence if lacking.reason else message
            why = f"{lacking.source} is not placed: {detail}" if detail else f"{lacking.source} is not placed"
        name = self.domain.name or "DOMAIN"
        hint = f"'pcinuma explain {name}' tells more, 'pcinuma disable {name}' lets it start as it is"
        text = f"{Reason.REQUIRED.sentence}: {why}; {hint}"
        return Result(Outcome.FALLBACK, Reason.REQUIRED, text, grouping, devices, self.xml, True, self.domain.warnings)


def _foreign_expander(domain: Domain) -> Optional[int]:
    """An expander that is not ours and that a passthrough device sits below, or whose bus number libvirt has yet to choose."""
    ours = frozenset(domain.placement.controllers if domain.placement else ())
    if not any((c.model in EXPANDERS or c.node is not None) and c.index not in ours for c in domain.controllers.values()):
        return None
    layout = Layout(domain)
    for device in domain.devices:
        home = layout.expander_of(device.address.bus) if device.address is not None else None
        if home is not None and home not in ours:
            return home
    for index, controller in sorted(domain.controllers.items()):
        if layout.is_expander(controller) and index not in ours and controller.bus_nr is None and domain.machine is not MachineKind.PHB:
            return index
    return None


