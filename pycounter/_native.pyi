"""The engine as a Python module."""

__all__ = ["DEBUG_BUILD"]

DEBUG_BUILD: bool
