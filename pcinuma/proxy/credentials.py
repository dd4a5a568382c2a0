# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose connection it is, and becoming that user for good.

The kernel recorded uid, gid and groups of a unix client at its ``connect`` (SO_PEERCRED, SO_PEERGROUPS, Linux 4.13);
libvirt would judge the client by the same. A relay takes on all of them, in all their forms (real, effective, saved),
which cannot be undone, before it connects to libvirt: the permissions of libvirt's socket file are then checked by
the kernel for the client, and SO_PEERCRED on libvirt's side names the client's uid and gid and a living process of
that user.

What cannot be carried over: the pid itself (so polkit finds no session and no agent of the client: rules that look at
user or group work, asking for a password does not) and the SELinux label.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

from pcinuma.errors import PcinumaError

_SO_PEERGROUPS = 59
_UCRED = struct.Struct("=iII")
_GROUPS_BYTES = 1024  # the most that socket.getsockopt takes: 256 groups


class CredentialsError(PcinumaError):
    """The client's rights cannot be found out or taken on; its connection is refused."""


@dataclass(frozen=True)
class Credentials:
    """Who connected, as the kernel recorded it."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def of_peer(cls, client: socket.socket) -> Credentials:
        try:
            pid, uid, gid = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            raw = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
        except OSError as error:
            hint = "more than 256 groups are not supported" if error.errno == errno.ERANGE else None
            raise CredentialsError(f"its user and groups cannot be read: {error.strerror}", subject="client", hint=hint) from error
        groups = struct.unpack(f"={len(raw) // 4}I", raw)
        return cls(pid, uid, gid, tuple(sorted(set(groups))))

    @classmethod
    def of_this_process(cls) -> Credentials:
        return cls(os.getpid(), os.geteuid(), os.getegid(), tuple(sorted(set(os.getgroups()))))

    def assume(self) -> None:
        """Make this process that user's, for good. Raises IdentityError if anything is left of the user that it was."""
        here = self.of_this_process()
        try:
            if here.groups != self.groups:
                os.setgroups(self.groups)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
        except OSError as error:
            hint = "run the proxy as root"
            raise CredentialsError(f"cannot become uid {self.uid}: {error.strerror}", subject="relay", hint=hint) from error
        now = self.of_this_process()
        if (now.uid, now.gid, now.groups) != (self.uid, self.gid, self.groups) or os.getresuid() != (self.uid,) * 3:
            raise CredentialsError(f"did not become uid {self.uid}", subject="relay")
