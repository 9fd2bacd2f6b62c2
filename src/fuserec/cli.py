"""The `fuserec` command: each subcommand reads its options and calls one room; rooms are imported when called."""

from __future__ import annotations

import json
import logging
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

try:
    import typer
except ModuleNotFoundError:
    sys.exit("the fuserec command is not installed: pip install 'fuserec[cli]'")

from fuserec import __version__
from fuserec.errors import FuserecError, UsageError

if TYPE_CHECKING:
    from fuserec.manifest import Manifest

# Packages whose absence means that an extra was not installed.
EXTRA_OF = {
    "torch": "train",
    "lightning": "train",
    "torchmetrics": "train",
    "onnx": "export",
    "onnxruntime": "serve",
    "numba": "serve",
    "safetensors": "serve",
    "polars": "cli",
    "rich": "cli",
}

app = typer.Typer(
    help="Trained recommender checkpoints to quantized engines, served by NVIDIA Triton.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Written out, as the recipes themselves would import torch before a word of help is printed; a test compares.
RECIPE_NAMES: Final = "two-tower, mf, sasrec, gru4rec, lstm, conv or bert4rec"

data_app = typer.Typer(help="Fetch data sets as the Parquet files that `fuserec train` reads.", no_args_is_help=True)
app.add_typer(data_app, name="data")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


@data_app.command("movielens-100k")
def data_movielens_100k(
    out: Annotated[Path, typer.Option(help="Folder to write interactions.parquet and items.parquet into.")],
) -> None:
    """Fetch MovieLens-100K: 100,000 ratings of 1,682 films by 943 users."""
    from fuserec import display
    from fuserec.train.movielens import write_movielens_100k

    with display.steps() as on_step:
        write_movielens_100k(out, progress=on_step)
    typer.echo(f"wrote {out / 'interactions.parquet'} and {out / 'items.parquet'}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=f"What to train: {RECIPE_NAMES}.")],
    data: Annotated[Path, typer.Option(help="Folder with interactions and items, Parquet or CSV.")],
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint into.")],
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Most epochs to train; early stopping may take fewer.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples in one step: histories, or interactions for mf.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same checkpoint.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any option of the recipe; repeatable. `--set help` lists them."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a recommender and write its checkpoint, with what it scored on held-out interactions."""
    from fuserec import display
    from fuserec.models.checkpoint import check_destination
    from fuserec.train.data import read_folder
    from fuserec.train.recipes import get_recipe, parse_settings

    chosen = get_recipe(recipe)
    given = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    named = {name: value for name, value in given.items() if value is not None}
    options = chosen.options({**parse_settings(chosen, settings or []), **named})
    check_destination(out)  # now, not after minutes of training
    checkpoint = chosen.train(read_folder(data), options)
    checkpoint.save(out)
    if as_json:
        typer.echo(json.dumps(checkpoint.metrics, indent=2))
        return
    display.training(checkpoint.metrics, out)
    typer.echo(f"next: fuserec export {out} --repository build/repository")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by `fuserec train`.")],
    repository: Annotated[Path, typer.Option(help="Folder to write the model repository into.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "int8",
    target: Annotated[
        list[str] | None, typer.Option(help="GPU to build an engine for: sm80, sm86, sm89, sm120; repeatable.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Export a checkpoint: ONNX, quantized engines, item index, and a manifest of it all."""
    from fuserec import display
    from fuserec.export import ExportConfig, export_checkpoint

    config = ExportConfig(precision=precision, targets=tuple(target or ()))
    with display.steps() as on_step:
        manifest = export_checkpoint(checkpoint, repository, config, on_step=on_step)
    _show_manifest(manifest, repository, as_json)


@app.command()
def inspect(
    repository: Annotated[Path, typer.Argument(help="Folder written by `fuserec export`.")],
    as_json: JsonFlag = False,
) -> None:
    """Print what a repository holds, after comparing every file with its recorded hash."""
    from fuserec.manifest import Manifest, bundle_folder

    manifest = Manifest.read(bundle_folder(repository))
    manifest.verify(repository)
    _show_manifest(manifest, repository, as_json)


def _show_manifest(manifest: Manifest, repository: Path, as_json: bool) -> None:
    from fuserec import display

    if as_json:
        typer.echo(json.dumps(asdict(manifest), indent=2))
    else:
        display.manifest(manifest, repository)


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
    server = Server(repository, address=address, binary=tritonserver, log=log)
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
def recommend(
    user: Annotated[int | None, typer.Option("--user", help="User id; leave out for somebody unknown.")] = None,
    history: Annotated[list[int] | None, typer.Option(help="Item the user had, oldest first; repeatable.")] = None,
    exclude: Annotated[list[int] | None, typer.Option(help="Item that must not come back; repeatable.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    url: Annotated[str, typer.Option(help="host:port for gRPC, http://host:port for HTTP.")] = "127.0.0.1:8001",
    items: Annotated[
        Path | None,
        typer.Option(help="Repository or items.parquet with the titles; known for a server of this machine."),
    ] = None,
    timeout_ms: Annotated[float, typer.Option(help="Milliseconds the call may take in all.")] = 1_000.0,
    as_json: JsonFlag = False,
) -> None:
    """Ask a running server for recommendations and print them with their titles."""
    from fuserec.client import Recommender

    with Recommender(url, timeout_ms=timeout_ms) as recommender:
        answer = recommender.recommend(user_id=user, history=history or (), exclude=exclude or (), k=k)
    if as_json:
        document = {
            "items": [{"item_id": item_id, "score": score} for item_id, score in answer],
            "model_version": answer.model_version,
            "fallback": answer.fallback,
            "ignored": answer.ignored,
        }
        typer.echo(json.dumps(document, indent=2))
        return
    from fuserec import display
    from fuserec.catalogue import Catalogue
    from fuserec.serve.state import repository_of

    source = items or repository_of(int(url.rpartition(":")[2]))
    display.recommendations(answer, Catalogue.open(source) if source else None)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Folder for data, checkpoint and repository.")] = Path(
        "build/demo"
    ),
) -> None:
    """Run the main job on MovieLens-100K: train, export, serve, recommend."""
    from fuserec.demo import run_demo

    run_demo(folder)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fuserec {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
) -> None:
    """Trained recommender checkpoints to quantized engines, served by NVIDIA Triton."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("fuserec").setLevel(logging.INFO if verbose else logging.WARNING)


def main() -> None:
    """Run the command; a fault that the user can mend is one line on stderr, with status 2 if the usage was wrong."""
    try:
        app()
    except UsageError as error:
        _fail(str(error), 2)
    except FuserecError as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(f"{error.name} is not installed: pip install 'fuserec[{extra}]'", 1)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"fuserec: {message}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
