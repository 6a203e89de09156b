"""A shard and a coordinator answer what Redis was recorded to answer, but for what is listed with a reason."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures import StartShard
from tests.support.redis_answers import (
    ANSWERS,
    PASSWORD,
    Sequence,
    differences,
    form,
    play,
    read_sequences,
    redis_server,
    redis_version,
)

RECORDED = json.loads(ANSWERS.read_text())
SEQUENCES = read_sequences()
Servers = Callable[[Sequence], tuple[str, int]]


@pytest.fixture(scope="module")
def shards(start_shared_shard: StartShard, tmp_path_factory: pytest.TempPathFactory) -> Servers:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(PASSWORD)
    without = start_shared_shard(name="open").address
    with_one = start_shared_shard(name="closed", settings={"token_file": str(token)}).address
    return lambda sequence: with_one if sequence.needs_password else without


@pytest.fixture(scope="module")
def coordinators(start_shared_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Servers:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(PASSWORD)
    without = start_shared_cluster(name="open", shards=2).address
    with_one = start_shared_cluster(name="closed", shards=2, settings={"token_file": str(token)}).address
    return lambda sequence: with_one if sequence.needs_password else without


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.name)
def test_a_shard(shards: Servers, sequence: Sequence) -> None:
    answers = play(sequence, shards(sequence))
    assert differences("shard", sequence, answers, RECORDED) == []


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.name)
def test_a_coordinator(coordinators: Servers, sequence: Sequence) -> None:
    answers = play(sequence, coordinators(sequence))
    assert differences("coordinator", sequence, answers, RECORDED) == []


def test_what_was_recorded_is_true() -> None:
    """Where the same version is installed, it answers the same today."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server")
    with redis_server() as without, redis_server(password=PASSWORD) as with_one:
        if redis_version(without) != RECORDED["redis_version"]:
            pytest.skip("another version of Redis was recorded")
        for sequence in SEQUENCES:
            answers = play(sequence, with_one if sequence.needs_password else without)
            for step, answer, recorded in zip(sequence.steps, answers, RECORDED["redis"][sequence.name], strict=True):
                shown = form if step.where == "?" else lambda answer: answer
                assert shown(answer) == shown(recorded), (sequence.name, step.line)


def test_each_difference_has_its_reason_in_the_docs() -> None:
    document = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
    listed = set(re.findall(r"^\| `([\w-]+)` \|", document.partition("### Where answers differ")[2], re.MULTILINE))
    used = {step.differs for sequence in SEQUENCES for step in sequence.steps} - {""}
    assert listed == used
