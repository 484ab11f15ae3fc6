"""From the outcome of a request to what its caller gets: the SDK's own processing of an HTTP response."""

from __future__ import annotations

import copy
import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn, cast

import openai

from autobatcher.core.outcomes import Answer, CallFailed, Closed, LineFailed, Outcome, Unanswered
from autobatcher.errors import BatchFailedError, ClientClosedError, RequestFailedError

if TYPE_CHECKING:
    from openai._models import FinalRequestOptions

    from autobatcher._http import httpx


async def to_result(
    client: openai.AsyncOpenAI,
    outcome: Outcome,
    *,
    request: httpx.Request,
    cast_to: Any,
    options: FinalRequestOptions,
) -> Any:
    """The object of the realtime call, or the exception.

    The answer goes through the SDK as an HTTP response with the line's status, request id and body, so that types,
    lenient construction, post parsers, raw responses and status errors are the SDK's.

    Raises:
        openai.APIStatusError: what the realtime call would have raised.
        openai.APIError: the request, its batch, or a call for its batch failed.
        ClientClosedError: the client was closed.
    """
    if not isinstance(outcome, Answer):
        _raise(client, outcome, request)
    response = _response(outcome, request)
    if response.is_error:
        raise client._make_status_error_from_response(response)  # noqa: SLF001 -- the SDK's choice of the class
    return await client._process_response(  # noqa: SLF001 -- what `request` ends in
        cast_to=cast_to, options=options, response=response, stream=False, stream_cls=None
    )


def _response(answer: Answer, request: httpx.Request) -> httpx.Response:
    # The class of the library that made the request: openai 3 takes clients of httpx and of httpx2.
    library = sys.modules[type(request).__module__.partition(".")[0]]
    headers, content = {"content-type": "application/json"}, answer.body
    if content.startswith(b'"'):
        # What was no JSON at the server, such as a proxy's page, travels as a string.
        headers = {"content-type": "text/plain; charset=utf-8"}
        content = json.loads(content).encode("utf-8", "replace")
    if answer.request_id is not None:
        headers["x-request-id"] = answer.request_id
    response: httpx.Response = library.Response(
        answer.status, headers=headers, content=content, request=request
    )
    return response


def _raise(
    client: openai.AsyncOpenAI, outcome: LineFailed | Unanswered | CallFailed | Closed, request: httpx.Request
) -> NoReturn:
    match outcome:
        case LineFailed(code, message, batch_id):
            body = {"code": code, "message": message}
            raise RequestFailedError(message, request, body=body, batch_id=batch_id)
        case Unanswered(batch_id, status, problems):
            raise BatchFailedError(request, batch_id=batch_id, status=status, errors=problems)
        case CallFailed(cause):
            raise _own_copy(client, cast("BaseException", cause))
        case Closed(batch_id):
            where = "" if batch_id is None else f"; batch {batch_id} goes on at the server"
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
