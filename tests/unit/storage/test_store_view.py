"""A view of the checkpoint store: what replicas read while checkpoints go on."""

import pytest

from pycounter.errors import StorageError
from pycounter.storage.checkpoint_store import CheckpointStore


def test_a_view_shows_what_was_there_whatever_is_written_later(tmp_path):
    store = CheckpointStore(tmp_path)
    store.put_lazily([(b"a", b"1"), (b"b", b"2")])
    view = store.view()
    store.put_lazily([(b"a", b"3"), (b"c", b"4")])
    store.delete([b"b"])
    store.flush()
    assert [view.get(key) for key in (b"a", b"b", b"c")] == [b"1", b"2", None]
    assert [store.view().get(key) for key in (b"a", b"b", b"c")] == [b"3", None, b"4"]
    store.close()


def test_a_view_ends_with_its_store_which_can_be_opened_again(tmp_path):
    store = CheckpointStore(tmp_path)
    store.put_safely(b"a", b"1")
    view = store.view()
    store.close()
    with pytest.raises(StorageError, match="has ended"):
        view.get(b"a")
    store = CheckpointStore(tmp_path)
    assert store.get(b"a") == b"1"
    view = store.view()
    view.close()
    view.close()
    store.close()
