"""The golden cases: which domain is placed on which machine, and what must come of it.

A case says its meaning in a form that was worked out by hand from the design, so that regenerating the files can never change it: for
each device the guest cell under which it must be seen, or the reason code for which it stays; how many expanders; the outcome. The files
``NAME-in.xml``, ``NAME-out.xml`` and ``NAME.json`` beside this one are what a person reads (``pytest --regenerate`` writes them; the
judge of ``tests/hosts`` and this meaning are checked first).
"""

from __future__ import annotations

from pcinuma.model import Hypervisor
from pcinuma.settings import Unaligned
from tests.golden.case import FOLDER, Case
from tests.golden.cells import CELL_CASES
from tests.hosts.build import Host
from tests.hosts.domains import Domain, two_cells
from tests.hosts.edits import with_device, with_nic_on, without_device
from tests.hosts.machines import MACHINES, MDEV, MDEV_REMOTE, crowd, switches


def _gpus(domain: Domain) -> Domain:
    """All GPUs and NICs of the eight-gpus machine."""
    for base in (0x20, 0x50, 0x80, 0xB0):
        for offset in (4, 5, 6, 7):
            domain.hostdev(f"{base + offset:02x}:00.0")
    return domain


GPUS = {f"0000:{base + offset:02x}:00.0": int(base >= 0x80) for base in (0x20, 0x50, 0x80, 0xB0) for offset in (4, 5, 6, 7)}
PAIR = {"0000:17:00.0": 0, "0000:b3:00.0": 1}


def _pair(domain: Domain) -> Domain:
    return domain.hostdev("17:00.0").hostdev("b3:00.0")


NEW_QEMU = Hypervisor((12, 8), (11, 1), "/usr/bin/qemu-system-x86_64", "x86_64")


def _linked() -> Host:
    """Two sockets; the port above 17:00.0 is PCIe 5.0 x16, the one above b3:00.0 has 8 lanes of PCIe 4.0."""
    host = MACHINES["two-sockets"]()
    host.functions["0000:16:00.0"].link = ("32.0 GT/s PCIe", "16")
    host.functions["0000:b2:00.0"].link = ("16.0 GT/s PCIe", "8")
    return host


def _one_cell() -> Domain:
    return Domain().cells("0-3").memnode(0, "0")


def _crowd(count: int, domain: int = 0) -> Domain:
    guest = _one_cell()
    for number in range(count):
        guest.hostdev(f"{domain:04x}:{number % 250 + 1:02x}:00.0")
    return guest


def _scattered(count: int) -> Domain:
    guest = _one_cell()
    for number in range(count):
        guest.hostdev(f"{number:04x}:01:00.0")
    return guest


def _switches(count: int) -> Domain:
    guest = _one_cell()
    for number in range(count):
        guest.hostdev(f"{number:04x}:03:00.0").hostdev(f"{number:04x}:04:00.0")
    return guest


def _foreign() -> Domain:
    guest = two_cells().controller(1, "pcie-expander-bus", "<target busNr='180'><node>0</node></target>", "00:04.0")
    guest.controller(2, "pcie-root-port", "<target chassis='2' port='0x0'/>", "01:00.0")
    return guest.hostdev("17:00.0", "02:00.0").hostdev("b3:00.0")


def _remote_node_removed() -> Host:
    host = MACHINES["two-sockets"]()
    host.remove("b3:00.0")
    return host


def _moved_to_node_one() -> Host:
    """The two-sockets machine after somebody swapped the GPU's slot: 17:00.0 is on node 1 now."""
    host = MACHINES["two-sockets"]()
    host.functions["0000:17:00.0"].node = 1
    return host


CARD = [f"17:00.{function}" for function in range(4)]


def _card() -> Domain:
    guest = two_cells()
    for function in range(4):
        guest.hostdev(f"17:00.{function}", f"03:00.{function}", multifunction=function == 0)
    return guest.hostdev("65:00.0").hostdev("65:00.1")


