"""The native module. Its classes are in files by topic; at run time all of them are in `pycounter._native`."""

from pycounter._native.caches import LatestValues as LatestValues
from pycounter._native.caches import ReadCache as ReadCache
from pycounter._native.counters import Counters as Counters
from pycounter._native.counters import JournaledCounters as JournaledCounters
from pycounter._native.folder import Fold as Fold
from pycounter._native.folder import FolderReader as FolderReader
from pycounter._native.folder import FolderWriter as FolderWriter
from pycounter._native.folder import JournaledFolder as JournaledFolder
from pycounter._native.folder import SimulatedDisk as SimulatedDisk
from pycounter._native.link import SessionLink as SessionLink
from pycounter._native.link import SplitItems as SplitItems
from pycounter._native.load_generator import ConstantReplies as ConstantReplies
from pycounter._native.load_generator import LoadGenerator as LoadGenerator
from pycounter._native.load_generator import LoadReport as LoadReport
from pycounter._native.load_generator import serve_constant_replies as serve_constant_replies
from pycounter._native.placement import ForeignKeys as ForeignKeys
from pycounter._native.placement import HashRing as HashRing
from pycounter._native.router import Router as Router
from pycounter._native.router import RouterConnection as RouterConnection
from pycounter._native.router import RouterLink as RouterLink
from pycounter._native.shard import Connection as Connection
from pycounter._native.shard import Replica as Replica
from pycounter._native.shard import Shard as Shard

__all__ = [
    "DEBUG_BUILD",
    "VERSION",
    "Connection",
    "ConstantReplies",
    "Counters",
    "Fold",
    "FolderReader",
    "FolderWriter",
    "ForeignKeys",
    "HashRing",
    "JournaledCounters",
    "JournaledFolder",
    "LatestValues",
    "LoadGenerator",
    "LoadReport",
    "ReadCache",
    "Replica",
    "Router",
    "RouterConnection",
    "RouterLink",
    "SessionLink",
    "Shard",
    "SimulatedDisk",
    "SplitItems",
    "error_codes",
    "fail_at_exit",
    "glob_matches",
    "serve_constant_replies",
]

DEBUG_BUILD: bool

VERSION: str

def glob_matches(pattern: bytes, key: bytes) -> bool:
    """Does the whole of `key` match a pattern of `SCAN MATCH`? At most pattern times key steps."""

def error_codes() -> list[tuple[str, bool, str, str]]:
    """(name, retryable, effect, meaning) of every error code; effect is "nothing", "before" or "unknown"."""

def fail_at_exit() -> None:
    """Makes the process end with status 1, whatever it would have been. For use while the interpreter ends."""
