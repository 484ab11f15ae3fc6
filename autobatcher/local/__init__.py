"""A small, faithful Batch API for development, tests and self-hosted models.

Needs the `local` extra (`pip install "autobatcher[local]"`).
"""

from __future__ import annotations

from autobatcher.local.config import LocalConfig
from autobatcher.local.server import LocalBatchAPI
from autobatcher.local.serving import Serving, serve_in_thread

__all__ = ["LocalBatchAPI", "LocalConfig", "Serving", "serve_in_thread"]
