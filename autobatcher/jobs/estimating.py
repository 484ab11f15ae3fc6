"""What a job will use and cost, before anything is sent."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from autobatcher.core.endpoints import model_name
from autobatcher.jobs.items import InputError, Item, Source
from autobatcher.prices import Price, Prices
from autobatcher.usage import total

WINDOWS = (None, "24h", "1h")
"""What costs are said for: real time, and the completion windows that servers offer."""

TIKTOKEN = "tiktoken"
BYTES = "4 bytes a token"
"""How tokens are counted, by a tokenizer or by the bytes of their text in UTF-8."""

FETCH_SECONDS = 15.0
"""For how long a vocabulary of tiktoken may take to come; it is some megabytes, and kept."""

PIECE = 100_000
"""Characters that tiktoken gets at a time: a million blanks are more than it can take. A cut costs a token at most."""

PER_MESSAGE, PER_NAME, PER_REPLY = 3, 1, 3
"""Tokens that a message of a chat takes beside its text, a name in it, and the beginning of the answer.

Source: https://github.com/openai/openai-cookbook/blob/main/examples/How_to_count_tokens_with_tiktoken.ipynb
"""

Count = Callable[[str], int]
"""The tokens of a text."""


@dataclass(frozen=True)
class EstimateLine:
    """What the requests for one model at one endpoint will use.

    Attributes:
        endpoint: the url of the lines, such as "/v1/chat/completions".
        model: as the bodies name it.
        requests: how many there are.
        prompt_tokens: of the text in them; of parts that are no text, nothing is known here.
        output_tokens: the most that their answers can have, or what was said to be expected; None if unknown.
        limited: whether `output_tokens` are the limits in the bodies.
        exact: whether a tokenizer has counted, and not `BYTES`.
        uncounted: the kinds of parts that were not counted, such as "image_url".
        as_json: the fields that were counted as their JSON text, which is not what a model sees: "tools" and the like.
        base_url: the server whose prices are taken; None: OpenAI.
    """

    endpoint: str
    model: str
    requests: int
    prompt_tokens: int
    output_tokens: int | None
    limited: bool
    exact: bool
    uncounted: tuple[str, ...]
    as_json: tuple[str, ...]
    base_url: str | None
    prices: Prices = field(repr=False, compare=False)

    @property
    def method(self) -> str:
        """How the tokens were counted, in words."""
        return TIKTOKEN if self.exact else BYTES

    def price(self, window: str | None = None) -> Price | None:
        """Of the model in batches with this completion window, or in real time; None if unknown."""
        return self.prices.of(self.model, base_url=self.base_url, window=window)

    def cost(self, window: str | None = None) -> float | None:
        """In USD, in batches with this completion window, or in real time; None if price or output are unknown."""
        price = self.price(window)
        if price is None or self.output_tokens is None:
            return None
        return price.cost(self.prompt_tokens, self.output_tokens)


@dataclass(frozen=True)
class Estimate:
    """What a job will use.

    Attributes:
        lines: by endpoint and model, in the order in which they come first.
        problems: why tokens could not be counted with tiktoken, in words for people.
    """

    lines: tuple[EstimateLine, ...]
    problems: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """Of all lines."""
        return sum(line.requests for line in self.lines)

    @property
    def prompt_tokens(self) -> int:
        """Of all lines."""
        return sum(line.prompt_tokens for line in self.lines)

    @property
    def output_tokens(self) -> int | None:
        """Of all lines; None if those of any are unknown."""
        found = [line.output_tokens for line in self.lines]
        return None if None in found else sum(tokens for tokens in found if tokens is not None)

    @property
    def limited(self) -> bool:
        """Whether there are limits of bodies among the output tokens."""
        return any(line.limited for line in self.lines)

    @property
    def exact(self) -> bool:
        """Whether a tokenizer has counted all."""
        return all(line.exact for line in self.lines)

    def cost(self, window: str | None = None) -> float | None:
        """Of all lines, in USD; None if that of any is unknown."""
        return total(line.cost(window) for line in self.lines)


def estimate(
    source: Source,
    *,
    prices: Prices | None = None,
    count: Callable[[str], Count | None] | None = None,
    base_url: str | None = None,
    output_tokens: int | None = None,
    moved: Callable[[int], object] = lambda _: None,
) -> Estimate:
    """Say what the requests of a source will use and cost; it is read once, and nothing of it is kept.

    Args:
        source: where the requests come from.
        prices: known prices, with overrides; default `Prices()`.
        count: gives for a model what counts the tokens of a text, or None if that is unknown; by default tiktoken,
            which fetches the vocabulary of a model from the network when it is first used on a machine.
        base_url: the server whose prices are taken; None: OpenAI.
        output_tokens: what an answer is expected to have, where its body has no lower limit; None: the body's limit
            (`max_completion_tokens`, `max_tokens`, `max_output_tokens`), and unknown where it has none.
        moved: called now and then with how many bytes have been read.

    Raises:
        InputError: the input is not what it should be, or has no requests.
    """
    tiktoken = _Tiktoken()
    prices = prices or Prices()
    sums: dict[tuple[str, str], _Sum] = {}
    for item in source.items(moved):
        fields = _fields(source, item)
        model = model_name(fields)
        added = sums.get((item.url, model))
        if added is None:
            added = sums[item.url, model] = _Sum((count or tiktoken)(model))
        added.add(item.url, fields, output_tokens)
    if not sums:
        raise InputError(f"{source.path}: has no requests")
    return Estimate(
        tuple(added.line(url, model, base_url, prices) for (url, model), added in sums.items()),
        () if tiktoken.problem is None else (tiktoken.problem,),
    )


def _fields(source: Source, item: Item) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(item.body)
    except ValueError as error:
        raise InputError(f"{source.path}: {item.custom_id}: the body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{source.path}: {item.custom_id}: the body is no JSON object")
    return fields


def bytes_by_four(text: str) -> int:
    """The tokens of a text, estimated."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


