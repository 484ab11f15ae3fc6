"""The checks that a batch input goes through after the batch was created.

Azure's documentation lists some of the codes, such as `too_many_tasks`; the others follow its manner
(https://learn.microsoft.com/azure/ai-services/openai/how-to/batch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autobatcher.local.wire import decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from autobatcher.local.config import LocalConfig

MAX_ERRORS = 100
"""Errors beyond these are not listed; the batch has failed anyway."""


class LineTooLongError(Exception):
    """A line that is longer than the configuration allows."""

    def __init__(self, line_number: int) -> None:
        super().__init__(f"line {line_number} is too long")
        self.line_number = line_number


def split_lines(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    r"""Number (from 1) and bytes of each line that is not blank; only b"\n" ends a line."""
    number, rest = 0, b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            if len(line) > max_line_bytes:
                raise LineTooLongError(number)
            if line.strip():
                yield number, line
        if len(rest) > max_line_bytes:
            raise LineTooLongError(number + 1)
    if rest.strip():
        yield number + 1, rest


class Validator:
    """Takes the lines of one input in order and collects what is wrong with them."""

    def __init__(self, endpoint: str, config: LocalConfig) -> None:
        self.errors: list[dict[str, Any]] = []
        self.total = 0
        self.model: str | None = None
        self._config = config
        self._dialect = config.dialect
        self._url = None if self._dialect.lines_decide else endpoint
        self._ids: set[str] = set()

    @property
    def finished(self) -> bool:
        """Whether more lines would change nothing."""
        return len(self.errors) >= MAX_ERRORS or self.total > self._config.max_file_lines

    def fail(self, code: str, message: str, *, line: int | None = None, param: str | None = None) -> None:
        """Record an error; any error fails the batch."""
        code = self._dialect.codes.get(code, code)
        self.errors.append({"code": code, "line": line, "message": message, "param": param})

    def add(self, number: int, line: bytes) -> None:
        """Check one line."""
        self.total += 1
        if self.total > self._config.max_file_lines:
            self.fail(
                "too_many_tasks",
                f"The batch input has more than {self._config.max_file_lines} requests.",
                line=number,
            )
            return
        try:
            request = decode(line)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            self.fail("invalid_json_line", "This line is not parseable as valid JSON.", line=number)
            return
        self._check(number, request)

    def _check(self, number: int, request: dict[str, Any]) -> None:
        custom_id, body = request.get("custom_id"), request.get("body")
        for name in ("custom_id", "method", "url", "body"):
            if request.get(name) is None:
                self.fail(
                    "missing_required_parameter",
                    f"Missing required parameter: '{name}'.",
                    line=number,
                    param=name,
                )
                return
        if not isinstance(custom_id, str) or not custom_id:
            self.fail(
                "invalid_custom_id",
                "'custom_id' must be a string, not empty.",
                line=number,
                param="custom_id",
            )
        elif custom_id in self._ids:
            message = f"The custom_id '{custom_id}' was used on an earlier line."
            self.fail("duplicate_custom_id", message, line=number, param="custom_id")
        else:
            self._ids.add(custom_id)
        if request["method"] != "POST":
            self.fail("invalid_method", "The method must be 'POST'.", line=number, param="method")
        self._check_url(number, request["url"])
        if not isinstance(body, dict):
            self.fail("invalid_request", "'body' must be an object.", line=number, param="body")
        else:
            self._check_model(number, body.get("model"))

    def _check_url(self, number: int, url: Any) -> None:
        if self._url is None and isinstance(url, str) and url in self._dialect.batched:
            self._url = url
        elif self._url is None:
            known = ", ".join(self._dialect.batched)
            self.fail("invalid_url", f"The URL must be one of {known}.", line=number, param="url")
        elif url != self._url:
            of = "first line's" if self._dialect.lines_decide else "batch's endpoint,"
            self.fail("invalid_url", f"The URL must be the {of} '{self._url}'.", line=number, param="url")

    def _check_model(self, number: int, model: Any) -> None:
        if not isinstance(model, str) or not model:
            self.fail(
                "missing_required_parameter",
                "Missing required parameter: 'body.model'.",
                line=number,
                param="body.model",
            )
        elif self.model is None:
            self.model = model
        elif model != self.model and not self._config.partial_results:
            message = f"All requests of a batch must have the same model; '{model}' is not '{self.model}'."
            self.fail("mismatched_model", message, line=number, param="body.model")

    def finish(self) -> None:
        """Check what only the whole input shows."""
        if self.total == 0 and not self.errors:
            self.fail("empty_file", "The batch input has no requests.")
