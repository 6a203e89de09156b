"""Exceptions: one class for each code, the same facts as the engine's table."""

import pickle

import pytest

from pycounter import _native, errors


def test_there_is_one_class_for_each_code_and_it_says_the_same_as_the_engine():
    told = {code: (retryable, effect) for code, retryable, effect, _ in _native.error_codes()}
    known = {code: (kind.retryable, kind.effect) for code, kind in errors.BY_CODE.items()}
    assert known == told


@pytest.mark.parametrize("code", errors.BY_CODE)
def test_an_error_round_trips_over_the_wire(code):
    error = errors.from_wire(f"{code}: because: of this")
    assert type(error) is errors.BY_CODE[code]
    assert (str(error), error.message) == ("because: of this", "because: of this")
    assert errors.from_wire(error.wire_text).args == error.args


def test_a_code_of_a_newer_server_promises_nothing():
    error = errors.from_wire("sunspots: too many")
    assert type(error) is errors.UnknownCode
    assert (error.retryable, error.effect, str(error)) == (False, "unknown", "sunspots: too many")


def test_a_bare_code_gets_its_meaning():
    assert "bound" in str(errors.from_wire("overloaded"))


def test_in_process_errors_are_pythons_own_kinds_too():
    assert issubclass(errors.CounterOverflow, OverflowError)
    assert issubclass(errors.BadKey, ValueError)
    assert issubclass(errors.SettingsError, ValueError)


def test_fields_survive_pickling():
    error = pickle.loads(pickle.dumps(errors.FolderLocked("taken", "some/where")))
    assert (type(error), str(error), error.path) == (errors.FolderLocked, "taken", "some/where")
    error = pickle.loads(pickle.dumps(errors.SettingsError("no", setting="port", source="--port")))
    assert (error.setting, error.source) == ("port", "--port")


def test_a_lost_session_is_an_unknown_outcome_that_must_not_be_retried():
    error = errors.SessionLost("gone")
    assert isinstance(error, errors.UnknownOutcome)
    assert not error.retryable
