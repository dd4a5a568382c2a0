# SPDX-License-Identifier: LGPL-2.1-or-later
"""One domain on its way through the engine, once.

Flow: ``domain.read`` has read the document; ``resolve`` reads, live and below the request's root, the places of the devices that count;
``placement.planner`` decides; ``domain.edit`` applies. Each way out is a :class:`Result` with a sentence: left alone, as it is, placed,
taken back, refused. What raises here is caught by :func:`pcinuma.engine.place`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Sequence

from pcinuma.domain.aperture import manager_of
from pcinuma.domain.edit import apply_plan, withdraw
from pcinuma.domain.metadata import write_placement
from pcinuma.domain.read import Elements, read_domain
from pcinuma.domain.xml import Document
from pcinuma.domain_reason import no_cells_hint, why_nothing
from pcinuma.errors import DomainError, HostError
from pcinuma.host.place import HostReader
from pcinuma.model import BACKED, POLICY_SETTINGS, Domain, MachineKind, Placement
from pcinuma.placement.aperture import NoAperture
from pcinuma.placement.layout import EXPANDERS, Layout
from pcinuma.placement.options import PlanOptions
from pcinuma.placement.planner import make_plan
from pcinuma.plan import NoRoom, Plan, Resolved
from pcinuma.printable import command
from pcinuma.reason import Outcome, Reason
from pcinuma.report import DeviceReport, Result, cell_reports, device_reports, unmet
from pcinuma.request import Request
from pcinuma.resolve import Resolution, resolve
from pcinuma.settings import GroupBy, Policy

_NOTHING_LEFT = "no device has a place that the guest could see any more: the devices are back on the default PCI root"
_RECORD_GONE = "pcinuma's record of an earlier placement is taken out"
_REASON_OF_MACHINE = {MachineKind.NONE: Reason.MACHINE_TYPE, MachineKind.UNNAMED: Reason.NO_MACHINE}


class Job:
    """One domain on its way through the engine."""

    def __init__(self, xml: bytes, document: Document, request: Request) -> None:
        self.xml = xml
        self.document = document
        self.request = request
        self.domain: Domain
        self.elements: Elements
        self.domain, self.elements = self._read(document)
        self.recorded = self.domain.placement is not None
        self.linked = self.domain.placement if self.domain.placement is not None and self.domain.placement.links else None
        if self.domain.placement is not None and not self.domain.placement.controllers:
            self.domain = self.domain._replace(placement=None)  # nothing of it is left, so it binds nobody
        self.reader = HostReader(request.root)
        self.resolution = Resolution.nothing()
        self.got_cells = False
        self.writes = False

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

    @property
    def asks_for_cells(self) -> bool:
        """Whether the guest gets cells if it has none."""
        return _asked(self.domain.asks_for_cells, self.request.cells, self.request.settings.cells)

    @property
    def asks_for_link(self) -> bool:
        """Whether the guest's root ports tell the host's links."""
        return _asked(self.domain.asks_for_link, self.request.link, self.request.settings.link)

    @property
    def concerns_links(self) -> bool:
        """Whether they do, or shall."""
        return self.asks_for_link or self.linked is not None

    def run(self) -> Result:
        standing = self.domain.made_cells
        result = self._run()
        made = self.domain.made_cells
        if made is None:
            return result
        message = result.message
        if standing is not None and any(device.reason is Reason.NO_CELL for device in result.devices):
            hint = f"`{command('cells', self.domain.name or 'DOMAIN', '--replan')}` shows the cells that it would get today"
            message = f"{message}; {hint}" if message else hint
        return replace(result, cells=cell_reports(made), message=message)

    def _resolve(self, earlier: Optional[Resolution] = None) -> Resolution:
        switches = self.group_by is GroupBy.SWITCH
        if self.domain.placement is not None:
            switches = self.domain.placement.group_by is GroupBy.SWITCH or (switches and self.request.replan)
        return resolve(self.domain, self.reader, self.request.pools, self.request.settings.unaligned, switches, earlier)

    def _run(self) -> Result:
        self.resolution = self._resolve()
        if self.resolution.remarks:
            self.domain = self.domain._replace(warnings=(*self.domain.warnings, *self.resolution.remarks))
        leave = self._reason_to_leave_alone()
        if leave is not None and leave[0] is Reason.QEMU_COMMANDLINE and self.domain.placement is not None:
            return self._taken_back(*leave)  # QEMU would plug that device into an expander of ours, and not start
        if leave is not None:
            return self._with_cells() if leave[0] is Reason.NO_CELLS and self.asks_for_cells else self._left_alone(*leave)
        if self.domain.problem is not None:
            return self._as_it_is(Outcome.FALLBACK, Reason.BAD_VALUE, self.domain.problem)
        if self.resolution.trouble is not None:
            return self._as_it_is(Outcome.FALLBACK, *self.resolution.trouble)
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
        if domain.without_acpi:
            return Reason.NO_ACPI, Reason.NO_ACPI.sentence
        if domain.commandline_pci is not None:
            return Reason.QEMU_COMMANDLINE, f"{Reason.QEMU_COMMANDLINE.sentence} ({domain.commandline_pci})"
        if domain.root_iommu:
            return Reason.IOMMU_BUS, Reason.IOMMU_BUS.sentence
        foreign = _foreign_expander(domain)
        if foreign is not None:
            return Reason.FOREIGN_EXPANDER, f"{Reason.FOREIGN_EXPANDER.sentence} (controller {foreign})"
        if not domain.cells and domain.placement is None:
            hint = "" if self.asks_for_cells else f"; {no_cells_hint(domain, manager_of(self.document.root))}"
            return Reason.NO_CELLS, Reason.NO_CELLS.sentence + hint
        return None

    def _with_cells(self) -> Result:
        """A domain without cells, which gets some together with its placement, or neither."""
        if self.resolution.trouble is not None:
            return self._as_it_is(Outcome.FALLBACK, *self.resolution.trouble)
        from pcinuma.cells import NoProposal, elsewhere, give  # not for those who do without

        try:
            self.domain, proposal = give(self.document, self.domain, self.reader, self.resolution.nodes, self.request.memory)
        except NoProposal as error:
            return self._without_cells(Reason.NO_CELLS, f"{Reason.NO_CELLS.sentence}, and none can be given to it: {error.sentence()}")
        except DomainError as error:
            return self._as_it_is(Outcome.FALLBACK, Reason.BAD_VALUE, error.sentence())
        except HostError as error:
            return self._as_it_is(Outcome.FALLBACK, Reason.HOST_UNREADABLE, error.sentence())
        self.got_cells = True
        self.resolution = self._resolve(self.resolution)
        result = self._place()
        if result.outcome is Outcome.PLACED and any(device.placed for device in result.devices):
            return result
        bare = Job(self.xml, Document(self.xml), replace(self.request, cells=False)).run()
        self.domain = self.domain._replace(made_cells=None)
        if bare.xml != self.xml:
            return bare
        of_no_use = elsewhere(proposal, self.resolution.nodes) if result.reason is Reason.NO_CELL else None
        message = of_no_use or f"with the cells that it would get: {result.message}"
        return replace(bare, outcome=result.outcome, reason=result.reason, message=message, refused=result.refused)

    def _without_cells(self, reason: Reason, message: str) -> Result:
        if self.domain.placement is not None:
            return self._taken_back(reason, message)
        return self._left_alone(reason, message)

    def _place(self) -> Result:
        if not self.domain.cells:
            if self.asks_for_cells:
                return self._with_cells()
            return self._taken_back(Reason.NO_CELLS, Reason.NO_CELLS.sentence)
        domain = self.domain
        replan = self.request.replan and domain.placement is not None
        existing = domain.placement is not None and not replan
        followers = self._give_up_followers() if replan and not self.request.settings.near_backing else frozenset()
        options = PlanOptions(self.group_by, self.request.settings.spare_ports, replan, self.request.ran_with, self.resolution.aperture)
        try:
            plan = self._make_plan(options)
        except NoRoom as error:
            return self._no_room(options, error)
        if plan.doubt is not None:
            self.domain = domain._replace(warnings=(*domain.warnings, self._doubtful(plan.doubt, existing)))
        devices = device_reports(self.domain, self.resolution, plan)
        if followers:
            devices = tuple([line for line in devices if line.source not in followers])
        if domain.placement is None and not plan.addresses:
            return self._left_alone(*self._why_nothing(devices), plan, devices)
        if self.policy is Policy.REQUIRED:
            lacking = unmet(devices)
            if lacking is not None:
                return self._refuse(lacking)
        if plan.empty and not self.got_cells and not self.writes and _says_the_same(plan.placement, domain.placement):
            why = (Reason.ALREADY_PLACED, Reason.ALREADY_PLACED.sentence) if plan.addresses else self._why_nothing(devices)
            return self._as_it_is(Outcome.UNCHANGED, *why, plan, devices)
        if plan.placement is None:  # not even an expander is left: as it was before pcinuma, main ports included
            return self._nothing_left(plan)
        apply_plan(self.document, self.elements, plan)
        xml = self.document.serialise()
        grouping = plan.placement.group_by
        if not plan.addresses:
            return Result(Outcome.PLACED, Reason.NOTHING_TO_PLACE, _NOTHING_LEFT, grouping, devices, xml, False, self.domain.warnings)
        message = plan.stepped_down or (None if plan.doubt is None else self._doubtful(plan.doubt, existing))
        return Result(Outcome.PLACED, None, message, grouping, devices, xml, False, self.domain.warnings)

    def _why_nothing(self, devices: Sequence[DeviceReport]) -> tuple[Reason, str]:
        return why_nothing(self.domain, devices, manager_of(self.document.root))

    def _nothing_left(self, plan: Plan) -> Result:
        withdraw(self.document, self.domain, self.elements, plan.staying)
        domain, _ = self._read(self.document)
        devices, xml = device_reports(domain, self.resolution, None), self.document.serialise()
        return Result(Outcome.PLACED, Reason.NOTHING_TO_PLACE, _NOTHING_LEFT, None, devices, xml, False, self.domain.warnings)

    def _give_up_followers(self) -> frozenset[str]:
        """Emulated devices that followed what is behind them while that was wanted belong nowhere in a layout afresh; their sources."""
        followers = frozenset(device.source for device in self.domain.devices if device.form in BACKED)
        resolved = self.resolution.resolved
        without = {source: Resolved(None, Reason.NO_AFFINITY) for source in followers & resolved.keys()}
        self.resolution = self.resolution._replace(resolved={**resolved, **without})
        return followers

    def _make_plan(self, options: PlanOptions) -> Plan:
        return make_plan(self.domain, self.resolution.resolved, self.resolution.hosts, self.resolution.virtual, options)

    def _doubtful(self, why: str, existing: bool) -> str:
        if not existing:
            return f"UEFI firmware may leave devices without memory: {why}"
        hint = f"'pcinuma apply {self.domain.name or 'DOMAIN'} --replan' takes the layout back if it does not fit"
        return f"UEFI firmware may leave devices of the standing layout without memory: {why}; {hint}"

    def _no_room(self, options: PlanOptions, error: NoRoom) -> Result:
        reason = Reason.NO_APERTURE if isinstance(error, NoAperture) else Reason.NO_ROOM
        message = f"{reason.sentence} ({error})"
        if self.domain.placement is None or (reason is Reason.NO_ROOM and options.replan and self._may_stay(options)):
            return self._as_it_is(Outcome.FALLBACK, reason, message)
        return self._taken_back(reason, message)

    def _may_stay(self, options: PlanOptions) -> bool:
        """Whether the placement that there is can stay, where none afresh fits."""
        try:
            return self._make_plan(replace(options, replan=False)).empty
        except NoRoom:
            return False

    def _left_alone(
        self, reason: Reason, message: str, plan: Optional[Plan] = None, devices: Optional[tuple[DeviceReport, ...]] = None
    ) -> Result:
        """Nothing to do; but a record of pcinuma's by which nothing is placed any more goes."""
        result = self._as_it_is(Outcome.UNCHANGED, reason, message, plan, devices)
        nothing = plan is not None or reason in (Reason.NOTHING_TO_PLACE, Reason.NO_CELLS)
        gone = nothing and self.recorded and self.domain.placement is None
        if not gone or result.outcome is not Outcome.UNCHANGED:
            return result
        write_placement(self.document, None)
        return replace(result, outcome=Outcome.PLACED, message=f"{message}; {_RECORD_GONE}", xml=self.document.serialise())

    def _taken_back(self, reason: Reason, message: str) -> Result:
        """A placed domain back in its default layout: the one fallback that differs from its input."""
        if self.policy is Policy.REQUIRED:
            return self._as_it_is(Outcome.FALLBACK, reason, message)
        document = Document(self.xml)
        domain, elements = self._read(document)
        withdraw(document, domain, elements)
        domain, _ = self._read(document)
        devices = device_reports(domain, self.resolution, None, fallback=reason)
        message = f"the standing placement is wrong and no other fits, so it was taken back: {message}"
        return Result(Outcome.FALLBACK, reason, message, None, devices, document.serialise(), False, domain.warnings)

    def _as_it_is(
        self,
        outcome: Outcome,
        reason: Reason,
        message: str,
        plan: Optional[Plan] = None,
        devices: Optional[tuple[DeviceReport, ...]] = None,
    ) -> Result:
        """The input byte for byte; under ``required`` only if that is good enough. ``devices``: what ``plan`` makes of them, if known."""
        if devices is None:
            devices = device_reports(self.domain, self.resolution, plan, fallback=reason)
        if self.policy is Policy.REQUIRED:
            lacking = unmet(devices)
            if lacking is not None or outcome is Outcome.FALLBACK:
                return self._refuse(lacking, message, reason)
        grouping = self.domain.placement.group_by if self.domain.placement else None
        return Result(outcome, reason, message, grouping, devices, self.xml, False, self.domain.warnings)

    def _refuse(self, lacking: Optional[DeviceReport], message: Optional[str] = None, reason: Optional[Reason] = None) -> Result:
        devices = device_reports(self.domain, self.resolution, None, fallback=reason)
        grouping = self.domain.placement.group_by if self.domain.placement else None
        if lacking is None:
            why = message or Reason.REQUIRED.sentence
        else:
            detail = lacking.reason.sentence if lacking.reason and reason is not Reason.NO_CELLS else message
            why = f"{lacking.source} is not placed: {detail}" if detail else f"{lacking.source} is not placed"
        text = f"{Reason.REQUIRED.sentence}: {why}; {self._how_to_start()}"
        return Result(Outcome.FALLBACK, Reason.REQUIRED, text, grouping, devices, self.xml, True, self.domain.warnings)

    def _how_to_start(self) -> str:
        """What lets a domain start that policy ``required`` refuses. Managers write their domains afresh: there it is what a user sets."""
        setting = self.request.policy_setting or POLICY_SETTINGS.get(manager_of(self.document.root))
        if setting is not None:
            return f"{setting} set to 'preferred' or 'off' lets it start as it is"
        name = self.domain.name or "DOMAIN"
        return f"'pcinuma explain {name}' tells more, 'pcinuma disable {name}' lets it start as it is"


