"""Where a server computes: what is decided, why, and what is refused."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from fuserec.errors import LaunchError, UsageError
from fuserec.kernels import ItemIndex
from fuserec.manifest import Manifest
from fuserec.serve import check, launcher, probe
from fuserec.serve.device import CPU, VARIABLE, Device, Need, decide
from fuserec.serve.launcher import Address, Server
from fuserec.serve.probe import Gpu, Survey, device_target
from fuserec.serve.settings import RowsPlace, ServingConfig

GIB = 2**30
NEED = Need(items=10_000_000, dim=128, processes=3, fewest=2)
NO_GPU = Survey(None, "the CUDA driver (libcuda.so.1) is not there or sees no device")


def with_gpu(free_gib: float) -> Survey:
    return Survey(Gpu("H100", "sm90", int(free_gib * GIB), 80 * GIB))


def test_auto_takes_a_gpu_with_room() -> None:
    device = decide(ServingConfig(), with_gpu(79), NEED)
    assert (device.kind, device.target, device.rows) == ("cuda", "sm90", "device")
    assert device.reason == "H100, sm90, 24.3 GiB of 79.0 GiB free"


def test_auto_says_why_it_takes_the_cpu() -> None:
    assert decide(ServingConfig(), NO_GPU, NEED) == Device("cpu", NO_GPU.missing)
    reason = decide(ServingConfig(), with_gpu(20), NEED).reason
    assert reason.startswith("3 processes with 10,000,000 items of 128 each need 24.3 GiB, and H100 has 20.0 GiB free")


def test_cpu_is_taken_with_a_gpu_there() -> None:
    assert decide(ServingConfig(device="cpu"), with_gpu(79), NEED) == Device("cpu", "as set")


def test_cuda_is_refused_without_a_device() -> None:
    with pytest.raises(LaunchError, match=r"^invalid device='cuda': must be 'cpu' or 'auto' here, as the CUDA driver"):
        decide(ServingConfig(device="cuda"), NO_GPU, NEED)


@pytest.mark.parametrize(
    ("free_gib", "fits"),
    [
        pytest.param(
            24.2,
            "the rows on the host (--set device_rows=host): 10.0 GiB, one process of the front door "
            "(--set instances=1): 16.2 GiB, both: 6.7 GiB",
            id="a little more is needed",
        ),
        pytest.param(
            13,
            "the rows on the host (--set device_rows=host): 10.0 GiB, both: 6.7 GiB",
            id="one process does not fit either",
        ),
        pytest.param(7, "both: 6.7 GiB", id="both"),
        pytest.param(2, "", id="nothing"),
    ],
)
def test_cuda_with_too_little_memory_says_what_would_fit(free_gib: float, fits: str) -> None:
    with pytest.raises(LaunchError) as refused:
        decide(ServingConfig(device="cuda"), with_gpu(free_gib), NEED)
    said = str(refused.value)
    assert f"need 24.3 GiB, and H100 has {free_gib:.1f} GiB free of 80.0 GiB" in said
    offered, items = re.fullmatch(r".*; what would fit: (.*?)(?:, )?([\d,]+) items as it is", said).groups()  # type: ignore[union-attr]
    assert offered == fits
    most = int(items.replace(",", ""))
    assert dataclasses.replace(NEED, items=most).total_bytes("device") <= max(free_gib, 6) * GIB
    assert dataclasses.replace(NEED, items=most + 1).total_bytes("device") > free_gib * GIB


@pytest.mark.parametrize(("free_gib", "kind"), [(10.1, "cuda"), (9.9, "cpu")])
def test_rows_on_the_host_need_a_quarter_on_the_device(free_gib: float, kind: str) -> None:
    assert decide(ServingConfig(device_rows="host"), with_gpu(free_gib), NEED).kind == kind


def test_what_is_offered_is_taken() -> None:
    """Each way out that a refusal names is one that the same machine accepts."""
    tight = with_gpu(16.5)
    for settings in (
        ServingConfig(device="cuda", device_rows="host"),
        ServingConfig(device="cuda", instances=1),
        ServingConfig(device="cuda", instances=1, device_rows="host"),
    ):
        need = dataclasses.replace(NEED, processes=settings.instances + 1)
        assert decide(settings, tight, need).kind == "cuda"


def test_need_of_a_bundle(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert {"recommend", "search"} < set(manifest.models)
    assert Need.of(manifest, ServingConfig()) == Need(300, 32, 3, 2)
    assert Need.of(manifest, ServingConfig(instances=4, stage_instances=2)) == Need(300, 32, 6, 3)
    ranks = cast("Manifest", SimpleNamespace(models=["rank"]))
    assert Need.of(ranks, ServingConfig()) == Need()


@pytest.mark.parametrize("rows", ["device", "host"])
def test_need_is_what_a_table_takes(rows: RowsPlace) -> None:
    """But for a few words: of random float32, which no shorter type holds."""
    index = ItemIndex.build(np.random.default_rng(0).standard_normal((50, 17), dtype=np.float32))
    beyond = index.to("interpret", rows=rows).device_bytes - Need(items=50, dim=17).table_bytes(rows)
    assert 0 <= beyond <= 64


def test_processes_of_the_models_are_told() -> None:
    device = Device("cuda", "a reason with 'quotes'", "sm90", "host")
    assert Device.of_environment(device.environment) == device


@pytest.mark.parametrize(
    "text", ["cuda", "{}", '{"kind": "tpu", "reason": ""}', '{"kind": "cpu", "reason": "", "x": 1}']
)
def test_what_the_launcher_did_not_say_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"invalid {VARIABLE}={text!r}: must be what `fuserec serve` sets")):
        Device.of_environment({VARIABLE: text})


@pytest.mark.skipif(device_target() is not None, reason="there is a CUDA device")
def test_without_a_launcher_the_process_decides() -> None:
    assert Device.of_environment({}) == Device("cpu", NO_GPU.missing)


@pytest.mark.parametrize("setting", ["device=gpu", "device=", "device_rows=disk"])
def test_settings_out_of_range(setting: str) -> None:
    name, value = setting.split("=")
    with pytest.raises(UsageError, match=rf"^invalid {name}='{value}': must be one of "):
        ServingConfig.parse([setting])


# As a driver without torch, a torch without CUDA, and a device that does not answer.
@pytest.mark.parametrize(
    ("patch", "missing"),
    [
        pytest.param("sys.modules['torch'] = None", "torch cannot be imported .*pip install 'fuserec", id="no torch"),
        pytest.param("sys.modules['triton'] = None", "triton cannot be imported", id="no triton"),
        pytest.param("", r"torch \S+ sees no CUDA device; it may be built without CUDA", id="torch for CPUs"),
        pytest.param(
            "import torch; torch.cuda.is_available = lambda: True\n"
            "def fail(device): raise RuntimeError('CUDA error: busy\\nmore')\n"
            "torch.cuda.mem_get_info = fail",
            "^the device does not answer: CUDA error: busy$",
            id="a device that fails",
        ),
    ],
)
@pytest.mark.skipif(device_target() is not None, reason="there is a CUDA device")
def test_probe_says_what_is_missing(patch: str, missing: str) -> None:
    code = f"""
