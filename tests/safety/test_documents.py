"""JSON of which every reader makes the same, or a refusal."""

import os
from pathlib import Path

import pytest

from fuserec.errors import DataError
from fuserec.untrusted.documents import MAX_DEPTH, parse_json, read_bytes, read_json, read_text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is not JSON", id="empty"),
        pytest.param(b"{", "is not JSON", id="cut short"),
        pytest.param(b"\xff\xfe{}", "is not JSON", id="not UTF-8"),
        pytest.param(b"\x80\x04\x95", "is not JSON", id="pickle"),
        pytest.param(b"[]", "holds a JSON list", id="list"),
        pytest.param(b"null", "holds a JSON NoneType", id="null"),
        pytest.param(b'{"a": 1, "a": 2}', "'a' is there twice", id="repeated name"),
        pytest.param(b'{"b": [{"a": 1, "a": 1}]}', "'a' is there twice", id="repeated name within"),
        pytest.param(b'{"a": NaN}', "holds the number nan", id="NaN"),
        pytest.param(b'{"a": [-Infinity]}', "holds the number -inf", id="infinity"),
        pytest.param(b'{"a": 1e999}', "holds the number inf", id="too large a float"),
        pytest.param(b'{"a": 9223372036854775808}', "integer beyond 64 bits", id="2^63"),
        pytest.param(b'{"a": ' + b"9" * 10_000 + b"}", "is not JSON", id="10,000 digits"),
        pytest.param(b'{"a": "\\ud800"}', "half of a surrogate pair", id="surrogate"),
        pytest.param(b'{"\\udfff": 1}', "half of a surrogate pair", id="surrogate in a name"),
        pytest.param(b'{"a":' * 65 + b"1" + b"}" * 65, "nests deeper than 64", id="65 levels"),
        pytest.param(b'{"a":' * 500 + b"1" + b"}" * 500, "nests deeper than 64", id="500 levels"),
        pytest.param(b'{"a":' * 1_000_000, "is not JSON", id="a million levels"),
    ],
)
def test_ambiguous_json_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(content)


def test_ordinary_json_is_read() -> None:
    assert parse_json('{"a": [1, -9223372036854775808, 0.5, null, true, "ü\\u0000"]}') == {
        "a": [1, -(2**63), 0.5, None, True, "ü\0"]
    }
    assert parse_json(b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH)
    assert parse_json('{"a": -Infinity, "b": 340282366920938463463374607431768211455}', any_number=True) == {
        "a": float("-inf"),
        "b": 2**128 - 1,
    }


def test_limit_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, 8, DataError) == {"a": 1}
    with pytest.raises(DataError, match="has more than 7 bytes"):
        read_json(path, 7, DataError)


def test_sparse_file_of_a_terabyte_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match="has more than 1000 bytes"):
        read_bytes(path, 1000, DataError)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe would block for ever, and a device would never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "device", "loop", "folder", "nothing", "a\0b"):
        with pytest.raises(DataError, match="cannot be read"):
            read_bytes(tmp_path / name, 1000, DataError)


def test_text_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xe9")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_text(tmp_path / "a", 10, DataError)
