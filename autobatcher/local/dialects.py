"""What differs between the services that the server can pose as: one value for each.

An operation is an endpoint by its path at OpenAI, such as `/v1/chat/completions`, whatever the service calls it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, QueryParams

from autobatcher.local.wire import ENDPOINTS
from autobatcher.wire import error_body


@dataclass(frozen=True)
class Dialect:
    """How a service is spoken to; the defaults are OpenAI's way.

    Attributes:
        prefix: What all paths start with.
        realtime: Paths below the prefix that answer at once, and their operations; a `deployment` in the path
            is the model.
        batched: What may stand as the endpoint of a batch and as the URL of a line, and the operations meant.
        lines_decide: The lines' URL need not be the batch's endpoint, and is what counts; all have the same.
        only_window: The only completion window there is; None: any.
        expires: Batches end with their completion window.
        empty_result_files: Batches whose input was valid end with both an output and an error file.
        key_headers: Headers that can carry the key, and what stands before it.
        required_query: Query parameters without which nothing is found.
        created: HTTP status of the answers to creations.
        new_file: What is different in a file object while it is new.
        new_batch: What is different in a batch object while it is new.
        codes: Codes of validation errors that have other names.
        denied: Body of the answer to a wrong key.
        not_found: Body of the answer to a wrong URL; None: one that names the URL.
    """

    prefix: str = "/v1"
    realtime: Mapping[str, str] = field(
        default_factory=lambda: {path.removeprefix("/v1"): path for path in ENDPOINTS}
    )
    batched: Mapping[str, str] = field(default_factory=lambda: {path: path for path in ENDPOINTS})
    lines_decide: bool = False
    only_window: str | None = None
    expires: bool = True
    empty_result_files: bool = False
    key_headers: tuple[tuple[str, str], ...] = (("authorization", "Bearer "),)
    required_query: tuple[str, ...] = ()
    created: int = 200
    new_file: Mapping[str, Any] = field(default_factory=dict)
    new_batch: Mapping[str, Any] = field(default_factory=dict)
    codes: Mapping[str, str] = field(default_factory=dict)
    denied: Mapping[str, Any] = field(
        default_factory=lambda: error_body(401, "Incorrect API key provided.", code="invalid_api_key")
    )
    not_found: Mapping[str, Any] | None = None

    def knows(self, key: str, headers: Headers) -> bool:
        """Whether one of the headers carries the key."""
        return any(
            hmac.compare_digest(headers.get(name, "").encode(), f"{before}{key}".encode())
            for name, before in self.key_headers
        )

    def finds(self, query: QueryParams) -> bool:
        """Whether the query has what it needs."""
        return all(query.get(name) for name in self.required_query)


OPENAI = Dialect()

_AZURE_BATCHED = ("/v1/chat/completions", "/v1/responses")

AZURE = Dialect(
    # Paths, the api-version, both kinds of authentication and the 201 for files and batches:
    # https://learn.microsoft.com/azure/foundry/openai/authoring-reference-preview
    # https://learn.microsoft.com/azure/ai-services/openai/reference
    prefix="/openai",
    realtime={
        "/deployments/{deployment:path}/chat/completions": "/v1/chat/completions",
        "/deployments/{deployment:path}/embeddings": "/v1/embeddings",
        "/responses": "/v1/responses",
    },
    key_headers=(("api-key", ""), ("authorization", "Bearer ")),
    required_query=("api-version",),
    created=201,
    # The article on batches. Its older editions have "/chat/completions" everywhere, its newer ones have it as the
    # endpoint of every batch, with lines for "/v1/chat/completions" or "/v1/responses", and say that the file
    # decides. All of them say that embeddings are not supported, that the window must be 24h, that jobs that take
    # longer do not expire, and that a job without errors has an empty error file. File ids that are not known yet
    # are shown as "" or null, new files as pending or processed; here they are what is harder for a client.
    # https://learn.microsoft.com/azure/ai-services/openai/how-to/batch
    # https://learn.microsoft.com/azure/foundry/openai/how-to/batch
    batched={
        url: operation for operation in _AZURE_BATCHED for url in (operation.removeprefix("/v1"), operation)
    },
    lines_decide=True,
    only_window="24h",
    expires=False,
    empty_result_files=True,
    new_file={"status": "pending"},
    new_batch={"output_file_id": "", "error_file_id": ""},
    codes={
        "invalid_url": "url_mismatch",
        "mismatched_model": "model_mismatch",
        "missing_required_parameter": "invalid_request",
        "invalid_custom_id": "invalid_request",
        "invalid_method": "invalid_request",
    },
    # Which status a missing version, a wrong path and a wrong key have; the texts are those that users report.
    # https://learn.microsoft.com/azure/foundry/openai/how-to/troubleshoot-errors
    # https://github.com/MicrosoftDocs/azure-docs/issues/114602
    not_found={"error": {"code": "404", "message": "Resource not found"}},
    denied={
        "error": {
            "code": "401",
            "message": "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a"
            " valid key for an active subscription and use a correct regional API endpoint for your resource.",
        }
    },
)
