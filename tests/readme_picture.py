# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes docs/topology.svg, the README's picture: ``pcinuma topology vm1 --svg`` of the guest and the server of ``pcinuma demo --quick``.

``python -m tests.readme_picture`` writes it; a test of every run compares it with what the command draws.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from pcinuma.cli import main
from pcinuma.engine import Request, place
from pcinuma.lab import nested, server
from pcinuma.settings import GroupBy
from tests.waiting import CHECKOUT

FILE = CHECKOUT / "docs/topology.svg"
IDS = """\
1000  Broadcom / LSI
\tc030  PEX890xx PCIe Gen 5 Switch
10de  NVIDIA Corporation
\t2330  GH100 [H100 SXM5 80GB]
144d  Samsung Electronics Co Ltd
\ta80a  NVMe SSD Controller PM9A1/PM9A3/980PRO
15b3  Mellanox Technologies
\t1021  MT2910 Family [ConnectX-7]
"""


def drawn(folder: Path) -> bytes:
    """The picture."""
    host = server.write(folder)
    (folder / "usr/share/misc").mkdir(parents=True)
    (folder / "usr/share/misc/pci.ids").write_text(IDS)
    xml = nested.domain("vm1", sorted(host.names), host.cells, group_by=GroupBy.SWITCH.value)
    cells = ((b"cell id='0' cpus='0'", b"cell id='0' cpus='0-15'"), (b"cell id='1'", b"cell id='1' cpus='16-31'"))
    for small, large in ((b"<vcpu>1<", b"<vcpu>32<"), *cells):
        assert small in xml
        xml = xml.replace(small, large)
    (folder / "vm1.xml").write_bytes(place(xml, Request(root=folder)).xml)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["topology", "--root", str(folder), str(folder / "vm1.xml"), "--svg", str(folder / "picture.svg")]) == 0
    return (folder / "picture.svg").read_bytes()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        FILE.write_bytes(drawn(Path(scratch)))
