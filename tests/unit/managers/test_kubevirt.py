# SPDX-License-Identifier: LGPL-2.1-or-later
"""``onDefineDomain``, run as KubeVirt's sidecar-shim runs it: by its name on PATH, its standard output is what virt-launcher defines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from pcinuma.domain.metadata import NAMESPACE
from pcinuma.engine import Request, place
from pcinuma.managers import kubevirt
from tests.hosts.domains import two_cells
from tests.hosts.kubevirt import marshalled, placed_by_kubevirt
from tests.hosts.machines import MACHINES
from tests.waiting import CHECKOUT

EXECUTABLE = CHECKOUT / "packaging/kubevirt/onDefineDomain"
RAW = two_cells().hostdev("17:00.0").hostdev("b3:00.0").nic().raw()
DOMAIN = marshalled(RAW).decode()
ABSENT = marshalled(two_cells().hostdev("17:00.0").hostdev("77:00.0").raw()).decode()


class HookError(Exception):
    """virt-launcher defines nothing."""


class Shim:
    """``runOnDefineDomain`` of the shim; ``log``: what it logs of the hook."""

    def __init__(self, folder: Path, root: Path, seconds: float = 20.0, package: Path = CHECKOUT) -> None:
        self.folder, self.log = folder, ""
        text = EXECUTABLE.read_text().replace("#!/usr/bin/python3", f"#!{sys.executable}")
        assert text.count('"/usr/share/pcinuma"') == text.count("main()") == 1
        text = text.replace('"/usr/share/pcinuma"', repr(str(package)))
        (folder / "onDefineDomain").write_text(text.replace("main()", f"main(None, __import__('pathlib').Path({str(root)!r}), {seconds})"))
        (folder / "onDefineDomain").chmod(0o755)

    def define(self, domain: str, annotations: object = None, vmi: Any = None) -> str:
        """What virt-launcher gets for ``domain``. Raises HookError."""
        given = json.dumps({"metadata": {"annotations": annotations}}) if vmi is None else vmi
        words = ["onDefineDomain", "--vmi", given, "--domain", domain]
        environment = {"PATH": f"{self.folder}:/usr/bin:/bin"}
        done = subprocess.run(words, executable=self.folder / "onDefineDomain", env=environment, capture_output=True, text=True)
        self.log = done.stderr
        if done.returncode:
            raise HookError(done.returncode)
        return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host, to be looked at and not to be changed."""
    folder = tmp_path_factory.mktemp("host")
    MACHINES["two-sockets"]().write(folder)
    return folder


@pytest.fixture
def shim(tmp_path: Path, root: Path) -> Shim:
    return Shim(tmp_path, root)


def test_virt_launcher_defines_what_place_gives(shim: Shim, root: Path) -> None:
    assert shim.define(DOMAIN) == place(DOMAIN.encode(), Request(root=root)).xml.decode() != DOMAIN
    assert shim.log == ""


def test_annotations_are_the_owners_wishes(shim: Shim) -> None:
    defined = shim.define(DOMAIN, {"pcinuma/group-by": "node", "pcinuma/policy": "required", "other": "1"})
    element = etree.fromstring(defined.encode()).find(f"metadata/{{{NAMESPACE}}}pcinuma")
    assert dict(element.attrib) == {"policy": "required", "group-by": "node"}
    assert element.find(f"{{{NAMESPACE}}}placement").get("group-by") == "node"


def test_off_changes_nothing(shim: Shim) -> None:
    assert (shim.define(DOMAIN, {"pcinuma/policy": "off"}), shim.log) == (DOMAIN, "")


def test_what_kubevirt_placed_itself_stays_as_it_is(shim: Shim) -> None:
    """The feature gate PCINUMAAwareTopology: its converter gives an expander no address of its own."""
    domain = placed_by_kubevirt(RAW, {0x17: 0, 0xB3: 1}).decode()
    assert shim.define(domain) == domain
    assert "expander buses that somebody else made" in shim.log


def test_where_nothing_can_be_placed_the_xml_is_virt_launchers_own_byte_for_byte(shim: Shim) -> None:
    assert shim.define(ABSENT, {"pcinuma/group-by": "node"}) == ABSENT
    assert "0000:77:00.0: the host has no such device" in shim.log


def test_required_fails_the_vmi_and_says_by_which_annotation(shim: Shim) -> None:
    with pytest.raises(HookError, match="1"):
        shim.define(ABSENT, {"pcinuma/policy": "required"})
    assert re.search(r"(?s)required.*0000:77:00.0.*annotation pcinuma/policy set to 'preferred' or 'off'", shim.log)
    assert "pcinuma disable" not in shim.log


