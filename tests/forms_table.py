# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes docs/forms.md: what each form of passthrough and each machine type does, from the golden results and the tests that prove it.

``python -m tests.forms_table`` writes it; a test compares. What a row says about placing is what the golden reports say; a proof that
is named but not there is an error, so the table cannot claim a test that somebody took away.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import NamedTuple

from tests.golden.cases import CASES, FOLDER

FILE = Path(__file__).resolve().parents[1] / "docs" / "forms.md"
TESTS = Path(__file__).resolve().parent

BOOTED = "guest/test_forms.py"
BACKED = ["lab/test_backing.py", "unit/domain/test_backing.py"]
FORMS = {
    "hostdev-pci": (
        "`hostdev type='pci'`, VFs, USB and SATA controllers",
        [BOOTED, "guest/test_placed_guests.py", "lab/test_what_the_guest_sees.py"],
    ),
    "interface-hostdev": ("`interface type='hostdev'`, `<teaming>`", [BOOTED, "unit/domain/test_passthrough.py"]),
    "network-pool": (
        "`interface type='network'` on a hostdev network",
        [
            BOOTED,
            "unit/placement/test_small_print.py::test_a_pool_whose_members_share_the_place_is_placed",
            "libvirt/test_reconciler.py",
        ],
    ),
    "mdev": ("`hostdev type='mdev'`; inactive ones where libvirt may be asked", [BOOTED, "libvirt/test_mdevs.py"]),
    "nvme-disk": ("`disk type='nvme'` on virtio", [BOOTED]),
    "vdpa": ("vDPA interfaces, and disks on virtio", [BOOTED, "unit/domain/test_passthrough.py"]),
    "block-disk": ("with `near-backing`: `disk type='block'` on virtio", [BOOTED, *BACKED]),
    "direct-interface": ("with `near-backing`: `interface type='direct'`, model virtio", [BOOTED, *BACKED]),
}
MACHINES = {
    "q35": ("q35", "`pcie-expander-bus`, root ports, switches", ["guest/test_placed_guests.py", "libvirt/test_machine_types.py"]),
    "pc": ("i440fx", "`pci-expander-bus`, devices on it", ["guest/test_machine_types.py", "libvirt/test_machine_types.py"]),
    "virt": (
        "virt (aarch64, UEFI)",
        "`pcie-expander-bus`, root ports, switches",
        ["guest/test_machine_types.py", "libvirt/test_machine_types.py"],
    ),
    "pseries": ("pseries", "a `pci-root` with `<node>` per node", ["guest/test_machine_types.py", "libvirt/test_machine_types.py"]),
}
ONLY_HARDWARE = [
    "mdev and vGPU: no kernel of Debian has a device for them without hardware; placement is by sysfs trees that were built",
    "vDPA with a device in hardware: likewise",
    "pool members that libvirt hands out at a start",
    "DMA of a placed device at the speed of its link, peer-to-peer between devices, NCCL and ROCm's choices",
    "BARs of real GPUs (an ivshmem device stood in), resizable BARs, AtomicOps",
    "PowerVM-like EEH: devices of several IOMMU groups share a placed PCI host bridge",
    "KVM guests on aarch64 and ppc64 (TCG was used), SMMUv3 per expander, iommufd, generic initiators",
    "Windows as a guest",
]


class Row(NamedTuple):
    """A form as the goldens have it."""

    placed: int
    reasons: tuple[str, ...]
    cases: tuple[str, ...]


def forms() -> dict[str, Row]:
    """Of each form how many devices the goldens place, the reasons of the others, and the goldens."""
    placed: dict[str, int] = {}
    reasons: dict[str, set[str]] = {}
    cases: dict[str, list[str]] = {}
    for case in CASES:
        if not case.stored:
            continue
        for line in json.loads((FOLDER / f"{case.name}.json").read_text())["devices"]:
            form = line["form"]
            placed[form] = placed.get(form, 0) + line["placed"]
            if line["reason"]:
                reasons.setdefault(form, set()).add(line["reason"])
            if case.name not in cases.setdefault(form, []):
                cases[form].append(case.name)
    return {form: Row(placed[form], tuple(sorted(reasons.get(form, ()))), tuple(cases[form])) for form in sorted(cases)}


def unplaced_machines() -> list[tuple[str, str, str]]:
    """(golden, machine, reason) of the goldens whose machine is the reason why nothing is placed."""
    rows = []
    for case in CASES:
        if case.reason in ("machine-type", "no-machine", "no-acpi") and isinstance(case.domain, bytes):
            head = case.domain.split(b"<type ", 1)[1].split(b">", 1)[0].decode()
            rows.append((case.name, head.replace("'", ""), case.reason))
    return sorted(rows)


def proof(name: str) -> str:
    """``name`` if there is such a test file (and function after ``::``); an error if not."""
    file, _, function = name.partition("::")
    source = (TESTS / file).read_text()
    if function and function not in {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}:
        raise LookupError(f"tests/{file} has no test {function}")
    return f"`{file}`"


def table() -> str:
    """The document."""
    found = forms()
    lines = [
        "# What each form and each machine type does",
        "",
        "Written by `python -m tests.forms_table` from the results of `tests/golden` and the tests that it names.",
        "",
        "## Forms of passthrough",
        "",
        "| form | in the XML | devices placed in goldens | reasons seen of those that are not | goldens | more proof |",
        "|---|---|---|---|---|---|",
    ]
    for form, (where, proofs) in FORMS.items():
        row = found.get(form, Row(0, (), ()))
        goldens = ", ".join(row.cases[:3]) + (f" and {len(row.cases) - 3} more" if len(row.cases) > 3 else "")
        more = ", ".join(map(proof, proofs))
        lines.append(f"| {form} | {where} | {row.placed} | {', '.join(row.reasons)} | {goldens} | {more} |")
    lines += [
        "",
        "The last two are emulated devices that follow the PCI device behind them: see `near-backing` in pcinuma.conf(5); off by default.",
        "",
        "A domain that hands devices or buses to QEMU by `<qemu:commandline>` is left alone (`qemu-commandline`), and so is one whose",
        "devices sit on expanders that somebody else made (`foreign-expander`) or whose IOMMU is for the main root only (`iommu-bus`).",
        "A device whose bus or address `<qemu:override>` sets stays where that puts it (`qemu-override`).",
        "",
        "## Machine types",
        "",
        "| machine | second PCI root | proof by libvirt's define and by a guest's kernel |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {what} | {', '.join(map(proof, proofs))} |" for name, what, proofs in MACHINES.values()]
    lines += ["", "Unchanged, with the reason:", "", "| golden | machine | reason |", "|---|---|---|"]
    lines += [f"| {name} | {machine} | {reason} |" for name, machine, reason in unplaced_machines()]
    lines += ["", "## What only real hardware can show", "", "Nothing here was shown, and nothing is claimed:", ""]
    lines += [f"- {item}" for item in ONLY_HARDWARE]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(table(), encoding="utf-8")
