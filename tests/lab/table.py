# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes docs/lab.md: what guests saw on each virtual host, by what their kernels printed.

A run of all presets (``tests/run lab --full``) writes it when its last test is over, whatever it says; nothing in it is typed in. A test of
every run compares its rows with the presets, so that a preset that changes asks for another run.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import NamedTuple, Optional

from pcinuma.lab import compare, guest_tree, jobs, layout
from pcinuma.lab.compare import Finding, Pairing
from pcinuma.lab.layout import MAIN_ROOT
from pcinuma.lab.presets import PRESETS, Preset
from pcinuma.lab.virtual_host import HostRun

FILE = Path(__file__).resolve().parents[2] / "docs" / "lab.md"
HEAD = """\
# What guests saw on virtual hosts

Written by `tests/run lab --full` from what kernels printed. Each preset (`pcinuma/lab/presets.py`) is a host in a virtual machine: NUMA
nodes, an IOMMU, root complexes on expander buses, switches, SR-IOV. On it run the distribution's libvirt, real vfio-pci, and pcinuma as
`install.sh` installs it. `virsh define` and `virsh start` start a guest with the devices passed through, `group-by switch`, and that
guest's kernel prints what it sees. `pcinuma demo` is the first of them for everybody. What the devices are is QEMU's (a GPU is an e1000e);
what no virtual host can show is listed in [forms.md](forms.md).

Every run of `tests/run lab` also lives through a day on the first host (`tests/lab/test_life_on_a_host.py`): install.sh, placing, planted
faults of links and ACS that `pcinuma paths` and `pcinuma check` name, a start with its devices on vfio-pci, a device taken out of the host
and put back, a start that policy `required` refuses, a killed daemon, a transient guest and a hot-plug through the proxy, `pcinuma attach`
and `pcinuma detach` of a device in a booted guest whose kernel sees it on its node and lets go of it, uninstalling. No systemd runs there,
so the proxy is on a socket of its own. Libvirt runs guests as root.

`tests/run lab --full` has the same day once more with libvirtd, its hooks and guests under the AppArmor profiles that Debian's libvirt
brings, enforced, and guests as user libvirt-qemu; the kernel's log of that whole day has no denial but one that is made on purpose. There
the QEMU guest agent runs in the guest: `pcinuma verify` passes by the word of the guest's kernel, and `pcinuma topology --nccl --install`
writes its file. SELinux is nowhere.

## Guest kernels by preset

- Host and guest node: `numa_node` by the two kernels. The guest's cell N stands for node N.
- Root complex: the host's, and the guest's that stands for it; devices share one in the guest exactly where they do on the host.
- Switch distance: whether the guest has as many bridges between the device and each other one of its root complex as the host; "-" where
  there is no other, or only functions of the same slot.
- Seconds: from the virtual host's power-on to the end of its job, the installation included; TCG in TCG, two hosts side by side.
"""


class Row(NamedTuple):
    """A device of a preset; ``None`` is the kernel's -1."""

    device: str
    host_node: Optional[int]
    guest_node: Optional[int]
    host_root: str
    guest_root: str
    distance: str


class Table:
    """What one test session found out."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Row]] = {}
        self._seconds: dict[str, float] = {}
        self._findings: dict[str, list[Finding]] = {}
        self._versions: dict[str, str] = {}

    def add(self, name: str, preset: Preset, run: HostRun, findings: list[Finding], kernel: str) -> None:
        """Note the result of a preset; ``kernel`` is the release of host and guest."""
        live = layout.read(run.out["live.xml"].encode())
        pairs = compare.pair(live, guest_tree.parse(run.out["tree-at-start"]), guest_tree.parse(run.out[f"{jobs.NAME}.console"]))
        names = {str(address): name for name, address in preset.host.addresses().items()}
        self._rows[name] = [_row(names[item.source], item, pairs) for item in pairs]
        self._seconds[name] = run.seconds
        self._findings[name] = findings
        self._versions[name] = f"Linux {kernel}, {', '.join(versions(run.out['versions']))}"

    @property
    def complete(self) -> bool:
        return set(self._rows) >= set(PRESETS)

    def text(self) -> str:
        """The document."""
        day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        lines = [HEAD, f"Run on {day} with {'; '.join(sorted(set(self._versions.values())))}.", ""]
        lines += [
            "| preset | device | host node | guest node | root complex | switch distance right | seconds |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in (*PRESETS, *sorted(set(self._rows) - set(PRESETS))):
            for number, row in enumerate(self._rows[name]):
                seconds = f"{self._seconds[name]:.0f}" if number == 0 else ""
                nodes = f"{_node(row.host_node)} | {_node(row.guest_node)}"
                lines.append(f"| {name} | {row.device} | {nodes} | {row.host_root} → {row.guest_root} | {row.distance} | {seconds} |")
        wrong = [f"- {name}: {finding}" for name, findings in self._findings.items() for finding in findings]
        lines += [
            "",
            *(["Not as on the host:", "", *wrong] if wrong else ["The judge (`pcinuma/lab/compare.py`) objects to none of these guests."]),
        ]
        return "\n".join(lines) + "\n"


def versions(said: str) -> list[str]:
    """libvirt's and QEMU's, from ``virsh version``."""
    found = [line.split(":", 1)[1].strip() for line in said.splitlines() if line.startswith(("Using library:", "Running hypervisor:"))]
    return sorted(found)


def rows(document: str) -> list[tuple[str, str, str, str]]:
    """(preset, device, host node, guest node) of each row of the document."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in document.splitlines() if line.startswith("| ")]
    return [(line[0], line[1], line[2], line[3]) for line in lines if line[0] != "preset"]


def _row(name: str, item: Pairing, pairs: list[Pairing]) -> Row:
    verdicts = [_same(item, other) for other in pairs if other is not item]
    judged = [verdict for verdict in verdicts if verdict is not None]
    distance = "-" if not judged else "yes" if all(judged) else "no"
    guest_root = "not seen" if item.guest is None else "default root" if item.guest.path.root == MAIN_ROOT else item.guest.path.root
    host_root = "default root" if item.host.path.root == MAIN_ROOT else item.host.path.root
    return Row(name, item.host_node, item.guest.numa_node if item.guest else None, host_root, guest_root, distance)


def _same(one: Pairing, other: Pairing) -> Optional[bool]:
    """Whether two devices of one root complex are as far apart in the guest as on the host; None where there is nothing to compare."""
    real = compare.distance(one.host.path, other.host.path)
    if one.host.path.root != other.host.path.root or not real or one.host_node is None:
        return None
    return one.guest is not None and other.guest is not None and compare.distance(one.guest.path, other.guest.path) == real


def _node(node: Optional[int]) -> str:
    return "-1" if node is None else str(node)
