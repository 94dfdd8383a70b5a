"""The error tree of training and evaluation, on top of the shared roots in `sharding.errors`."""

from __future__ import annotations

from sharding.errors import (
    BadConfigError,
    BadInputError,
    BadShardError,
    MissingExtraError,
    OneLineParser,
    UserError,
    nearest_hint,
    run_cli,
)


class BadCheckpointError(UserError):
    """A checkpoint or generator file is incomplete, damaged or of another model."""


class NonFiniteError(UserError):
    """A loss or gradient became NaN or infinite; the message names the term. The optimiser has not moved."""


__all__ = [
    "BadCheckpointError",
    "BadConfigError",
    "BadInputError",
    "BadShardError",
    "MissingExtraError",
    "NonFiniteError",
    "OneLineParser",
    "UserError",
    "nearest_hint",
    "run_cli",
]
