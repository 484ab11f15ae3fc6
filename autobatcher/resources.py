"""The SDK's batched resources, with methods that let go of their arguments before they wait.

A call waits for hours, and its arguments (a megabyte of image, say) would wait with it in the frames of the SDK's
methods. So these run the SDK's method up to `request`, which returns a promise in place of the answer, through all
of the frames; only then is it awaited. The SDK's own code makes the body, whatever the arguments.

Where somebody has replaced a method on that way, such as a tracer, the promise would be handed to a stranger:
then the SDK's method waits itself, as it always does.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar, cast

import openai
from openai._compat import cached_property
from openai.lib._parsing import parse_chat_completion, type_to_response_format_param, validate_input_tools
from openai.resources import AsyncEmbeddings
from openai.resources.chat import AsyncChat, AsyncCompletions
from openai.types.chat import ChatCompletion

from autobatcher.answers import PlainCall
from autobatcher.hooks import function_of, is_sdks
from autobatcher.promise import Promise, unwinding

_F = TypeVar("_F")


def _may_unwind(resource: Any, method: object) -> bool:
    client, post = resource._client, resource._post  # noqa: SLF001 -- of a subclass of the SDK's resource
    return (
        is_sdks(method) and is_sdks(function_of(post)) and post.__self__ is client and client._waits_outside  # noqa: SLF001 -- of this package's own client
    )


_NOT_GIVEN = (openai.Omit, openai.NotGiven)

_IGNORED = frozenset({"timeout"})
"""Arguments of a call that mean nothing for a batched one."""

_UNLESS_GIVEN = frozenset({"extra_headers", "extra_query", "extra_body", "stream", "stream_options"})
"""Arguments that take a call the SDK's way, unless they are None or not given."""


def _fields(method: Any, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of the body that these arguments of the SDK's method make; None if it takes more to tell."""
    fields = {}
    names = _names(method)
    for name, value in arguments.items():
        if name not in names:
            return None
        left_out = isinstance(value, _NOT_GIVEN) and not name.startswith("extra_")
        if left_out or name in _IGNORED:
            continue
        if name in _UNLESS_GIVEN:
            if value is not None:
                return None
            continue
        fields[name] = value
    return fields if type(fields.get("model")) is str else None


@functools.cache
def _names(method: Any) -> frozenset[str]:
    return frozenset(inspect.signature(method).parameters) - {"self"}


def _begun(call: Coroutine[Any, Any, Any], start: Callable[[], Any]) -> Any:
    """What a call of the SDK's method returns without waiting: a promise, or the answer itself."""
    token = unwinding.set(True)
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    finally:
        unwinding.reset(token)
    call.close()  # it waits for something before it asks: so it is to do it itself
    return start()


async def _finished(begun: Any) -> Any:
    return await begun if isinstance(begun, (Promise, Coroutine)) else begun


async def _raised(error: Exception) -> Any:
    raise error


def _like(method: Any) -> Callable[[_F], _F]:
    """Decorator: look like the SDK's method, of which the innermost function tells tracers whether it is async."""

    def decorate(function: _F) -> _F:
        wrapper: Any = functools.wraps(method)(function)  # type: ignore[arg-type] # any function
        wrapper.__wrapped__ = inspect.unwrap(method)
        return cast("_F", wrapper)

    return decorate


def outside(cls: type, name: str, short_cut: Callable[[Any, dict[str, Any]], Any] | None = None) -> Any:
    """An override of a coroutine method of the SDK's class, as it is at the time of the call.

    Args:
        cls: the class.
        name: of the method.
        short_cut: makes the call without the SDK's method, from the resource and the arguments; None if it cannot.
    """

    @_like(getattr(cls, name))
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(cls, name)
        may_unwind = _may_unwind(self, method)
        begun = None if short_cut is None or args or not may_unwind else short_cut(self, kwargs)
        if begun is None:
            start: Any = functools.partial(method, self, *args, **kwargs)
            begun = start()
            if may_unwind:
                begun = _begun(begun, start)
            del start
        del args, kwargs
        return await _finished(begun)

    return call


_CHAT = PlainCall("chat/completions", ChatCompletion)


def _create(completions: Any, arguments: dict[str, Any]) -> Any:
    """The short cut of `create`."""
    if "messages" not in arguments:
        return None
    fields = _fields(AsyncCompletions.create, arguments)
    return fields and completions._client._plain_answer(_CHAT, fields)  # noqa: SLF001 -- this package's own client


def _parse(completions: Any, arguments: dict[str, Any]) -> Any:
    """The short cut of `parse`: making the schema and parsing the answer are the SDK's."""
    fields = _fields(AsyncCompletions.parse, arguments)
    tools = arguments.get("tools", openai.omit)
    if not fields or "messages" not in fields or isinstance(tools, Iterator):
        return None
    tools = validate_input_tools(tools)
    wanted = arguments.get("response_format", openai.omit)
    if "response_format" in fields:
        fields["response_format"] = type_to_response_format_param(wanted)
    call = PlainCall(
        "chat/completions",
        ChatCompletion,
        {"X-Stainless-Helper-Method": "chat.completions.parse"},
        lambda answer: parse_chat_completion(
            response_format=wanted, input_tools=tools, chat_completion=answer
        ),
    )
    return completions._client._plain_answer(call, fields)  # noqa: SLF001 -- this package's own client


class Completions(AsyncCompletions):
    """Chat completions."""

    _client: Any

    @_like(AsyncCompletions.create)
    def create(self, *args: Any, **kwargs: Any) -> Any:
        """As in the SDK, where it is no coroutine function either: the arguments are let go at the call."""
        may_unwind = _may_unwind(self, AsyncCompletions.create)
        try:
            plain = _create(self, kwargs) if may_unwind and not args else None
        except Exception as error:  # noqa: BLE001 -- raised where the SDK raises it
            return _raised(error)
        if plain:
            return plain
        start = functools.partial(super().create, *args, **kwargs)
        call = start()
        if not may_unwind:
            return call
        try:
            begun = _begun(call, start)
        except Exception as error:  # noqa: BLE001 -- as above
            return _raised(error)
        return _finished(begun)

    parse: Any = outside(AsyncCompletions, "parse", _parse)


class Chat(AsyncChat):
    """The chat resource."""

    @cached_property
    def completions(self) -> Completions:
        """Chat completions."""
        return Completions(self._client)


class Embeddings(AsyncEmbeddings):
    """Embeddings."""

    create: Any = outside(AsyncEmbeddings, "create")
