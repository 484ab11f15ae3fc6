"""The drop-in clients: `openai.AsyncOpenAI` and `openai.AsyncAzureOpenAI`, whose calls share batches."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import anyio
import openai
from openai._compat import cached_property, model_copy
from openai._constants import RAW_RESPONSE_HEADER
from openai._models import FinalRequestOptions

from autobatcher._http import httpx
from autobatcher._signatures import AzureSignatures, OpenAISignatures, with_batch_options
from autobatcher.answers import Call, Head, PlainCall, answer_of, plain_result, to_result
from autobatcher.collector import Collector, Collectors
from autobatcher.core.endpoints import batched_path, line_url, model_name, weight
from autobatcher.core.engine import EXPIRED
from autobatcher.core.jsonl import body_of
from autobatcher.core.outcomes import Answer, CallFailed, Closed, LineFailed, Outcome, Overdue, Unanswered
from autobatcher.core.retry import is_success
from autobatcher.core.window import OversizedError, Request
from autobatcher.errors import RequestTooLargeError
from autobatcher.events import RealtimeCalled
from autobatcher.hooks import function_of, is_hooked
from autobatcher.options import BatchOptions
from autobatcher.promise import Promise, plain_body, unwinds
from autobatcher.runtime.driver import Driver
from autobatcher.runtime.pool import HttpPool
from autobatcher.runtime.spool import whole
from autobatcher.usage import Usage

if TYPE_CHECKING:
    from typing_extensions import Self


class Batching(openai.AsyncOpenAI):
    """What the clients have in common; stands before the SDK's class among their bases."""

    _pool: HttpPool
    _collectors: Collectors

    def __init__(
        self,
        *,
        _parent: Batching | None = None,
        _batched: bool = True,
        _apart: bool = False,
        _scope: str = "",
        **kwargs: Any,
    ) -> None:
        given = {name: kwargs.pop(name) for name in BATCH_OPTIONS & kwargs.keys()}
        if _parent is None and given.get("journal") is None:
            given["journal"] = os.environ.get("AUTOBATCHER_JOURNAL") or None
        options = BatchOptions(**given)
        super().__init__(**kwargs)
        self._complete()
        http_client = self.__dict__.pop("_client")
        if _parent is not None:
            self._platform = _parent._platform  # noqa: SLF001 -- else each copy looks it up again, in a thread
        self._options = options
        self._shared_options = options.shared
        self._terms = options.terms
        self._scope = _scope
        self._batched = _batched
        self._owns_pool = _parent is None or http_client is not _parent._client  # noqa: SLF001 -- of the same class
        if _parent is not None and not self._owns_pool:
            theirs = _parent._collectors  # noqa: SLF001 -- as above, and next
            self._pool, self._collectors = _parent._pool, Collectors(theirs.meter) if _apart else theirs  # noqa: SLF001
        else:
            given_client = kwargs.get("http_client") is not None
            self._pool = HttpPool(http_client, make=None if given_client else self._like(http_client))
            self._collectors = Collectors()
        self._collectors.record(options)  # a journal that cannot be used is told at once

    def _complete(self) -> None:
        """Called when the SDK's constructor is through."""

    def _like(self, first: httpx.AsyncClient) -> Any:
        def make() -> httpx.AsyncClient:
            client = type(first)(base_url=self.base_url, timeout=self.timeout)
            client.event_hooks = first.event_hooks
            return client

        return make

    # The SDK keeps its HTTP client in `_client` and reads it at every call. A client of its own making belongs to
    # the event loop that first used it; this property gives each loop one.
    @property
    def _client(self) -> httpx.AsyncClient:
        pool: HttpPool | None = self.__dict__.get("_pool")
        client: httpx.AsyncClient = self.__dict__["_client"] if pool is None else pool.current()
        return client

    @_client.setter
    def _client(self, client: httpx.AsyncClient) -> None:
        self.__dict__["_client"] = client
        if "_pool" in self.__dict__:  # replaced by hand
            self._pool = HttpPool(self.__dict__.pop("_client"), make=None)

    if not TYPE_CHECKING:  # for type checkers the resources are the SDK's

        @cached_property
        def chat(self) -> Any:
            """Chat completions, as in the SDK."""
            from autobatcher.resources import Chat  # noqa: PLC0415 -- imported at its first use, as the SDK does

            return Chat(self)

        @cached_property
        def embeddings(self) -> Any:
            """Embeddings, as in the SDK."""
            from autobatcher.resources import Embeddings  # noqa: PLC0415 -- as above

            return Embeddings(self)

        @cached_property
        def responses(self) -> Any:
            """Responses, as in the SDK."""
            from autobatcher.responses import Responses  # noqa: PLC0415 -- as above

            return Responses(self)

    @property
    def usage(self) -> Usage:
        """What this client and its copies have bought until now: requests, tokens and, where known, cost.

        Counted are successful answers, of batches and of the realtime calls that take their place, by the usage that
        they state, whether or not anybody still waited for them; a request that was answered in both ways is counted
        twice. Not counted are errors; answers that a journal had; what a batch has answered that was cancelled since
        nobody waited for it, and a realtime call that was broken off since the batch had answered, which servers may
        bill; nor calls that go out at once, of `unbatched` or to other endpoints. The costs are None where a price is
        unknown: the package genai-prices, which the extra "cli" brings, has most of the others.
        """
        return Usage.of(self._collectors.meter.counts)

    @property
    def unbatched(self) -> Self:
        """This client without batching, for the urgent call: everything it is asked goes out at once.

        It shares this client's connections; closing it closes nothing. Copies of it do not batch either.
        """
        return self.copy(_extra_kwargs={"_batched": False})

    def copy(self, *_: Any, **kwargs: Any) -> Self:
        """A client with some options changed, as in the SDK; the batch options can be changed as well.

        The copy's calls share batches with this client's unless they would reach another server, go out under
        another identity, with other default headers, or by other batch options. Closing the copy does not close
        this client.
        """
        own: dict[str, Any] = {name: getattr(self._options, name) for name in BATCH_OPTIONS}
        own.update(_parent=self, _batched=self._batched, _scope=self._scope)
        own.update(kwargs.pop("_extra_kwargs", None) or {})
        for name in BATCH_OPTIONS & kwargs.keys():
            given = kwargs.pop(name)
            if not isinstance(given, openai.NotGiven):
                own[name] = given
        return super().copy(**kwargs, _extra_kwargs=own)

    with_options = copy

    def _apart(self, **options: Any) -> Self:
        """A copy that shares this client's connections and nothing else: its `_collectors` are to be closed."""
        return self.copy(**options, _extra_kwargs={"_apart": True})

    def is_closed(self) -> bool:
        """Whether `close` was called, here or on the HTTP client."""
        return self._collectors.closed or super().is_closed()

    async def close(self) -> None:
        """Give every caller that still waits a `ClientClosedError`, then close the HTTP client.

        Batches that are at the server go on there; with `cancel_active_batches_on_close` they are cancelled, which
        takes up to 30 s if the server is slow to answer. A copy that shares its parent's connections closes nothing.
        """
        if self._owns_pool:
            await self._collectors.close()
            await self._pool.close()

    async def request(
        self,
        cast_to: Any,
        options: FinalRequestOptions,
        *,
        stream: bool = False,
        stream_cls: Any = None,
    ) -> Any:
        """Every call of the SDK ends here: those that a batch can carry join one, all others go out at once.

        Raises:
            openai.APIStatusError: what the realtime call would have raised for this request.
            openai.APIError: the batch, or a call for it, failed.
            RequestTooLargeError: the request fits into no batch file.
            ClientClosedError: the client was closed before the answer came.
            DeadlineError: there was no answer by the deadline.
            TypeError: the body cannot be encoded, or is none that a batch can carry.
        """
        path = batched_path(options.method, self._path(options))
        if path is None or not self._batched:
            return await super().request(cast_to, options, stream=stream, stream_cls=stream_cls)
        promise = self._promise(path, cast_to, options, stream=stream, stream_cls=stream_cls)
        return promise if unwinds() else await promise

    def _promise(
        self, path: str, cast_to: Any, options: FinalRequestOptions, *, stream: bool, stream_cls: Any
    ) -> Promise:
        """The answer to come, with the request's body as the line of a file and nothing else of what it was made of."""
        cast_to = self._maybe_override_cast_to(cast_to, options)
        fields = self._fields(path, options)
        self._collectors.note_left_out(options.headers, options.params)
        options = _for_a_line(options, fields)
        request = self._build_request(options)
        collector = self._collector
        entry = collector.entry(
            path,
            model_name(fields),
            request.content,
            self._terms,
            weight=weight(path, fields),
            retries=options.get_max_retries(self.max_retries),
        )
        options.json_data = None
        asked = {name: fields.get(name) for name in ("stream", "stream_options")}
        call = Call(path, asked, Head.of(request), cast_to, options, stream, stream_cls)
        return Promise(partial(self._answer, collector, entry, call))

    def _plain_answer(self, call: PlainCall, fields: Mapping[str, Any]) -> Coroutine[Any, Any, Any] | None:
        """The same for a call whose arguments are the fields of its body, without the SDK's way to a request.

        Returns None for one that needs the SDK.
        """
        body = plain_body(fields)
        if body is None or not self._plain:
            return None
        collector = self._collector
        entry = collector.entry(
            call.path,
            fields["model"],
            body,
            self._terms,
            weight=1,
            retries=self.max_retries,
            fields=fields,
        )
        return self._answer(collector, entry, call)

    async def _exchange(
        self,
        path: str,
        body: bytes,
        fields: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        idempotency: str | None = None,
        hurries: Callable[[], bool] | None = None,
    ) -> Answer:
        """The answer to one request of a batch as the server gave it, whatever its status.

        Args:
            path: below the base URL, such as "chat/completions".
            body: JSON text in UTF-8, which says nothing of streaming.
            fields: what it was decoded to.
            headers: those of a realtime call, if it comes to one.
            idempotency: with a journal, a later call with this one and an equal body gets the same answer again.
            hurries: tells, when a deadline leads to a realtime call, whether anybody would have it; if nobody would, the
                deadline raises.

        Raises:
            openai.OpenAIError: as from `request`, but for what the answer says.
        """
        collector = self._collector
        entry = collector.entry(
            path,
            model_name(fields),
            body,
            self._terms,
            weight=weight(path, fields),
            retries=self.max_retries,
            fields=fields,
            idempotency=idempotency,
        )
        answer: Answer = await self._answer(
            collector, entry, PlainCall(path, None, headers or {}, None, hurries)
        )
        return answer

    async def _answer(self, collector: Collector, entry: Request, call: Call | PlainCall) -> Any:
        # Each waiting call is this coroutine, its request and its reply; what else it needs comes with the answer.
        outcome: Outcome = _CLOSED
        while isinstance(outcome, Closed):
            driver = self._collectors.driver(collector)
            if driver is None:
                break
            try:
                entry = driver.submit(entry)
            except OversizedError as error:
                raise RequestTooLargeError(str(error)) from None
            try:
                outcome = await entry.reply.wait()
                if not isinstance(outcome, Answer):
                    outcome = await self._instead(driver, entry, call, outcome)
            except BaseException:
                driver.leave(entry)
                raise
            if entry.host is None:
                break
            driver.settled(entry)  # which another client followed; if that is closed, this one goes on
        if isinstance(call, PlainCall):
            result = plain_result(call, outcome) if self._plain else None
            if result is not None:
                return result
            call = self._call(call)
        return await to_result(self, call, entry.line, outcome, entry.accepted_at)

    async def _instead(
        self,
        driver: Driver,
        entry: Request,
        call: Call | PlainCall,
        outcome: Outcome,
    ) -> Outcome:
        """What a caller gets whose request has no answer by now: by the options, it is asked for in real time."""
        match outcome:
            case Overdue(batch_id):
                if self._options.on_deadline == "realtime" and _hurries(call):
                    return await self._in_real_time(driver, entry, call, "deadline", batch_id)
                driver.leave(entry)
            case LineFailed(code, _, batch_id) if code == EXPIRED and self._options.on_expired == "realtime":
                return await self._in_real_time(driver, entry, call, "expired", batch_id)
            case Unanswered(batch_id, "expired") if self._options.on_expired == "realtime":
                return await self._in_real_time(driver, entry, call, "expired", batch_id)
        return outcome

    async def _in_real_time(
        self,
        driver: Driver,
        entry: Request,
        call: Call | PlainCall,
        reason: str,
        batch_id: str | None,
    ) -> Outcome:
        """Make the realtime call; the first answer counts, be it that call's or yet that of the batch.

        A close ends the wait, and so does the deadline of a caller that wants the error, if it is yet to come.
        """
        started = driver.now()
        bought = False
        outcome: Outcome | None = None
        known = anyio.Event()

        async def ask() -> None:
            nonlocal outcome, bought
            try:
                async with driver.realtime:
                    answer = await self._called(call, entry)
                if outcome is None:
                    outcome = driver.answer(entry, answer)
                    bought = True
            except Exception as error:  # noqa: BLE001 -- the caller's, who gets it as it is
                outcome = outcome or CallFailed(error)
            known.set()

        async def follow() -> None:
            nonlocal outcome
            found = await self._other_word(driver, entry, batch_id)
            outcome = outcome or found
            known.set()

        if reason == "expired":
            driver.expect(entry, deadline=True)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                tasks.start_soon(follow)
                await known.wait()
                tasks.cancel_scope.cancel()
        finally:
            driver.expected(entry)
        if outcome is None:
            raise AssertionError("a realtime call ends with an outcome")
        if not isinstance(outcome, Answer | Closed):
            driver.leave(entry)
        duration = driver.now() - started
        driver.publish(RealtimeCalled(batch_id, entry.endpoint, entry.model, reason, bought, duration))
        return outcome

    async def _other_word(self, driver: Driver, entry: Request, batch_id: str | None) -> Outcome:
        """What ends the wait for a realtime call: the batch's answer after all, a close, or a deadline."""
        while True:
            found: Outcome = await entry.reply.wait()
            match found:
                case Overdue(_, age):  # whatever else comes is for the next reply
                    if self._options.on_deadline == "raise":
                        return Overdue(batch_id, age)
                case Closed():
                    return found
                case Answer(status) if is_success(status):
                    return found
                case _:  # its batch has failed, and the call goes on
                    driver.expect(entry, deadline=False)

    async def _called(self, call: Call | PlainCall, entry: Request) -> Answer:
        """Send a request of a batch as the SDK would have sent it at once.

        Raises:
            openai.OpenAIError: as the SDK, after its retries.
        """
        if not isinstance(call, Call):
            call = self._call(call)
        options = model_copy(call.options)
        options.headers = {  # but for what a line has in place of a key, and a result that the caller is to get
            name: value
            for name, value in (options.headers or {}).items()
            if not (isinstance(value, openai.Omit) or name.lower() == RAW_RESPONSE_HEADER.lower())
        }
        options.json_data = json.loads(body_of(whole(entry.line)))
        return answer_of(await super().request(httpx.Response, options))

    def _call(self, plain: PlainCall) -> Call:
        """What the SDK would have made of a call that did not need it."""
        options = FinalRequestOptions.construct(method="post", url=f"/{plain.path}")
        options.headers = {"Authorization": openai.Omit(), **plain.headers}
        options.json_data = {}  # stands in for the body, of which there are headers as well
        if plain.post_parser is not None:
            options.post_parser = plain.post_parser
        head = Head.of(self._build_request(options))
        options.json_data = None
        return Call(plain.path, {}, head, plain.cast_to, options, stream=False, stream_cls=None)

    @property
    def _waits_outside(self) -> bool:
        """Whether a call's way through the SDK's methods may be gone without waiting: nobody listens there."""
        return self._batched and function_of(self.request) is _REQUEST

    @property
    def _plain(self) -> bool:
        """Whether the fields of a call are its body, validated answers are its results, and nobody can tell."""
        return not (self._strict_response_validation or is_hooked(self))

    def _path(self, options: FinalRequestOptions) -> str:
        """Where a call goes below the base URL."""
        return options.url.removeprefix(str(self.base_url))

    def _line_url(self, path: str) -> str:
        """The url of a line of such a call."""
        return line_url(self._base_url.raw_path, path)

    def _fields(self, _path: str, options: FinalRequestOptions) -> dict[str, Any]:
        """The fields of the body, merged as the SDK merges them."""
        body, content = options.json_data, getattr(options, "content", None)
        if body is None and isinstance(content, (bytes, str)):
            body = _parsed(content)
        if options.files or not isinstance(body, (Mapping, type(None))):
            raise TypeError("a batched call takes a JSON object as its body")
        if options.extra_json is None:
            return {**(body or {})}
        merged = {**(body or {}), **options.extra_json}
        return {key: value for key, value in merged.items() if not isinstance(value, openai.Omit)}

    @property
    def _collector(self) -> Collector:
        """The collector for calls as this client would send them now."""
        return self._collectors.one(self._identity(), self._shared_options, self._pool, self._sender)

    def _sender(self, **changes: Any) -> Self:
        """This client as it is now, to make the calls for its batches: without what has been put on it since.

        A subclass may have a constructor of its own, so none is called. Methods that were replaced are left behind,
        for wrappers are for callers' calls, and so are resources, which lead back to this client.
        """
        sender = object.__new__(type(self))
        for name, value in self.__dict__.items():
            if not isinstance(getattr(type(self), name, None), (FunctionType, cached_property)):
                sender.__dict__[name] = value
        sender.__dict__.update(changes)
        return sender

    def _identity(self) -> tuple[Any, ...]:
        return (  # what differs most comes first: it is compared with others from the left
            self._scope,
            self._api_key_provider or self.api_key,
            self._base_url,
            self.organization,
            self.project,
            getattr(self, "workload_identity", None),  # of later versions of openai 2, as the next
            getattr(self, "_provider", None),
            {**self._custom_headers},
            {**self._custom_query},
            self._shared_options,
            self._pool,
        )


