"""Look a repository over without starting a server: would it be served, and by what?"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from fuserec.contract import RECOMMEND
from fuserec.errors import BundleError
from fuserec.manifest import Manifest
from fuserec.serve.binary import find_binary
from fuserec.serve.device import Device, Need, decide
from fuserec.serve.engine_choice import choose_engine, providers_here
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.probe import Survey, survey
from fuserec.serve.query import Query
from fuserec.serve.ranking import RankQuery, RankStage
from fuserec.serve.settings import ServingConfig
from fuserec.serve.stores import read_items
from fuserec.serve.users import NO_IDS, Users
from fuserec.serve.versions import Versions
from fuserec.traffic import Traffic


@dataclass(frozen=True)
class Checked:
    """What was looked at and what was found; everything that is wrong is raised instead."""

    what: str
    found: str


def check_repository(
    repository: Path, *, settings: ServingConfig | None = None, binary: Path | None = None
) -> list[Checked]:
    """Do what a start does, up to the first answer, in this process.

    Raises:
        BundleError: The served version, or the one that is tried beside it, is missing or damaged, or nothing installed
            here runs it.
        LaunchError: There is no server to run it, or no device that was asked for.
        DeviceError: The device does not run it.
    """
    server = find_binary(binary)
    traffic = Traffic.read(repository)
    bundle = traffic.bundle(repository)
    settings = settings or ServingConfig()
    found = Survey(None) if settings.device == "cpu" else survey()
    device = decide(settings, found, Need.of(Manifest.read(bundle), settings))
    versions = Versions(repository)
    try:
        checked = [Checked("device", str(device)), *_check_bundle(bundle, "served", device)]
    except BundleError as error:
        raise BundleError(f"{error}; {_in_its_place(versions, int(bundle.name))}") from None
    first = versions.first(cautiously=True)
    if first != int(bundle.name):
        checked.append(Checked("a start", f"serves version {first}, which has answered before, and turns to it then"))
    if traffic.experiment is not None:
        tried = bundle.with_name(str(traffic.experiment.version))
        checked += _check_bundle(tried, f"{traffic.experiment.kind}, {traffic.experiment.share:.0%}", device)
    checked.append(Checked("server", f"{server.path.name} {'of the installed wheel' if server.wheel else server.path}"))
    return checked


def _in_its_place(versions: Versions, wanted: int) -> str:
    """Say what a start serves where the wanted version is damaged."""
    for version in versions.in_order(wanted):
        with contextlib.suppress(BundleError):
            versions.verified(version)
            return f"a start serves version {version} in its place"
    return "there is no other that a start could serve"


def _check_bundle(bundle: Path, role: str, device: Device) -> list[Checked]:
    manifest = Manifest.read(bundle)
    manifest.verify(bundle.parents[1])
    size_mib = sum(record.bytes for record in manifest.files.values()) / 2**20
    checked = [
        Checked(f"version {manifest.version} ({role})", f"{manifest.architecture}, {manifest.n_items:,} items"),
        Checked("files", f"{len(manifest.files)} as they were published, {size_mib:.1f} MiB"),
    ]
    providers = providers_here() if device.kind == "cuda" else ()
    for part, record in manifest.parts.items():
        choice = choose_engine(record.engines, device, providers)
        on = "" if choice.on == choice.target else f" on {choice.on}"
        idle = f": {choice.idle}" if choice.idle else ""
        checked.append(Checked(part, f"{choice.target} in {record.engines[choice.target].precision}{on}{idle}"))
    began = time.perf_counter()
    item = read_items(bundle, manifest)["item_id"].to_numpy()[:1]
    if manifest.models[0] == RECOMMEND:
        Pipeline.open(bundle, device).recommend([Query(-1, item, NO_IDS, 1)])
    else:
        stage = RankStage.open(bundle, manifest, device)
        assert stage is not None, "a front door that ranks has a ranker"
        stage.rank([RankQuery(-1, item, item)], Users.load(bundle, manifest))
    checked.append(Checked("answer", f"one came, {time.perf_counter() - began:.1f} s after opening began"))
    return checked
