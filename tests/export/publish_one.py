"""Publish one small version, in this process or in one that can be stopped at a known point.

    python publish_one.py REPOSITORY CONTENT POINT

As a program it prints `held` at POINT and goes on once a line comes in; at the end it prints the version. The points:
`writing`, when its files are written; `stage`, when the first of its models is in place; `door`, when the last is.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from fuserec.export import publishing as room
from fuserec.manifest import Manifest

MODELS = ("recommend", "encode", "search")


def publish(
    repository: Path,
    content: str,
    *,
    models: tuple[str, ...] = MODELS,
    keep: int = 2,
    config: str | None = None,
    on_written: Callable[[], None] = lambda: None,
) -> int:
    """Publish a version whose items are `content`, and return its number."""
    with room.publishing(repository, models, keep=keep) as staging:
        for name in ("items.parquet", "users.parquet"):
            (staging.bundle / name).write_text(content)
        if config is not None:
            (staging.bundle / "config.pbtxt").write_text(config)
        manifest_of(staging).write(staging.bundle)
        on_written()
    return staging.version


def manifest_of(staging: room.Staging) -> Manifest:
    return Manifest(
        created="2026-01-01T00:00:00+00:00",
        architecture="none",
        precision="fp32",
        models=list(staging.models),
        dim=0,
        n_users=0,
        n_items=0,
        max_history={},
        parts={},
        text=None,
        heads=[],
        rerank=None,
        checkpoint_sha256={},
        data_fingerprint="",
        inputs_sha256="",
        metrics={},
        tools={},
        files=staging.files(),
    )


def hold() -> None:
    sys.stdout.write("held\n")
    sys.stdout.flush()
    sys.stdin.readline()


def main(repository: str, content: str, point: str) -> None:
    if point in ("stage", "door"):
        # A model is in place when its folder was told to be on the disk.
        stop, fsync, done = {"stage": 1, "door": len(MODELS)}[point], room.fsync, []

        def fsync_and_hold(path: Path) -> None:
            fsync(path)
            done.append(path)
            if len(done) == stop:
                hold()

        room.fsync = fsync_and_hold
    config = "# another\n" if point == "door" else None
    on_written = hold if point == "writing" else lambda: None
    sys.stdout.write(f"{publish(Path(repository), content, config=config, on_written=on_written)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
