"""The batched `responses`, apart from the other resources: its types take long to import."""

from __future__ import annotations

from typing import Any

from openai.resources.responses import AsyncResponses

from autobatcher.resources import outside


class Responses(AsyncResponses):
    """Responses."""

    create: Any = outside(AsyncResponses, "create")
    parse: Any = outside(AsyncResponses, "parse")
