"""From the outcome of a request to what its caller gets: the SDK's own processing of an HTTP response."""

from __future__ import annotations

import copy
import datetime as dt
import functools
import json
import sys
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Union, cast, get_args, get_origin

import anyio
import msgspec
import openai
import pydantic

from autobatcher import sse
from autobatcher.core.jsonl import body_of
from autobatcher.core.outcomes import (
    Answer,
    CallFailed,
    Closed,
    LineFailed,
    LooseJson,
    Outcome,
    Overdue,
    Unanswered,
)
from autobatcher.core.retry import is_success
from autobatcher.errors import BatchFailedError, ClientClosedError, DeadlineError, RequestFailedError
from autobatcher.runtime.spool import Line, whole

if TYPE_CHECKING:
    from openai._models import FinalRequestOptions

    from autobatcher._http import httpx


_JSON = "application/json"


class PlainCall(NamedTuple):
    """A call whose fields are its body, and whose answer needs the SDK only if it is none that the type describes.

    Attributes:
        path: below the base URL, such as "chat/completions".
        cast_to: the SDK's type of the answer; None: the result is the `Answer` itself, whatever its status.
        headers: of the HTTP request, which error messages show.
        post_parser: makes the result from the answer; None if it is the answer.
        hurries: tells whether a late answer is worth a realtime call still; None: it is.
    """

    path: str
    cast_to: Any
    headers: Mapping[str, str] = types.MappingProxyType({})
    post_parser: Callable[[Any], Any] | None = None
    hurries: Callable[[], bool] | None = None


class Head(NamedTuple):
    """The HTTP request of a realtime call without its body, which waits as a line.

    Attributes:
        cls: the class of the library that made it: openai 3 takes clients of httpx and of httpx2.
        method, url, headers, extensions: the headers without a content-length.
    """

    cls: type[httpx.Request]
    method: str
    url: httpx.URL
    headers: httpx.Headers
    extensions: dict[str, Any]

    @classmethod
    def of(cls, request: httpx.Request) -> Head:
        """That of a request, which is of no use from then on."""
        headers = request.headers
        headers.pop("content-length", None)
        return cls(type(request), request.method, request.url, headers, request.extensions)

    def request(self, body: bytes | None = None) -> httpx.Request:
        """The request, with a body or without one."""
        headers = self.headers
        if body is not None:
            headers = headers.copy()
            headers["content-length"] = str(len(body))
        return self.cls(self.method, self.url, headers=headers, content=body, extensions=self.extensions)


class Call(NamedTuple):
    """A call of the SDK, as `request` gets it.

    Attributes:
        path: below the base URL, such as "chat/completions".
        asked: the fields of the body that say how to stream.
        head: stands in for the HTTP request of the realtime call.
        cast_to, options, stream, stream_cls: the arguments of `request`; the options without the body.
    """

    path: str
    asked: Mapping[str, Any]
    head: Head
    cast_to: Any
    options: FinalRequestOptions
    stream: bool
    stream_cls: Any


async def to_result(
    client: openai.AsyncOpenAI, call: Call, line: Line, outcome: Outcome, started: float | None
) -> Any:
    """The object of the realtime call, or the exception; `line` is the request's in its batch file.

    The call has waited since `started`, by the event loop's clock.

    The answer goes through the SDK as an HTTP response with the line's status, request id and body, so that types,
    lenient construction, post parsers, raw responses, streams and status errors are the SDK's.

    Raises:
        openai.APIStatusError: what the realtime call would have raised.
        openai.APIResponseValidationError: the call streams, and the answer has no form that could be streamed.
        openai.APIError: the request, its batch, or a call for its batch failed.
        ClientClosedError: the client was closed.
    """
    if not isinstance(outcome, Answer):
        _raise(client, outcome, call.head.request())
    if call.cast_to is None:
        return outcome
    response = _response(client, call, call.head.request(body_of(whole(line))), outcome)
    response.elapsed = dt.timedelta(seconds=anyio.current_time() - (started or 0.0))
    if not response.is_success:
        raise client._make_status_error_from_response(response)  # noqa: SLF001 -- the SDK's choice of the class
    return await client._process_response(  # noqa: SLF001 -- what `request` ends in
        cast_to=call.cast_to,
        options=call.options,
        response=response,
        stream=call.stream,
        stream_cls=call.stream_cls,
    )


def answer_of(response: httpx.Response) -> Answer:
    """An HTTP response, read to its end, as an answer of a batch would be: what is no JSON is a text."""
    body = None
    if response.headers.get("content-type", _JSON).startswith(_JSON):
        body = _as_json(response.content)
    if body is None:
        body = json.dumps(response.text).encode()
    return Answer(response.status_code, response.headers.get("x-request-id"), body)


def _as_json(body: bytes) -> bytes | None:
    """The same as a line's body would be; None if it is no JSON."""
    line = body.replace(b"\n", b" ")  # if it is JSON, these stand between two tokens, and mean nothing
    try:
        msgspec.json.decode(body)
    except msgspec.DecodeError:
        try:
            json.loads(body.decode())
        except (ValueError, RecursionError):
            return None
        return LooseJson(line)
    except RecursionError:
        return None
    return line


