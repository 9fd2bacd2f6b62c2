"""How long the supervisor waits before it starts a server again."""

from fuserec.serve.supervisor import Backoff, Watch


def test_backoff_grows_and_gives_up() -> None:
    backoff = Backoff(Watch(first_backoff_s=0.5, longest_backoff_s=3.0, most_restarts=6), clock=lambda: 0.0)
    assert [backoff.next_s() for _ in range(7)] == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0, None]


def test_backoff_forgives() -> None:
    now = [0.0]
    backoff = Backoff(Watch(forgive_s=60.0), clock=lambda: now[0])
    assert [backoff.next_s(), backoff.next_s()] == [0.0, 0.5]
    now[0] = 61.0
    assert backoff.next_s() == 0.0
