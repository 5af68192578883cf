import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import canonical_json, pretty_json, sha256_of, sha256_of_file

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
plain = st.recursive(
    scalars.filter(
        lambda value: not (isinstance(value, str) and not value.isascii() and "\ud800" <= value <= "\udfff")
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_canonical_json_loses_nothing(data: Any) -> None:
    assert json.loads(canonical_json(data)) == data
    assert json.loads(pretty_json(data)) == data


@given(st.dictionaries(st.text(max_size=5), plain, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_count(data: dict[str, Any], random: Any) -> None:
    items = list(data.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(data)
    assert pretty_json(dict(items)) == pretty_json(data)


@given(st.lists(plain, min_size=2, max_size=2))
def test_different_data_has_different_bytes(pair: list[Any]) -> None:
    first, second = pair
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (canonical_json(first) == canonical_json(second)) == same


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_json_has_no_number_for_is_refused(value: float) -> None:
    for encode in (canonical_json, pretty_json):
        with pytest.raises(ValueError, match="JSON"):
            encode({"deep": [value]})


def test_what_json_can_not_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        canonical_json({"path": Path("x")})


def test_pretty_json_ends_with_a_newline_and_keeps_letters() -> None:
    assert pretty_json({"ü": 1}) == '{\n  "ü": 1\n}\n'.encode()


@given(st.binary(max_size=200))
def test_a_file_and_its_bytes_have_one_digest(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("digest") / "file"
    path.write_bytes(data)
    assert sha256_of_file(path) == sha256_of(data)


def test_a_file_larger_than_a_chunk_is_digested_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "large").write_bytes(data)
    assert sha256_of_file(tmp_path / "large") == sha256_of(data)
