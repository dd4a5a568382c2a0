# SPDX-License-Identifier: LGPL-2.1-or-later
"""An interface by its description, the text that ``varlinkctl introspect`` shows: its name, its methods, what each takes.

That text is the only place where a method's parameters are written down; here calls are checked against it. Source of the language:
https://varlink.org/Interface-Definition, of which methods whose parameters are of the types ``string``, ``bool``, ``int`` and ``object``
are read.
"""

from __future__ import annotations

import re
from typing import Any, Mapping, NamedTuple, Optional

from pcinuma.varlink.wire import SERVICE

_TYPES: Mapping[str, type] = {"string": str, "bool": bool, "int": int, "object": dict}


class Parameter(NamedTuple):
    """A parameter of a method: its varlink type, and whether it may be left out or null."""

    type: str
    optional: bool


class Interface(NamedTuple):
    """``methods``: full name of a method -> name of a parameter -> what it takes."""

    name: str
    description: str
    methods: Mapping[str, Mapping[str, Parameter]]

    @classmethod
    def parse(cls, description: str) -> Interface:
        """The interface that ``description`` describes. Raises ValueError where it names none."""
        named = re.search(r"^interface ([\w.-]+)$", description, re.MULTILINE)
        if named is None:
            raise ValueError("a description of no interface")
        name = named.group(1)
        found = re.findall(r"^method (\w+)\(([^)]*)\)", description, re.MULTILINE)
        return cls(name, description, {f"{name}.{method}": _parameters(text) for method, text in found})


def _parameters(text: str) -> dict[str, Parameter]:
    fields = [field.split(":") for field in text.split(",") if field.strip()]
    return {name.strip(): Parameter(kind.strip().lstrip("?"), kind.strip().startswith("?")) for name, kind in fields}


def unfit_parameter(takes: Mapping[str, Parameter], parameters: Mapping[str, Any]) -> Optional[str]:
    """The first parameter of a call of a method that ``takes`` these that is missing, unknown or of the wrong type; None if all fit."""
    for name in parameters:
        if name not in takes:
            return name
    for name, (kind, optional) in takes.items():
        value = parameters.get(name)
        if value is None:
            if not optional:
                return name
            continue
        if not isinstance(value, _TYPES[kind]) or (kind == "int" and isinstance(value, bool)):
            return name
    return None


STANDARD = Interface.parse(f"""\
# Every varlink service answers this interface.
interface {SERVICE}

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)

error MethodNotFound (method: string)

error MethodNotImplemented (method: string)

error InvalidParameter (parameter: string)

error PermissionDenied ()
""")
