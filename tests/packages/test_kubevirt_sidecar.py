# SPDX-License-Identifier: LGPL-2.1-or-later
"""The image for KubeVirt, as far as its description says: what it copies is there, and is where the executable looks for it."""

from __future__ import annotations

import re

from tests.waiting import CHECKOUT

FOLDER = CHECKOUT / "packaging/kubevirt"


def test_what_the_image_copies_is_there_and_the_shim_finds_it_by_its_name() -> None:
    copied = dict(re.findall(r"(?m)^COPY (?!--)(\S+) (\S+)$", (FOLDER / "Containerfile").read_text()))
    executables = ("onDefineDomain", "domainHook")
    package = copied.pop("pcinuma").rpartition("/")[0]
    assert copied == {f"packaging/kubevirt/{name}": f"/usr/bin/{name}" for name in executables}
    for name in executables:
        text = (FOLDER / name).read_text()
        assert f'sys.path.insert(0, "{package}")' in text and text.startswith("#!/usr/bin/python3 -I\n")
        assert (FOLDER / name).stat().st_mode & 0o111 == 0o111
