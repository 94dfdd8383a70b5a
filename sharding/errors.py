"""Error classes and exit status for all packages of this project.

Every command ends the same way for the same mistake: one line on stderr and status 2. Status 1 with a traceback is a
bug in this project. The module is here because `sharding` is the lowest package and imports no other;
`vsr_dist.core.errors` adds the errors of training and is what `vsr_dist` and `sweeps` import from.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import NoReturn, TypeVar


class UserError(Exception):
    """A mistake that the user can fix. The message says what was expected, what was found and what to do."""


class BadInputError(UserError):
    """An input (video, folder of images, file) cannot be read or does not have the expected content."""


class BadShardError(UserError):
    """A shard set does not match its index."""


class BadConfigError(UserError):
    """Options or a configuration are invalid."""


class MissingExtraError(UserError):
    """An optional dependency that this operation needs is not installed."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises `UserError`, so that a wrong argument is one line and not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise `message`, followed by the command that lists the options."""
        raise UserError(f"{message}; see '{self.prog} --help'")


Number = TypeVar("Number", int, float, Fraction)


def number_type(kind: Callable[[str], Number], least: int, *, above: bool = False) -> Callable[[str], Number]:
    """A type of an option: a number of at least, or above, a limit."""
    expected = {int: "a whole number", float: "a number"}.get(kind, "a rate such as 24 or 30000/1001")  # type: ignore[call-overload]
    expected += f" above {least}" if above else f" of at least {least}"

    def convert(text: str) -> Number:
        with suppress(ValueError, ZeroDivisionError):
            value = kind(text)
            if value > least or (value == least and not above):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text}")

    return convert


# Errors of the operating system that the user can fix; any other OSError is a bug.
_USER_ERRNOS = {
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
    """` (did you mean 'x'?)` for the most similar known word, or an empty string if none is similar."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def run_cli(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run `command(argv)` and return its exit status; a `UserError` becomes one line on stderr and status 2.

    `argv` excludes the program name; None means `sys.argv[1:]`. Ctrl-C gives status 130, a closed pipe
    (`vsr-dist inspect DIR | head`) status 0.
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
        if error.errno not in _USER_ERRNOS:
            raise
        sys.stderr.write(f"error: {error}; check free space and permissions, and run the command again\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return 130
