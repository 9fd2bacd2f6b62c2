"""`fuserec serve` and `fuserec demo`."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fuserec.cli._app import JsonFlag, app

logger = logging.getLogger(__name__)


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(help="Folder written by `fuserec export`.")],
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC.")] = 8001,
    http_port: Annotated[int, typer.Option(help="Port for HTTP.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Port for Prometheus metrics.")] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of instances, stage_instances, queue_size, queue_timeout_ms, …"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu or cuda, where search and networks run; cuda refuses to start where it cannot."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look the repository over, answer one question, and start nothing.")
    ] = False,
    tritonserver: Annotated[
        Path | None, typer.Option(help="Server executable; the one in the installed wheel by default.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="File for the server's log; - for stderr.")] = None,
    start_timeout: Annotated[
        float, typer.Option(help="Seconds until the first answer; the first start on a machine compiles.", min=1)
    ] = 300.0,
    log_format: Annotated[
        str, typer.Option(help="text or json, of the models' and this command's lines; the server's own stay.")
    ] = "text",
    slow_ms: Annotated[float, typer.Option(help="Log executions that take longer, with their traces.")] = 500.0,
    otlp: Annotated[
        str | None, typer.Option(help="OpenTelemetry collector, such as http://host:4318/v1/traces.")
    ] = None,
    trace_rate: Annotated[
        int, typer.Option(help="Trace one request of so many; those with a traceparent are all traced.")
    ] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Serve a repository with NVIDIA Triton until Ctrl-C or SIGTERM, bringing back what dies meanwhile."""
    from fuserec.serve.init import leave_process_one

    leave_process_one()  # first: an import below may start a thread
    from fuserec import display
    from fuserec.serve.launcher import Address, Server
    from fuserec.serve.logs import JSON, log_to
    from fuserec.serve.observing import Observing
    from fuserec.serve.settings import ServingConfig
    from fuserec.serve.state import log_file, noted
    from fuserec.serve.supervisor import Supervisor, start_with_good

    config = ServingConfig.parse([*(settings or []), *([f"device={device}"] if device is not None else [])])
    observing = Observing(log_format=log_format, slow_ms=slow_ms, otlp=otlp, trace_rate=trace_rate)
    if log_format == JSON:
        log_to(sys.stderr, JSON)
    if check:
        from fuserec.serve.check import check_repository
        from fuserec.serve.state import notes

        found = {
            checked.what: checked.found
            for checked in check_repository(repository, settings=config, binary=tritonserver)
        }
        # What is answered from at this moment may be another version.
        found |= {
            f"{note.host}:{note.ports['grpc']}": f"serves version {note.status.served}"
            for note in notes()
            if note.status is not None and note.repository == repository.absolute()
        }
        typer.echo(json.dumps(found, indent=2)) if as_json else display.facts(found)
        return
    address = Address(host=host, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port)
    log = log or log_file(address)
    # SIGINT too: a shell that starts this in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # A terminal that is closed ends what runs in it; a service without one has nothing to end for.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        has_terminal = sys.stdin is not None and sys.stdin.isatty()
        signal.signal(signal.SIGHUP, signal.default_int_handler if has_terminal else signal.SIG_IGN)
    say = logger.warning if log_format == JSON else typer.echo
    server = Server(
        repository,
        address=address,
        settings=config,
        observing=observing,
        binary=tritonserver,
        log=log,
        start_timeout_s=start_timeout,
    )
    try:
        with display.steps() as on_step:
            on_step(f"starting the server over {repository}")
            start_with_good(server, say)
        with noted(address, server.repository) as notebook:
            display.serving(server.manifest, server)
            Supervisor(server, on_event=say, on_status=notebook.write).run()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # nobody may be there to read it
            typer.echo("stopping")
    finally:
        # A second signal must not leave half of it running.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
