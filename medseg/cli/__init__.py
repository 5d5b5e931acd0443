"""The command line. Torch and monai are imported inside commands: `--help` needs neither."""

from __future__ import annotations

import os
import sys

from rich.markup import escape

from medseg.cli import planning, training, using
from medseg.cli.app import REFUSED, app
from medseg.console import errors, show_warnings_briefly
from medseg.errors import MedsegError, ToldElsewhereError
from medseg.memory import keep_freed

__all__ = ["app", "main", "planning", "training", "using"]


def main() -> None:
    """Run the command line; a user's error is a message and exit code 2, without a traceback."""
    # Waiting threads sleep rather than spin: beside any other load, spinning slows torch manyfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    show_warnings_briefly()
    keep_freed()
    try:
        app()
    except ToldElsewhereError:
        sys.exit(REFUSED)
    except MedsegError as error:
        errors.print(f"[red]error:[/] {escape(str(error))}")
        sys.exit(REFUSED)
    except (OSError, MemoryError) as error:
        what = "out of memory" if isinstance(error, MemoryError) else ""
        errors.print(f"[red]error:[/] {escape(what + ' ' + str(error)).strip()}")
        sys.exit(REFUSED)
