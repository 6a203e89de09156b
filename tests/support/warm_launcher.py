"""The program of `WarmLauncher`: it has imported everything, and forks a `pycounter` command for each request.

Starting Python and importing costs a shard several hundred milliseconds; forking costs ten. Crash tests start a shard
hundreds of times, and what interests them begins after the imports. The child runs the same command line, in a
process of its own, and is killed like any other.

Run as `python -P warm_launcher.py FD`, where FD is a Unix socket that carries one message a request:

    {"spawn": [argument, ...]} with two file descriptors (stdout, stderr)  ->  {"pid": ...}
    {"reap": pid}  ->  {"status": as in subprocess.Popen.returncode}

At the end of the socket every child that is left is killed.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback

MESSAGE_BYTES_MAX = 65536
DESCRIPTORS_MAX = 4096
MODULES = ["pycounter.cli.application", "pycounter.server", "uvloop"]
"""What `pycounter serve` imports, with all that they import."""


def import_everything() -> None:
    for module in MODULES:
        importlib.import_module(module)


def run_child(arguments: list[str], stdout: int, stderr: int) -> None:
    """The child: never returns."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.closerange(3, DESCRIPTORS_MAX)
        sys.argv = ["pycounter", *arguments]
        importlib.import_module("pycounter.cli").main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the end of a process: what it died of goes to its stderr
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def serve(requests: socket.socket) -> None:
    children: set[int] = set()
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES_MAX, 2)
            if not message:
                return
            request = json.loads(message)
            if "spawn" in request:
                pid = os.fork()
                if pid == 0:
                    requests.close()
                    run_child(request["spawn"], *descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                children.add(pid)
                answer = {"pid": pid}
            else:
                pid, status = os.waitpid(request["reap"], 0)
                children.discard(pid)
                answer = {"status": os.waitstatus_to_exitcode(status)}
            requests.send(json.dumps(answer).encode())
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_everything()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
