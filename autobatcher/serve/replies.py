"""What callers get that no upstream answered as such: refusals, and what became of their requests."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

import msgspec
import openai

from autobatcher._http import httpx
from autobatcher.answers import content_of
from autobatcher.core.outcomes import Answer
from autobatcher.errors import (
    BatchError,
    ClientClosedError,
    DeadlineError,
    JournalError,
    RequestTooLargeError,
)
from autobatcher.wire import error_body

_log = logging.getLogger("autobatcher")

JSON = "application/json"

BACK_SOON = 10
"""Seconds after which a proxy that stops may be back. SDKs wait that long if they are told so, but not for minutes."""

NO_MORE = {"x-should-retry": "false"}
"""Tells SDKs that asking again would only buy the same again: batches have tried it as often as is of use.

The SDKs for Python and Node obey it (source: `_should_retry` in _base_client.py, `shouldRetry` in client.ts).
"""


@dataclass(frozen=True)
class Reply:
    """A whole response.

    Attributes:
        status: of HTTP.
        body: its bytes.
        headers: but for content-type and content-length.
        content_type: of the body.
    """

    status: int
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = JSON

    @property
    def is_success(self) -> bool:
        """Whether it is no error."""
        return self.status < 400  # noqa: PLR2004 -- HTTP's errors


class Refused(Exception):  # noqa: N818 -- an answer, not a defect
    """A request that gets a reply without having been asked of anybody; `reason` is a word for the metrics."""

    def __init__(self, reply: Reply, reason: str) -> None:
        super().__init__(reason)
        self.reply = reply
        self.reason = reason


def error_reply(
    status: int,
    message: str,
    *,
    kind: str | None = None,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    """An error in OpenAI's shape."""
    body = error_body(status, message, kind=kind, param=param, code=code)
    return Reply(status, msgspec.json.encode(body), headers or {})


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> Refused:
    """What is no request that could be sent."""
    return Refused(error_reply(400, message, param=param, code=code), "bad request")


def stopping() -> Reply:
    """For those who wait, and those who come, while the proxy stops."""
    message = "The proxy is stopping. Ask again: with a journal, a request that is in a batch goes on."
    return error_reply(503, message, code="stopping", headers={"retry-after": str(BACK_SOON)})


_LEAST, _MOST = 200, 599

_WITHOUT_BODY = frozenset({204, 205, 304})
"""Of HTTP: a response of these has no body, which an answer has, and what follows it would be taken for another one."""


def _is_answers(status: int) -> bool:
    return _LEAST <= status <= _MOST and status not in _WITHOUT_BODY


def reply_to(answer: Answer) -> Reply:
    """The server's answer to a request, as it came."""
    if not _is_answers(answer.status):
        return _odd_status(answer.status)
    headers = {} if answer.request_id is None else {"x-request-id": _header(answer.request_id)}
    if answer.status >= 400:  # noqa: PLR2004 -- HTTP's errors
        headers |= NO_MORE
    content_type, content = content_of(answer)
    return Reply(answer.status, content, headers, content_type)


def _odd_status(status: int) -> Reply:
    return error_reply(502, f"The upstream gave the status {status}, which is no answer's.", headers=NO_MORE)


def _header(value: str) -> str:
    """Without what no header may have in it."""
    return "".join(character for character in value if character.isascii() and character.isprintable())


def reply_for(error: BaseException) -> Reply:
    """What a caller gets whose request came to this."""
    match error:
        case openai.APIError():
            return _of_upstream(error)
        case ClientClosedError():
            return stopping()
        case RequestTooLargeError():
            return error_reply(413, str(error), code="request_too_large")
        case RecursionError():
            return bad_request("The JSON body is nested too deeply.").reply
        case JournalError():
            _log.error("a request failed by the journal: %s", error)
            return error_reply(500, "The proxy's journal cannot be used; its log says why.", code="journal")
        case _:
            _log.error("a request failed unexpectedly", exc_info=error)
            return error_reply(500, "The proxy had an error; its log says which.")


def _of_upstream(error: openai.APIError) -> Reply:
    match error:
        case BatchError():
            code = error.code if isinstance(error.code, str) else None
            return error_reply(502, error.message, code=code or "batch_failed", headers=NO_MORE)
        case openai.APIStatusError():
            return _of_a_call(error.response)
        case openai.APITimeoutError():
            message = error.message if isinstance(error, DeadlineError) else "There was no answer in time."
            return error_reply(504, message, code="timeout", headers=NO_MORE)
        case openai.APIConnectionError():
            message = "The upstream cannot be reached."
            return error_reply(502, message, code="upstream_unreachable", headers=NO_MORE)
        case _:
            return error_reply(502, "The upstream's answer is none that could be used.", headers=NO_MORE)


_KEPT = ("x-request-id", "retry-after", "retry-after-ms", "www-authenticate")


def _of_a_call(response: httpx.Response) -> Reply:
    """What the upstream said to a call for the batch: to its upload, say."""
    if not _is_answers(response.status_code):
        return _odd_status(response.status_code)
    headers: dict[str, str] = {name: response.headers[name] for name in _KEPT if name in response.headers}
    return Reply(
        response.status_code,
        response.content,
        headers | NO_MORE,
        response.headers.get("content-type", JSON),
    )


def in_stream(reply: Reply) -> bytes:
    """An error as an event, for a stream that has begun: SDKs raise it."""
    body: Any
    try:
        body = json.loads(reply.body)
    except ValueError:
        body = None
    if not (isinstance(body, dict) and body.get("error")):
        body = error_body(reply.status, f"The upstream answered {reply.status}.")
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
