"""The public surface of the clients against that of the SDK's: the same names, signatures and resource classes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import openai
import pytest

from autobatcher import BatchAzureOpenAI, BatchOpenAI, resources, responses
from autobatcher.options import BatchOptions


class Pair(NamedTuple):
    sdk: type[openai.AsyncOpenAI]
    ours: type[openai.AsyncOpenAI]
    arguments: dict[str, Any]

    def instances(self) -> tuple[openai.AsyncOpenAI, openai.AsyncOpenAI]:
        return self.sdk(**self.arguments), self.ours(**self.arguments)


PAIRS = {
    "openai": Pair(openai.AsyncOpenAI, BatchOpenAI, {"api_key": "k", "organization": "o", "project": "p"}),
    "azure": Pair(
        openai.AsyncAzureOpenAI,
        BatchAzureOpenAI,
        {"api_key": "k", "azure_endpoint": "https://a.test", "api_version": "2024-10-21"},
    ),
}

BATCH_OPTIONS: dict[str, Any] = {
    "batch_size": 1000,
    "batch_window_seconds": 1.0,
    "poll_interval_seconds": 5.0,
    "completion_window": "24h",
    "batch_metadata": None,
    "patience_seconds": 86_400.0,
    "max_active_batches": None,
    "max_enqueued_tokens": None,
    "cancel_active_batches_on_close": False,
    "deadline_seconds": None,
    "on_deadline": "raise",
    "on_expired": "resubmit",
    "max_realtime_calls": 100,
    "journal": None,
    "on_event": None,
    "progress": False,
}

TAKES_BATCH_OPTIONS = {
    "__init__": "the batch options with their defaults come after the SDK's own parameters",
    "copy": "the batch options can be changed; those that are not given stay",
    "with_options": "another name for copy, as in the SDK",
}
OVERRIDDEN = {
    "request": "the seam: every call of the SDK ends in it; annotated Any where the SDK's has TypeVars",
    "close": "settles the callers that wait",
    "is_closed": "a closed client is closed though its HTTP client be the caller's",
}
LET_GO_OF_ARGUMENTS: dict[str, tuple[type, set[str]]] = {
    "chat": (resources.Chat, {"completions"}),
    "chat.completions": (resources.Completions, {"create", "parse"}),
    "embeddings": (resources.Embeddings, {"create"}),
    "responses": (responses.Responses, {"create", "parse"}),
}
"""The resources that are subclasses of the SDK's, with all that they override."""
ADDED = {"unbatched": "the same client without batching", "usage": "what was bought through batches"}
OTHER_VALUES = {
    "user_agent": "the SDK puts the name of the client's class in front",
    "default_headers": "holds the user agent",
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return PAIRS[request.param]


def public(value: object) -> set[str]:
    return {name for name in dir(value) if not name.startswith("_")}


def parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def shape(parameter: inspect.Parameter) -> tuple[str, Any, Any]:
    return parameter.name, parameter.kind, parameter.default


def test_the_classes_have_the_same_public_names(pair: Pair) -> None:
    assert public(pair.ours) == public(pair.sdk) | ADDED.keys()


def test_the_instances_have_the_same_public_names(pair: Pair) -> None:
    realtime, batching = pair.instances()
    assert public(batching) == public(realtime) | ADDED.keys()


def test_no_other_attribute_of_the_class_differs_than_the_tables_say(pair: Pair) -> None:
    differing = {
        name
        for name in public(pair.sdk) | {"__init__"}
        if inspect.getattr_static(pair.sdk, name) is not inspect.getattr_static(pair.ours, name)
    }
    batched = {"chat", "embeddings", "responses"}
    assert differing == TAKES_BATCH_OPTIONS.keys() | OVERRIDDEN.keys() | batched
    for name in batched:  # made in the same way, at the first use
        sdk, ours = (inspect.getattr_static(cls, name) for cls in (pair.sdk, pair.ours))
        assert type(ours) is type(sdk)


@pytest.mark.parametrize("name", TAKES_BATCH_OPTIONS)
def test_the_sdks_parameters_stay_and_the_batch_options_follow(pair: Pair, name: str) -> None:
    expected = parameters(getattr(pair.sdk, name))
    got = parameters(getattr(pair.ours, name))
    assert got[: len(expected)] == expected
    added = got[len(expected) :]
    assert [option.name for option in added] == list(BATCH_OPTIONS)
    assert {option.kind for option in added} == {inspect.Parameter.KEYWORD_ONLY}
    for option in added:
        default = BATCH_OPTIONS[option.name] if name == "__init__" else openai.NOT_GIVEN
        assert option.default == default, option
    result = inspect.signature(getattr(pair.ours, name)).return_annotation
    assert result == inspect.signature(getattr(pair.sdk, name)).return_annotation


def test_the_batch_options_are_those_that_are_checked() -> None:
    assert {name: field.default for name, field in BatchOptions.__dataclass_fields__.items()} == BATCH_OPTIONS


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_take_the_same_parameters(pair: Pair, name: str) -> None:
    sdk, ours = getattr(pair.sdk, name), getattr(pair.ours, name)
    assert [shape(parameter) for parameter in parameters(ours)] == [
        shape(parameter) for parameter in parameters(sdk)
    ]
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(sdk)


def test_with_options_is_copy(pair: Pair) -> None:
    assert inspect.getattr_static(pair.ours, "with_options") is inspect.getattr_static(pair.ours, "copy")


def test_a_copy_and_the_unbatched_client_are_of_the_class(pair: Pair) -> None:
    _, batching = pair.instances()
    assert type(batching.copy()) is pair.ours
    assert type(batching.with_options(max_retries=0)) is pair.ours
    assert type(batching.unbatched) is pair.ours  # type: ignore[attr-defined] # both of ours have it


def test_plain_attributes_have_the_same_values(pair: Pair) -> None:
    realtime, batching = pair.instances()
    plain = {name for name in public(realtime) - OTHER_VALUES.keys() if is_plain(getattr(realtime, name))}
    for name in plain - {"qs"}:
        assert getattr(batching, name) == getattr(realtime, name), name
    assert vars(batching.qs) == vars(realtime.qs)
    assert {"api_key", "base_url", "max_retries", "timeout", "auth_headers"} <= plain


def is_plain(value: object) -> bool:
    """Whether it is data: no method, no resource."""
    return not callable(value) and not is_resource(value)


def is_resource(value: object) -> bool:
    """Whether it is a resource or a view of one, such as `with_raw_response`."""
    return type(value).__module__.startswith(("openai.resources.", "openai._client"))


def members(realtime: object, batching: object, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Each public member of a client's resources and their views, all the way down."""
    for name in sorted(public(realtime)):
        first, second = getattr(realtime, name), getattr(batching, name)
        yield f"{path}.{name}", first, second
        if is_resource(first):
            yield from members(first, second, f"{path}.{name}")


def test_the_resources_are_the_sdks_own_or_subclasses_all_the_way_down(pair: Pair) -> None:
    realtime, batching = pair.instances()
    paths = set()
    for name in sorted(public(realtime)):
        if is_resource(getattr(realtime, name)):
            top = (name, getattr(realtime, name), getattr(batching, name))
            for path, first, second in (top, *members(*top[1:], name)):
                paths.add(path)
                if path in LET_GO_OF_ARGUMENTS:
                    assert type(second) is LET_GO_OF_ARGUMENTS[path][0], path
                    assert type(second).__mro__[1:] == type(first).__mro__, path
                else:
                    assert type(second) is type(first), path
                if is_resource(first):
                    assert public(second) == public(first), path
                    assert vars(second).keys() == vars(first).keys(), path
                elif callable(first):
                    assert inspect.signature(second) == inspect.signature(first), path
                    assert inspect.iscoroutinefunction(second) == inspect.iscoroutinefunction(first), path
                    assert second.__name__ == first.__name__, path
                    assert second.__doc__ == first.__doc__, path
                    parent, _, method = path.rpartition(".")
                    if method not in LET_GO_OF_ARGUMENTS.get(parent, (None, set()))[1]:
                        assert getattr(second, "__func__", None) is getattr(first, "__func__", None), path
                    else:
                        assert inspect.unwrap(second.__func__) is inspect.unwrap(first.__func__), path
    assert {
        "chat.completions.create",
        "chat.completions.parse",
        "chat.completions.stream",
        "chat.completions.with_raw_response.parse",
        "chat.with_streaming_response.completions.create",
        "embeddings.create",
        "responses.parse",
        "responses.with_streaming_response.create",
        "with_raw_response.embeddings.create",
        "files.content",
    } <= paths


def test_the_batched_resources_are_openais_with_a_few_methods_overridden(pair: Pair) -> None:
    _, batching = pair.instances()
    for path, (cls, overridden) in LET_GO_OF_ARGUMENTS.items():
        resource: Any = batching
        for name in path.split("."):
            resource = getattr(resource, name)
        assert {name for name in vars(cls) if not name.startswith("__")} == overridden
        assert resource._client is batching
        assert vars(resource).keys().isdisjoint({"create", "parse", "stream"})
        assert type(resource) is cls


def test_a_copy_and_the_unbatched_client_have_the_same_resources(pair: Pair) -> None:
    _, batching = pair.instances()
    for client in (batching.copy(), batching.unbatched):  # type: ignore[attr-defined] # both of ours have it
        completions: Any = client.chat.completions
        assert type(completions) is resources.Completions
        assert completions._client is client
