"""What is wrong with a batch file, and `autobatcher validate`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autobatcher.jobs import Problem, validate

GOOD: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m"},
}


def line(**fields: Any) -> bytes:
    """A request in which some fields are others, or, if they are Ellipsis, not there."""
    request = {name: value for name, value in {**GOOD, **fields}.items() if value is not ...}
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"


def found(folder: Path, *lines: bytes, **limits: int) -> list[Problem]:
    path = folder / "in.jsonl"
    path.write_bytes(b"".join(lines))
    return list(validate(path, **limits))


def told(folder: Path, *lines: bytes, **limits: int) -> list[tuple[int | None, str, str]]:
    return [(problem.line, problem.severity, problem.code) for problem in found(folder, *lines, **limits)]


def test_a_good_file_has_no_problem(tmp_path: Path) -> None:
    other = line(custom_id="b", body={"model": "m", "stream": False, "é": "\u00e9"})
    assert found(tmp_path, line(), other.replace(b"\n", b"\r\n"), line(custom_id="c" * 64).rstrip()) == []


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (b"{\n", "bad_json"),
        (line(custom_id="b")[:-3] + b"\n", "bad_json"),
        (line(custom_id="b").rstrip() + line(custom_id="c"), "bad_json"),
        (b"[" * 100_000 + b"\n", "bad_json"),
        (b"[]\n", "not_object"),
        (b'"a"\n', "not_object"),
        (line(custom_id="b").replace(b'"m"', b'"\xff"'), "not_utf8"),
        (line(custom_id=...), "missing_custom_id"),
        (line(custom_id=None), "wrong_custom_id"),
        (line(custom_id=7), "wrong_custom_id"),
        (line(custom_id=""), "empty_custom_id"),
        (line(custom_id="c" * 65), "long_custom_id"),
        (line(), "duplicate_custom_id"),
        (line(custom_id="b", method=...), "missing_method"),
        (line(custom_id="b", method="post"), "wrong_method"),
        (line(custom_id="b", body=...), "missing_body"),
        (line(custom_id="b", body=[]), "wrong_body"),
        (line(custom_id="b", body=None), "wrong_body"),
        (line(custom_id="b", body={}), "missing_model"),
        (line(custom_id="b", body={"model": ""}), "missing_model"),
        (line(custom_id="b", body={"model": "m", "stream": True}), "stream"),
        (line(custom_id="b", url=...), "missing_url"),
        (line(custom_id="b", url=7), "wrong_url"),
        (line(custom_id="b", url="/v1/responses"), "several_urls"),
        (line(custom_id="b", body={"model": "m", "x": float("nan")}), "number"),
        (line(custom_id="b", body={"model": "m", "x": float("-inf")}), "number"),
        (line(custom_id="b").replace(b'"m"', b'"m","x":1e999'), "number"),
        (line(custom_id="b").replace(b'"m"', b'"m","x":"\\ud83d"'), "lone_surrogate"),
    ],
)
def test_an_error_is_told_with_its_line(tmp_path: Path, second: bytes, problem: str) -> None:
    assert told(tmp_path, line(), second, line(custom_id="z")) == [(2, "error", problem)]


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (b"\n", "blank_line"),
        (b" \r\n", "blank_line"),
        (line(custom_id="b").replace(b": ", b":\r", 1), "line_break"),
        (line(custom_id="b", body={"model": "m", "x": "\u2028"}), "line_break"),
        (line(custom_id="b", body={"model": "m", "x": "\u2029"}), "line_break"),
        (line(custom_id="b", body={"model": "m", "x": "\u0085"}), "line_break"),
        (line(custom_id="é"), "custom_id_characters"),
        (line(custom_id="b", body={"model": "n"}), "several_models"),
    ],
)
def test_a_warning_is_for_what_some_servers_take(tmp_path: Path, second: bytes, problem: str) -> None:
    assert told(tmp_path, line(), second, line(custom_id="z")) == [(2, "warning", problem)]


@pytest.mark.parametrize(
    "url", ["", "chat/completions", "https://x.example/v1/responses", "/v1/chat/completion", "/v1/"]
)
def test_a_url_that_no_server_is_known_to_take_is_an_error(tmp_path: Path, url: str) -> None:
    assert told(tmp_path, line(url=url)) == [(1, "error", "unknown_url")]


def test_a_url_without_a_version_is_for_some_servers(tmp_path: Path) -> None:
    assert told(tmp_path, line(url="/chat/completions")) == [(1, "warning", "url_without_version")]
    for url in ("/v1/embeddings", "/v4/chat/completions", "/v1/images/edits", "/v1/moderations"):
        assert found(tmp_path, line(url=url)) == []


def test_a_mark_at_the_start_is_an_error_and_the_line_is_checked(tmp_path: Path) -> None:
    assert told(tmp_path, b"\xef\xbb\xbf" + line(method="GET")) == [
        (1, "error", "bom"),
        (1, "error", "wrong_method"),
    ]


def test_all_that_is_wrong_with_a_line_is_told_with_its_custom_id(tmp_path: Path) -> None:
    bad = line(custom_id="x", method="GET", url="/x", body={"x": "\u2028"})
    problems = found(tmp_path, bad)
    assert [problem.code for problem in problems] == [
        "line_break",
        "wrong_method",
        "unknown_url",
        "missing_model",
    ]
    assert {problem.custom_id for problem in problems} == {"x"}
    assert problems[1].message == "the method is 'GET', and should be 'POST'"


def test_a_duplicate_names_the_first(tmp_path: Path) -> None:
    (problem,) = found(tmp_path, line(custom_id="b"), line(), line(custom_id="c"), line())
    assert problem == Problem(4, "error", "duplicate_custom_id", "the custom_id 'a' is that of line 2", "a")


def test_a_url_or_model_is_told_once(tmp_path: Path) -> None:
    lines = [line(custom_id=f"c{n}", body={"model": f"m{n % 3}"}) for n in range(9)]
    problems = found(tmp_path, *lines)
    assert [(problem.line, problem.code) for problem in problems] == [
        (2, "several_models"),
        (3, "several_models"),
    ]
    assert "'m2' is not 'm0' of line 1" in problems[1].message


def test_limits_of_the_file(tmp_path: Path) -> None:
    lines = [line(custom_id=f"c{n}") for n in range(5)]
    assert told(tmp_path, *lines, max_requests=5) == []
    assert told(tmp_path, *lines, max_requests=3) == [(4, "error", "too_many_requests")]
    size = sum(map(len, lines))
    assert told(tmp_path, *lines, max_bytes=size) == []
    (problem,) = found(tmp_path, *lines, max_bytes=size - 1)
    assert problem == Problem(
        None, "error", "too_large", f"the file has {size:,} bytes, and may have {size - 1:,}"
    )
    inputs = [
        line(custom_id=f"c{n}", url="/v1/embeddings", body={"model": "m", "input": ["x", "y"]})
        for n in range(3)
    ]
    assert told(tmp_path, *inputs, max_requests=6) == []
    assert told(tmp_path, *inputs, max_requests=5) == [(3, "error", "too_many_requests")]


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf"])
def test_a_file_without_requests_is_told(tmp_path: Path, content: bytes) -> None:
    assert (None, "error", "empty") in told(tmp_path, content)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.binary(max_size=40)
        | st.dictionaries(st.sampled_from([*GOOD, "x"]), JSON).map(lambda x: json.dumps(x).encode())
        | JSON.map(lambda body: json.dumps({**GOOD, "body": body}).encode()),
        max_size=4,
    )
)
@example([b'{"custom_id":"\\ud83d","url":"\\ud83d","body":{"model":"\\ud83d"}}'])
def test_whatever_is_in_a_file_is_told_and_can_be_printed(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    for problem in validate(path):
        assert problem.severity in {"error", "warning"}
        problem.message.encode()
        (problem.custom_id or "").encode()
        assert "\n" not in problem.message
        assert len(problem.message) < 400


# --- the command -----------------------------------------------------------------------------------------------


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autobatcher", "validate", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_the_command_tells_problems_and_counts_them(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_bytes(line())
    (tmp_path / "bad.jsonl").write_bytes(b"\n" + line(method="GET"))
    done = command("good.jsonl", "bad.jsonl", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "bad.jsonl:1: warning: the line is blank",
        "bad.jsonl:2: error: the method is 'GET', and should be 'POST'",
    ]
    assert done.stderr.splitlines() == ["good.jsonl: 0 errors, 0 warnings", "bad.jsonl: 1 error, 1 warning"]
    done = command("--json", "bad.jsonl", "--max-bytes", "9", cwd=tmp_path)
    assert [json.loads(each)["code"] for each in done.stdout.splitlines()] == [
        "blank_line",
        "wrong_method",
        "too_large",
    ]
    assert json.loads(done.stdout.splitlines()[1]) == {
        "file": "bad.jsonl",
        "line": 2,
        "severity": "error",
        "code": "wrong_method",
        "message": "the method is 'GET', and should be 'POST'",
        "custom_id": "a",
    }


def test_the_command_shows_a_hundred_and_counts_the_rest(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b"{\n" * 1_234)
    done = command("bad.jsonl", cwd=tmp_path)
    shown = done.stdout.splitlines()
    assert (done.returncode, len(shown)) == (1, 101)
    assert shown[-1] == "bad.jsonl: and 1,134 more"
    assert done.stderr == "bad.jsonl: 1,234 errors, 0 warnings\n"


def test_the_command_is_content_with_warnings_and_wants_a_file(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_bytes(line() + b"\n")
    assert command("good.jsonl", cwd=tmp_path).returncode == 0
    done = command("none.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.jsonl: No such file or directory" in done.stderr
