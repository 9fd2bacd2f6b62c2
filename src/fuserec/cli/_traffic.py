"""`fuserec publish`, `fuserec rollback` and `fuserec traffic`: which version a running server answers from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuserec.cli import INTERRUPTED
from fuserec.cli._app import JsonFlag, app
from fuserec.errors import UsageError

if TYPE_CHECKING:
    from fuserec.cli._word import Word

TargetArgument = Annotated[str, typer.Argument(help="host:port of a server of this machine, or its repository.")]
ShareOption = Annotated[float, typer.Option(help="Share of the users, 0 to 1, that the tried version answers.")]
WaitOption = Annotated[float, typer.Option("--wait-s", help="Seconds to wait for the word of the server.")]


@app.command()
def publish(
    source: Annotated[Path, typer.Argument(help="Repository written by `fuserec export`.")],
    to: Annotated[str, typer.Option(help="host:port of a server of this machine, or its repository.")],
    version: Annotated[int | None, typer.Option(help="Version of the source; its newest by default.")] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="Let it answer a share of the calls, unseen.")] = False,
    ab: Annotated[bool, typer.Option("--ab", help="Let it answer a share of the users.")] = False,
    share: ShareOption = 0.1,
    keep: Annotated[int, typer.Option(min=1, help="Good versions that stay, this one included.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Publish even what the repository already holds.")] = False,
    accept_new_ids: Annotated[
        bool, typer.Option("--accept-new-ids", help="Publish what numbers its ids otherwise than what is served.")
    ] = False,
    wait_s: WaitOption = 150.0,
    as_json: JsonFlag = False,
) -> None:
    """Put a version into a served repository; the server turns to it without losing a call, or says why not."""
    from fuserec.cli._word import wait_for_experiment, wait_for_version
    from fuserec.export.rollout import publish as publish_version
    from fuserec.manifest import bundles
    from fuserec.traffic import AB, SHADOW

    if shadow and ab:
        raise UsageError("--shadow and --ab came together, expected one of them")
    repository, since_s = _repository(to), time.monotonic()
    kind = SHADOW if shadow else AB if ab else None
    before = set(bundles(repository)) if repository.is_dir() else set()
    number = None
    try:
        number = publish_version(
            source,
            repository,
            version=version,
            kind=kind,
            share=share,
            keep=keep,
            force=force,
            accept_new_ids=accept_new_ids,
        )
        if number in before:
            typer.echo(f"version {number} already holds this; --force publishes it as another one", err=True)
        if kind is None:
            word = wait_for_version(to, repository, number, since_s, wait_s)
        else:
            word = wait_for_experiment(to, repository, number, wait_s)
    except KeyboardInterrupt:
        new = sorted(set(bundles(repository)) - before) if repository.is_dir() else []
        if number is None and not new:
            _end(f"interrupted: nothing was published in {repository}")
        _end(
            f"interrupted: version {number or new[-1]} is published in {repository}, and its servers may turn to it; "
            "`fuserec traffic` shows what they do, `fuserec rollback` takes it back"
        )
    _tell(to, repository, as_json, word, version=number)


@app.command()
def rollback(target: TargetArgument, wait_s: WaitOption = 150.0, as_json: JsonFlag = False) -> None:
    """Serve what was served before, and end an experiment; a version that never was is not gone back to."""
    from fuserec.cli._word import wait_for_version
    from fuserec.export.rollout import roll_back

    repository, since_s = _repository(target), time.monotonic()
    number = roll_back(repository)
    if not as_json:
        typer.echo(f"going back to version {number}")
    try:
        word = wait_for_version(target, repository, number, since_s, wait_s)
    except KeyboardInterrupt:
        _end(f"interrupted: version {number} is asked for; `fuserec traffic` shows whether it is served")
    _tell(target, repository, as_json, word, version=number)


@app.command()
def traffic(
    target: TargetArgument,
    serve: Annotated[str | None, typer.Option(help="Version to serve, or `newest`; ends an experiment.")] = None,
    shadow: Annotated[int | None, typer.Option(help="Version that answers a share of the calls, unseen.")] = None,
    ab: Annotated[int | None, typer.Option(help="Version that answers a share of the users.")] = None,
    share: ShareOption = 0.1,
    stop: Annotated[bool, typer.Option("--stop", help="End the experiment.")] = False,
    wait_s: WaitOption = 150.0,
    as_json: JsonFlag = False,
) -> None:
    """Show which version is served and which is tried beside it, or change it."""
    from fuserec.cli._word import wait_for_experiment, wait_for_version
    from fuserec.export import rollout
    from fuserec.traffic import AB, SHADOW

    if (serve is not None) + (shadow is not None) + (ab is not None) + stop > 1:
        raise UsageError("expected at most one of --serve, --shadow, --ab and --stop")
    repository, since_s = _repository(target), time.monotonic()
    word = None
    if serve is not None:
        if serve != "newest" and not serve.isdecimal():
            raise UsageError(f"--serve came as {serve!r}, expected a number or `newest`")
        number = rollout.serve(repository, None if serve == "newest" else int(serve))
        word = wait_for_version(target, repository, number, since_s, wait_s)
    elif shadow is not None or ab is not None:
        kind, number = (SHADOW, shadow) if shadow is not None else (AB, ab or 0)
        rollout.try_out(repository, kind, number, share)
        word = wait_for_experiment(target, repository, number, wait_s)
    elif stop:
        rollout.stop_trying(repository)
    _tell(target, repository, as_json, word)


def _end(message: str) -> None:
    typer.echo(f"fuserec: {message}", err=True)
    raise typer.Exit(INTERRUPTED)


def _repository(target: str) -> Path:
    """Return the repository of a server of this machine, or the folder that was given."""
    from fuserec.serve.state import repository_of

    folder = Path(target)
    if folder.is_dir():
        return folder
    repository = repository_of(target)
    if repository is None:
        raise UsageError(
            f"{target} is neither a folder nor a server that `fuserec serve` runs on this machine; for one elsewhere "
            "give the folder of its repository, as it is mounted here"
        )
    return repository


def _tell(target: str, repository: Path, as_json: bool, word: Word | None, **extra: float | None) -> None:
    """Show what is served, by what the servers say, and what is asked for, where that is something else."""
    from fuserec import display
    from fuserec.cli._word import Standing

    standing = Standing.of(target, repository)
    if as_json:
        extra["followed_after_s"] = word.took_s if word is not None else None
        typer.echo(json.dumps(standing.document() | extra, indent=2))
        return
    facts = standing.facts()
    if word is not None:
        facts["the server"] = word.text
    display.facts(facts)
