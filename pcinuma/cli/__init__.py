# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ``pcinuma`` command: a view for people on everything else.

Every command is a module of this package, listed in :data:`COMMANDS`, and exports ``NAME``, ``HELP`` (one line), ``EPILOG``
(examples), ``add_arguments(parser)`` and ``run(args) -> exit code``. A module is imported only when its command is asked for or listed,
and imports libvirt only inside functions: ``pcinuma place`` must stay cheap. Errors leave through one place, :func:`main`.

Names, titles, paths and messages that others wrote go through :func:`pcinuma.printable.printable` where they become text for a person; JSON
has them as they are, with its own escapes.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any, NoReturn, Optional

from pcinuma import __version__
from pcinuma.errors import EXIT_NEGATIVE, EXIT_UNUSABLE, PcinumaError
from pcinuma.printable import printable

COMMANDS = (
    "status",
    "plan",
    "apply",
    "revert",
    "enable",
    "disable",
    "policy",
    "cells",
    "verify",
    "explain",
    "topology",
    "paths",
    "attach",
    "detach",
    "place",
    "check",
    "capture",
    "metrics",
    "proxy",
    "demo",
)

_DESCRIPTION = "Guests see their passthrough PCI devices where the host has them: NUMA node, PCIe root complex and switch."
_EPILOG = """\
start here:
  pcinuma check            is this host ready, and is everything running?
  pcinuma status           every domain, and whether its devices are placed
  pcinuma topology VM      the host beside the guest, device by device
  pcinuma plan VM          what pcinuma would change, and why

Only apply, revert, enable, disable, policy, "cells --apply|--remove", attach, detach, capture, "metrics --output" and "proxy
enable|disable" write anything, and each says what it wrote.
`pcinuma COMMAND --help` has examples. Exit codes: 0 done, 1 a negative answer or a failed operation, 2 wrong usage or unusable input.
"""
_INTERRUPTED = 130


def main(argv: Optional[list[str]] = None) -> int:
    """Run the command line ``argv`` (without the program's name) and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except PcinumaError as error:
        print(f"pcinuma: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of the pipe left (`pcinuma topology | head`). Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NEGATIVE
    except OSError as error:
        # A file that nobody thought could be refused (a full disk, a configuration that only root may read): a line, no traceback.
        print(printable(f"pcinuma: {error.filename or 'input or output'}: {error.strerror or error}"), file=sys.stderr)
        return EXIT_NEGATIVE


def _run(words: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    parser = _parser(words[0] if words and words[0] in COMMANDS else None)
    args = parser.parse_args(words)
    code: int = args.run(args)
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line; argparse's own repeats the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_UNUSABLE, printable(f"{self.prog}: {message}; see '{self.prog} --help'") + "\n")


def _parser(only: Optional[str]) -> argparse.ArgumentParser:
    """The parser with every command, or with the one that is asked for."""
    parser = _Parser(
        prog="pcinuma",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pcinuma {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS if only is None else (only,):
        module: Any = importlib.import_module(f"pcinuma.cli.{name}")
        command = commands.add_parser(
            module.NAME,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
