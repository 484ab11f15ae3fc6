"""The batching client for OpenAI-compatible services."""