def _asked(owner: Optional[bool], caller: Optional[bool], configured: bool) -> bool:
    """Whether something optional is wanted: an owner's ``off`` wins over everything, a caller over the owner's other wish."""
    if owner is False:
        return False
    return next((wish for wish in (caller, owner) if wish is not None), configured)


def _says_the_same(new: Optional[Placement], old: Optional[Placement]) -> bool:
    """Whether ``old`` need not be written anew: it says what ``new`` does, and beyond that only of devices that are gone."""
    if new is None or old is None:
        return new is old
    if new.group_by is not old.group_by or new.controllers != old.controllers:
        return False
    return frozenset(old.devices).issuperset(new.devices)


def _foreign_expander(domain: Domain) -> Optional[int]:
    """An expander that is not ours and that a passthrough device sits below, or whose bus number libvirt has yet to choose."""
    ours = frozenset(domain.placement.controllers if domain.placement else ())
    if ours.issuperset([c.index for c in domain.controllers.values() if c.node is not None or c.model in EXPANDERS]):
        return None
    layout = Layout(domain)
    for device in domain.devices:
        expander = layout.expander_of(device.address.bus) if device.address is not None else None
        if expander is not None and expander not in ours:
            return expander
    for index, controller in sorted(domain.controllers.items()):
        if layout.is_expander(controller) and index not in ours and controller.bus_nr is None and domain.machine is not MachineKind.PHB:
            return index
    return None


