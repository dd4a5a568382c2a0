# SPDX-License-Identifier: LGPL-2.1-or-later
"""One domain or all of them: the arguments that say which, and the work domain by domain, with progress.

A failure ends the command where one domain was asked for. Of all domains the others are still done, and the failures are told beside them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any, Callable, Optional

from pcinuma.cli.backend import backend
from pcinuma.cli.definition import Backend, Definition
from pcinuma.errors import PcinumaError
from pcinuma.printable import printable
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen


@dataclass(frozen=True)
class Done:
    """``definitions``: what was done, in order; ``failed``: (domain, sentence)."""

    definitions: list[Definition]
    failed: list[tuple[str, str]]

    def print_json(self, as_json: Callable[[Definition], dict[str, Any]]) -> None:
        """All of it as plain data."""
        errors = [{"domain": name, "error": message} for name, message in self.failed]
        print(json.dumps({"domains": [as_json(definition) for definition in self.definitions], "failed": errors}, indent=2))

    def failures(self, screen: Screen) -> list[str]:
        """A line for each failure."""
        return [f"{printable(name)}: {screen.paint('failed', 'red')}: {printable(message)}" for name, message in self.failed]


def add_choice(parser: argparse.ArgumentParser, every: str) -> None:
    """DOMAIN or ``--all``, which means ``every``; and ``--json``."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("domain", nargs="?", metavar="DOMAIN", help="a domain's name or UUID")
    which.add_argument("--all", action="store_true", help=every)
    parser.add_argument("--json", action="store_true", help="plain data")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """``--dry-run``, for commands that write."""
    parser.add_argument("--dry-run", action="store_true", help="write nothing")


def for_each(args: argparse.Namespace, doing: str, work: Callable[[Backend, str], Optional[Definition]], *, write: bool) -> Done:
    """``work`` for the domain or domains that were asked for; None from it means that there was nothing to do."""
    done = Done([], [])
    with Progress(doing) as progress, backend(write=write) as worker:
        names = worker.names() if args.all else [args.domain]
        for number, name in enumerate(names, 1):
            progress.step(f"{name} ({number} of {len(names)})")
            try:
                definition = work(worker, name)
            except PcinumaError as error:
                if not args.all:
                    raise
                done.failed.append((name, str(error)))
            else:
                if definition is not None:
                    done.definitions.append(definition)
    return done