class _Sum:
    """What was added up for an endpoint and a model."""

    def __init__(self, count: Count | None) -> None:
        self._exact = count is not None
        self._count = count or bytes_by_four
        self._requests = self._prompt = 0
        self._output: int | None = 0
        self._limited = False
        self._prompts = _Prompt(0)

    def add(self, url: str, fields: Mapping[str, Any], expected: int | None) -> None:
        prompt = _Prompt(0)
        _reader(url)(fields, prompt)
        self._requests += 1
        self._prompt += prompt.tokens + sum(map(self._count, prompt.texts))
        self._prompts.uncounted.update(prompt.uncounted)
        self._prompts.as_json.update(prompt.as_json)
        limit, choices = _limit(url, fields)
        if limit is None or (expected is not None and expected <= limit):
            limit = expected
        else:
            self._limited |= limit > 0
        self._output = None if limit is None or self._output is None else self._output + limit * choices

    def line(self, url: str, model: str, base_url: str | None, prices: Prices) -> EstimateLine:
        return EstimateLine(
            url,
            model,
            self._requests,
            self._prompt,
            self._output,
            self._limited and self._output is not None,
            self._exact,
            tuple(sorted(self._prompts.uncounted)),
            tuple(sorted(self._prompts.as_json)),
            base_url,
            prices,
        )


@dataclass
class _Prompt:
    """What of a body becomes tokens: texts, and tokens that there are beside them."""

    tokens: int
    texts: list[str] = field(default_factory=list)
    uncounted: set[str] = field(default_factory=set)
    as_json: set[str] = field(default_factory=set)

    def add(self, *texts: Any) -> None:
        self.texts += [text for text in texts if isinstance(text, str)]

    def add_json(self, name: str, value: Any) -> None:
        if value:
            self.texts.append(msgspec.json.encode(value).decode())
            self.as_json.add(name)

    def add_content(self, content: Any) -> None:
        """A text, or parts of which some are texts."""
        self.add(content)
        for part in _objects(content):
            texts = [part[name] for name in ("text", "refusal") if isinstance(part.get(name), str)]
            self.add(*texts)
            if not texts:
                self.uncounted.add(str(part.get("type")))


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (each for each in value if isinstance(each, dict))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _chat(fields: Mapping[str, Any], prompt: _Prompt) -> None:
    for message in _objects(fields.get("messages")):
        prompt.tokens += PER_MESSAGE + PER_NAME * ("name" in message)
        prompt.add(*(value for name, value in message.items() if name != "content"))
        prompt.add_content(message.get("content"))
        for call in _objects(message.get("tool_calls")):
            function = _object(call.get("function"))
            prompt.add(function.get("name"), function.get("arguments"))
    prompt.tokens += PER_REPLY
    prompt.add_json("tools", fields.get("tools"))
    prompt.add_json("functions", fields.get("functions"))
    prompt.add_json("response_format", _object(fields.get("response_format")).get("json_schema"))


