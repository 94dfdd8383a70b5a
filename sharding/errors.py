"""The error tree that every package of this project shares, and the one place that turns it into exit status.

It lives in the lowest package so that `sharding`, `vsr_dist` and `sweeps` end in the same way for the same
mistake: one line on stderr and status 2. A status of 1 with a traceback is a bug in this project.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn


class UserError(Exception):
    """A mistake that the user can mend; the message says what was expected, what was found, what to do."""


class BadInputError(UserError):
    """A source (video, frame folder, file) cannot be read as what it was given for."""


class BadShardError(UserError):
    """A shard set does not hold what its index promises."""


class BadConfigError(UserError):
    """A configuration cannot be honoured."""


class MissingExtraError(UserError):
    """An optional dependency is needed for what was asked and is not installed."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are a `UserError`, that is one line, and not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint with the command that explains the options."""
        raise UserError(f"{message}; see '{self.prog} --help'")


# What the operating system refuses for reasons that the user can mend; any other OSError is a bug of ours.
_REFUSALS = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
}


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known word most like `word`, or an empty string if none is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def run_cli(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run `command(argv)` and return its exit status; a `UserError` becomes one line on stderr and 2.

    `argv` is without the program's name; None takes it from `sys.argv`. Ctrl-C ends with 130, a closed pipe
    (`vsr-dist inspect DIR | head`) with 0.
    """
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        message = " ".join(str(error).split())
        sys.stderr.write(f"error: {message}\n")
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            return 0
        if error.errno not in _REFUSALS:
            raise
        sys.stderr.write(f"error: {error}; make room or give the right to it, and run the command again\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return 130
