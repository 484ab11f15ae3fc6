"""The official JavaScript SDK through a proxy.

AUTOBATCHER_NODE_MODULES names a `node_modules` folder that has the package `openai`. Without it these tests are
skipped; with it, as in CI, what is missing is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autobatcher.local import LocalConfig, Serving, serve_in_thread
from autobatcher.local.model import MODELS
from tests.cluster.parts import KEY, Proxy, batches, bought, environment, proxy, snippet

PROGRAM = Path(__file__).with_name("calls.cjs")
MODULES = os.environ.get("AUTOBATCHER_NODE_MODULES")

if MODULES is None:
    pytest.skip("AUTOBATCHER_NODE_MODULES names no folder with the package openai", allow_module_level=True)

NODE = shutil.which("node") or "node"


@pytest.fixture
def config() -> LocalConfig:
    return LocalConfig()


@pytest.fixture
def server(config: LocalConfig) -> Iterator[Serving]:
    with serve_in_thread(config) as serving:
        yield serving
        assert not serving.api.realtime_calls


@pytest.fixture
def served(server: Serving, tmp_path: Path) -> Iterator[Proxy]:
    with proxy(
        server.base_url,
        serve_key=KEY,
        journal=tmp_path / "calls.db",
        batch_window_seconds=0.5,
        poll_interval_seconds=0.05,
    ) as running:
        yield running


def run(*arguments: str, **variables: str) -> str:
    """What a program prints."""
    assert MODULES is not None
    env = environment(NODE_PATH=str(Path(MODULES).resolve()), **variables)
    ended = subprocess.run(
        [NODE, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def seen(scenario: str, served: Proxy) -> Any:
    return json.loads(run(str(PROGRAM), scenario, **served.variables))


def test_each_kind_of_call_is_answered(server: Serving, served: Proxy) -> None:
    came = seen("calls", served)
    assert came["chat"] == came["response"] == "You said: Hello."
    assert came["chatRequestId"]
    assert [len(vector) for vector in came["embeddings"]] == [3, 3]
    assert came["embeddings"][0] != came["embeddings"][1]
    assert came["models"] == list(MODELS)  # passed through
    assert bought(server) == 3


def test_streams_have_the_answer_in_pieces(server: Serving, served: Proxy) -> None:
    came = seen("stream", served)
    assert came["text"] == "You said: Hello, how are you?."
    assert came["finish"] == "stop"
    assert came["total"] > 0
    assert (came["first"], came["last"]) == ("response.created", "response.completed")
    assert came["response"] == "You said: Hello."
    assert bought(server) == 2


def test_the_helper_for_streams_has_the_whole_answer(server: Serving, served: Proxy) -> None:
    assert seen("helper", served) == {"text": "You said: Hello."}
    assert bought(server) == 1


def test_errors_are_the_sdks_own(served: Proxy) -> None:
    came = seen("errors", served)
    for name in ("batched", "streamed"):
        assert (came[name]["kind"], came[name]["status"]) == ("BadRequestError", 400)
        assert "'messages' must be a non-empty array" in came[name]["message"]
        assert came[name]["param"] == "messages"
    assert (came["missing"]["kind"], came["missing"]["status"]) == ("NotFoundError", 404)
    assert (came["unknown"]["kind"], came["unknown"]["status"]) == ("NotFoundError", 404)
    assert "The model 'none' does not exist" in came["unknown"]["message"]
    assert (came["stranger"]["kind"], came["stranger"]["status"]) == ("AuthenticationError", 401)
    assert (came["odd"]["kind"], came["odd"]["status"]) == ("BadRequestError", 400)
    assert all(came[name]["requestId"] for name in ("batched", "streamed", "missing", "unknown"))


def test_calls_at_the_same_time_share_a_batch(server: Serving, served: Proxy) -> None:
    assert seen("many", served) == [f"You said: {number}." for number in range(300)]
    assert bought(server) == 300
    assert len(batches(server)) <= 3  # as many windows as the calls take to come in


@pytest.mark.parametrize("config", [LocalConfig(latency_seconds=4)], ids=["slow"])
def test_a_retry_after_a_timeout_finds_its_request(server: Serving, served: Proxy) -> None:
    came = seen("retries", served)
    assert came["text"] == "You said: Take your time."
    assert came["requests"] > 1
    assert bought(server) == 1


def test_the_documentations_program_runs(server: Serving, served: Proxy, tmp_path: Path) -> None:
    program = tmp_path / "program.cjs"
    program.write_text(snippet("node"), encoding="utf-8")
    for _ in range(2):
        assert run(str(program), **served.variables) == "You said: Good morning.\nYou said: Good night.\n"
        assert bought(server) == 2