def _response(fields: Mapping[str, Any], prompt: _Prompt) -> None:
    prompt.add(fields.get("instructions"))
    given = fields.get("input")
    prompt.add(given)
    prompt.tokens += PER_REPLY + PER_MESSAGE * (isinstance(given, str) + ("instructions" in fields))
    for item in _objects(given):
        prompt.tokens += PER_MESSAGE
        prompt.add(*(item.get(name) for name in ("role", "name", "arguments")))
        for name in ("content", "output"):
            prompt.add_content(item.get(name))
        if item.get("type", "message") not in _ITEMS:
            prompt.uncounted.add(str(item["type"]))
    prompt.add_json("tools", fields.get("tools"))
    prompt.add_json("text.format", _object(_object(fields.get("text")).get("format")).get("schema"))
    prompt.uncounted.update(
        name for name in ("previous_response_id", "conversation", "prompt") if fields.get(name)
    )


_ITEMS = frozenset({"message", "function_call", "function_call_output"})


def _inputs(fields: Mapping[str, Any], prompt: _Prompt) -> None:
    """A text, several, or tokens themselves."""
    given = fields.get("input", fields.get("prompt"))
    for each in given if isinstance(given, list) else [given]:
        prompt.add(each)
        prompt.tokens += len(each) if isinstance(each, list) else isinstance(each, int)


_READERS: dict[str, Callable[[Mapping[str, Any], _Prompt], None]] = {
    "/chat/completions": _chat,
    "/responses": _response,
}


def _reader(url: str) -> Callable[[Mapping[str, Any], _Prompt], None]:
    return next((reader for ending, reader in _READERS.items() if url.endswith(ending)), _inputs)


def _limit(url: str, fields: Mapping[str, Any]) -> tuple[int | None, int]:
    """The most tokens of a choice that an answer offers, and how many it offers."""
    if url.endswith("/embeddings"):
        return 0, 1
    names = ("max_output_tokens",) if url.endswith("/responses") else ("max_completion_tokens", "max_tokens")
    limits = [limit for name in names if (limit := _whole(fields.get(name))) is not None]
    return (limits[0] if limits else None), _whole(fields.get("n")) or 1


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


class _Tiktoken:
    """Counts by model; `problem` says why it cannot."""

    def __init__(self) -> None:
        self.problem: str | None = None

    def __call__(self, model: str) -> Count | None:
        try:
            import tiktoken  # noqa: PLC0415 -- an extra
        except ModuleNotFoundError:
            self.problem = 'tiktoken is not installed: pip install "autobatcher[cli]"'
            return None
        for name in (model, model.rpartition("/")[2]):
            try:
                vocabulary = tiktoken.encoding_name_for_model(name)
            except KeyError:
                continue
            return None if self.problem else self._fetched(vocabulary)
        return None

    def _fetched(self, vocabulary: str) -> Count | None:
        """Fetched in a thread of its own, for there is no limit to the time that this may take otherwise."""
        found: queue.SimpleQueue[Count | Exception] = queue.SimpleQueue()
        threading.Thread(target=_fetch, args=(vocabulary, found), daemon=True).start()
        try:
            count = found.get(timeout=FETCH_SECONDS)
        except queue.Empty:
            count = TimeoutError()
        if not isinstance(count, Exception):
            return count
        self.problem = f"tiktoken's vocabulary {vocabulary} could not be fetched ({type(count).__name__})"
        return None


def _fetch(vocabulary: str, found: queue.SimpleQueue[Count | Exception]) -> None:
    import tiktoken  # noqa: PLC0415 -- an extra

    try:
        encoding = tiktoken.get_encoding(vocabulary)
    except Exception as error:  # noqa: BLE001 -- of the network, of a proxy, of the disk; all mean the same here
        found.put(error)
    else:
        found.put(lambda text: sum(map(len, map(encoding.encode_ordinary, _pieces(text)))))


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE] for start in range(0, len(text), PIECE))
