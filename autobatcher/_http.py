"""The HTTP library that the installed openai SDK uses: httpx2 with openai 3, httpx with openai 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai

if TYPE_CHECKING or int(openai.__version__.split(".")[0]) >= 3:  # noqa: PLR2004 -- the version that changed libraries
    import httpx2 as httpx
else:
    import httpx

__all__ = ["httpx"]
