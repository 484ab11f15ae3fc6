"""Lines up, lines down."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autobatcher.core.jsonl import MalformedLineError, body_of, decode_line, encode_line, prompt_tokens
from autobatcher.core.outcomes import Answer, LineFailed

SEPARATORS = "\u0085\u2028\u2029"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")) | st.text(SEPARATORS),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(SEPARATORS + "ab"), inner),
    max_leaves=20,
)


def encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def result(**fields: Any) -> bytes:
    return encoded({"id": "r", "custom_id": "a", **fields})


@pytest.mark.parametrize("separator", list(SEPARATORS))
def test_a_line_separator_is_escaped_and_the_value_is_the_same(separator: str) -> None:
    body = {"model": "m", "input": f"one{separator}two{separator}", f"k{separator}": 1}
    line = encode_line("a", "/v1/responses", encoded(body))
    assert separator.encode() not in line
    assert f"\\u{ord(separator):04x}".encode() in line
    assert json.loads(line) == {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}


def test_a_backslash_before_a_separator_stays_a_backslash() -> None:
    body = {"input": "\\\u2028\\\\\u2029\\u2028"}
    assert json.loads(encode_line("a", "/v1/responses", encoded(body)))["body"] == body


@given(json_values)
def test_any_body_is_one_line_for_every_reader_and_stays_equal(body: object) -> None:
    line = encode_line("a", "/v1/embeddings", encoded(body))
    assert len(line.decode().splitlines()) == 1
    assert line.endswith(b"\n")
    assert json.loads(line)["body"] == body


def test_letters_that_share_bytes_with_the_separators_are_left_alone() -> None:
    body = encoded({"input": "\u2027\u202a\u0084\u0086é…☃"})
    assert body in encode_line("a", "/v1/responses", body)


def test_an_answer_keeps_the_bytes_of_its_body() -> None:
    line = (
        b'{"custom_id":"a","response":{"status_code":200,"request_id":"q","body":{ "x": 1.50 }},"error":null}'
    )
    assert decode_line(line) == ("a", Answer(200, "q", b'{ "x": 1.50 }'))


@pytest.mark.parametrize("extra", [{}, {"error": None}, {"error": {"code": "c", "message": "m"}}])
def test_an_error_status_with_a_body_is_an_answer(extra: dict[str, Any]) -> None:
    body = {"error": {"message": "no", "code": None}}
    line = result(response={"status_code": 429, "request_id": None, "body": body}, **extra)
    custom_id, outcome = decode_line(line)
    assert custom_id == "a"
    assert isinstance(outcome, Answer)
    assert (outcome.status, json.loads(outcome.body)) == (429, body)


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"response": None, "error": {"code": "c", "message": "m"}}, LineFailed("c", "m")),
        ({"error": {"code": "c", "message": "m"}}, LineFailed("c", "m")),
        ({"response": None, "error": {"code": None, "message": "m"}}, LineFailed(None, "m")),
        ({"response": None, "error": {"code": "c", "message": None}}, LineFailed("c", "the request failed")),
        ({"response": None, "error": {}}, LineFailed(None, "the request failed")),
        ({"response": {"status_code": 0}, "error": {"message": "m"}}, LineFailed(None, "m")),
    ],
)
def test_an_error_object_without_a_response_is_a_failed_line(
    fields: dict[str, Any], outcome: LineFailed
) -> None:
    assert decode_line(result(**fields)) == ("a", outcome)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"response":{"status_code":200,"body":{}}}', id="no custom_id"),
        pytest.param(result(custom_id=7, response={"status_code": 200, "body": {}}), id="custom_id a number"),
        pytest.param(result(), id="neither"),
        pytest.param(result(response=None, error=None), id="both null"),
        pytest.param(result(response={}), id="no status"),
        pytest.param(result(response={"status_code": 99, "body": {}}), id="status too low"),
        pytest.param(result(response={"status_code": 600, "body": {}}), id="status too high"),
        pytest.param(result(response={"status_code": "2e2", "body": {}}), id="status no number"),
        pytest.param(result(response={"status_code": True, "body": {}}), id="status a boolean"),
        pytest.param(result(error=""), id="error empty"),
        pytest.param(b'{"custom_id":"\xff","error":{}}', id="no utf-8"),
        pytest.param(result(error={}) + b" x", id="trailing"),
    ],
)
def test_a_line_for_nobody_is_malformed(line: bytes) -> None:
    with pytest.raises(MalformedLineError):
        decode_line(line)


def decodes_or_is_malformed(line: bytes) -> None:
    try:
        custom_id, outcome = decode_line(line)
    except MalformedLineError:
        return
    assert isinstance(custom_id, str)
    assert isinstance(outcome, (Answer, LineFailed))


@given(st.binary())
def test_arbitrary_bytes_raise_nothing_else(line: bytes) -> None:
    decodes_or_is_malformed(line)


@given(st.data())
def test_damaged_lines_raise_nothing_else(data: st.DataObject) -> None:
    body = {"text": data.draw(st.text(max_size=10))}
    line = result(response={"status_code": 200, "request_id": "q", "body": body}, error=None)
    at = data.draw(st.integers(0, len(line)))
    cut = data.draw(st.integers(at, len(line)))
    decodes_or_is_malformed(line[:at] + data.draw(st.binary(max_size=5)) + line[cut:])


@given(st.dictionaries(st.sampled_from(["custom_id", "response", "error", "x"]), json_values))
def test_arbitrary_objects_raise_nothing_else(fields: dict[str, object]) -> None:
    decodes_or_is_malformed(encoded(fields))


@pytest.mark.parametrize("key", [b'"x":', b'"response":{"status_code":200,"body":'])
def test_nesting_beyond_every_stack_is_malformed(key: bytes) -> None:
    with pytest.raises(MalformedLineError):
        decode_line(b'{"custom_id":"a",' + key + b"[" * 100_000)


# --- the body of a line ----------------------------------------------------------------------------------------


@given(json_values)
def test_the_body_of_a_line_is_the_one_that_it_was_made_of(body: object) -> None:
    found = body_of(encode_line("a", "/v1/responses", encoded(body)))
    assert json.loads(found) == body


@pytest.mark.parametrize("body", [b'{"a":1}', b"{}", b'{"x":",\\"body\\":"}', b'{"body":{"body":1}}'])
def test_the_body_of_a_line_has_the_same_bytes(body: bytes) -> None:
    assert body_of(encode_line("body-1", "/v1/embeddings", body)) == body


# --- usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"usage": {"prompt_tokens": 7, "completion_tokens": 9}}, 7),
        ({"usage": {"input_tokens": 8, "output_tokens": 9}}, 8),
        ({"usage": {"prompt_tokens": 7, "input_tokens": 8}}, 8),
        ({"usage": {"prompt_tokens": -7}}, 0),
        ({"usage": {"prompt_tokens": "7"}}, 0),
        ({"usage": {"prompt_tokens": None}}, 0),
        ({"usage": {"prompt_tokens": 7.5}}, 0),
        ({"usage": {}}, 0),
        ({"usage": None}, 0),
        ({"usage": 7}, 0),
        ({}, 0),
        ([], 0),
        ("a page", 0),
        (None, 0),
    ],
)
def test_the_tokens_of_a_prompt_as_an_answer_tells_them(body: object, tokens: int) -> None:
    assert prompt_tokens(encoded(body)) == tokens


@given(st.binary() | json_values.map(encoded) | st.fixed_dictionaries({"usage": json_values}).map(encoded))
@example(b"")
@example(b"{")
@example(b'{"usage":' + b"[" * 100_000)
@example(b"[" * 100_000)
@example(b'{"x":' + b"[" * 100_000)
@example(b'{"usage":{"prompt_tokens":1e999}}')
@example(b'{"usage":{"prompt_tokens":' + b"9" * 5_000 + b"}}")
@example(b'{"usage":{"prompt_tokens":NaN}}')
@example(b'{"x":"\\ud83d","usage":{"prompt_tokens":1}}')
def test_any_body_has_a_number_of_tokens(body: bytes) -> None:
    assert prompt_tokens(body) >= 0


# --- lines that went wrong -------------------------------------------------------------------------------------

GOOD = [
    result(
        response={"status_code": 200, "request_id": "q", "body": {"text": "é\u2028", "n": 1.5}}, error=None
    ),
    result(response=None, error={"code": "c", "message": "m"}),
    b'{"custom_id":"a","response":{"status_code":200,"request_id":"q","body":{"x":NaN,"s":"\\ud83d"}}}',
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A line in which some bytes are gone, doubled, others, or strange numbers and nesting."""
    line = draw(st.sampled_from(GOOD))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(line)))
        to = draw(st.integers(at, min(len(line), at + 8)))
        new = draw(
            st.binary(max_size=4)
            | st.just(line[at:to] * 2)
            | st.sampled_from(
                [b"{", b"}", b"[" * 2_000, b'"', b"\\u", b"1e999", b"NaN", b"9" * 5_000, b"\xed\xa0"]
            )
        )
        line = line[:at] + new + line[to:]
    return line


