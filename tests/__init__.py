"""Tests: unit (mirrors the package), stateful, integration, faults, and repository (style)."""
