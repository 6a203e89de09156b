"""What each process of a cluster is started with: a file of settings and a command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pycounter.cluster.parent import SUPERVISOR_VARIABLE
from pycounter.settings import ENVIRONMENT_PREFIX, ClusterSettings, CoordinatorSettings, ServerSettings

__all__ = ["ChildCommands", "child_environment", "to_toml"]

#: Where shards and replicas listen.
LOOPBACK = "127.0.0.1"
#: The public side's, and what differs between shards.
_NOT_FOR_SHARDS = {"data", "host", "port", "unix", "name", "tls_cert", "tls_key", "insecure", "ring"}
_SHARED_WITH_COORDINATORS = CoordinatorSettings.__struct_fields__
DELETE = "\x7f"
DELETE_ESCAPED = "\\u007f"


def to_toml(settings: Mapping[str, Any]) -> str:
    """Settings as a TOML file: texts, numbers, true and false, lists of texts, and tables of all these."""
    lines = []
    for name, value in settings.items():
        if value is None:
            continue
        lines.append(f"{name} = {_toml_value(value)}\n")
    return "".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_value(key)} = {_toml_value(one)}" for key, one in value.items()) + "}"
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    # JSON leaves this character as it is, and TOML doesn't take it.
    return text.replace(DELETE, DELETE_ESCAPED)


def child_environment() -> dict[str, str]:
    """The environment of children: settings come to them in files only, and they know whose children they are."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return {**kept, SUPERVISOR_VARIABLE: str(os.getpid())}


class ChildCommands:
    """Writes settings files into the cluster's folder and gives command lines."""

    def __init__(self, settings: ClusterSettings, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        names = [f"shard-{number}" for number in range(settings.shards)]
        self._ring = tuple(f"{name}=1" for name in names)

    def directory(self, kind: str, name: str) -> Path:
        """The own folder of a process."""
        return self._directory / f"{kind}s" / name

    def shard(self, name: str, port: int) -> list[str]:
        """Starts a shard. Raises OSError where its settings can't be written."""
        config = self._write(name, self._for_shard(name, port))
        return self._command("serve", "--json", "--config", str(config))

    def replica(self, name: str, primary: str, port: int) -> list[str]:
        """Starts a replica of the shard at `primary`. Raises OSError as `shard`."""
        words = ["--json", "--name", name, "--primary", primary]
        words += ["--host", LOOPBACK, "--port", str(port)]
        # What its shard may have: it holds the same counters.
        words += ["--counters-bytes-max", str(self._settings.counters_bytes_max)]
        token_file = _absolute({"token_file": self._settings.token_file})["token_file"]
        if token_file is not None:
            words += ["--token-file", token_file]
        return self._command("replica", "serve", *words)

    def coordinator(self, name: str, listen_fds: list[int]) -> list[str]:
        """Starts a coordinator on inherited sockets. Raises OSError as `shard`."""
        shared = {key: getattr(self._settings, key, None) for key in _SHARED_WITH_COORDINATORS}
        own = {"name": name, "data": str(self.directory("coordinator", name)), "listen_fds": None}
        config = self._write(name, _absolute({**shared, **self._settings.coordinator, **own}))
        sockets = [word for descriptor in listen_fds for word in ("--listen-fd", str(descriptor))]
        return self._command("coordinator", "--json", "--config", str(config), *sockets)

    def _for_shard(self, name: str, port: int) -> dict[str, Any]:
        every = msgspec.structs.asdict(self._settings)
        theirs = {key: every[key] for key in ServerSettings.__struct_fields__ if key not in _NOT_FOR_SHARDS}
        own = {"data": str(self.directory("shard", name)), "host": LOOPBACK, "port": port, "name": name}
        return _absolute({**own, "ring": self._ring, **theirs})

    def _write(self, name: str, settings: dict[str, Any]) -> Path:
        path = self._directory / "run" / f"{name}.toml"
        content = f"# Written by the supervisor when it starts {name}.\n{to_toml(settings)}"
        # A full disk is no reason not to start what was started before.
        if not path.exists() or path.read_text() != content:
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".toml.new")
            temporary.write_text(content)
            temporary.replace(path)
        return path

    @staticmethod
    def _command(*words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "pycounter", *words]


def _absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """Files that the operator named from where the supervisor was started."""
    files = {
        key: str(Path(settings[key]).absolute()) for key in ("token_file", "tls_cert", "tls_key") if settings.get(key)
    }
    return {**settings, **files}