@given(mutated() | st.binary(max_size=60))
@example(b'{"custom_id":"a","response":{"status_code":' + b"9" * 5_000 + b"}}")
@example(b'{"custom_id":"a","response":{"status_code":1e999,"body":NaN}}')
@example(b'{"custom_id":"a","x":NaN,"response":{"status_code":200,"body":"\xff"}}')
@example(b'{"custom_id":"\\ud83d","error":{"message":"m"}}')
@example(b"\xff\xfe{\x00}\x00")
@example(b"\xef\xbb\xbf{}")
def test_a_mutated_line_raises_nothing_but_its_own_error(line: bytes) -> None:
    decodes_or_is_malformed(line)


def test_a_body_that_only_the_json_module_reads_is_an_answer() -> None:
    custom_id, outcome = decode_line(GOOD[2])
    assert custom_id == "a"
    assert isinstance(outcome, Answer)
    assert json.loads(outcome.body)["s"] == "\ud83d"


@pytest.mark.parametrize("status", [200, "200", 200.0])
@pytest.mark.parametrize("request_id", [7, None, "req", {"a": 1}])
@pytest.mark.parametrize("error", [None, "", False, "text", {"code": 3}])
def test_an_answer_is_one_whatever_stands_beside_it(
    status: object, request_id: object, error: object
) -> None:
    response = {"status_code": status, "request_id": request_id, "body": {"x": 1}}
    line = json.dumps({"custom_id": "a", "response": response, "error": error}).encode()
    custom_id, answer = decode_line(line)
    assert (custom_id, answer) == ("a", Answer(200, "req" if request_id == "req" else None, b'{"x": 1}'))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": 400, "message": "bad"}, LineFailed("400", "bad")),
        ({"code": None, "message": None}, LineFailed(None, "the request failed")),
        ({"message": ["bad"]}, LineFailed(None, "['bad']")),
        ("bad", LineFailed(None, "bad")),
    ],
)
def test_an_error_of_whatever_form_is_told(error: object, expected: LineFailed) -> None:
    line = json.dumps({"custom_id": "a", "response": None, "error": error}).encode()
    assert decode_line(line) == ("a", expected)
