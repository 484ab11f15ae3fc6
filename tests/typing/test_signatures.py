"""The signatures that are written out for type checkers against those of the installed SDK."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

import openai
import pytest

from autobatcher import BatchAzureOpenAI, BatchOpenAI, _signatures
from autobatcher.options import BatchOptions

CLIENTS = {"OpenAISignatures": BatchOpenAI, "AzureSignatures": BatchAzureOpenAI}

pytestmark = pytest.mark.skipif(
    int(openai.__version__.split(".")[0]) < 3, reason="the signatures are written out as of openai 3"
)


def written_out() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Each method of each class in the block that only type checkers read."""
    for block in ast.parse(inspect.getsource(_signatures)).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for owner in block.body:
                if isinstance(owner, ast.ClassDef):
                    for method in owner.body:
                        if isinstance(method, ast.FunctionDef):
                            yield owner.name, method


METHODS = {(owner, method.name): method for owner, method in written_out()}


def test_every_method_that_takes_batch_options_is_written_out() -> None:
    assert sorted(METHODS) == [(owner, name) for owner in sorted(CLIENTS) for name in ("__init__", "copy")]


def at_run_time(owner: str, name: str) -> dict[str, inspect.Parameter]:
    return {**inspect.signature(getattr(CLIENTS[owner], name)).parameters}


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_the_parameters_are_those_of_run_time_in_their_order(owner: str, name: str) -> None:
    arguments = METHODS[owner, name].args
    assert [argument.arg for argument in arguments.args] == ["self"]
    assert not arguments.posonlyargs
    assert arguments.vararg is None
    assert arguments.kwarg is None
    expected = at_run_time(owner, name)
    assert ["self", *(argument.arg for argument in arguments.kwonlyargs)] == list(expected)


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_the_defaults_are_those_of_run_time(owner: str, name: str) -> None:
    """Those that are no literals are written as an ellipsis."""
    arguments, expected = METHODS[owner, name].args, at_run_time(owner, name)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        assert default is not None, argument.arg
        written = ast.literal_eval(default)
        if written is not ...:
            assert written == expected[argument.arg].default, argument.arg
        else:
            assert expected[argument.arg].default is not inspect.Parameter.empty, argument.arg


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_the_types_are_those_of_run_time(owner: str, name: str) -> None:
    expected = at_run_time(owner, name)
    for argument in METHODS[owner, name].args.kwonlyargs:
        assert argument.annotation is not None
        written = members(ast.unparse(argument.annotation))
        if name == "copy" and argument.arg in BatchOptions.__dataclass_fields__:
            written -= {"NotGiven"}  # the sign of an option that stays
        assert written == members(str(expected[argument.arg].annotation)), argument.arg


def members(union: str) -> set[str]:
    """The members of a union that is written with bars; what the SDK's own is called does not matter."""
    outer = re.sub(r"\[[^\[\]]*(\[[^\[\]]*\][^\[\]]*)*\]", lambda found: found[0].replace("|", "or"), union)
    return {part.strip().replace("httpx2.", "httpx.") for part in outer.split("|")}
