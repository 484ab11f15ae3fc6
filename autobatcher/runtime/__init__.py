"""Performs what the core decides, on asyncio and on trio."""
