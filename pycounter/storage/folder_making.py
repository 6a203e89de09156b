"""Making a shard's folder from the counters of another: what `restore` and `repair` leave."""

from __future__ import annotations

from pathlib import Path

from pycounter._native import FolderWriter
from pycounter.storage.checkpoint_store import CheckpointStore
from pycounter.storage.folder_reading import FolderContents, OnProgress

__all__ = ["make_folder"]


def make_folder(contents: FolderContents, directory: Path, on_progress: OnProgress) -> str:
    """Writes every counter of `contents` into the folder `directory`, as a shard of its own. Gives its identity.

    Sessions and operation ids stay behind: they vouch for operations that these counters may not have. The manifest is
    written last: before it the folder is no shard's.

    Raises:
        StorageError: the disk failed; what was begun is left there.
    """
    reader = contents.reader
    writer = FolderWriter(directory, contents.name, reader.figures["uptime_ms"])
    store = CheckpointStore(directory)
    try:
        for part in range(reader.parts):
            on_progress("copying", part / reader.parts)
            store.put_lazily(writer.copy(reader, part, contents.row(reader.part_key(part))))
        last, root_key, root = writer.finish_rows()
        store.put_lazily(last)
        store.put_safely(root_key, root)
    finally:
        store.close()
    writer.finish()
    return writer.identity
