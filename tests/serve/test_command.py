"""`autobatcher serve`, as people start it; more of it is in test_asked_again.py."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from autobatcher.cli import build_app
from autobatcher.journal import SqliteJournal

NO_KEYS: dict[str, Any] = dict.fromkeys(
    (
        "OPENAI_BASE_URL",
        "OPENAI_API_KEY",
        "DOUBLEWORD_API_KEY",
        "AUTOBATCHER_UPSTREAM_API_KEY",
        "AUTOBATCHER_SERVE_KEY",
    )
)


def serve(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["serve", *map(str, arguments)], env={**NO_KEYS, "COLUMNS": "100"})


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_others_are_let_in_only_with_a_key(host: str) -> None:
    result = serve("--host", host)
    assert result.exit_code == 2
    assert "--serve-key" in result.stderr


def test_an_empty_key_lets_nobody_in() -> None:
    result = serve("--host", "0.0.0.0", "--serve-key", "")
    assert result.exit_code == 2
    assert "--serve-key" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--base-url", "ftp://x"), "http or https"),
        (("--base-url", "http://x/v1?a=b"), "no query"),
        (("--serve-key", "a b "), "serve_key"),
        (("--serve-key", ""), "serve_key"),
        (("--api-key", ""), "api_key"),
        (("--api-key", "ключ"), "api_key"),
        (("--port", "70000"), "port"),
        (("--keep-alive", "0"), "keep-alive"),
        (("--on-deadline", "wait"), "on-deadline"),
        (("--batch-size", "50001"), "batch-size"),
        (("--max-realtime-calls", "0"), "max-realtime-calls"),
        (("--patience-seconds", "0"), "patience-seconds"),
        (("--max-retries", "-1"), "max-retries"),
    ],
)
def test_usage(options: tuple[str, ...], said: str) -> None:
    result = serve(*options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_address_that_another_listens_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = serve("--port", port, "--journal", tmp_path / "proxy.db")
    assert result.exit_code == 3
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    SqliteJournal(tmp_path / "proxy.db").close()  # which is not held


def test_a_journal_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "proxy.db"
    path.write_text("no journal")
    result = serve("--port", 0, "--journal", path)
    assert result.exit_code == 2
    assert "proxy.db" in result.stderr


def test_help_has_an_example_and_exit_codes() -> None:
    result = serve("--help")
    assert result.exit_code == 0
    assert "Example: autobatcher serve" in result.stdout
    assert "Exit codes" in result.stdout
