"""Benches of the native module, as Python calls it. What they print names the machine and the commit."""

import os
import platform
import subprocess

import pytest

import pycounter._native as native


def pytest_configure(config: pytest.Config) -> None:
    """A debug build is many times slower: its figures would mislead whoever reads them."""
    if native.DEBUG_BUILD:
        raise pytest.UsageError("the native module is a debug build: run `make setup`")


def pytest_report_header() -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    commit = described.stdout.strip() or "unknown"
    return f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.platform()}; commit: {commit}"
