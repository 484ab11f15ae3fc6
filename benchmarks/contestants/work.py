"""The work, the same for all: numbered prompts, and the one right answer to each. Nothing but the standard library."""

from __future__ import annotations

import array
import base64

MODEL = "bench-1"
DIMENSIONS = 1536

_FILLER = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 2000
_HEAD = 3
"""Numbers at the start of an embedding that differ between answers: 12 bytes, which are 16 characters of base64."""
_REST = array.array("f", (((k * 37) % 1000 - 500) / 512 for k in range(DIMENSIONS - _HEAD)))
REST = _REST.tolist()
REST_AS_TEXT = ",".join(map(repr, _REST)).encode()
REST_AS_BASE64 = base64.b64encode(_REST)


def prompt(number: int, size: int) -> str:
    """A text of `size` characters that begins with the number."""
    return f"{number:08d} {_FILLER[: size - 9]}"


def number_of(text: str) -> int:
    """The number of a prompt, all of which must be as it was made.

    Raises:
        ValueError: it is not.
    """
    number = int(text[:8])
    if text != prompt(number, len(text)):
        raise ValueError("not a prompt of this benchmark")
    return number


def reply(number: int) -> str:
    """The content of the right answer; JSON, for the calls that want it parsed."""
    return f'{{"number":{number},"text":"{_FILLER[:150]}"}}'


def head(number: int) -> array.array[float]:
    """The start of the right embedding."""
    return array.array("f", (number, number % 7, number % 11))