@pytest.mark.parametrize(
    "annotations",
    [{"pcinuma/policy": "requierd"}, {"pcinuma/group-by": "\x01<"}, {"pcinuma/cells": ["auto"]}],
    ids=str,
)
def test_an_annotation_that_means_nothing_is_named_and_nothing_is_placed(shim: Shim, annotations: dict[str, object]) -> None:
    assert shim.define(DOMAIN, annotations) == DOMAIN
    assert shim.log.startswith(f"pcinuma: {next(iter(annotations))} is ") and shim.log.count("\n") == 1


@pytest.mark.parametrize("vmi", ["", "{", "[" * 100000, b'{"a":"\xff"}'], ids=["none", "half", "deep", "no text"])
def test_a_vmi_that_cannot_be_read_may_have_said_off(shim: Shim, vmi: Any) -> None:
    assert shim.define(DOMAIN, vmi=vmi) == DOMAIN
    assert shim.log.startswith("pcinuma: the VMI is no JSON that could be read") and "Traceback" not in shim.log


@pytest.mark.parametrize("vmi", ["null", "[]", "7", '{"metadata": 7}', '{"metadata": {"annotations": []}}'])
def test_a_vmi_without_annotations_says_nothing(vmi: str) -> None:
    assert kubevirt.wishes_of(json.loads(vmi)) == {}


@pytest.mark.parametrize("domain", ["<domain>", "<network/>", ""])
def test_what_is_no_domain_comes_back(shim: Shim, domain: str) -> None:
    assert shim.define(domain) == domain
    assert shim.log.startswith("pcinuma: ") and "Traceback" not in shim.log


@pytest.mark.parametrize("module", ["lxml", "pcinuma.managers.kubevirt"])
def test_with_a_broken_module_the_vmi_starts(shim: Shim, module: str) -> None:
    file = shim.folder / "onDefineDomain"
    file.write_text(file.read_text().replace("import sys\n", f"import sys\nsys.modules[{module!r}] = None\n", 1))
    assert shim.define(DOMAIN) == DOMAIN
    assert "nothing is placed" in shim.log


@pytest.mark.parametrize("policy", ["preferred", "required"])
def test_what_takes_too_long_is_given_up(tmp_path: Path, root: Path, policy: str) -> None:
    shim = Shim(tmp_path, root, seconds=0)
    if policy == "required":
        with pytest.raises(HookError):
            shim.define(DOMAIN, {"pcinuma/policy": policy})
    else:
        assert shim.define(DOMAIN, {"pcinuma/policy": policy}) == DOMAIN
    assert "no answer within 0 s" in shim.log


def test_a_person_who_runs_it_is_told_who_does(shim: Shim) -> None:
    done = subprocess.run([shim.folder / "onDefineDomain", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and "sidecar-shim" in done.stderr


def test_it_needs_nothing_but_lxml_and_the_standard_library(shim: Shim) -> None:
    """The image has no more. A module that is None cannot be imported."""
    file = shim.folder / "onDefineDomain"
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in ("libvirt", "structlog", "psutil"))
    file.write_text(file.read_text().replace("import sys\n", f"import sys\n{hidden}", 1))
    assert (shim.define(DOMAIN) != DOMAIN, shim.log) == (True, "")


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=100), st.recursive(st.none() | st.text() | st.integers(), st.lists, max_leaves=5))
def test_no_domain_and_no_annotation_makes_it_fail(domain: str, value: Any) -> None:
    vmi = json.dumps({"metadata": {"annotations": {"pcinuma/policy": value}}})
    xml = domain.encode("utf-8", "surrogatepass")
    said = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        assert kubevirt.mutated(xml, vmi.encode(), Path("/nonexistent")) == (xml, value == "required")
    finally:
        os.dup2(said, 2)
        os.close(said)
        os.close(nothing)


@pytest.mark.parametrize(("nodes", "met"), [({0x17: 0, 0xB3: 1}, True), ({0x17: 1, 0xB3: 0}, False), ({0x17: 0, 0xB3: 0}, False)])
def test_required_is_met_by_whoever_placed_the_devices_where_they_belong(shim: Shim, nodes: dict[int, int], met: bool) -> None:
    """virt-launcher asks again with what came of the first answer."""
    domain = placed_by_kubevirt(RAW, nodes).decode()
    if met:
        assert shim.define(domain, {"pcinuma/policy": "required"}) == domain
    else:
        with pytest.raises(HookError):
            shim.define(domain, {"pcinuma/policy": "required"})