def plain_result(call: PlainCall, outcome: Outcome) -> Any:
    """The object of an answer that is exactly what the SDK's type describes; None for all that needs the SDK.

    On such an answer the SDK's lenient construction has the same result, at many times the cost.

    Raises:
        openai.OpenAIError: of the SDK's parser, such as that the answer was cut short.
        ValueError: of that parser, since the text does not fit into the caller's type.
    """
    if not isinstance(outcome, Answer):
        return None
    if call.cast_to is None:
        return outcome
    if outcome.status != 200:  # noqa: PLR2004 -- HTTP's OK
        return None
    try:
        result = call.cast_to.model_validate_json(outcome.body, strict=True)
    except ValueError:  # pydantic's own
        return None
    if _has_extras(result):  # of which versions of the SDK make different things
        return None
    if call.post_parser is not None:
        result = call.post_parser(result)
    object.__setattr__(
        result, "_request_id", outcome.request_id
    )  # where the SDK puts it, pydantic's way round
    return result


def _has_extras(model: pydantic.BaseModel) -> bool:
    """Whether there is a field, here or further in, that the type does not know.

    pydantic could refuse these while it validates; but then `model_extra` is None, and the SDK's is empty.
    """
    values: list[Any] = [model]
    for value in values:  # which grows
        if type(value) is list:
            values += value
        elif (names := _names_of_more(type(value))) is not None:  # type: ignore[arg-type] # which is hashable
            if value.__pydantic_extra__:
                return True
            fields = value.__dict__
            for name in names:
                if (field := fields[name]) is not None:
                    values.append(field)
    return False


@functools.cache
def _names_of_more(cls: type) -> tuple[str, ...] | None:
    """The fields of a model that may hold more than a text, a number or the like; None for what is no model."""
    if not issubclass(cls, pydantic.BaseModel):
        return None
    return tuple(name for name, field in cls.model_fields.items() if not _is_simple(field.annotation))


def _is_simple(annotation: Any) -> bool:
    if get_origin(annotation) is Literal or annotation in _SIMPLE:
        return True
    return any(get_origin(annotation) is union for union in (Union, types.UnionType)) and all(
        map(_is_simple, get_args(annotation))
    )


_SIMPLE = (str, int, float, bool, type(None))


def _response(
    client: openai.AsyncOpenAI, call: Call, request: httpx.Request, answer: Answer
) -> httpx.Response:
    library = sys.modules[call.head.cls.__module__.partition(".")[0]]
    content_type, content = content_of(answer)
    if call.asked.get("stream") and content_type == _JSON and is_success(answer.status):
        try:
            content = b"".join(sse.encode(call.path, json.loads(content), call.asked))
        except (ValueError, RecursionError) as error:
            odd = library.Response(answer.status, content=content, request=request)
            raise openai.APIResponseValidationError(odd, body=None, message=str(error)) from error
        content_type = "text/event-stream; charset=utf-8"
    headers = {"content-type": content_type}
    if answer.request_id is not None:
        headers["x-request-id"] = answer.request_id
    unread = call.stream or client._should_stream_response_body(request)  # noqa: SLF001 -- as `request` asks
    response: httpx.Response = library.Response(
        answer.status,
        headers=headers,
        content=_Unread(content) if unread and is_success(answer.status) else content,
        request=request,
    )
    return response


def content_of(answer: Answer) -> tuple[str, bytes]:
    """The content type of an answer as an HTTP response would have it, and the content."""
    if answer.body.startswith(b'"'):
        # What was no JSON at the server, such as a proxy's page, travels as a string.
        return "text/plain; charset=utf-8", json.loads(answer.body).encode("utf-8", "replace")
    return _JSON, answer.body


class _Unread:
    """A body as it is before it was read from the network."""

    def __init__(self, content: bytes) -> None:
        self._rest = [content]

    def __aiter__(self) -> _Unread:
        return self

    async def __anext__(self) -> bytes:
        if not self._rest:
            raise StopAsyncIteration
        return self._rest.pop()


def _raise(
    client: openai.AsyncOpenAI,
    outcome: LineFailed | Unanswered | CallFailed | Closed | Overdue,
    request: httpx.Request,
) -> NoReturn:
    match outcome:
        case Overdue(batch_id, age):
            raise DeadlineError(request, batch_id=batch_id, age=age)
        case LineFailed(code, message, batch_id):
            body = {"code": code, "message": message}
            raise RequestFailedError(message, request, body=body, batch_id=batch_id)
        case Unanswered(batch_id, status, problems):
            raise BatchFailedError(request, batch_id=batch_id, status=status, errors=problems)
        case CallFailed(cause):
            raise _own_copy(client, cast("BaseException", cause))
        case Closed(batch_id, cancelling, file_id):
            what = "the server is asked to cancel it" if cancelling else "it goes on at the server"
            where = "" if batch_id is None else f"; the request is in batch {batch_id}, and {what}"
            if file_id is not None:
                where = f"; there may be a batch of file {file_id} at the server that holds the request"
            raise ClientClosedError(f"the client is closed{where}", batch_id=batch_id)


def _own_copy(client: openai.AsyncOpenAI, cause: BaseException) -> BaseException:
    """An exception of the caller's own: one raised in many tasks would gather all their tracebacks."""
    match cause:
        case openai.APIStatusError():
            error: BaseException = client._make_status_error_from_response(cause.response)  # noqa: SLF001 -- as above
        case openai.APITimeoutError():
            error = openai.APITimeoutError(request=cause.request)
        case openai.APIConnectionError():
            error = openai.APIConnectionError(message=cause.message, request=cause.request)
        case _:
            try:
                error = copy.copy(cause)
            except Exception:  # noqa: BLE001 -- of a class that cannot be made again from its args
                return cause
    error.__cause__ = cause
    return error
