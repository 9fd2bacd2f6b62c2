"""Who is answered by which version: stable, even, and nothing but what the file may say."""

from pathlib import Path

import numpy as np
import pytest

from fuserec.errors import BundleError
from fuserec.traffic import AB, FILE_NAME, SHADOW, Experiment, Traffic

USERS = np.arange(200_000, dtype=np.int64)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_the_share_is_a_share(share: float) -> None:
    taken = Experiment(AB, 3, share).takes(USERS).mean()
    assert taken == pytest.approx(share, abs=4 * (share * (1 - share) / len(USERS)) ** 0.5 + 1e-12)


def test_a_user_stays_where_they_are() -> None:
    small, large = (Experiment(AB, 3, share).takes(USERS) for share in (0.1, 0.3))
    assert not (small & ~large).any(), "a larger share left out users of the smaller one"
    np.testing.assert_array_equal(Experiment(SHADOW, 3, 0.1).takes(USERS), small)
    # Kept for good: whoever was in an experiment yesterday is in it today.
    assert np.flatnonzero(small)[:6].tolist() == FIRST_SIX


FIRST_SIX = [0, 6, 14, 22, 23, 24]


def test_experiments_do_not_share_their_users() -> None:
    first, second = (Experiment(AB, version, 0.1).takes(USERS) for version in (3, 4))
    assert (first & second).mean() == pytest.approx(0.01, abs=0.002)


def test_callers_without_an_id_are_left_out() -> None:
    assert not Experiment(AB, 1, 1.0).takes(np.array([-1, -1])).any()


def test_round_trip(tmp_path: Path) -> None:
    assert Traffic.read(tmp_path) == Traffic()
    traffic = Traffic(3, Experiment(SHADOW, 4, 0.25))
    traffic.write(tmp_path)
    assert Traffic.read(tmp_path) == traffic
    assert traffic.versions == {3, 4}
    Traffic.clear(tmp_path)
    assert Traffic.read(tmp_path).versions == set()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"serve": 1}',
        '{"serve": 0, "experiment": null}',
        '{"serve": true, "experiment": null}',
        '{"serve": null, "experiment": {"kind": "both", "version": 1, "share": 0.1}}',
        '{"serve": null, "experiment": {"kind": "ab", "version": 1, "share": 0.0}}',
        '{"serve": null, "experiment": {"kind": "ab", "version": 0, "share": 0.1}}',
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(BundleError, match=FILE_NAME):
        Traffic.read(tmp_path)
