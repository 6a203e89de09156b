"""Counts a web server's access log in a folder on disk, in this process: requests by path and by status.

    python access_log.py ./counters < access.log     # adds the log's lines, then prints what is most
    python access_log.py ./counters < /dev/null      # only prints

It takes the Common Log Format that Apache and nginx write. When it has ended, every line is counted on disk. Lines that
it counted before it was interrupted stay counted.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import pycounter

REQUEST = re.compile(rb'"[A-Z]+ (?P<path>[^ ?"]+)[^"]*" (?P<status>\d{3}) ')
LINES_AT_ONCE = 10_000
PATH_BYTES_MAX = 1000


def keys(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The counters that each line adds one to."""
    for line in lines:
        if request := REQUEST.search(line):
            yield b"path:" + request["path"][:PATH_BYTES_MAX]
            yield b"status:" + request["status"]
        else:
            yield b"unreadable"


def main() -> None:
    """Adds the standard input to the counters in a folder, and prints the largest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the counters are; made if missing")
    parser.add_argument("--top", type=int, default=10, help="how many of each kind to print")
    options = parser.parse_args()
    with pycounter.open(options.folder) as counters:
        while lines := list(islice(sys.stdin.buffer, LINES_AT_ONCE)):
            # Summed first: a thousand requests of one path are one change. On disk when it returns.
            counters.update(Counter(keys(lines)))
        for kind in ("path:", "status:"):
            found = Counter({key: value for key, value in counters.items() if str(key).startswith(kind)})
            for key, value in found.most_common(options.top):
                print(f"{value:12,} {str(key).removeprefix(kind)}")
        print(f"{counters['unreadable']:12,} lines that are no request")


if __name__ == "__main__":
    main()
