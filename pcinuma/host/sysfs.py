# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads of single small files below a root directory, with every outcome told apart.

A sysfs attribute is at most a page; one ``open``/``read``/``close`` costs some 5 µs, and that is what a request pays per device.
A file that is not there is None (that is an answer); one that cannot be read, or is no text, is a
:class:`~pcinuma.errors.HostError` that names it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Optional

from pcinuma.errors import HostError

_PAGE = 65536
_LINE = 64
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO)


class Sysfs:
    """The files below ``root`` (the directory that holds ``sys/``)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = "" if str(root) == "/" else str(root).rstrip("/")

    def real(self, path: str) -> str:
        """Where ``path`` (absolute, as on the described host) lies on this machine."""
        return self._prefix + path

    def read(self, path: str) -> Optional[str]:
        """The text of ``path`` without surrounding white space; None if there is no such file."""
        data = self._read(path)
        return None if data is None else _text(data, path)

    def read_int(self, path: str, base: int = 10) -> Optional[int]:
        """The number in ``path``; None if there is no such file; an error if it holds anything else."""
        data = self._read(path)
        try:
            return None if data is None else int(data, base)
        except ValueError:
            raise HostError(f"holds {_text(data or b'', path)[:40]!r} where a number belongs", subject=path) from None

    def read_plain_int(self, path: str) -> Optional[int]:
        """The decimal number in ``path``; None for whatever else there may be, an error included."""
        try:
            descriptor = os.open(self._prefix + path, _FLAGS)
            try:
                text = os.read(descriptor, _LINE)
                return int(text) if len(text) < _LINE else None
            finally:
                os.close(descriptor)
        except (OSError, ValueError):
            return None

    def _read(self, path: str) -> Optional[bytes]:
        try:
            descriptor = os.open(self._prefix + path, _FLAGS)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise self._unreadable(path, error) from error
        try:
            return os.read(descriptor, _PAGE)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise self._unreadable(path, error) from error
        finally:
            os.close(descriptor)

    def read_bytes(self, path: str, size: int) -> bytes:
        """The first ``size`` bytes of ``path``, as many as it gives; empty if it cannot be read."""
        try:
            descriptor = os.open(self._prefix + path, _FLAGS)
        except OSError:
            return b""
        try:
            return os.read(descriptor, size)
        except OSError:
            return b""
        finally:
            os.close(descriptor)

    def link(self, path: str) -> Optional[str]:
        """The target of the symbolic link ``path``; None if it is not there or is no link."""
        try:
            return os.readlink(self._prefix + path)
        except OSError as error:
            if error.errno in _NOT_THERE or error.errno == errno.EINVAL:
                return None
            raise self._unreadable(path, error) from error

    def exists(self, path: str) -> bool:
        """Whether ``path`` leads to something, links followed."""
        return os.path.exists(self._prefix + path)

    def names(self, path: str) -> list[str]:
        """The sorted names in the folder ``path``; none if it is not there."""
        try:
            return sorted(os.listdir(self._prefix + path))
        except OSError as error:
            if error.errno in _NOT_THERE:
                return []
            raise self._unreadable(path, error) from error

    @staticmethod
    def _unreadable(path: str, error: OSError) -> HostError:
        return HostError(f"cannot be read ({os.strerror(error.errno or 0)})", subject=path)


def _text(data: bytes, path: str) -> str:
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise HostError("holds no text", subject=path) from None
