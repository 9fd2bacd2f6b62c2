"""`fuserec serve` and `fuserec demo`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from fuserec.cli._app import app


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(help="Folder written by `fuserec export`.")],
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC.")] = 8001,
    http_port: Annotated[int, typer.Option(help="Port for HTTP.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Port for Prometheus metrics.")] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    tritonserver: Annotated[
        Path | None, typer.Option(help="Server executable; the one in the installed wheel by default.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="File for the server's log.")] = None,
    start_timeout: Annotated[
        float, typer.Option(help="Seconds until the first answer; the first start on a machine compiles.", min=1)
    ] = 120.0,
) -> None:
    """Serve a repository with NVIDIA Triton until Ctrl-C or SIGTERM."""
    from fuserec import display
    from fuserec.manifest import Manifest, bundle_folder
    from fuserec.serve.launcher import Address, Server
    from fuserec.serve.state import noted, state_folder

    address = Address(host=host, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port)
    log = log or state_folder() / f"server-{grpc_port}.log"
    # SIGINT too: a shell that starts this in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    server = Server(repository, address=address, binary=tritonserver, log=log, start_timeout_s=start_timeout)
    try:
        with display.steps() as on_step:
            on_step(f"starting the server over {repository}")
            server.start()
        with noted(address, server.repository):
            display.serving(Manifest.read(bundle_folder(repository)), server)
            server.wait()
    except KeyboardInterrupt:
        typer.echo("stopping")
    finally:
        # A second signal must not leave half of it running.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        server.stop()


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Folder for data, checkpoint and repository.")] = Path(
        "build/demo"
    ),
) -> None:
    """Run the main job on MovieLens-100K: train, export, serve, recommend."""
    from fuserec.demo import run_demo

    run_demo(folder)
