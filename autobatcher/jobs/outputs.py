"""What comes of a job: lines of an output file as they come, and the results in the order of the input."""

from __future__ import annotations

import csv
import itertools
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from autobatcher.core.outcomes import Answer, CallFailed, LineFailed, Outcome, Unanswered
from autobatcher.core.retry import is_success
from autobatcher.jobs.disk import name_file, naming
from autobatcher.jobs.items import InputError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from autobatcher.jobs.items import Source

ANSWER, ERROR = "answer", "error"
"""The columns that a table of results has beside those of the input."""

REFUSED, CUT_OFF = "refused", "cut off"
"""What begins the error of an answer in which the model refused, or whose text is not whole."""

_REFUSAL = re.compile(rb'"refusal"\s*:\s*"')
_CUT = ("length", "content_filter")
_INCOMPLETE = "incomplete"
_CUT_MARKS = tuple(f'"{word}"'.encode() for word in (*_CUT, _INCOMPLETE))

PARQUET_ROWS = 5_000
"""Rows of a table in memory at a time."""


def output_line(number: int, custom_id: str, outcome: Outcome) -> bytes:
    """An outcome as a line of a batch's output or error file.

    Source of the form: https://platform.openai.com/docs/api-reference/batch/request-output.
    """
    if isinstance(outcome, Answer):
        head = {"id": f"batch_req_{number + 1}", "custom_id": custom_id}
        response = {"status_code": outcome.status, "request_id": outcome.request_id}
        return b'%b,"response":%b,"body":%b},"error":null}\n' % (
            orjson.dumps(head)[:-1],
            orjson.dumps(response)[:-1],
            outcome.body.replace(b"\n", b" ").replace(b"\r", b" "),
        )
    code, message = _failure(outcome)
    line = {
        "id": f"batch_req_{number + 1}",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
    return orjson.dumps(line) + b"\n"


_OURS = re.compile(rb'\{"id":"batch_req_[0-9]+","custom_id":"')
"""How a file of `output_line` begins."""


def _check_ours(path: Path) -> None:
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if not _OURS.match(file.read(64)):
                raise InputError(f"{path}: has to make room for the answers as they come: move it away")


def _failure(outcome: Outcome) -> tuple[str | None, str]:
    match outcome:
        case LineFailed(code, message):
            return code, message
        case Unanswered(batch_id, status, problems):
            said = next((problem for problem in problems if problem.message), None)
            text = f"batch {batch_id} is {status}" + (f": {said.message}" if said else "")
            return (said and said.code) or f"batch_{status}", text
        case CallFailed(cause):
            return "call_failed", str(cause) or type(cause).__name__
    return None, "not answered"


class Results:
    """A file of output lines in the order in which they come; a context that closes it, and leaves it where it is.

    Args:
        path: is written anew.

    Raises:
        InputError: what is there did not come of an earlier run.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        _check_ours(path)
        self.path = path
        self._file = path.open("w+b")
        self._size = 0
        self._starts = array("Q")  # 0 where there is nothing yet, else one more than the start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # of lines that no flush could write either, which that has said
            self._file.close()

    def put(self, number: int, custom_id: str, outcome: Outcome) -> None:
        """Append what became of a request; `number` counts from 0 in the input."""
        line = output_line(number, custom_id, outcome)
        missing = number + 1 - len(self._starts)
        if missing > 0:
            self._starts.extend([0] * missing)
        self._starts[number] = self._size + 1
        self._size += len(line)
        try:
            self._file.write(line)
        except OSError as error:
            name_file(error, self.path)
            raise

    def flush(self) -> None:
        """Let readers of the file see all that there is."""
        with naming(self.path):
            self._file.flush()

    def lines(self) -> Iterator[bytes]:
        """The lines in the order of the input."""
        self.flush()
        with self.path.open("rb") as file:
            at = -1
            for start in self._starts:
                if start - 1 != at:
                    file.seek(start - 1)
                line = file.readline()
                at = start - 1 + len(line)
                yield line

    def write_ordered(self, to: Path, source: Source, ending: str, *, full: bool) -> None:
        """Write the results: lines, or a table with the input's columns if the source has some and `full` is not asked."""
        if source.columns is None or full:
            with to.open("wb") as file:
                file.writelines(self.lines())
            return
        added = added_columns(source.columns)
        rows = (
            {**row, **dict(zip(added, told(line), strict=True))}
            for row, line in zip(source.rows(), self.lines(), strict=True)
        )
        write_table(to, ending, [*source.columns, *added], rows, like=source.path)


def added_columns(columns: Iterable[str]) -> tuple[str, str]:
    """`answer` and `error`, with a number where the input has such columns."""
    taken = set(columns)
    numbers = ("" if number == 1 else f"_{number}" for number in itertools.count(1))
    ending = next(ending for ending in numbers if not taken & {ANSWER + ending, ERROR + ending})
    return ANSWER + ending, ERROR + ending


def write_table(
    to: Path,
    ending: str,
    columns: Iterable[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    like: Path | None = None,
) -> None:
    """Rows as CSV, Parquet or JSONL, as the ending says; anything else is JSONL.

    Columns of Parquet have the types that they have in the file `like`, if that is Parquet, too; all others are texts.
    What is no text of Unicode has a question mark in its place.
    """
    names = list(dict.fromkeys(columns))
    with _WRITERS.get(ending.lower(), _jsonl)(to, names, like) as write:
        for row in rows:
            write(row)


Write = Callable[[Mapping[str, Any]], object]


@contextmanager
def _csv(to: Path, names: list[str], _like: Path | None) -> Iterator[Write]:
    with to.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)

        def write(row: Mapping[str, Any]) -> None:
            writer.writerow([_cell(row.get(name)) for name in names])

        yield write


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@contextmanager
def _jsonl(to: Path, _names: list[str], _like: Path | None) -> Iterator[Write]:
    with to.open("wb") as file:

        def write(row: Mapping[str, Any]) -> None:
            try:
                line = orjson.dumps(row, default=str)
            except TypeError:  # a large integer, or half of a surrogate pair
                line = json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace")
            file.write(line + b"\n")

        yield write


@contextmanager
def _parquet(to: Path, names: list[str], like: Path | None) -> Iterator[Write]:
    pa, parquet = parquet_library()
    try:
        types = {} if like is None else {field.name: field.type for field in parquet.read_schema(like)}
    except (OSError, pa.ArrowException):  # it is something else
        types = {}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
    waiting: list[Mapping[str, Any]] = []
    with parquet.ParquetWriter(to, schema) as writer:

        def write_waiting() -> None:
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        def write(row: Mapping[str, Any]) -> None:
            waiting.append({name: row.get(name) if name in types else _text(row.get(name)) for name in names})
            if len(waiting) >= PARQUET_ROWS:
                write_waiting()

        yield write
        if waiting:
            write_waiting()


def _text(value: Any) -> str | None:
    return None if value is None else _cell(value).encode("utf-8", "replace").decode()


def parquet_library() -> tuple[Any, Any]:
    """The packages pyarrow and pyarrow.parquet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 -- an extra, and large
        from pyarrow import parquet  # noqa: PLC0415 -- as above
    except ModuleNotFoundError:
        raise InputError('Parquet needs pyarrow: pip install "autobatcher[parquet]"') from None
    return pa, parquet


_WRITERS: dict[str, Callable[[Path, list[str], Path | None], AbstractContextManager[Write]]] = {
    ".csv": _csv,
    ".parquet": _parquet,
}


def told(line: bytes) -> tuple[str | None, str | None]:
    """The answer and the error that a line of an output file holds."""
    given = json.loads(line)
    failed = given.get("error")
    if failed:
        return None, _joined(failed.get("code"), failed.get("message"))
    response = given.get("response") or {}
    status, body = response.get("status_code", 0), response.get("body")
    if not is_success(status):
        return None, _joined(status, _message(body))
    try:
        (answer, refusal), cut = answer_of(body), _cut_off_by(body)
    except (AttributeError, TypeError, ValueError):  # of a form that is nobody's
        answer, refusal, cut = json.dumps(body, ensure_ascii=False), None, None
    if refusal is not None:
        return None, f"{REFUSED}: {refusal}"
    if cut is not None:
        return answer, f"{CUT_OFF}: {cut}"
    return answer, None if answer is not None else _why_nothing(body)


def shortcoming(body: bytes) -> str | None:
    """`REFUSED` or `CUT_OFF`, where the body of an answer is one in which a model refused, or whose text is not whole."""
    refused = b'"refusal"' in body and _REFUSAL.search(body)
    if not refused and not any(mark in body for mark in _CUT_MARKS):
        return None  # of nearly all answers, which need not be taken apart
    try:
        fields = orjson.loads(body)
        (_, refusal), cut = answer_of(fields), _cut_off_by(fields)
    except (AttributeError, TypeError, ValueError):  # as in `told`
        return None
    if refusal is not None:
        return REFUSED
    return None if cut is None else CUT_OFF


def _cut_off_by(body: Any) -> str | None:
    """What kept an answer from being whole: "length", "content_filter", or a response's reason; None if nothing did."""
    if not isinstance(body, dict):
        return None
    if isinstance(choices := body.get("choices"), list):
        reasons = [choice.get("finish_reason") for choice in choices if isinstance(choice, dict)]
        return next((reason for reason in reasons if reason in _CUT), None)
    if isinstance(body.get("output"), list) and body.get("status") == _INCOMPLETE:
        return str((body.get("incomplete_details") or {}).get("reason") or _INCOMPLETE)
    return None


def _why_nothing(body: Any) -> str:
    reasons = [
        choice.get("finish_reason") for choice in body.get("choices") or () if isinstance(choice, dict)
    ]
    return f"no text (finish_reason {reasons[0]})" if reasons and reasons[0] else "no text"


def _joined(code: object, message: object) -> str:
    return ": ".join(str(part) for part in (code, message) if part) or "failed"


def _message(body: object) -> object:
    error = body.get("error") if isinstance(body, dict) else None
    return error.get("message") if isinstance(error, dict) else error


def answer_of(body: Any) -> tuple[str | None, str | None]:
    """What the body of an answer says, and why it says nothing, if the model refused.

    A text is itself; tool calls, vectors and several choices are JSON.
    """
    if not isinstance(body, dict):
        return json.dumps(body), None
    if isinstance(choices := body.get("choices"), list):
        said = [_of_message(choice.get("message") or {}) for choice in choices if isinstance(choice, dict)]
    elif isinstance(output := body.get("output"), list):
        said = [_of_output([item for item in output if isinstance(item, dict)])]
    elif isinstance(data := body.get("data"), list):
        vectors = [item.get("embedding") for item in data if isinstance(item, dict)]
        return json.dumps(vectors[0] if len(vectors) == 1 else vectors), None
    else:
        return json.dumps(body, ensure_ascii=False), None
    refusals = [refusal for _, refusal in said if refusal]
    if refusals:
        return None, refusals[0]
    answers = [answer for answer, _ in said]
    return answers[0] if len(answers) == 1 else json.dumps(answers, ensure_ascii=False), None


def _of_message(message: dict[str, Any]) -> tuple[str | None, str | None]:
    if calls := message.get("tool_calls"):
        return json.dumps([call.get("function", call) for call in calls], ensure_ascii=False), None
    return message.get("content"), message.get("refusal")


def _of_output(items: list[dict[str, Any]]) -> tuple[str | None, str | None]:
    """Of a response's output.

    Source of its form: https://platform.openai.com/docs/api-reference/responses/object.
    """
    calls = [
        {"name": item.get("name"), "arguments": item.get("arguments")}
        for item in items
        if item.get("type") == "function_call"
    ]
    if calls:
        return json.dumps(calls, ensure_ascii=False), None
    parts = [
        part for item in items if item.get("type") == "message" for part in item.get("content") or () if part
    ]
    refusal = next((part.get("refusal") for part in parts if part.get("type") == "refusal"), None)
    return "".join(part.get("text") or "" for part in parts if part.get("type") == "output_text"), refusal
