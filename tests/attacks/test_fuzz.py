"""Any bytes give every reader of ours a value or its one documented error, and soon. `make fuzz` goes on for longer."""

import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.attacks.mutations import mutated
from tests.attacks.readers import Reader, all_readers

READERS = {reader.name: reader for reader in all_readers()}
by_reader = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
_SOON_S = 10.0  # for inputs of which each takes milliseconds: what is quadratic in its input takes minutes


@by_reader
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_the_documented_error(reader: Reader, data: bytes) -> None:
    reader.tried(data)


@by_reader
def test_inputs_near_to_a_right_one_are_a_value_or_the_documented_error(reader: Reader) -> None:
    chance = random.Random(20261121)
    for _ in range(60):
        reader.tried(mutated(chance, reader.seeds))


@by_reader
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 3 * 10**5,
        b"{" * 3 * 10**5,
        b'{"a":' * 3 * 10**5,
        b"\n" * 3 * 10**5,
        b"a" * 3 * 10**5,
        b"a." * 3 * 10**5,
        b"=" * 3 * 10**5,
        b"9" * 3 * 10**5,
        b"\n{\n" * 10**5,
        b"\n}\n" * 10**5,
        b"'" * 3 * 10**5,
        b"\\" * 3 * 10**5,
        b" " * 3 * 10**5,
        b"[[a]]\n" * 10**4,
    ],
    ids=lambda data: repr(data[:5]),
)
def test_a_long_row_of_the_same_are_a_value_or_the_documented_error_and_soon(reader: Reader, data: bytes) -> None:
    begun = time.process_time()
    reader.tried(data)
    assert time.process_time() - begun < _SOON_S


@by_reader
def test_seeds_are_inputs_that_the_reader_looks_into(reader: Reader) -> None:
    assert reader.seeds
