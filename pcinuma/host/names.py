# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names for vendor and device numbers, from the ``pci.ids`` file where the system has one; never needed for an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Optional

PCI_IDS = ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids", "usr/share/pci.ids")


class PciNames:
    """A lazily read ``pci.ids`` (https://pci-ids.ucw.cz: two levels by tabs, class section behind ``C``)."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._vendors: Optional[dict[int, str]] = None
        self._products: dict[tuple[int, int], str] = {}
        self._classes: dict[int, str] = {}
        self._root = root

    def device(self, vendor: Optional[int], product: Optional[int]) -> Optional[str]:
        """``Vendor Product`` in words, as much of it as is known; None if nothing is."""
        return " ".join(part for part in self.parts(vendor, product) if part) or None

    def parts(self, vendor: Optional[int], product: Optional[int]) -> tuple[Optional[str], Optional[str]]:
        """The two names of ``pci.ids``, each None where it is not known."""
        if vendor is None or product is None:
            return None, None
        return self._load().get(vendor), self._products.get((vendor, product))

    def device_class(self, class_code: Optional[int]) -> Optional[str]:
        """The subclass in words, such as ``Ethernet controller``."""
        if class_code is None:
            return None
        self._load()
        return self._classes.get(class_code >> 8)

    def _load(self) -> dict[int, str]:
        if self._vendors is None:
            self._vendors = {}
            file = next((self._root / name for name in PCI_IDS if (self._root / name).is_file()), None)
            if file is not None:
                with file.open(encoding="utf-8", errors="replace") as lines:
                    self._parse(lines)
        return self._vendors

    def _parse(self, lines: Iterable[str]) -> None:
        assert self._vendors is not None
        number, classes = 0, False
        for line in lines:
            text = line.rstrip("\n")
            if not text or text.startswith(("#", "\t\t")):
                continue
            words = text.strip().split(None, 2 if text.startswith("C ") else 1)
            try:
                if text.startswith("C "):
                    number, classes = int(words[1], 16), True
                elif not text.startswith("\t"):
                    number, classes = int(words[0], 16), False
                    self._vendors[number] = words[1]
                elif classes:
                    self._classes[number << 8 | int(words[0], 16)] = words[1]
                else:
                    self._products[(number, int(words[0], 16))] = words[1]
            except (ValueError, IndexError):
                continue
