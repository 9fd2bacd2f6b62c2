"""The flood of malformed requests is the same each time, tells its outcomes apart, and the server withstands it."""

from pathlib import Path

import pytest

from bench._malformed import good, malformed
from bench._raw import Reply
from bench.malformed import main, outcome


def test_a_seed_gives_the_same_requests() -> None:
    assert [malformed(3, place) for place in (7, 0, 7)] == [malformed(3, place) for place in (7, 0, 7)]
    many = [malformed(0, place) for place in range(600)]
    assert len({request.data for request in many}) > 550
    assert {(request.protocol, request.kind) for request in many} == {
        (protocol, kind) for protocol in ("grpc", "http") for kind in ("random", "structured", "mutated")
    }
    assert many != [malformed(1, place) for place in range(600)]
    assert good() not in [request.data for request in many if request.kind == "random"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply("200", b"{}"), "answered"),
        (Reply("OK"), "answered"),
        (Reply("400", b'{"error":"no"}'), "refused"),
        (Reply("400", b'{"error":"no \xff"}'), "refused"),
        (Reply("INVALID_ARGUMENT", b"no"), "refused"),
        (Reply("CLOSED"), "closed"),
        (Reply("400", b"no"), "untyped"),
        (Reply("500", b'{"error":5}'), "untyped"),
        (Reply("500", b""), "untyped"),
        (Reply("UNKNOWN", b"no"), "untyped"),
        (Reply("INTERNAL", b""), "untyped"),
        (Reply("INTERNAL", b"Stub process 'recommend_0_0' is not healthy."), "died"),
        (Reply("INTERNAL", b"Failed to process the request(s) for model 'x', message: KeyError: 'k'"), "raised"),
        (Reply("DEADLINE_EXCEEDED", b"Deadline Exceeded"), "silent"),
        (None, "silent"),
    ],
    ids=str,
)
def test_outcomes_are_told_apart(reply: Reply | None, expected: str) -> None:
    request = next(each for each in (malformed(0, place) for place in range(100)) if each.kind == "mutated")
    assert outcome(request, reply) == expected


@pytest.mark.serving
def test_the_server_withstands_two_thousand(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of the bench's own checks: typed errors, the same answers as before, nothing that grows."""
    status = main(["--repository", str(repository), "--count", "2000", "--seed", "6"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    rows = [line.split() for line in printed.out.splitlines()[1:]]
    assert sum(int(row[2]) for row in rows) == 2000, printed.out
    assert len(rows) == 6 and all(int(row[4]) > 100 for row in rows if row[1] != "random"), printed.out
