"""The error classes of training and evaluation; the general ones, and what raises the error of a missing extra, come
from `sharding`, the lowest package.
"""

from __future__ import annotations

from collections.abc import Mapping

from sharding.errors import (
    BadConfigError,
    BadInputError,
    BadShardError,
    MissingExtraError,
    OneLineParser,
    UserError,
    nearest_hint,
    number_type,
    run_cli,
)
from sharding.extras import extra_files, import_extra, missing_extra


class BadCheckpointError(UserError):
    """A checkpoint or generator file is incomplete, damaged or from another model."""


class LostRankError(UserError):
    """Another process of this training exited or does not respond."""


class NonFiniteError(UserError):
    """A loss or gradient became NaN or infinite; the message names the term. The optimiser has not stepped.

    terms: this process's value of each loss term of that player, per micro-batch of the step. step: counted from 0.
    """

    def __init__(self, message: str, terms: Mapping[str, list[float]], step: int) -> None:
        super().__init__(message)
        self.terms, self.step = dict(terms), step


__all__ = [
    "BadCheckpointError",
    "BadConfigError",
    "BadInputError",
    "BadShardError",
    "LostRankError",
    "MissingExtraError",
    "NonFiniteError",
    "OneLineParser",
    "UserError",
    "extra_files",
    "import_extra",
    "missing_extra",
    "nearest_hint",
    "number_type",
    "run_cli",
]
