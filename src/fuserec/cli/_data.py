"""`fuserec data`: fetch and prepare what `fuserec train` reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fuserec.cli._app import JsonFlag, app

data_app = typer.Typer(
    help="Make the data folders that `fuserec train` reads: a known data set, your own files, feedback.",
    no_args_is_help=True,
)
app.add_typer(data_app, name="data")


@data_app.command("movielens-100k")
def data_movielens_100k(
    out: Annotated[Path, typer.Option(help="Folder to write the data into.")],
) -> None:
    """Fetch MovieLens-100K: 100,000 ratings of 1,682 films by 943 users."""
    from fuserec import display
    from fuserec.train.movielens import write_movielens_100k

    with display.steps() as on_step:
        write_movielens_100k(out, progress=on_step)
    typer.echo(f"wrote {', '.join(str(out / f'{name}.parquet') for name in ('interactions', 'items', 'users'))}")


def _column(of: str, *, optional: bool = True) -> Any:
    none = "; '' for none" if optional else ""
    return typer.Option(help=f"Column of the {of}, where its name does not say so{none}.", show_default=False)


@data_app.command("import")
def data_import(
    interactions: Annotated[Path, typer.Option(help="CSV, Parquet or a folder of parts: who consumed what and when.")],
    out: Annotated[Path, typer.Option(help="Folder to write the data into.")],
    items: Annotated[
        Path | None, typer.Option(help="CSV or Parquet: what the items are; without it their titles are their ids.")
    ] = None,
    users: Annotated[Path | None, typer.Option(help="CSV or Parquet: categories of users, to compare groups.")] = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            help="Data folder or checkpoint whose numbers of ids are kept; by default --out, if it has some.",
            show_default=False,
        ),
    ] = None,
    renumber: Annotated[bool, typer.Option("--renumber", help="Number ids anew, whatever --out has.")] = False,
    encoding: Annotated[
        str | None, typer.Option(help="Of CSV that is not UTF-8, such as cp1252.", show_default=False)
    ] = None,
    time_format: Annotated[
        str | None,
        typer.Option(
            help="How times are written: a pattern such as '%m/%d/%Y %H:%M', or iso, seconds, milliseconds, "
            "microseconds, nanoseconds, excel.",
            show_default=False,
        ),
    ] = None,
    casefold_ids: Annotated[
        bool, typer.Option("--casefold-ids", help="Ids that differ in case only are the same.")
    ] = False,
    user_column: Annotated[str | None, _column("user", optional=False)] = None,
    item_column: Annotated[str | None, _column("item", optional=False)] = None,
    time_column: Annotated[str | None, _column("time", optional=False)] = None,
    rating_column: Annotated[str | None, _column("rating")] = None,
    items_item_column: Annotated[str | None, _column("item in --items", optional=False)] = None,
    users_user_column: Annotated[str | None, _column("user in --users", optional=False)] = None,
    title_column: Annotated[str | None, _column("item's title")] = None,
    text_column: Annotated[str | None, _column("item's text")] = None,
    category_column: Annotated[str | None, _column("item's categories, separated by |")] = None,
    year_column: Annotated[str | None, _column("item's year")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a data folder of your own files, whatever their columns, ids and times look like."""
    from fuserec import display, display_data
    from fuserec.errors import UsageError
    from fuserec.train.import_report import ImportOptions
    from fuserec.train.importing import import_folder

    columns = {
        "user": user_column, "item": item_column, "time": time_column, "rating": rating_column,
        "title": title_column, "text": text_column, "category": category_column, "year": year_column,
        "items_item": items_item_column, "users_user": users_user_column,
    }  # fmt: skip
    if renumber and ids is not None:
        raise UsageError("--renumber and --ids came together; expected one of them")
    options = ImportOptions(encoding, time_format, casefold_ids, renumber, ids)
    told = {part: name for part, name in columns.items() if name is not None}
    with display.steps() as on_step:
        report = import_folder(interactions, out, items=items, users=users, told=told, options=options, on_step=on_step)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    display_data.imported(report, out)
    typer.echo(f"next: fuserec train gru4rec --data {out} --out build/checkpoint")


@data_app.command("feedback")
def data_feedback(
    served: Annotated[Path, typer.Option(help="What was recommended, as `fuserec recommend --log` writes.")],
    actions: Annotated[Path, typer.Option(help="CSV, Parquet or JSON lines: what users did, and when.")],
    out: Annotated[Path, typer.Option(help="Folder to write the interactions into, for the next training run.")],
    data: Annotated[
        Path | None, typer.Option(help="Data folder or checkpoint of the model: its items, and what is known already.")
    ] = None,
    within: Annotated[str, typer.Option(help="How long what was shown counts: a number and s, m, h or d.")] = "7d",
    action: Annotated[list[str] | None, typer.Option(help="Only these actions count; repeatable.")] = None,
    original_ids: Annotated[
        bool, typer.Option("--original-ids", help="The actions carry the ids from before `fuserec data import`.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the interactions of --data too, to train from scratch.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Match what users did with what they were recommended, and make it the data of the next training run."""
    from fuserec import display_data
    from fuserec.train.feedback import parse_window, write_feedback

    report = write_feedback(
        served, actions, out, data=data, within_s=parse_window(within), only=action or (),
        original_ids=original_ids, merge=merge,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report.document(), indent=2))
        return
    display_data.feedback(report, out)
    typer.echo(f"next: fuserec train --continue CHECKPOINT --data {out} --out build/continued")


@data_app.command("chatterbot")
def data_chatterbot(
    out: Annotated[Path, typer.Option(help="Folder to write dialogues.parquet into.")],
    language: Annotated[
        list[str] | None, typer.Option(help="As the corpus names it; repeatable. English by default.")
    ] = None,
) -> None:
    """Fetch the ChatterBot corpus: some 1,100 short English dialogues for `fuserec train dialogue`."""
    from fuserec import display
    from fuserec.train.chatterbot import write_chatterbot

    with display.steps() as on_step:
        write_chatterbot(out, language or ("english",), progress=on_step)
    typer.echo(f"wrote {out / 'dialogues.parquet'}")
