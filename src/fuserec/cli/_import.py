"""`fuserec import`: what other libraries trained, as checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuserec.cli._app import JsonFlag, app
from fuserec.errors import UsageError

if TYPE_CHECKING:
    from fuserec.models.checkpoint import Checkpoint

import_app = typer.Typer(
    help="Make checkpoints of what other libraries trained; they export and serve like our own.",
    no_args_is_help=True,
)
app.add_typer(import_app, name="import")

DataFolder = Annotated[Path, typer.Option(help="Data folder: what the items are, and what the users consumed.")]
Out = Annotated[Path, typer.Option(help="Folder to write the checkpoint into.")]


@import_app.command("hf")
def import_hf(
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="DIR|NAME", help="A folder of sentence-transformers or transformers, or a name on the hub."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Data folder: the items and their texts; interactions if there are any.")],
    out: Out,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens that texts are cut to; by default as many as the encoder reads.")
    ] = None,
    truncate_dim: Annotated[
        int | None, typer.Option(help="Numbers of a vector that are kept; by default those that the encoder says.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """A text encoder of the BERT family: items are their texts, users the mean of what they consumed."""
    from fuserec import display
    from fuserec.importers import hf
    from fuserec.models.checkpoint import check_destination

    check_destination(out)
    with display.steps() as on_step:
        checkpoint = hf.import_hf(encoder, data, max_tokens=max_tokens, truncate_dim=truncate_dim, on_step=on_step)
    _finish(checkpoint, out, as_json)


@import_app.command("implicit")
def import_implicit(
    file: Annotated[Path, typer.Argument(metavar="FILE.npz", help="What `model.save` of implicit wrote.")],
    data: DataFolder,
    out: Out,
    users: Annotated[
        Path | None, typer.Option(help="Ids of the rows of the user factors, one a line, or Parquet.")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="Likewise of the item factors.")] = None,
    row_is_id: Annotated[
        bool, typer.Option("--row-is-id", help="Row n is id n: the ids themselves were the matrix's coordinates.")
    ] = False,
    sorted_as_texts: Annotated[
        bool, typer.Option("--sorted-as-texts", help="The rows are in the order of the ids as texts: 1, 10, 2.")
    ] = False,
    trust_order: Annotated[
        bool, typer.Option("--trust-order", help="Import even if known pairs score no better than chance.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Factors of ALS, BPR or logistic factorization.

    Without --users and --items the rows are the users and items of --data in rising order of their ids.
    """
    from fuserec import display
    from fuserec.importers import implicit
    from fuserec.models.checkpoint import check_destination

    check_destination(out)
    if row_is_id and sorted_as_texts:
        raise UsageError("--row-is-id and --sorted-as-texts came together; expected one of them")
    rows = implicit.Rows.IDS if row_is_id else implicit.Rows.TEXTS if sorted_as_texts else implicit.Rows.SORTED
    with display.steps() as on_step:
        on_step(f"reading {file}")
        checkpoint = implicit.import_implicit(file, data, users=users, items=items, rows=rows, trust_order=trust_order)
    _finish(checkpoint, out, as_json)


@import_app.command("recbole")
def import_recbole(
    file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="What the trainer of RecBole saved.")],
    data: DataFolder,
    out: Out,
    tokens: Annotated[Path, typer.Option(help="RecBole's numbering of users and items, JSON; see above.")],
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="You vouch for FILE: such files can run any program.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """BPR, SASRec or GRU4Rec.

    FILE does not say which user and item its numbers are. Where it was trained, write that down as TOKENS:

    users, items = map(dataset.field2id_token.get, (dataset.uid_field, dataset.iid_field))

    json.dump({"user_id": users.tolist(), "item_id": items.tolist()}, open("tokens.json", "w"))
    """
    from fuserec import display
    from fuserec.importers import recbole
    from fuserec.models.checkpoint import check_destination

    check_destination(out)
    with display.steps() as on_step:
        on_step(f"reading {file}")
        checkpoint = recbole.import_recbole(file, data, tokens, trust_pickle=trust_pickle)
    _finish(checkpoint, out, as_json)


def _finish(checkpoint: Checkpoint, out: Path, as_json: bool) -> None:
    checkpoint.save(out)
    sizes = {"items": checkpoint.items.height, "users": checkpoint.users.height}
    if as_json:
        document = {"architecture": checkpoint.architecture, **sizes, **checkpoint.metrics["imported"]}
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(f"wrote {out}: {checkpoint.architecture}, {sizes['items']:,} items, {sizes['users']:,} users")
    for name, count in checkpoint.metrics["imported"].get("left_out", {}).items():
        if count:
            typer.echo(f"left out, {name.replace('_', ' ')}: {count:,}")
    if (agreement := checkpoint.metrics["imported"].get("agreement")) is not None:
        typer.echo(f"known users and items score more than exchanged ones in {agreement:.1%} of the cases; chance: 50%")
    for dtype, count in checkpoint.metrics["imported"].get("widened", {}).items():
        typer.echo(f"read as float32: {count:,} tensors of {dtype}")
    for kind, prompt in checkpoint.metrics["imported"].get("prompts", {}).items():
        if prompt:
            typer.echo(f"before every {'text asked' if kind == 'query' else 'text of an item'}: {prompt!r}")
    typer.echo(f"next: fuserec export {out} --repository build/repository")
