"""The container's health check, as Docker runs it. The image itself is built by `docker build`."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.repository.sources import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def check_health(port: int, **environment: str) -> int:
    command = re.search(r"^HEALTHCHECK .*\\\n +CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert command is not None
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command[1]],
        env=os.environ | {"PATH": path, "PYCOUNTER_PORT": str(port), **environment},
        stdout=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    return done.returncode


def test_a_server_that_serves_is_healthy(start_shard, tmp_path):
    token = tmp_path / "token"
    token.write_text("a token of the tests")
    token.chmod(0o600)
    shard = start_shard(settings={"token_file": str(token)})
    port = shard.address[1]
    assert check_health(port, PYCOUNTER_TOKEN_FILE=str(token)) == 0
    assert check_health(port) != 0, "nobody is let in without it"


def test_it_runs_without_rights():
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER (?!root|0)\w", last_stage, re.MULTILINE)
