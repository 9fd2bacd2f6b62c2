"""`fuserec publish`, `fuserec rollback` and `fuserec traffic`: which version a running server answers from."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from fuserec.cli._app import JsonFlag, app
from fuserec.errors import ClientError, LaunchError, UsageError

TargetArgument = Annotated[str, typer.Argument(help="host:port of a server of this machine, or its repository.")]
ShareOption = Annotated[float, typer.Option(help="Share of the users, 0 to 1, that the tried version answers.")]
WaitOption = Annotated[float, typer.Option("--wait-s", help="Seconds to wait for the server to follow.")]


@app.command()
def publish(
    source: Annotated[Path, typer.Argument(help="Repository written by `fuserec export`.")],
    to: Annotated[str, typer.Option(help="host:port of a server of this machine, or its repository.")],
    version: Annotated[int | None, typer.Option(help="Version of the source; its newest by default.")] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="Let it answer a share of the calls, unseen.")] = False,
    ab: Annotated[bool, typer.Option("--ab", help="Let it answer a share of the users.")] = False,
    share: ShareOption = 0.1,
    keep: Annotated[int, typer.Option(min=1, help="Good versions that stay, this one included.")] = 2,
    accept_new_ids: Annotated[
        bool, typer.Option("--accept-new-ids", help="Publish what numbers its ids otherwise than what is served.")
    ] = False,
    wait_s: WaitOption = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Put a version into a served repository; the server turns to it without losing a call."""
    from fuserec.export.rollout import publish as publish_version
    from fuserec.traffic import AB, SHADOW

    if shadow and ab:
        raise UsageError("--shadow and --ab came together, expected one of them")
    repository = _repository(to)
    kind = SHADOW if shadow else AB if ab else None
    number = publish_version(
        source, repository, version=version, kind=kind, share=share, keep=keep, accept_new_ids=accept_new_ids
    )
    took_s = _wait_for(to, number, wait_s) if kind is None else None
    _tell(repository, as_json, version=number, followed_after_s=took_s)


@app.command()
def rollback(target: TargetArgument, wait_s: WaitOption = 60.0, as_json: JsonFlag = False) -> None:
    """Serve the last good version before the one that is served, and end an experiment."""
    from fuserec.export.rollout import roll_back

    repository = _repository(target)
    number = roll_back(repository)
    _tell(repository, as_json, version=number, followed_after_s=_wait_for(target, number, wait_s))


@app.command()
def traffic(
    target: TargetArgument,
    serve: Annotated[str | None, typer.Option(help="Version to serve, or `newest`; ends an experiment.")] = None,
    shadow: Annotated[int | None, typer.Option(help="Version that answers a share of the calls, unseen.")] = None,
    ab: Annotated[int | None, typer.Option(help="Version that answers a share of the users.")] = None,
    share: ShareOption = 0.1,
    stop: Annotated[bool, typer.Option("--stop", help="End the experiment.")] = False,
    wait_s: WaitOption = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Show which version is served and which is tried beside it, or change it."""
    from fuserec.export import rollout
    from fuserec.traffic import AB, SHADOW

    if (serve is not None) + (shadow is not None) + (ab is not None) + stop > 1:
        raise UsageError("expected at most one of --serve, --shadow, --ab and --stop")
    repository = _repository(target)
    took_s = None
    if serve is not None:
        if serve != "newest" and not serve.isdecimal():
            raise UsageError(f"--serve came as {serve!r}, expected a number or `newest`")
        number = rollout.serve(repository, None if serve == "newest" else int(serve))
        took_s = _wait_for(target, number, wait_s)
    elif shadow is not None:
        rollout.try_out(repository, SHADOW, shadow, share)
    elif ab is not None:
        rollout.try_out(repository, AB, ab, share)
    elif stop:
        rollout.stop_trying(repository)
    _tell(repository, as_json, metrics=_metrics_of(target), followed_after_s=took_s)


def _repository(target: str) -> Path:
    """Return the repository of a server of this machine, or the folder that was given."""
    from fuserec.serve.state import repository_of

    folder = Path(target)
    if folder.is_dir():
        return folder
    port = target.rpartition(":")[2]
    repository = repository_of(int(port)) if port.isdecimal() else None
    if repository is None:
        raise UsageError(
            f"{target} is neither a folder nor a server that `fuserec serve` runs on this machine; for one elsewhere "
            "give the folder of its repository, as it is mounted here"
        )
    return repository


def _wait_for(target: str, version: int, wait_s: float) -> float | None:
    """Wait until the server at `target` answers from a version; return the seconds, None where it is a folder.

    Raises:
        LaunchError: It does not; the repository says so all the same.
    """
    from fuserec.client import ModelNotFound, Recommender

    if Path(target).is_dir():
        return None
    began = time.monotonic()
    last = "no answer"
    with Recommender(target, timeout_ms=2_000.0) as client:
        while time.monotonic() - began < wait_s:
            try:
                try:
                    last = client.recommend(user_id=None, k=1).model_version
                except ModelNotFound:  # a ranker without a retriever
                    last = client.rank(candidates=[0]).model_version
                if last == str(version):
                    return time.monotonic() - began
            except ClientError as error:
                last = str(error)
            time.sleep(0.1)
    raise LaunchError(
        f"{target} does not answer from version {version} after {wait_s:.0f} s ({last}); the output of `fuserec serve` "
        "says why"
    )


def _metrics_of(target: str) -> str | None:
    """Return where the server at `target` tells its metrics; None where that is not known."""
    from fuserec.serve.state import metrics_url_of

    port = target.rpartition(":")[2]
    return metrics_url_of(int(port)) if port.isdecimal() and not Path(target).is_dir() else None


def _shadowed(metrics: str | None, served: int, candidate: int) -> dict[str, float] | None:
    """Return what a shadow has done since the server began: rows, items in common, milliseconds a row."""
    from fuserec.top import Scrape, shadow_so_far

    if metrics is None:
        return None
    try:
        seen = shadow_so_far(Scrape.fetch(metrics), served, candidate)
    except LaunchError:  # it is down; what the repository says holds all the same
        return None
    return None if seen is None else dataclasses.asdict(seen)


def _tell(repository: Path, as_json: bool, metrics: str | None = None, **extra: float | None) -> None:
    from fuserec import display
    from fuserec.manifest import bundles
    from fuserec.traffic import SHADOW, Traffic

    now = Traffic.read(repository)
    served = int(now.bundle(repository).name)
    tried = now.experiment
    seen = _shadowed(metrics, served, tried.version) if tried is not None and tried.kind == SHADOW else None
    if as_json:
        experiment = None if tried is None else {"kind": tried.kind, "version": tried.version, "share": tried.share}
        if experiment is not None and seen is not None:
            experiment |= seen
        document = {"served": served, "pinned": now.serve is not None, "experiment": experiment} | extra
        typer.echo(json.dumps(document | {"versions": list(bundles(repository))}, indent=2))
        return
    facts = {"served": f"version {served}" + (", pinned" if now.serve is not None else ", the newest")}
    if tried is not None:
        facts[tried.kind] = f"version {tried.version} for {tried.share:.0%} of the users"
    if seen is not None:
        facts["so far"] = "{rows:,.0f} rows, {overlap:.1%} of the items in common, {ms_per_row:.2f} ms a row".format(
            **seen
        )
    facts["there are"] = ", ".join(map(str, bundles(repository)))
    if (took_s := extra.get("followed_after_s")) is not None:
        facts["the server"] = f"answers from it, after {took_s:.1f} s"
    display.facts(facts)
