"""What became of one test vector."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from servers.crypto.errors import CryptoError

if TYPE_CHECKING:
    from collections.abc import Callable


class Verdict(StrEnum):
    """Whether the product did as the vector says."""

    PASSED = "passed"
    IN_PART = "passed in part"
    """All that the product computes of it is as the vector says; the reason names what it does not compute."""
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with its reason."""

    verdict: Verdict
    reason: str = ""
    """Why not wholly passed; empty when it was."""
    test: str = ""
    """Which vector, as its file numbers it."""


class VectorFileError(Exception):
    """The file is not what its format says; the text says where."""


class MismatchError(Exception):
    """The product's result is not the vector's; the text says which result."""


PASSED: Final = Outcome(Verdict.PASSED)


def in_part(reason: str) -> Outcome:
    """What the product computes was right."""
    return Outcome(Verdict.IN_PART, reason)


def skipped(reason: str) -> Outcome:
    """The product computes nothing of it."""
    return Outcome(Verdict.SKIPPED, reason)


def require(condition: bool, what: str) -> None:
    """Fail the vector unless the condition holds."""
    if not condition:
        raise MismatchError(what)


def require_refusal(call: Callable[[], object], what: str) -> None:
    """Fail the vector unless the product refuses with its own error."""
    try:
        call()
    except CryptoError:
        return
    raise MismatchError(f"{what} was accepted")


def settle(test: str, check: Callable[[], Outcome]) -> Outcome:
    """Run one vector's check."""
    try:
        outcome = check()
    except MismatchError as mismatch:
        return Outcome(Verdict.FAILED, str(mismatch), test)
    except CryptoError as refusal:
        return Outcome(Verdict.FAILED, f"refused: {refusal}", test)
    except KeyError as missing:
        raise VectorFileError(f"test {test}: there is no field {missing}") from None
    except (TypeError, AttributeError) as error:
        raise VectorFileError(f"test {test}: a field has the wrong type ({error})") from None
    except ValueError as error:
        raise VectorFileError(f"test {test}: {error}") from None
    return Outcome(outcome.verdict, outcome.reason, test)


def octets(source: dict[str, Any], name: str) -> bytes:
    """A field in hexadecimal."""
    try:
        return bytes.fromhex(source[name])
    except ValueError:
        raise VectorFileError(f"the field {name} is not hexadecimal") from None
