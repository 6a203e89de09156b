"""Sequences of commands and what Redis answers: `tests/integration/redis_sequences.txt` and `redis_answers.json`.

`python -m tests.support.redis_answers redis` records the answers of the installed redis-server. `... shard ADDRESS
ADDRESS`, or `coordinator`, records ours where they are to differ: of two servers, the second with the token `PASSWORD`.
"""

import ast
import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.resp_socket import RespError, RespSocket, Simple
from tests.support.rpc_socket import ConnectionClosed
from tests.support.waiting import wait_until

HERE = Path(__file__).parents[1] / "integration"
SEQUENCES = HERE / "redis_sequences.txt"
ANSWERS = HERE / "redis_answers.json"
#: What servers with a password are given.
PASSWORD = "a token of sixteen"
CLOSED = {"closed": True}
_STEP = re.compile(r"(?:(?P<connection>\d)> )?(?P<command>.*?)(?:\s+~(?P<where>[~sc?])\s*(?P<reason>[\w-]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        connection: by which connection.
        data: the bytes to send.
        differs: why ours answer something else; empty where they don't.
        where: who differs: `~` both, `s` a shard, `c` a coordinator; `?`: only the answer's form is compared.
        line: for messages.
    """

    connection: int
    data: bytes
    differs: str
    where: str
    line: str

    def differs_at(self, server: str) -> bool:
        """Does this server, `shard` or `coordinator`, answer something else than Redis?"""
        return self.where in ("~", server[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Steps that begin with an empty server and new connections."""

    name: str
    needs_password: bool
    steps: tuple[Step, ...]


def read_sequences() -> list[Sequence]:
    """All of them."""
    sequences = []
    for block in re.split(r"^\[", SEQUENCES.read_text(), flags=re.MULTILINE)[1:]:
        name, _, lines = block.partition("]\n")
        steps = tuple(_step(line) for line in lines.splitlines() if line and not line.startswith("#"))
        sequences.append(
            Sequence(name=name.removesuffix(", password"), needs_password=name.endswith(", password"), steps=steps)
        )
    return sequences


def _step(line: str) -> Step:
    match = _STEP.fullmatch(line)
    assert match is not None, line
    command = match["command"]
    if command.startswith("raw "):
        data = ast.literal_eval(command.removeprefix("raw "))
    else:
        words = [word.encode() for word in shlex.split(command)]
        data = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    return Step(
        connection=int(match["connection"] or 1),
        data=data,
        differs=match["reason"] or "",
        where=match["where"] or "",
        line=line,
    )


def play(sequence: Sequence, address: tuple[str, int]) -> list[Any]:
    """The answer to each step, as JSON has it."""
    with RespSocket(address) as first:
        if sequence.needs_password:
            assert first.call("AUTH", PASSWORD) == b"OK"
        first.call("FLUSHALL")
    answers = []
    with contextlib.ExitStack() as stack:
        connections: dict[int, RespSocket] = {}
        for step in sequence.steps:
            if step.connection not in connections:
                connections[step.connection] = stack.enter_context(RespSocket(address))
            connection = connections[step.connection]
            connection.send(step.data)
            try:
                answers.append(as_json(connection.reply()))
            except (ConnectionClosed, ConnectionResetError):
                answers.append(CLOSED)
    return answers


def as_json(reply: Any) -> Any:
    """A reply, with its type."""
    match reply:
        case RespError():
            return {"error": str(reply)}
        case Simple():
            return {"simple": reply.decode()}
        case bytes():
            return reply.decode("latin-1")
        case list():
            return [as_json(item) for item in reply]
        case dict():
            return {"map": [[as_json(key), as_json(value)] for key, value in reply.items()]}
        case _:
            return reply


def without_codes(answer: Any) -> Any:
    """The answer without the code that ends each of our errors."""
    match answer:
        case {"error": str(line)}:
            return {"error": re.sub(r" \(\w+\)$", "", line).rstrip()}
        case {"map": pairs}:
            return {"map": without_codes(pairs)}
        case list():
            return [without_codes(item) for item in answer]
        case _:
            return answer


def form(answer: Any) -> Any:
    """Which type an answer has, errors by their first word."""
    match answer:
        case {"error": str(line)}:
            return {"error": line.split(" ", 1)[0]}
        case {"simple": _}:
            return "simple"
        case {"map": _}:
            return "map"
        case list():
            return "array"
        case _:
            return type(answer).__name__


@contextlib.contextmanager
def redis_server(*, password: str | None = None) -> Iterator[tuple[str, int]]:
    """A real one, with nothing on disk."""
    program = shutil.which("redis-server")
    assert program is not None
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for _ in range(20):
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
            if password is not None:
                options += ["--requirepass", password]
            process = stack.enter_context(
                subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
            # Somebody else may have taken the port meanwhile: then it has ended.
            wait_until(partial(_is_decided, process, port))
            if process.poll() is None:
                yield "127.0.0.1", port
                return
        raise AssertionError("no redis-server started")


def _is_decided(process: "subprocess.Popen[bytes]", port: int) -> bool:
    return process.poll() is not None or _listens(port)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def redis_version(address: tuple[str, int], password: str | None = None) -> str:
    """As INFO tells it."""
    with RespSocket(address) as connection:
        if password is not None:
            connection.call("AUTH", password)
        found = re.search(rb"redis_version:(\S+)", connection.call("INFO", "server"))
        assert found is not None
        return found[1].decode()


def record(play_at: Callable[[Sequence], list[Any]]) -> dict[str, list[Any]]:
    """Every sequence's answers."""
    return {sequence.name: play_at(sequence) for sequence in read_sequences()}


def record_redis() -> None:
    """Writes the answers of the installed redis-server, and keeps what is recorded of ours."""
    recorded = _recorded()
    with redis_server() as open_server, redis_server(password=PASSWORD) as closed_server:
        recorded["redis_version"] = redis_version(open_server)
        recorded["redis"] = record(
            lambda sequence: play(sequence, closed_server if sequence.needs_password else open_server)
        )
    _write(recorded)


def record_ours(server: str, open_server: tuple[str, int], closed_server: tuple[str, int]) -> None:
    """Writes what a shard or a coordinator answers where it is to differ, to be looked at before it is committed."""
    recorded = _recorded()
    recorded[server] = {}
    for sequence in read_sequences():
        answers = play(sequence, closed_server if sequence.needs_password else open_server)
        differing = {
            str(number): answer
            for number, (step, answer) in enumerate(zip(sequence.steps, answers, strict=True))
            if step.differs_at(server)
        }
        if differing:
            recorded[server][sequence.name] = differing
    _write(recorded)


def differences(server: str, sequence: Sequence, answers: list[Any], recorded: dict[str, Any]) -> list[str]:
    """Where a shard or a coordinator answers something else than it should."""
    wrong = []
    of_redis = recorded["redis"][sequence.name]
    own = recorded[server].get(sequence.name, {})
    for number, (step, answer) in enumerate(zip(sequence.steps, answers, strict=True)):
        expected = of_redis[number]
        if step.differs_at(server):
            if without_codes(answer) == without_codes(expected):
                wrong.append(f"{step.line}: as Redis, though it is listed as different: {answer}")
            expected = own.get(str(number))
            if answer != expected:
                wrong.append(f"{step.line}: {answer} instead of {expected}, as was recorded of ours")
        elif step.where == "?":
            if form(answer) != form(expected):
                wrong.append(f"{step.line}: {answer} has another form than {expected}")
        elif without_codes(answer) != without_codes(expected):
            wrong.append(f"{step.line}: {answer} instead of {expected}")
    return wrong


def _recorded() -> dict[str, Any]:
    if not ANSWERS.exists():
        return {"redis": {}, "shard": {}, "coordinator": {}}
    recorded: dict[str, Any] = json.loads(ANSWERS.read_text())
    return recorded


def _write(recorded: dict[str, Any]) -> None:
    parts = [f'"redis_version": {json.dumps(recorded["redis_version"])}']
    for server in ("redis", "shard", "coordinator"):
        lines = [f"{json.dumps(name)}: {json.dumps(answers)}" for name, answers in sorted(recorded[server].items())]
        parts.append(f'"{server}": {{\n' + ",\n".join(lines) + "\n}")
    ANSWERS.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["redis"]:
            record_redis()
        case [server, first, second]:
            record_ours(server, _address(first), _address(second))
        case _:
            sys.exit(__doc__)
