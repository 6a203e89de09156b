"""The examples, as their readers start them."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from tests.repository.sources import ROOT, source_files
from tests.support.shard_process import ShardProcess

EXAMPLES = source_files(".py", under="examples")
LINES_MAX = 59


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_is_short(path):
    assert len(path.read_text().splitlines()) <= LINES_MAX


def url(shard: ShardProcess) -> str:
    return "pycounter://{}:{}".format(*shard.address)


def run_example(name: str, *arguments: str, given: bytes = b"") -> list[list[str]]:
    """The words of each line that it prints."""
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, input=given, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return [line.split() for line in done.stdout.decode().splitlines()]


def test_each_like_counts(shard, rpc):
    output = run_example("likes.py", "--url", url(shard), "--likes", "1234")
    assert output[-1] == ["1,234", "likes", "in", "all"]
    _, counters = rpc.call("scan", 0, 1000, b"likes:")
    assert sum(likes for _, likes in counters) == 1234
    post, most = max(counters, key=lambda counter: counter[1])
    assert ["│", post.decode().removeprefix("likes:"), "│", f"{most}", "│"] in output


LOG = b"""\
203.0.113.7 - - [01/Dec/2026:10:00:00 +0000] "GET /prices?page=2 HTTP/1.1" 200 5120 "-" "Mozilla/5.0"
203.0.113.7 - - [01/Dec/2026:10:00:01 +0000] "GET /prices HTTP/2.0" 200 0
198.51.100.9 - ann [01/Dec/2026:10:00:02 +0000] "POST /orders HTTP/1.1" 500 17 "-" "curl/8"
\x16\x03\x01 no request
198.51.100.9 - - [01/Dec/2026:10:00:03 +0000] "GET /LONG HTTP/1.1" 200 9
""".replace(b"LONG", b"\xff" * 2000)


def test_an_access_log_is_counted_by_path_and_status(tmp_path):
    first = run_example("access_log.py", str(tmp_path), given=LOG)
    assert first[0] == ["2", "/prices"]
    assert ["1", "/orders"] in first
    assert first[-3:] == [["3", "200"], ["1", "500"], ["1", "lines", "that", "are", "no", "request"]]
    again = run_example("access_log.py", str(tmp_path), "--top", "1", given=LOG)
    assert again == [["4", "/prices"], ["6", "200"], ["2", "lines", "that", "are", "no", "request"]]


@pytest.fixture
def site(shard) -> Iterator[str]:
    """The address of the web application."""
    uvicorn = [sys.executable, "-m", "uvicorn", "page_views:app", "--app-dir", str(ROOT / "examples"), "--port", "0"]
    environment = os.environ | {"PYCOUNTER_URL": url(shard)}
    with subprocess.Popen(uvicorn, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if running := re.search(r"running on (http://\S+)", line):
                yield running[1]
                process.terminate()
                break
        output = process.stderr.read()
    assert "Traceback" not in output, output


def fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=30) as response:
        text: str = response.read().decode()
    return text


def test_page_views_are_counted(site, shard):
    assert fetch(f"{site}/pages/prices") == "This is prices, seen 1 times."
    assert fetch(f"{site}/pages/prices") == "This is prices, seen 2 times."
    assert fetch(f"{site}/pages/about") == "This is about, seen 1 times."
    assert json.loads(fetch(f"{site}/views")) == {"prices": 2, "about": 1}
    shard.send_signal(signal.SIGSTOP)
    try:
        assert fetch(f"{site}/pages/prices") == "This is prices. Its views can't be told now."
    finally:
        shard.send_signal(signal.SIGCONT)
