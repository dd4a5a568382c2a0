# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client that changes definitions all the time, and keeps a record of what libvirt told it was done.

``python -m tests.libvirt.changing_client URI FOLDER NAME SEED CHANGES KINDS``: several of these work on the same domains beside the
daemon. A domain has a file in FOLDER, locked while somebody changes it: clients that overwrite each other's changes would lose them
without pcinuma too. The file holds what the definition must say. Each change is unlike every other, so that none is taken for another.

KINDS is ``calls``, what libvirt itself changes in the definition that it has, or ``all``, also what is read, edited and defined: that may
be read in the milliseconds in which another change is overwritten.

What libvirt refuses is counted and changes nothing. It prints both counts.
"""

from __future__ import annotations

import fcntl
import json
import random
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Callable

import libvirt
from lxml import etree

from tests.hosts.small import GPU_0, GPU_1, NIC_0, NIC_1
from tests.libvirt.domains import guest, hostdev

CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
CHANGES_OF_A_DOMAIN = 12
VCPUS = 16
State = dict[str, Any]


def new_domain(name: str, chance: random.Random) -> str:
    """A domain with a device or two, a disk, and VCPUS vCPUs on the two nodes."""
    xml = guest(name, chance.sample((GPU_0, NIC_0, GPU_1, NIC_1), chance.randint(1, 2)), pinned=False, extra=disk("vda", "first"))
    pins = "".join(f"<vcpupin vcpu='{vcpu}' cpuset='{vcpu % 2}'/>" for vcpu in range(VCPUS))
    even, odd = (",".join(map(str, range(first, VCPUS, 2))) for first in (0, 1))
    xml = xml.replace("<vcpu>2</vcpu>", f"<vcpu>{VCPUS}</vcpu><cputune>{pins}</cputune>")
    return xml.replace("cpus='0'", f"cpus='{even}'").replace("cpus='1'", f"cpus='{odd}'")


def disk(target: str, source: str) -> str:
    return f"<disk type='file' device='disk'><source file='/var/tmp/{source}'/><target dev='{target}' bus='virtio'/></disk>"


def interface(mac: str, mtu: int) -> str:
    return f"<interface type='bridge'><mac address='{mac}'/><source bridge='br0'/><model type='virtio'/><mtu size='{mtu}'/></interface>"


class Client:
    """One connection's changes."""

    def __init__(self, connection: libvirt.virConnect, name: str, chance: random.Random, kinds: str) -> None:
        self._connection = connection
        self._defines = kinds == "all"
        self._name = name
        self._chance = chance
        self._serial = 0

    def unique(self) -> str:
        self._serial += 1
        return f"{self._name}-{self._serial}"

    def change(self, domain: libvirt.virDomain, state: State) -> None:
        """One change that is possible as far as is known. Raises libvirtError if libvirt refuses it."""
        kinds: list[Callable[[libvirt.virDomain, State], None]] = [
            *(self.attach_disk, self.attach_disk, self.attach_interface, self.attach_device),
            *(self.title, self.metadata, self.vcpus, self.memory),
            *([self.define, self.define] if self._defines else []),
            *([self.detach_disk] if state["disks"] else []),
            *([self.detach_interface, self.update_interface] if state["interfaces"] else []),
            *([self.detach_device] if state["devices"] else []),
        ]
        change = self._chance.choice(kinds)
        told = [f"{datetime.now():%S.%f}", change.__name__]
        state["story"].append(told)
        try:
            change(domain, state)
        except libvirt.libvirtError as error:
            told.append(str(error))
            raise
        finally:
            told.append(f"{datetime.now():%S.%f}")

    def attach_disk(self, domain: libvirt.virDomain, state: State) -> None:
        free = [target for target in (f"vd{letter}" for letter in "bcdefgh") if target not in state["disks"]]
        if not free:
            return self.detach_disk(domain, state)
        target, source = self._chance.choice(free), self.unique()
        domain.attachDeviceFlags(disk(target, source), CONFIG)
        state["disks"][target] = source
        return None

    def detach_disk(self, domain: libvirt.virDomain, state: State) -> None:
        target = self._chance.choice(sorted(state["disks"]))
        domain.detachDeviceFlags(disk(target, state["disks"][target]), CONFIG)
        del state["disks"][target]

    def attach_interface(self, domain: libvirt.virDomain, state: State) -> None:
        mac = "52:54:00:" + ":".join(f"{self._chance.randrange(256):02x}" for _ in range(3))
        mtu = self._chance.randrange(1000, 60000)
        domain.attachDeviceFlags(interface(mac, mtu), CONFIG)
        state["interfaces"][mac] = mtu

    def detach_interface(self, domain: libvirt.virDomain, state: State) -> None:
        mac = self._chance.choice(sorted(state["interfaces"]))
        domain.detachDeviceFlags(interface(mac, state["interfaces"][mac]), CONFIG)
        del state["interfaces"][mac]

    def update_interface(self, domain: libvirt.virDomain, state: State) -> None:
        mac, mtu = self._chance.choice(sorted(state["interfaces"])), self._chance.randrange(1000, 60000)
        domain.updateDeviceFlags(interface(mac, mtu), CONFIG)
        state["interfaces"][mac] = mtu

    def attach_device(self, domain: libvirt.virDomain, state: State) -> None:
        free = sorted({GPU_0, NIC_0, GPU_1, NIC_1} - set(state["devices"]))
        if not free:
            return self.detach_device(domain, state)
        address = self._chance.choice(free)
        domain.attachDeviceFlags(hostdev(address), CONFIG)
        state["devices"].append(address)
        return None

    def detach_device(self, domain: libvirt.virDomain, state: State) -> None:
        address = self._chance.choice(sorted(state["devices"]))
        domain.detachDeviceFlags(hostdev(address), CONFIG)
        state["devices"].remove(address)

    def define(self, domain: libvirt.virDomain, state: State) -> None:
        root = etree.fromstring(domain.XMLDesc(INACTIVE))
        description = root.find("description")
        if description is None:
            description = etree.SubElement(root, "description")
        description.text = text = self.unique()
        if self._chance.random() < 0.5:
            time.sleep(self._chance.uniform(0, 0.004))
        self._connection.defineXML(etree.tostring(root, encoding="unicode"))
        state["description"] = text

    def title(self, domain: libvirt.virDomain, state: State) -> None:
        text = self.unique()
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, text, None, None, CONFIG)
        state["title"] = text

    def metadata(self, domain: libvirt.virDomain, state: State) -> None:
        space, text = f"urn:test:{self._chance.randrange(4)}", self.unique()
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, f"<note>{text}</note>", "n", space, CONFIG)
        state["notes"][space] = text

    def vcpus(self, domain: libvirt.virDomain, state: State) -> None:
        number = self._chance.choice([number for number in range(1, VCPUS) if number not in state["had_vcpus"]] or [VCPUS])
        domain.setVcpusFlags(number, CONFIG)
        state["vcpus"] = number
        state["had_vcpus"].append(number)

    def memory(self, domain: libvirt.virDomain, state: State) -> None:
        number = self._chance.randrange(65536, 131072, 4)
        domain.setMemoryFlags(number, CONFIG)
        state["memory"] = number


