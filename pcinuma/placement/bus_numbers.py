# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bus numbers for the expanders of a plan, when what is below each of them is known.

The arithmetic (PCI-to-PCI bridge specification; measured on SeaBIOS and OVMF): every bridge uses one number, i440fx's
``pci-expander-bus`` two; firmware numbers depth first, in order of slot and function. All below an expander lies in
``[busNr, next higher busNr - 1]``, and the main hierarchy has ``[0, lowest busNr - 1]``. Neither libvirt nor QEMU checks any of it.

That order is why new ports are appended behind the last one: only then no bus that the guest already knows gets another number.
"""

from __future__ import annotations

from pcinuma.model import MachineKind
from pcinuma.placement.layout import BUSES, Layout
from pcinuma.plan import NoRoom


def number_expanders(layout: Layout) -> None:
    """Give every new expander its bus number: together, as high as they go, with up to four ports' reserve each. Raises NoRoom."""
    if layout.machine is MachineKind.PHB:
        return
    new = layout.new_expanders()
    if not new:
        return
    widths = {index: _width(layout, index) for index in new}
    ceiling, floor = min(layout.numbers_of_expanders(), default=BUSES), layout.main_buses()
    for reserve in (0,) if layout.machine is MachineKind.PCI else (4, 3, 2, 1, 0):
        wide = {index: width + reserve for index, width in widths.items()}
        if sum(wide.values()) <= ceiling - floor:
            for index in reversed(new):
                ceiling -= wide[index]
                layout.set_bus_nr(index, ceiling)
            return
        if _fits_in_gaps(layout, new, wide, floor):
            return
    raise NoRoom(f"{floor + sum(widths.values())} bus numbers are needed where {ceiling} are free")


def check_bus_numbers(layout: Layout, ours: frozenset[int]) -> None:
    """Whoever added bridges, ours or somebody's: every hierarchy must fit before the next expander's first bus. Raises NoRoom.

    ``ours``: pcinuma's controllers that stood before this plan.
    """
    numbered = layout.numbers_of_expanders()
    if numbered and (needed := layout.main_buses()) > (lowest := min(numbered)):
        raise NoRoom(f"the main PCI root needs {needed} bus numbers where {lowest} are free")
    if layout.machine is MachineKind.PCIE and ours:
        for index, room in layout.rooms().items():
            if room < 0 and index in ours:
                raise NoRoom(f"the bridges below bus {layout.controllers[index].bus_nr} reach into the next expander's")


def _fits_in_gaps(layout: Layout, new: list[int], widths: dict[int, int], floor: int) -> bool:
    """Deal out numbers behind what other expanders really use, for where the space below the lowest one is too small."""
    chosen: dict[int, int] = {}
    used = {bus_nr: bus_nr + _width(layout, index) for bus_nr, index in layout.numbers_of_expanders().items()}
    for index in new:
        starts = sorted(used)
        gaps = [(floor, starts[0] if starts else BUSES)]
        gaps += [(used[start], starts[i + 1] if i + 1 < len(starts) else BUSES) for i, start in enumerate(starts)]
        width = widths[index]
        fitting = [gap for gap in gaps if gap[1] - gap[0] >= width]
        if not fitting:
            return False
        start = max(fitting, key=lambda gap: gap[1] - gap[0])[1] - width
        chosen[index] = start
        used[start] = start + width
    for index, bus_nr in chosen.items():
        layout.set_bus_nr(index, bus_nr)
    return True


def _width(layout: Layout, expander: int) -> int:
    return (2 if layout.machine is MachineKind.PCI else 1) + layout.bridges_below(expander)