BATCH_OPTIONS = frozenset(BatchOptions.__dataclass_fields__)
_REQUEST = Batching.request
_CLOSED = Closed(None)


def _hurries(call: Call | PlainCall) -> bool:
    return isinstance(call, Call) or call.hurries is None or call.hurries()


def _for_a_line(options: FinalRequestOptions, fields: dict[str, Any]) -> FinalRequestOptions:
    """The options of an HTTP request that has a line's body.

    It is never sent. So it needs no key, and none is asked for; and it says nothing of streaming, for what a batch
    answers is whole.
    """
    options = model_copy(options)
    fields = {key: value for key, value in fields.items() if key not in ("stream", "stream_options")}
    options.json_data, options.extra_json = fields, None
    if getattr(options, "content", None) is not None:
        options.content = None
    options.headers = {"Authorization": openai.Omit(), **(options.headers or {})}
    return options


def _parsed(content: bytes | str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content


@with_batch_options(openai.AsyncOpenAI)
class BatchOpenAI(OpenAISignatures, Batching):
    """An `openai.AsyncOpenAI` whose chat completions, embeddings and responses travel in batches.

    Takes every argument and environment variable of `openai.AsyncOpenAI`, with its meaning; `timeout` is
    that of the single HTTP calls, and `max_retries` says how often a request goes into another batch whose answer is
    an error that may pass (408, 409, 429, 5xx). Calls that are made within one window and name the same
    endpoint and model become one batch; each caller gets the object, or the exception, of its realtime call. All
    other methods (models, files, batches, images, ...) are the SDK's own.

    `parse`, `with_raw_response`, `with_streaming_response`, `stream=True` and `stream()` go through batches as well;
    a stream yields the finished answer. `extra_headers` and `extra_query` of a call have no place in a batch file:
    they are left out, which the log says once. A call's `timeout` does not bound the wait for its batch.

    Works with asyncio and trio, with and without `async with`, and in one event loop after another.

    Args:
        batch_size: requests that close a window at once; default 1000.
        batch_window_seconds: how long a window stays open after its first request; default 1 s.
        poll_interval_seconds: time between polls of a young batch, default 5 s; grows to 2% of the batch's age, at
            most 10 minutes.
        completion_window: the server's time for a batch, default "24h"; any value the server takes.
        batch_metadata: attached to every batch: up to 16 pairs of str.
        patience_seconds: for how long the calls for a batch may fail on end, in ways that may pass, before its
            callers get the error; default 86,400 s.
        max_active_batches: batches at the server at a time; default None, any number. The rest waits its turn.
        max_enqueued_tokens: prompt tokens of one model at the server at a time, estimated from bytes and corrected
            by the answers' usage; default None, any number.
        cancel_active_batches_on_close: whether `close` cancels the batches at the server; default False.
        deadline_seconds: for how long a call waits at most, from when its request was accepted; default None, for as
            long as it takes. Copies made by `with_options` may have another one, and share batches all the same; so
            with the next two.
        on_deadline: "raise" (the default): the call raises a `DeadlineError`, and its request is withdrawn; an answer
            that comes later still goes into the journal. "realtime": the request goes out as a realtime call, and the
            first answer counts; a batch that nobody waits for any more is cancelled. Then a call may wait longer by
            what the realtime call takes, with its retries and the wait for its turn.
        on_expired: what becomes of the requests that an expired batch leaves: "resubmit" (the default) puts them into
            another batch, "realtime" asks in real time, "raise" gives their callers the error.
        max_realtime_calls: how many such realtime calls are under way at a time; default 100.
        journal: a file that keeps requests, batches and answers, so that the same program, run again, goes on where
            it was; or a `Journal` of one's own. Default: what the environment variable AUTOBATCHER_JOURNAL names,
            or none.
        progress: whether stderr shows how the batches come along: as a table where it is a terminal, else as lines;
            default False. Needs `pip install "autobatcher[cli]"`.
        **kwargs: the arguments of `openai.AsyncOpenAI`.

    Raises:
        ValueError: a batch option makes no sense; the message says what is allowed.
        TypeError: a batch option is of a wrong type.
        JournalError: the journal cannot be used: another process has it, it is none, it is damaged, or it
            may only be read.
        ImportError: `progress=True` without rich; the message says how to install it.
        openai.OpenAIError: as from `openai.AsyncOpenAI`, such as for a missing API key.
    """


_CALL_OF_A_DEPLOYMENT = re.compile(r"/?deployments/(?P<name>[^/]+)(?P<path>/.*)")
_OF_A_DEPLOYMENT = re.compile(rb"(?P<endpoint>.*)/openai/deployments/(?P<name>[^/]+)/?")


@with_batch_options(openai.AsyncAzureOpenAI)
class BatchAzureOpenAI(AzureSignatures, Batching, openai.AsyncAzureOpenAI):
    """An `openai.AsyncAzureOpenAI` whose chat completions, embeddings and responses travel in batches.

    Takes every argument and environment variable of `openai.AsyncAzureOpenAI`, and the batch options of
    `BatchOpenAI`; what is said there holds here. Models are names of deployments, which must be of the type Global
    Batch or Data Zone Batch; a client made for one deployment (`azure_deployment`, or a `base_url` that ends in it)
    uses that one, whatever model a call names, as the SDK does. The url of a line is "/chat/completions" or
    "/v1/responses". Azure takes no embeddings in batches: they raise what it answers; `unbatched` makes them.

    Source: https://learn.microsoft.com/azure/foundry/openai/how-to/batch
    """

    @property
    def _plain(self) -> bool:
        return False  # the model of a line depends on more than the call's fields

    def _complete(self) -> None:
        found = _OF_A_DEPLOYMENT.fullmatch(self.base_url.raw_path)
        if found is not None and self._azure_endpoint is None:
            # A base URL that names a deployment, of a copy (openai 2) or of the user's: the SDK knows by these
            # where the calls go that belong to no deployment, such as those for files and batches.
            self._azure_endpoint = self.base_url.copy_with(raw_path=found["endpoint"] or b"/")
            self._azure_deployment = unquote(found["name"].decode())

    def _path(self, options: FinalRequestOptions) -> str:
        path = super()._path(options)
        found = _CALL_OF_A_DEPLOYMENT.fullmatch(path)  # as code for Azure writes by hand
        return path if found is None else found["path"]

    def _line_url(self, path: str) -> str:
        return "/v1/responses" if path == "responses" else f"/{path}"

    def _fields(self, path: str, options: FinalRequestOptions) -> dict[str, Any]:
        fields = super()._fields(path, options)
        if found := _CALL_OF_A_DEPLOYMENT.fullmatch(super()._path(options)):
            return {**fields, "model": unquote(found["name"])}
        if self._azure_deployment is not None and path != "responses":  # these belong to no deployment
            fields["model"] = self._azure_deployment
        return fields

    def _identity(self) -> tuple[Any, ...]:
        return (*super()._identity(), self._azure_ad_token, self._azure_ad_token_provider)


AsyncOpenAI = BatchOpenAI