CASES = [
    Case("one-device-one-node", "one-node", _one_cell().hostdev("17:00.0").raw(), {"0000:17:00.0": 0}, expanders=1),
    Case("one-device-formatted", "one-node", _one_cell().nic().hostdev("17:00.0").formatted(), {"0000:17:00.0": 0}, expanders=1),
    Case("two-nodes", "two-sockets", _pair(two_cells()).raw(), PAIR, expanders=2),
    Case("two-nodes-formatted", "two-sockets", _pair(two_cells().nic().disk()).formatted(), PAIR, expanders=2),
    Case("swapped", "two-sockets", _pair(Domain().cells("0-1", "2-3").memnode(0, "1").memnode(1, "0")).raw(),
         {"0000:17:00.0": 1, "0000:b3:00.0": 0}, expanders=2),
    Case("memnode-against-vcpupin", "two-sockets",
         _pair(two_cells().vcpupin(0, "8-15").vcpupin(1, "8-15").vcpupin(2, "0-7").vcpupin(3, "0-7")).raw(), PAIR, expanders=2),
    Case("vcpupin-alone", "two-sockets",
         _pair(Domain().cells("0-1", "2-3").vcpupin(0, "8").vcpupin(1, "9-10").vcpupin(2, "0-7,^3").vcpupin(3, "1")).raw(),
         {"0000:17:00.0": 1, "0000:b3:00.0": 0}, expanders=2),
    Case("vcpupin-decides-between-memnodes", "two-sockets",
         _pair(Domain().cells("0-1", "2-3").memnode(0, "0-1").memnode(1, "0-1").vcpupin(0, "0-7").vcpupin(2, "8-15")).raw(), PAIR,
         expanders=2),
    Case("ambiguous", "two-sockets", _pair(Domain().cells("0-1", "2-3").memnode(0, "0").memnode(1, "0-1")).raw(),
         {"0000:17:00.0": "ambiguous-cell", "0000:b3:00.0": 1}, expanders=1),
    Case("ambiguous-vcpupin", "two-sockets", _pair(Domain().cells("0-1", "2-3").vcpupin(0, "0-1").vcpupin(2, "2-9")).raw(),
         {"0000:17:00.0": "ambiguous-cell", "0000:b3:00.0": 1}, expanders=1),
    Case("node-without-cell", "two-sockets", _pair(_one_cell()).raw(), {"0000:17:00.0": 0, "0000:b3:00.0": "no-cell"}, expanders=1),
    Case("no-affinity", "minus-one", _pair(two_cells()).formatted(), {"0000:17:00.0": "no-affinity", "0000:b3:00.0": "no-affinity"},
         "unchanged", "no-affinity"),
    Case("no-affinity-beside", "local-cpulist", _pair(two_cells()).hostdev("18:00.0").hostdev("b4:00.0").raw(),
         {**PAIR, "0000:18:00.0": 0, "0000:b4:00.0": "no-affinity"}, expanders=2),
    Case("multifunction", "multifunction-gpu", _card().formatted(),
         {**{f"0000:{f}": 0 for f in CARD}, "0000:65:00.0": 1, "0000:65:00.1": 1}, expanders=2),
    Case("vfs", "sriov", two_cells().interface("3b:01.0").interface("3b:01.1").hostdev("d8:01.0").formatted(),
         {"0000:3b:01.0": 0, "0000:3b:01.1": 0, "0000:d8:01.0": 1}, expanders=2),
    Case("vfs-without-node", "vfs-without-node", two_cells().interface("3b:01.0").interface("d8:01.1").raw(),
         {"0000:3b:01.0": 0, "0000:d8:01.1": 1}, expanders=2),
    Case("eight-gpus-root-complex", "eight-gpus", _gpus(two_cells()).raw(), GPUS, expanders=4, grouping="root-complex"),
    Case("eight-gpus-switch", "eight-gpus", _gpus(two_cells()).raw(), GPUS, expanders=4, switches=4, group_by="switch"),
    Case("eight-gpus-node", "eight-gpus", _gpus(two_cells()).raw(), GPUS, expanders=2, group_by="node"),
    Case("cascaded-switch", "cascaded-switches",
         two_cells().hostdev("24:00.0").hostdev("25:00.0").hostdev("28:00.0").hostdev("2a:00.0").hostdev("2c:00.0").hostdev("81:00.0").raw(),
         {**dict.fromkeys(("0000:24:00.0", "0000:25:00.0", "0000:28:00.0", "0000:2a:00.0", "0000:2c:00.0"), 0), "0000:81:00.0": 1},
         expanders=2, switches=3, group_by="switch"),
    Case("cascaded-inner-switch", "cascaded-switches", two_cells().hostdev("24:00.0").hostdev("25:00.0").hostdev("2c:00.0").raw(),
         dict.fromkeys(("0000:24:00.0", "0000:25:00.0", "0000:2c:00.0"), 0), expanders=1, switches=1, group_by="switch"),
    Case("cascaded-nothing-to-mirror", "cascaded-switches", two_cells().hostdev("24:00.0").hostdev("2c:00.0").hostdev("81:00.0").raw(),
         {"0000:24:00.0": 0, "0000:2c:00.0": 0, "0000:81:00.0": 1}, expanders=2, switches=0, group_by="switch"),
    Case("two-root-complexes", "two-root-complexes", _pair(two_cells()).hostdev("4b:00.0").interface("18:00.0").raw(),
         {**PAIR, "0000:4b:00.0": 0, "0000:18:00.0": 0}, expanders=3),
    Case("two-root-complexes-node", "two-root-complexes", _pair(two_cells()).hostdev("4b:00.0").interface("18:00.0").raw(),
         {**PAIR, "0000:4b:00.0": 0, "0000:18:00.0": 0}, expanders=2, group_by="node"),
    Case("four-nodes", "four-nodes",
         Domain().cells("0", "1", "2", "3").memnode(0, "3").memnode(1, "2").memnode(2, "1").memnode(3, "0")
         .hostdev("40:00.0").hostdev("60:00.0").interface("81:00.0").interface("a1:00.0").raw(),
         {"0000:40:00.0": 3, "0000:60:00.0": 2, "0000:81:00.0": 1, "0000:a1:00.0": 0}, expanders=4),
    Case("two-host-nodes-in-one-cell", "four-nodes", Domain().cells("0-1", "2-3").memnode(0, "0-1").memnode(1, "2-3")
         .hostdev("40:00.0").hostdev("60:00.0").hostdev("80:00.0").raw(),
         {"0000:40:00.0": 0, "0000:60:00.0": 0, "0000:80:00.0": 1}, expanders=3),
    # Placed domains.
    Case("added", "two-sockets", with_device("18:00.0"), {**PAIR, "0000:18:00.0": 0}, expanders=2, after="two-nodes"),
    Case("added-new-place", "two-sockets", with_device("b4:00.0"), {"0000:17:00.0": 0, "0000:b4:00.0": 1}, expanders=2,
         after="one-of-two"),
    Case("one-of-two", "two-sockets", two_cells().hostdev("17:00.0").raw(), {"0000:17:00.0": 0}, expanders=1),
    Case("removed", "two-sockets", without_device("17:00.0"), {"0000:b3:00.0": 1}, "unchanged", "already-placed", expanders=2,
         after="two-nodes"),
    Case("already-placed", "two-sockets", lambda out: out, PAIR, "unchanged", "already-placed", expanders=2, after="two-nodes-formatted"),
    Case("added-beside-switch", "eight-gpus", with_device("26:00.0"),
         {"0000:24:00.0": 0, "0000:25:00.0": 0, "0000:26:00.0": 0}, expanders=1, switches=1, group_by="switch", after="two-behind-switch"),
    Case("two-behind-switch", "eight-gpus", two_cells().hostdev("24:00.0").hostdev("25:00.0").raw(), {"0000:24:00.0": 0, "0000:25:00.0": 0},
         expanders=1, switches=1, group_by="switch"),
    Case("one-before-switch", "eight-gpus", two_cells().hostdev("24:00.0").raw(), {"0000:24:00.0": 0}, expanders=1, group_by="switch"),
    Case("kept-apart", "eight-gpus", with_device("25:00.0"), {"0000:24:00.0": 0, "0000:25:00.0": 0}, expanders=1, group_by="switch",
         after="one-before-switch"),
    Case("foreign-device-on-our-port", "two-sockets", lambda out: with_nic_on("17:00.0")(out), {"0000:b3:00.0": 1}, expanders=2,
         after="two-nodes-formatted"),
    Case("host-changed", _moved_to_node_one, lambda out: out, {"0000:17:00.0": 1, "0000:b3:00.0": 1}, after="two-nodes-formatted"),
    Case("absent-when-placed", _remote_node_removed, lambda out: out, {"0000:17:00.0": 0, "0000:b3:00.0": None}, "fallback",
         "device-absent", after="two-nodes-formatted"),
    Case("absent", _remote_node_removed, _pair(two_cells()).formatted(), {"0000:17:00.0": None, "0000:b3:00.0": "device-absent"},
         "fallback", "device-absent"),
    # Left alone.
    Case("foreign-expander", "two-sockets", _foreign().raw(), {"0000:17:00.0": None, "0000:b3:00.0": None}, "unchanged",
         "foreign-expander"),
    Case("no-cells", "two-sockets", _pair(Domain()).raw(), {"0000:17:00.0": None, "0000:b3:00.0": None}, "unchanged", "no-cells"),
    Case("machine-type", "two-sockets", _pair(two_cells().on("microvm")).raw(), {"0000:17:00.0": None, "0000:b3:00.0": None}, "unchanged",
         "machine-type"),
    Case("no-machine", "two-sockets", _pair(two_cells().on(None)).raw(), {"0000:17:00.0": None, "0000:b3:00.0": None}, "unchanged",
         "no-machine"),
    Case("off", "two-sockets", _pair(two_cells().metadata(policy="off")).raw(), {"0000:17:00.0": None, "0000:b3:00.0": None}, "unchanged",
         "policy-off"),
    Case("nothing", "two-sockets", two_cells().nic().disk().formatted(), {}, "unchanged", "nothing-to-place"),
    Case("qemu-commandline", "two-sockets", _pair(two_cells()).commandline("-device", "vfio-pci,host=0000:18:00.0,bus=pcie.0").raw(),
         {"0000:17:00.0": None, "0000:b3:00.0": None}, "unchanged", "qemu-commandline"),
    # Forms and metadata.
    Case("forms", "mediated",
         two_cells().mdev(MDEV).mdev(MDEV_REMOTE).nvme("19:00.0", 1, "virtio", "vda").nvme("b5:00.0", 2, "sata", "sda").vdpa(0).vdpa(1)
         .hostdev("3b:01.1").formatted(),
         {MDEV: 0, MDEV_REMOTE: 1, "0000:19:00.0#1": 0, "0000:b5:00.0#2": "not-pci", "/dev/vhost-vdpa-0": 0, "/dev/vhost-vdpa-1": 1,
          "0000:3b:01.1": 0}, expanders=4),
    Case("backed", "backed",
         two_cells().nic().disk().block("/dev/disk/by-id/nvme-a", "vdb").block("/dev/vg/lv", "vdc").block("/dev/nvme1n1p1", "vdd")
         .block("/dev/nvme10n1", "vde").direct("eth0").direct("bond0.7", "virtio-non-transitional").hostdev("19:00.0").formatted(),
         {"vdb@/dev/disk/by-id/nvme-a": 0, "vdc@/dev/vg/lv": 1, "vdd@/dev/nvme1n1p1": 1, "vde@/dev/nvme10n1": "backing-unknown",
          "52:54:00:00:00:07@eth0": 0, "52:54:00:00:00:08@bond0.7": 1, "0000:19:00.0": 0}, expanders=2, settings={"near_backing": True}),
    Case("backed-raw", "backed", two_cells().nic().block("/dev/nvme0n1").direct("eth1").raw(),
         {"vdb@/dev/nvme0n1": 0, "52:54:00:00:00:03@eth1": 1}, expanders=2, settings={"near_backing": True}),
    Case("vmd", "vmd", two_cells().hostdev("10000:01:00.0").hostdev("10000:02:00.0").hostdev("10001:01:00.0").hostdev("0001:17:00.0").raw(),
         {"10000:01:00.0": 0, "10000:02:00.0": 0, "10001:01:00.0": 1, "0001:17:00.0": 1}, expanders=3),
    Case("platform", "platform", two_cells().interface("0002:01:00.0").hostdev("0009:01:00.0").raw(),
         {"0002:01:00.0": 0, "0009:01:00.0": 1}, expanders=2),
    Case("i440fx", "two-root-complexes", _pair(two_cells().on("pc").nic()).hostdev("4b:00.0").interface("18:00.0").raw(),
         {**PAIR, "0000:4b:00.0": 0, "0000:18:00.0": 0}, expanders=3),
    Case("i440fx-switch-is-root-complex", "eight-gpus", _gpus(two_cells().on("pc")).raw(), GPUS, expanders=4, group_by="switch",
         grouping="root-complex"),
    Case("aarch64-virt", "platform", two_cells().on("virt").interface("0002:01:00.0").hostdev("0009:01:00.0").raw(),
         {"0002:01:00.0": 0, "0009:01:00.0": 1}, expanders=2),
    Case("pseries", "two-root-complexes", _pair(two_cells().on("pseries").nic()).hostdev("4b:00.0").raw(),
         {**PAIR, "0000:4b:00.0": 0}, expanders=2, grouping="node"),
    Case("nearest", "four-nodes",
         Domain().cells("0", "1").memnode(0, "0").memnode(1, "2").hostdev("60:00.0").hostdev("a0:00.0").hostdev("40:00.0").raw(),
         {"0000:60:00.0": 0, "0000:a0:00.0": 1, "0000:40:00.0": 0}, expanders=3, settings={"unaligned": Unaligned.NEAREST}),
    Case("nearest-without-cpus", "device-node-without-cpus", _pair(two_cells()).raw(), PAIR, expanders=2,
         settings={"unaligned": Unaligned.NEAREST}),
    Case("spare-ports", "two-sockets", _pair(two_cells().nic()).formatted(), PAIR, expanders=2, settings={"spare_ports": 2}),
    Case("i440fx-two-expanders-a-place", crowd, _crowd(40).on("pc").raw(), {f"0000:{n + 1:02x}:00.0": 0 for n in range(40)}, expanders=2,
         stored=False),
    Case("pseries-two-bridges-a-node", crowd, _crowd(40).on("pseries").raw(), {f"0000:{n + 1:02x}:00.0": 0 for n in range(40)}, expanders=2,
         grouping="node", stored=False),
    Case("aarch64-without-acpi", "platform", two_cells().on("virt").without_acpi().hostdev("0009:01:00.0").raw(), {"0009:01:00.0": None},
         "unchanged", "no-acpi"),
    Case("s390x", "two-sockets", _pair(two_cells().on("s390-ccw-virtio")).raw(), {"0000:17:00.0": None, "0000:b3:00.0": None}, "unchanged",
         "machine-type"),
    Case("riscv64-virt", "two-sockets", _pair(two_cells().on("virt", "riscv64")).raw(), {"0000:17:00.0": None, "0000:b3:00.0": None},
         "unchanged", "machine-type"),
    Case("nearest-swapped", "device-node-without-cpus", _pair(Domain().cells("0-1", "2-3").memnode(0, "1").memnode(1, "0")).raw(),
         {"0000:17:00.0": 1, "0000:b3:00.0": 0}, expanders=2, settings={"unaligned": Unaligned.NEAREST}),
    Case("nearest-tie-goes-to-the-lower-node", "four-nodes",
         Domain().cells("0-1", "2-3").memnode(0, "3").memnode(1, "2").hostdev("40:00.0").hostdev("60:00.0").raw(),
         {"0000:40:00.0": 1, "0000:60:00.0": 1}, expanders=2, settings={"unaligned": Unaligned.NEAREST}),
    Case("nearest-is-off", "device-node-without-cpus", _pair(two_cells()).formatted(),
         {"0000:17:00.0": "no-cell", "0000:b3:00.0": "no-cell"}, "unchanged", "no-cell"),
    Case("nearest-never-guesses", "two-sockets",
         Domain().cells("0-1", "2-3").memnode(0, "0").memnode(1, "0-1").hostdev("17:00.0").hostdev("b3:00.0").raw(),
         {"0000:17:00.0": "ambiguous-cell", "0000:b3:00.0": 1}, expanders=1, settings={"unaligned": Unaligned.NEAREST}),
    Case("unassigned", "two-sockets", two_cells().hostdev("17:00.0").hostdev("b3:00.0", "unassigned").formatted(),
         {"0000:17:00.0": 0, "0000:b3:00.0": "unassigned"}, expanders=1),
    Case("keep", "two-sockets", _pair(two_cells().keep("0000:b3:00.0")).formatted(), {"0000:17:00.0": 0, "0000:b3:00.0": "kept"},
         expanders=1),
    Case("owner-wants-switch", "eight-gpus", two_cells().metadata(group_by="switch").hostdev("24:00.0").hostdev("26:00.0").raw(),
         {"0000:24:00.0": 0, "0000:26:00.0": 0}, expanders=1, switches=1, grouping="switch"),
    Case("required-unmet", "two-sockets", _pair(_one_cell().metadata(policy="required")).formatted(),
         {"0000:17:00.0": None, "0000:b3:00.0": "no-cell"}, "fallback", "required"),
    Case("owner-extras", "two-sockets", _pair(two_cells().with_extras().metadata(policy="preferred")).formatted(), PAIR, expanders=2),
    # Links.
    Case("link-host", _linked, _pair(two_cells()).raw(), PAIR, expanders=2, link=True, hypervisor=NEW_QEMU),
    Case("link-asked-by-owner", _linked, _pair(two_cells().metadata(link="host")).formatted(), PAIR, expanders=2, says="GT/s"),
    Case("link-off-again", _linked, lambda xml: xml.replace(b" link='host'", b""), PAIR, expanders=2, after="link-asked-by-owner",
         says="links changes"),
    # Limits.
    Case("thirty-three", crowd, _crowd(33).raw(), {f"0000:{n + 1:02x}:00.0": 0 for n in range(33)}, expanders=1, stored=False),
    Case("i440fx-thirty-three", crowd, _crowd(33).on("pc").raw(), {f"0000:{n + 1:02x}:00.0": 0 for n in range(33)}, expanders=2,
         stored=False),
    Case("switch-steps-down", lambda: switches(60), _switches(60).raw(),
         {f"{n:04x}:{bus:02x}:00.0": 0 for n in range(60) for bus in (3, 4)}, grouping="root-complex", expanders=60, group_by="switch",
         stored=False),
    Case("no-room-for-any-grouping", lambda: switches(70), _switches(70).formatted(),
         {f"{n:04x}:{bus:02x}:00.0": None for n in range(70) for bus in (3, 4)}, "fallback", "no-room", group_by="switch", stored=False),
    Case("steps-down-to-node", lambda: crowd(1, 130, 1), _scattered(130).raw(), {f"{n:04x}:01:00.0": 0 for n in range(130)}, expanders=1,
         grouping="node", stored=False),
    Case("no-room", lambda: crowd(230, 1, 1), _crowd(230).formatted(), {f"0000:{n + 1:02x}:00.0": None for n in range(230)}, "fallback",
         "no-room", stored=False),
    *CELL_CASES,
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
__all__ = ["BY_NAME", "CASES", "FOLDER", "Case"]
