"""An OpenAI-compatible HTTP proxy whose callers share batches.

Needs the `serve` extra (`pip install "autobatcher[serve]"`).
"""

from __future__ import annotations

from autobatcher.serve.app import Proxy
from autobatcher.serve.config import ServeConfig
from autobatcher.serve.serving import Serving, serve_in_thread

__all__ = ["Proxy", "ServeConfig", "Serving", "serve_in_thread"]
