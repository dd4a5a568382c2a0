# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command on a domain whose every name is hostile, with the daemon and without it: nothing of that reaches a terminal raw.

libvirt takes more for a name than one would think: everything that XML 1.0 has room for, but a slash and a line feed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from tests.hosts.small import GPU_0, GPU_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import guest
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.unit.cli.test_foreign_text import IN_XML, assert_readable

NAME = "vm" + IN_XML.replace("\n", "")
UUID = "6f0b2ab3-8f2c-4c5b-9c26-0a45a01d8a11"
IN_NAME = escape(NAME, {"\r": "&#13;"})
EXTRA = f"""<interface type='vdpa'><source dev='/dev/{IN_NAME}'/></interface>
<disk type='block' device='disk'><source dev='/dev/{IN_NAME}'/><target dev='vda' bus='virtio'/></disk>"""
METADATA = f"<o:owner xmlns:o='urn:somebody'>{IN_NAME}</o:owner><p:pcinuma xmlns:p='urn:pcinuma:domain:1' group-by='{IN_NAME}'>"
EVERY = (
    ("status",),
    ("status", NAME),
    ("status", f"no {NAME}"),
    ("status", "--check"),
    ("check",),
    ("policy", NAME),
    ("plan", NAME),
    ("plan", NAME, "--diff"),
    ("plan", "--all"),
    ("explain", NAME),
    ("topology", NAME),
    ("topology", NAME, "--live"),
    ("verify", NAME),
    ("enable", NAME),
    ("apply", NAME),
    ("apply", "--all", "--dry-run"),
    ("apply", NAME, "--replan"),
    ("policy", NAME, "required", "--group-by", "switch"),
    ("attach", NAME, "18:00.0"),
    ("detach", NAME, "18:00.0"),
    ("detach", NAME, f"/dev/{NAME}"),
    ("detach", NAME, f"no {NAME}"),
    ("revert", NAME, "--dry-run"),
    ("revert", NAME),
    ("revert", "--all"),
    ("disable", NAME),
    ("apply", f"no {NAME}"),
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PrivateLibvirt]:
    """One for each test: libvirt 9.0 itself does not forget a name with a carriage return when the domain is undefined."""
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path / "host")) as host:
        yield host


def define(host: PrivateLibvirt) -> None:
    metadata = METADATA + f"<p:keep device='{IN_NAME}'/></p:pcinuma>"
    xml = guest("NAME", (GPU_0, GPU_1), uuid=UUID, extra=EXTRA, metadata=metadata)
    domain = host.connect().defineXML(xml.replace("<name>NAME</name>", f"<name>{IN_NAME}</name>"))
    assert domain.name() == NAME


def every_command(host: PrivateLibvirt) -> None:
    done = 0
    for words in EVERY:
        process = host.run([host.python, "-m", "pcinuma", *words], check=False)
        assert "Traceback" not in process.stderr, process.stderr
        assert_readable(process.stdout + process.stderr)
        done += process.returncode == 0
        if words[0] in ("status", "plan", "explain", "policy") and "--diff" not in words and process.returncode == 0:
            text = host.run([host.python, "-m", "pcinuma", *words, "--json"], check=False).stdout
            assert text.isascii()
            assert json.dumps(NAME)[1:-1] in json.dumps(json.loads(text))
    assert done > 10


@pytest.mark.parametrize("heard", [True, False], ids=["with the daemon", "without it"])
def test_every_command_says_a_hostile_name_in_a_readable_way(heard: bool, host: PrivateLibvirt) -> None:
    define(host)
    if heard:
        with RunningDaemon(host) as daemon:
            daemon.settle()
            every_command(host)
            assert_readable(daemon.log())
    else:
        every_command(host)
