"""What the daemon speaks: the varlink interfaces as text, and the check of a call's parameters against that text.

The text is what ``varlinkctl introspect`` shows, and the only place where a method's parameters are written down:
:data:`INPUTS` is read from it. Source of the language: https://varlink.org/Interface-Definition.
"""

from __future__ import annotations

import re
from typing import Any, Mapping, NamedTuple, Optional

from pcinuma.varlink.client import INTERFACE

PCINUMA = f"""\
# Places passthrough PCI devices where the host has them.
interface {INTERFACE}

# One domain. state: as "virsh domstate" says it, null if unknown. policy: in force. outcome, reason, message: of the last
# decision (null before the first), made by the reconciler, the hook, the proxy or a command, at a time in ISO 8601.
# devices: passthrough devices; placed: those among them that are where the host has them.
type Domain (
  name: string,
  uuid: string,
  state: ?string,
  policy: ?string,
  enabled: bool,
  outcome: ?string,
  reason: ?string,
  message: ?string,
  devices: int,
  placed: int,
  when: ?string,
  by: ?string
)

# The link to libvirt. since: when the connection was made; message: why there is none.
type Libvirt (connected: bool, uri: string, version: ?string, since: ?string, message: ?string)

# libvirt's qemu hook asks about a domain that is about to boot. Answered from sysfs alone, never by asking libvirt.
# exit: 1 to refuse the start, with a message; xml: the placed XML if it differs from the one given.
method Hook(xml: string, operation: string, suboperation: string, domain: string) -> (exit: int, xml: ?string, message: ?string)

# Places a domain's XML. caller: "proxy", "hook" (libvirt is not asked) or the name of another program.
# report: as "pcinuma place --report" writes it; refused: policy "required" is not met.
method Place(xml: string, policy: ?string, group_by: ?string, caller: string) -> (xml: string, report: object, refused: bool)

# Places the inactive definition of a domain (a name or a UUID). replan: afresh; force: though it is not enabled, or contended;
# dry_run: only tell what would change, enabled or not. Left out means false, here and below.
method PlaceDomain(domain: string, replan: ?bool, force: ?bool, dry_run: ?bool) -> (
  changed: bool,
  xml: string,
  before: string,
  report: object
)

# Places the inactive definition of a domain that is about to be started. Refuses nothing.
method PrepareStart(domain_uuid: string) -> (changed: bool, report: object)

# Takes the placement back out of a domain's inactive definition, and leaves the domain alone until it is enabled. Does neither
# where there is no placement, or where it cannot be taken out.
method RevertDomain(domain: string, dry_run: ?bool) -> (changed: bool, xml: string, before: string)

# Lets pcinuma place a domain from now on, and places it. changed: its definition or whether it is enabled.
method Enable(domain: string) -> (changed: bool, report: object)

# Leaves a domain alone from now on. revert: and takes the placement back out of it; both or neither.
method Disable(domain: string, revert: ?bool) -> (changed: bool)

# Fills in the guest address of a host device that is about to be plugged into a running domain.
method AttachAddress(domain_uuid: string, device_xml: string) -> (device_xml: string, changed: bool, message: ?string)

# pending: looks at domains that are due or under way; 0 once the daemon has dealt with every change so far.
# problems: what is wrong with the daemon itself, each a sentence that says what to do.
# definitions: how libvirt's writing of definitions is watched: "fanotify" (no change is ever missed), "inotify" (one that comes within
# milliseconds of a definition of ours might be), null (not at all: such a change may be lost).
method Status() -> (
  version: string,
  libvirt: Libvirt,
  started: string,
  pending: int,
  problems: []string,
  definitions: ?string,
  domains: []Domain
)

# A failed call: what failed and, where there is something, what to do about it.
error Error (message: string, hint: ?string)
"""

VARLINK = """\
# Every varlink service answers this interface.
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)

error MethodNotFound (method: string)

error MethodNotImplemented (method: string)

error InvalidParameter (parameter: string)

error PermissionDenied ()
"""

DESCRIPTIONS: Mapping[str, str] = {INTERFACE: PCINUMA, "org.varlink.service": VARLINK}


class Input(NamedTuple):
    """A parameter of a method: its varlink type (``string``, ``bool``, ``int``, ``object``) and whether it may be left out or null."""

    type: str
    optional: bool


def _inputs(interface: str, text: str) -> dict[str, dict[str, Input]]:
    methods: dict[str, dict[str, Input]] = {}
    for name, parameters in re.findall(r"^method (\w+)\(([^)]*)\)", text, re.MULTILINE):
        fields = [field.split(":") for field in parameters.split(",") if field.strip()]
        methods[f"{interface}.{name}"] = {
            field.strip(): Input(kind.strip().lstrip("?"), kind.strip().startswith("?")) for field, kind in fields
        }
    return methods


INPUTS: Mapping[str, Mapping[str, Input]] = {
    method: inputs for interface, text in DESCRIPTIONS.items() for method, inputs in _inputs(interface, text).items()
}
"""Full method name -> parameter name -> what it takes."""

_TYPES: Mapping[str, type] = {"string": str, "bool": bool, "int": int, "object": dict}


def unfit_parameter(method: str, parameters: Mapping[str, Any]) -> Optional[str]:
    """The first parameter of a call of ``method`` that is missing, unknown or of the wrong type; None if all fit."""
    inputs = INPUTS[method]
    for name in parameters:
        if name not in inputs:
            return name
    for name, takes in inputs.items():
        value = parameters.get(name)
        if value is None:
            if not takes.optional:
                return name
            continue
        if not isinstance(value, _TYPES[takes.type]) or (takes.type == "int" and isinstance(value, bool)):
            return name
    return None