import sys
{patch}
from fuserec.serve import probe
probe.device_target = lambda: 'sm90'
sys.exit(probe.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and re.search(missing, done.stderr.strip()), done.stderr


def test_the_launcher_looks_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts processes, which whoever has begun CUDA must not; so a process that ends tells it."""
    seen = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        gpu = json.dumps(dataclasses.asdict(Gpu("H100", "sm90", 1, 2)))
        return subprocess.CompletedProcess(command, 0, f"a library's line\n{gpu}\n", "")

    monkeypatch.setattr(probe, "device_target", lambda: "sm90")
    monkeypatch.setattr(subprocess, "run", run)
    assert probe.survey() == Survey(Gpu("H100", "sm90", 1, 2))
    assert seen == [[sys.executable, "-m", "fuserec.serve.probe"]]


def test_probe_that_dies_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "device_target", lambda: "sm90")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -11, "", ""))
    assert probe.survey() == Survey(None, "the probe ended with exit status -11")

    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("probe", 120)

    monkeypatch.setattr(subprocess, "run", hang)
    assert probe.survey().missing == "the device did not answer within 120 s"


def test_server_that_is_to_have_a_gpu_does_not_start_without(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "survey", lambda: NO_GPU)
    server = Server(repository, address=Address.free(), settings=ServingConfig(device="cuda"))
    with pytest.raises(LaunchError, match="invalid device='cuda'"):
        server.start()
    assert not server.is_running


def test_decided_once_for_all_starts_of_a_server(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that has vanished is no reason to go on without, in silence: the next start fails, and is seen to."""
    looks = [with_gpu(79), NO_GPU]
    monkeypatch.setattr(launcher, "survey", lambda: looks.pop(0))
    binary = tmp_path / "server"
    binary.write_text(f'#!/bin/sh\nprintf "%s\\n" "${VARIABLE}" >> {tmp_path}/told\nexit 3\n')
    binary.chmod(0o755)
    server = Server(repository, address=Address.free(), binary=binary)
    for _ in range(2):
        with pytest.raises(LaunchError, match="exit status 3"):
            server.start()
    told = [Device.of_environment({VARIABLE: line}) for line in (tmp_path / "told").read_text().splitlines()]
    assert told == [server.device] * 2 and server.device.kind == "cuda"
    assert len(looks) == 1, "it looked again"


@pytest.mark.skipif(device_target() is not None, reason="there is a CUDA device")
@pytest.mark.parametrize("more", [(), ("--check",)], ids=["start", "check"])
def test_command_that_is_to_have_a_gpu(
    fuserec: Callable[..., tuple[int, str]], repository: Path, more: tuple[str, ...]
) -> None:
    address = Address.free()
    ports = [f"--{name}-port={port}" for name, port in address.ports.items()]
    status, printed = fuserec("serve", repository, "--device", "cuda", *ports, *more)
    assert status == 1
    assert "fuserec: invalid device='cuda': must be 'cpu' or 'auto' here, as the CUDA driver (libcuda.so.1)" in printed
    assert "Traceback" not in printed


def test_command_with_a_device_that_there_is_not(fuserec: Callable[..., tuple[int, str]], repository: Path) -> None:
    status, printed = fuserec("serve", repository, "--device", "tpu")
    assert (status, printed) == (2, "fuserec: invalid device='tpu': must be one of auto, cpu, cuda\n")


def test_check_names_the_device(
    fuserec: Callable[..., tuple[int, str]], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "survey", lambda: NO_GPU)
    status, printed = fuserec("serve", repository, "--check", "--json")
    assert status == 0 and json.loads(printed)["device"] == f"cpu ({NO_GPU.missing})"
    status, printed = fuserec("serve", repository, "--check", "--json", "--device", "cpu")
    assert status == 0 and json.loads(printed)["device"] == "cpu (as set)"


def test_a_pipeline_of_this_process_is_on_the_cpu(bundle: Path) -> None:
    from fuserec.serve.pipeline import Pipeline

    assert Pipeline.open(bundle).device == CPU
