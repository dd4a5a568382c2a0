# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the administrator and the owner of a domain may ask for: enums and the host-wide configuration.

The configuration is ``/etc/pcinuma/pcinuma.conf`` and then ``/etc/pcinuma/pcinuma.conf.d/*.conf`` in order of their names, each
later value winning, all below the same root directory as the host's ``sys/`` (so that a captured machine brings its own)::

    [placement]
    policy = preferred          ; preferred | required | off
    group-by = root-complex     ; root-complex | switch | node
    spare-ports = 0             ; free hot-pluggable ports kept on every expander
    unaligned = root            ; root | nearest
    near-backing = off          ; off | on
    cells = off                 ; off | auto: NUMA cells for guests that have none
    link = off                  ; off | host: root ports tell the guest the speed and width of the host's links

    [daemon]
    adopt = new                 ; new: domains defined after the first start | none: only enabled ones
    libvirt-uri = qemu:///system

    [proxy]
    timeout = 2.0               ; seconds that a start may wait for its placement

An unknown section or key, or a value out of its range, is an error that names the file: a typing mistake is never a lost setting.
"""

from __future__ import annotations

import configparser
import enum
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Mapping

from pcinuma.errors import ConfigError


class Policy(enum.Enum):
    """What a domain's owner, or the host's administrator, wants of pcinuma."""

    PREFERRED = "preferred"
    REQUIRED = "required"
    OFF = "off"


class GroupBy(enum.Enum):
    """How finely the guest's hierarchy mirrors the host's."""

    SWITCH = "switch"
    ROOT_COMPLEX = "root-complex"
    NODE = "node"


class Unaligned(enum.Enum):
    """What becomes of a device whose host node no guest cell stands for."""

    ROOT = "root"
    NEAREST = "nearest"


class MemoryMode(enum.Enum):
    """How strictly the memory of a guest cell is bound to its host node; the words of libvirt's ``<memnode mode>``."""

    STRICT = "strict"
    PREFERRED = "preferred"
    RESTRICTIVE = "restrictive"


class Adopt(enum.Enum):
    """Which domains the daemon places without being told to."""

    NEW = "new"
    NONE = "none"


CELLS: Mapping[str, bool] = {"off": False, "auto": True}
"""What the word for cells says, wherever it stands: whether guests without cells are given some."""

LINK: Mapping[str, bool] = {"off": False, "host": True}
"""Likewise for links: whether the guest's root ports tell those of the host."""


@dataclass(frozen=True)
class Settings:
    """The host-wide configuration; the defaults are what an empty file means."""

    policy: Policy = Policy.PREFERRED
    group_by: GroupBy = GroupBy.ROOT_COMPLEX
    spare_ports: int = 0
    unaligned: Unaligned = Unaligned.ROOT
    near_backing: bool = False
    cells: bool = False
    link: bool = False
    adopt: Adopt = Adopt.NEW
    libvirt_uri: str = "qemu:///system"
    proxy_timeout: float = 2.0


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError
    return text == "on"


def _cells(text: str) -> bool:
    if text not in CELLS:
        raise ValueError
    return CELLS[text]


def _link(text: str) -> bool:
    if text not in LINK:
        raise ValueError
    return LINK[text]


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 16:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 60:
        raise ValueError
    return value


def _uri(text: str) -> str:
    if ":" not in text:
        raise ValueError
    return text


_KEYS: Mapping[tuple[str, str], tuple[str, Callable[[str], Any], str]] = {
    ("placement", "policy"): ("policy", Policy, "preferred, required or off"),
    ("placement", "group-by"): ("group_by", GroupBy, "root-complex, switch or node"),
    ("placement", "spare-ports"): ("spare_ports", _count, "a number from 0 to 16"),
    ("placement", "unaligned"): ("unaligned", Unaligned, "root or nearest"),
    ("placement", "near-backing"): ("near_backing", _switch, "on or off"),
    ("placement", "cells"): ("cells", _cells, "off or auto"),
    ("placement", "link"): ("link", _link, "off or host"),
    ("daemon", "adopt"): ("adopt", Adopt, "new or none"),
    ("daemon", "libvirt-uri"): ("libvirt_uri", _uri, "a libvirt URI such as qemu:///system"),
    ("proxy", "timeout"): ("proxy_timeout", _seconds, "seconds, above 0 and at most 60"),
}


def configuration_files(root: Path) -> list[Path]:
    """The configuration files that exist below ``root``, in the order in which they are read."""
    folder = root / "etc" / "pcinuma"
    try:
        drop_ins = sorted(file for file in (folder / "pcinuma.conf.d").iterdir() if file.suffix == ".conf")
    except (FileNotFoundError, NotADirectoryError):
        drop_ins = []
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", subject=str(folder), hint="run the command as root") from None
    try:
        return [file for file in [folder / "pcinuma.conf", *drop_ins] if file.is_file()]
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", subject=str(folder), hint="run the command as root") from None


def load_settings(root: Path = Path("/")) -> Settings:
    """Read the configuration below ``root``. Raises :class:`ConfigError` with the file, the key and what it takes."""
    settings = Settings()
    for file in configuration_files(root):
        settings = _merge(settings, file)
    return settings


def _merge(settings: Settings, file: Path) -> Settings:
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";", "#"), strict=True)
    try:
        parser.read_string(file.read_text(encoding="utf-8"), source=str(file))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise ConfigError(" ".join(str(error).split()), subject=str(file), hint="mend or remove the file") from error
    for section in parser.sections():
        for key, text in parser.items(section):
            known = _KEYS.get((section, key))
            if known is None:
                raise ConfigError(f"[{section}] has no setting {key!r}", subject=str(file), hint="see pcinuma.conf(5)")
            field, convert, takes = known
            try:
                settings = replace(settings, **{field: convert(text.strip())})
            except ValueError:
                raise ConfigError(f"[{section}] {key} = {text!r}: takes {takes}", subject=str(file)) from None
    return settings
