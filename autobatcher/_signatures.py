"""The constructors and copy methods of the clients: the SDK's own signatures, with the batch options added.

At run time the signatures are put together from the installed SDK's, so that `inspect.signature` shows what that SDK
takes; for type checkers and editors they are written out as of openai 3.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import openai

from autobatcher.options import BatchOptions

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Mapping

    from openai import NotGiven, Timeout
    from openai._data_residency import DataResidency
    from openai._provider import _Provider
    from openai.auth import WorkloadIdentity, X509WorkloadIdentity
    from openai.lib.azure import AsyncAzureADTokenProvider
    from typing_extensions import Self

    from autobatcher._http import httpx
    from autobatcher.events import Event
    from autobatcher.journal import Journal

    class OpenAISignatures(openai.AsyncOpenAI):
        """`openai.AsyncOpenAI`, with the batch options."""

        def __init__(
            self,
            *,
            api_key: str | Callable[[], Awaitable[str]] | None = None,
            admin_api_key: str | None = None,
            workload_identity: WorkloadIdentity | X509WorkloadIdentity | None = None,
            organization: str | None = None,
            project: str | None = None,
            webhook_secret: str | None = None,
            provider: _Provider | None = None,
            base_url: str | httpx.URL | NotGiven | None = ...,
            data_residency: DataResidency | None = None,
            websocket_base_url: str | httpx.URL | None = None,
            timeout: float | Timeout | NotGiven | None = ...,
            max_retries: int = ...,
            default_headers: Mapping[str, str] | None = None,
            default_query: Mapping[str, object] | None = None,
            http_client: httpx.AsyncClient | None = None,
            _strict_response_validation: bool = False,
            _enforce_credentials: bool = True,
            batch_size: int = 1000,
            batch_window_seconds: float = 1.0,
            poll_interval_seconds: float = 5.0,
            completion_window: str = "24h",
            batch_metadata: Mapping[str, str] | None = None,
            patience_seconds: float = 86_400.0,
            max_active_batches: int | None = None,
            max_enqueued_tokens: int | None = None,
            cancel_active_batches_on_close: bool = False,
            deadline_seconds: float | None = None,
            on_deadline: Literal["raise", "realtime"] = "raise",
            on_expired: Literal["resubmit", "realtime", "raise"] = "resubmit",
            max_realtime_calls: int = 100,
            journal: str | os.PathLike[str] | Journal | None = None,
            on_event: Callable[[Event], object] | None = None,
            progress: bool = False,
        ) -> None: ...

        def copy(
            self,
            *,
            api_key: str | Callable[[], Awaitable[str]] | None = None,
            admin_api_key: str | None = None,
            workload_identity: WorkloadIdentity | X509WorkloadIdentity | None = None,
            provider: _Provider | NotGiven | None = ...,
            organization: str | None = None,
            project: str | None = None,
            webhook_secret: str | None = None,
            websocket_base_url: str | httpx.URL | None = None,
            base_url: str | httpx.URL | NotGiven | None = ...,
            data_residency: DataResidency | None = None,
            timeout: float | Timeout | NotGiven | None = ...,
            http_client: httpx.AsyncClient | None = None,
            max_retries: int | NotGiven = ...,
            default_headers: Mapping[str, str] | None = None,
            set_default_headers: Mapping[str, str] | None = None,
            default_query: Mapping[str, object] | None = None,
            set_default_query: Mapping[str, object] | None = None,
            _enforce_credentials: bool | None = None,
            _extra_kwargs: Mapping[str, Any] = ...,
            batch_size: int | NotGiven = ...,
            batch_window_seconds: float | NotGiven = ...,
            poll_interval_seconds: float | NotGiven = ...,
            completion_window: str | NotGiven = ...,
            batch_metadata: Mapping[str, str] | NotGiven | None = ...,
            patience_seconds: float | NotGiven = ...,
            max_active_batches: int | NotGiven | None = ...,
            max_enqueued_tokens: int | NotGiven | None = ...,
            cancel_active_batches_on_close: bool | NotGiven = ...,
            deadline_seconds: float | NotGiven | None = ...,
            on_deadline: Literal["raise", "realtime"] | NotGiven = ...,
            on_expired: Literal["resubmit", "realtime", "raise"] | NotGiven = ...,
            max_realtime_calls: int | NotGiven = ...,
            journal: str | os.PathLike[str] | Journal | NotGiven | None = ...,
            on_event: Callable[[Event], object] | NotGiven | None = ...,
            progress: bool | NotGiven = ...,
        ) -> Self: ...

        with_options = copy

    class AzureSignatures(openai.AsyncAzureOpenAI):
        """`openai.AsyncAzureOpenAI`, with the batch options."""

        def __init__(
            self,
            *,
            azure_endpoint: str | None = None,
            azure_deployment: str | None = None,
            api_version: str | None = None,
            api_key: str | Callable[[], Awaitable[str]] | None = None,
            admin_api_key: str | None = None,
            workload_identity: WorkloadIdentity | X509WorkloadIdentity | None = None,
            azure_ad_token: str | None = None,
            azure_ad_token_provider: AsyncAzureADTokenProvider | None = None,
            organization: str | None = None,
            project: str | None = None,
            webhook_secret: str | None = None,
            base_url: str | None = None,
            websocket_base_url: str | httpx.URL | None = None,
            timeout: float | Timeout | NotGiven | None = ...,
            max_retries: int = ...,
            default_headers: Mapping[str, str] | None = None,
            default_query: Mapping[str, object] | None = None,
            http_client: httpx.AsyncClient | None = None,
            _strict_response_validation: bool = False,
            _enforce_credentials: bool = True,
            batch_size: int = 1000,
            batch_window_seconds: float = 1.0,
            poll_interval_seconds: float = 5.0,
            completion_window: str = "24h",
            batch_metadata: Mapping[str, str] | None = None,
            patience_seconds: float = 86_400.0,
            max_active_batches: int | None = None,
            max_enqueued_tokens: int | None = None,
            cancel_active_batches_on_close: bool = False,
            deadline_seconds: float | None = None,
            on_deadline: Literal["raise", "realtime"] = "raise",
            on_expired: Literal["resubmit", "realtime", "raise"] = "resubmit",
            max_realtime_calls: int = 100,
            journal: str | os.PathLike[str] | Journal | None = None,
            on_event: Callable[[Event], object] | None = None,
            progress: bool = False,
        ) -> None: ...

        def copy(
            self,
            *,
            api_key: str | Callable[[], Awaitable[str]] | None = None,
            admin_api_key: str | None = None,
            workload_identity: WorkloadIdentity | X509WorkloadIdentity | None = None,
            provider: _Provider | NotGiven | None = ...,
            organization: str | None = None,
            project: str | None = None,
            webhook_secret: str | None = None,
            websocket_base_url: str | httpx.URL | None = None,
            api_version: str | None = None,
            azure_ad_token: str | None = None,
            azure_ad_token_provider: AsyncAzureADTokenProvider | None = None,
            base_url: str | httpx.URL | NotGiven | None = ...,
            data_residency: DataResidency | None = None,
            timeout: float | Timeout | NotGiven | None = ...,
            http_client: httpx.AsyncClient | None = None,
            max_retries: int | NotGiven = ...,
            default_headers: Mapping[str, str] | None = None,
            set_default_headers: Mapping[str, str] | None = None,
            default_query: Mapping[str, object] | None = None,
            set_default_query: Mapping[str, object] | None = None,
            _enforce_credentials: bool | None = None,
            _extra_kwargs: Mapping[str, Any] = ...,
            batch_size: int | NotGiven = ...,
            batch_window_seconds: float | NotGiven = ...,
            poll_interval_seconds: float | NotGiven = ...,
            completion_window: str | NotGiven = ...,
            batch_metadata: Mapping[str, str] | NotGiven | None = ...,
            patience_seconds: float | NotGiven = ...,
            max_active_batches: int | NotGiven | None = ...,
            max_enqueued_tokens: int | NotGiven | None = ...,
            cancel_active_batches_on_close: bool | NotGiven = ...,
            deadline_seconds: float | NotGiven | None = ...,
            on_deadline: Literal["raise", "realtime"] | NotGiven = ...,
            on_expired: Literal["resubmit", "realtime", "raise"] | NotGiven = ...,
            max_realtime_calls: int | NotGiven = ...,
            journal: str | os.PathLike[str] | Journal | NotGiven | None = ...,
            on_event: Callable[[Event], object] | NotGiven | None = ...,
            progress: bool | NotGiven = ...,
        ) -> Self: ...

        with_options = copy

else:

    class OpenAISignatures:
        """Nothing at run time: see `with_batch_options`."""

    AzureSignatures = OpenAISignatures


Class = TypeVar("Class", bound=type)


def with_batch_options(sdk: type[openai.AsyncOpenAI]) -> Callable[[Class], Class]:
    """Class decorator: give `__init__` and `copy` the signatures of the SDK's class and the batch options.

    The SDK's signatures come first, as they are; the batch options follow, keyword only.
    """
    options = inspect.signature(BatchOptions).parameters.values()
    defaults = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
    changes = [option.replace(default=openai.NOT_GIVEN) for option in defaults]

    def decorate(client: Class) -> Class:
        for name, added in (("__init__", defaults), ("copy", changes)):
            signature = inspect.signature(getattr(sdk, name))
            method = _passing_on(getattr(client, name))
            method.__name__ = name
            method.__qualname__ = f"{client.__qualname__}.{name}"
            method.__module__ = client.__module__
            method.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])
            setattr(client, name, method)
        client.with_options = client.copy  # type: ignore[attr-defined] # every client has them
        return client

    return decorate


def _passing_on(method: Callable[..., Any]) -> Any:
    def passed_on(self: Any, **kwargs: Any) -> Any:
        return method(self, **kwargs)

    passed_on.__doc__ = method.__doc__
    return passed_on