def first_state(devices: list[str]) -> State:
    """What the definition of a new domain says of what clients change."""
    return {
        "disks": {},
        "interfaces": {},
        "devices": devices,
        "notes": {},
        "description": "",
        "title": "",
        "vcpus": VCPUS,
        "had_vcpus": [],
        "memory": 131072,
        "changes": 0,
        "story": [],
    }


def found_state(xml: str) -> State:
    """The same, of a definition."""
    root = etree.fromstring(xml)
    interfaces = root.findall("devices/interface")
    sources = [source.attrib for source in root.iterfind("devices/hostdev/source/address")]
    vcpu = root.find("vcpu")
    assert vcpu is not None
    metadata = root.find("metadata")
    notes = [] if metadata is None else [note for note in metadata if etree.QName(note).localname == "note"]
    return {
        "disks": {
            str(disk.find("target").get("dev")): str(disk.find("source").get("file")).rpartition("/")[2]
            for disk in root.iterfind("devices/disk")
            if disk.find("target").get("dev") != "vda"
        },
        "interfaces": {str(each.find("mac").get("address")): int(str(each.find("mtu").get("size"))) for each in interfaces},
        "devices": [
            "{:04x}:{:02x}:{:02x}.{:x}".format(*(int(str(a[name]), 0) for name in ("domain", "bus", "slot", "function"))) for a in sources
        ],
        "notes": {str(etree.QName(note).namespace): note.text for note in notes},
        "description": root.findtext("description") or "",
        "title": root.findtext("title") or "",
        "vcpus": int(vcpu.get("current") or vcpu.text or ""),
        "memory": int(root.findtext("currentMemory") or ""),
    }


def main() -> None:
    uri, folder, name, seed, changes = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open(uri)
    chance = random.Random(seed)
    client = Client(connection, name, chance, sys.argv[6])
    done = refused = 0
    rounds = 0
    while done < changes:
        files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)[-4:]
        file = chance.choice(files) if files and chance.random() > 0.05 else None
        if file is None:
            rounds += 1
            file = folder / f"{name}-{rounds}.json"
        with file.open("a+") as record:
            fcntl.flock(record, fcntl.LOCK_EX)
            record.seek(0)
            text, state = record.read(), None
            try:
                if not text:
                    xml = new_domain(file.stem, chance)
                    connection.defineXML(xml)
                    state = first_state(found_state(connection.lookupByName(file.stem).XMLDesc(INACTIVE))["devices"])
                else:
                    state = json.loads(text)
                    if state["changes"] >= CHANGES_OF_A_DOMAIN:
                        file = None
                    else:
                        client.change(connection.lookupByName(file.stem), state)
                        state["changes"] += 1
                        done += 1
            except libvirt.libvirtError as error:
                refused += 1
                print(f"{file.stem if file else ''}: {error}", file=sys.stderr)
            if file is not None and state is not None:
                record.truncate(0)
                record.write(json.dumps(state))
                record.flush()
        if file is None:
            rounds += 1
            (folder / f"{name}-{rounds}.json").touch()
        time.sleep(chance.choice((0, chance.uniform(0, 0.008))))
    print(done, refused)


if __name__ == "__main__":
    main()
