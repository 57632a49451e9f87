"""Errors that a user can mend share one base, which the command line turns into one line and exit code 2."""

import pytest

from difflm.errors import CheckpointError, ConfigError, DataError, DifflmError, RequestError


@pytest.mark.parametrize("kind", [CheckpointError, ConfigError, DataError, RequestError])
def test_all_are_value_errors_of_one_family(kind: type[DifflmError]) -> None:
    assert issubclass(kind, DifflmError)
    with pytest.raises(ValueError, match="field: 3"):
        raise kind("field: 3 is too much; lower it")
