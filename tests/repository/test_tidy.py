"""Style as a test."""


def test_placeholder_removed_soon():
    assert True
