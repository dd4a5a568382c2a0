# SPDX-License-Identifier: LGPL-2.1-or-later
"""KubeVirt: the executable ``onDefineDomain`` that its sidecar-shim runs. Protocol: KubeVirt's ``cmd/sidecars/sidecar_shim.go``.

Arguments are ``--vmi`` with the VMI as JSON and ``--domain`` with the XML that virt-launcher is about to define; standard output is the XML
to define, standard error goes to the shim's log, and any exit code but 0 fails the VMI. So the code is 0 and the output the input byte for
byte whatever happens; 1 only where the VMI's annotation asks for policy ``required`` and that is not met.

virt-launcher asks several times for one start: the second time it gives back what libvirt made of the first answer, as far as its own
types hold it, which is the layout and no metadata. The expanders are then taken for somebody else's, and stay. So are those that KubeVirt
itself made (feature gate PCINUMAAwareTopology).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Mapping, Optional, Sequence

from pcinuma.managers.isolated import LIMIT
from pcinuma.managers.placing import WISHES, Wish, answer
from pcinuma.managers.say import say

PREFIX = "pcinuma/"
"""Of the annotations: ``pcinuma/policy``, ``pcinuma/group-by``, ``pcinuma/cells``."""
REFUSED, USAGE = 1, 2


def main(argv: Optional[Sequence[str]] = None, root: Path = Path("/"), seconds: float = LIMIT) -> int:
    """Run ``onDefineDomain`` with ``argv`` (without its name) for the host below ``root``; the exit code."""
    given = _options(sys.argv[1:] if argv is None else argv)
    if "domain" not in given:
        say("usage: onDefineDomain --vmi JSON --domain XML, as KubeVirt's sidecar-shim calls it")
        return USAGE
    xml = os.fsencode(given["domain"])
    output, refused = xml, False
    try:
        output, refused = mutated(xml, os.fsencode(given.get("vmi", "")), root, seconds)
    except Exception as error:
        say(f"nothing is placed ({type(error).__name__}: {error})")
    if refused:
        return REFUSED
    while output:
        output = output[os.write(1, output) :]
    return 0


def mutated(xml: bytes, vmi: bytes, root: Path, seconds: float = LIMIT) -> tuple[bytes, bool]:
    """What to define instead of the domain ``xml`` of ``vmi``, and whether that is refused. What there is to say is said."""
    try:
        wishes = wishes_of(json.loads(vmi))
    except (ValueError, RecursionError) as error:
        say(f"the VMI is no JSON that could be read ({error}), so nothing is placed")
        return xml, False
    if wishes.get("policy", Wish("", "")).value == "off":
        return xml, False
    found = answer(xml, wishes, root, seconds, policy_setting=f"the VMI's annotation {PREFIX}policy", forgetful=True)
    for sentence in found.said:
        say(sentence)
    return found.xml or xml, found.refused


def wishes_of(vmi: object) -> dict[str, Wish]:
    """The annotations of a VMI that are pcinuma's."""
    metadata = vmi.get("metadata") if isinstance(vmi, Mapping) else None
    annotations = metadata.get("annotations") if isinstance(metadata, Mapping) else None
    if not isinstance(annotations, Mapping):
        return {}
    values = {attribute: annotations.get(PREFIX + attribute) for attribute in WISHES}
    return {attribute: Wish(PREFIX + attribute, str(value).strip()) for attribute, value in values.items() if value}


def _options(words: Sequence[str]) -> dict[str, str]:
    """``--name value`` and ``--name=value``, the last of each; others are ignored, for a newer shim may have more."""
    found: dict[str, str] = {}
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name in ("--vmi", "--domain"):
            found[name[2:]] = value if equals else next(left, "")
    return found
