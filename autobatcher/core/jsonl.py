"""Lines of batch files: requests on the way up, results on the way down."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from autobatcher.core.outcomes import Answer, LineFailed, LooseJson

MAX_MESSAGE = 2_000
MAX_TOKENS = 10**9
"""More is no number of tokens."""

MAX_CODE = 200
"""Characters of what a server says of a line's failure that are kept."""


def encode_line(custom_id: str, url: str, body: bytes) -> bytes:
    r"""One line of an input file, newline included; `body` is the request's JSON text in UTF-8.

    The line separators of Unicode may stand raw in JSON strings, but some servers split their input with a text
    line reader: they are escaped, which leaves the JSON value as it was.
    """
    if not body.isascii():
        for raw, escaped in _TEXT_LINE_BREAKS:
            body = body.replace(raw, escaped)
    return b'{"custom_id":"%b","method":"POST","url":"%b","body":%b}\n' % (
        custom_id.encode(),
        url.encode(),
        body,
    )


_TEXT_LINE_BREAKS = (
    (b"\xc2\x85", b"\\u0085"),
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
)


class MalformedLineError(ValueError):
    """A result line that answers nobody: no JSON, no custom_id, or neither a response nor an error."""


class _Response(msgspec.Struct):
    status_code: Any = 0
    request_id: Any = None
    body: msgspec.Raw = msgspec.Raw()


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Line)


def _decode_leniently(line: bytes) -> _Line:
    """For lines with NaN, or with half of a surrogate pair, which Python's json (and so the SDK) reads."""
    loaded: Any = json.loads(line)
    if isinstance(loaded, dict) and isinstance(loaded.get("response"), dict):
        response = loaded["response"]
        response["body"] = msgspec.Raw(json.dumps(response.get("body")).encode())
    return msgspec.convert(loaded, _Line)


def _status(given: object) -> int:
    """An HTTP status, also one in a string or with a decimal point; 0 if it is none."""
    if type(given) is int:
        return given
    if isinstance(given, float) and given.is_integer():
        return int(given)
    return int(given) if isinstance(given, str) and len(given) == 3 and given.isdecimal() else 0  # noqa: PLR2004 -- HTTP


def _request_id(given: object) -> str | None:
    """One that can be a header."""
    return given if isinstance(given, str) and given.isascii() and given.isprintable() else None


def _failed(error: object) -> LineFailed | None:
    """What an error object says, or a mere text in its place."""
    if isinstance(error, str) and error:
        return LineFailed(None, error[:MAX_MESSAGE])
    if not isinstance(error, dict):
        return None
    code, message = error.get("code"), error.get("message")
    return LineFailed(
        None if code is None else str(code)[:MAX_CODE],
        str(message)[:MAX_MESSAGE] if message else "the request failed",
    )


def decode_line(line: bytes) -> tuple[str, Answer | LineFailed]:
    """The custom_id and the outcome in one line of an output or error file.

    Two shapes of errors occur: a response with a status of 400 or more and the error in its body, and a null
    response with an error object beside it (its code may be null).

    Raises:
        MalformedLineError: the line is neither an answer nor an error for anybody.
    """
    try:
        if not line.isascii():
            line.decode()  # which the bodies of answers are not put to otherwise
        kind: type[bytes] = bytes
        try:
            decoded = _decoder.decode(line)
        except msgspec.DecodeError:
            decoded, kind = _decode_leniently(line), LooseJson
    except (ValueError, RecursionError) as error:  # among them msgspec's and json's own
        raise MalformedLineError(str(error)) from None
    response = decoded.response
    if response is not None and 100 <= (status := _status(response.status_code)) <= 599:  # noqa: PLR2004 -- HTTP's range
        return decoded.custom_id, Answer(status, _request_id(response.request_id), kind(response.body))
    if (failed := _failed(decoded.error)) is not None:
        return decoded.custom_id, failed
    raise MalformedLineError("neither a response nor an error")


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    input_tokens: int = 0


class _Metered(msgspec.Struct):
    usage: _Usage | None = None


_meter = msgspec.json.Decoder(_Metered)


def prompt_tokens(body: bytes) -> int:
    """The tokens of the prompt, as the body of an answer has them; 0 if it does not say."""
    try:
        usage = _meter.decode(body).usage
    except (ValueError, RecursionError):  # among them msgspec's own
        return 0
    tokens = 0 if usage is None else max(usage.prompt_tokens, usage.input_tokens)
    return tokens if 0 < tokens <= MAX_TOKENS else 0


def body_of(line: bytes) -> bytes:
    """The body in a line that `encode_line` made."""
    return line[line.index(_BODY) + len(_BODY) : -2]


_BODY = b',"body":'
