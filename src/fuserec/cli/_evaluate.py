"""`fuserec evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fuserec.cli._app import JsonFlag, app

if TYPE_CHECKING:
    from fuserec.evaluators import Evaluator
    from fuserec.train.questions import Answers, Questions


@app.command()
def evaluate(
    recommender: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|REPOSITORY|URL", help="A folder, or host:port, grpc://host:port, http://host:port."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder with interactions and items, Parquet or CSV.")],
    k: Annotated[
        list[int] | None,
        typer.Option(
            "-k", "--k", min=1, max=10_000, help="Length of the lists, 10 by default; repeatable. Groups: the first."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    users: Annotated[
        int | None, typer.Option(min=1, help="Evaluate this many users, drawn at random; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the users that are drawn.")] = 0,
    against: Annotated[
        str | None, typer.Option(help="Another checkpoint, repository or URL: the difference is estimated too.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write the report into, as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File to draw exposure and user groups into: .png, .svg.")] = None,
    timeout_ms: Annotated[float, typer.Option(help="Milliseconds that one call of a server may take.")] = 10_000.0,
    as_json: JsonFlag = False,
) -> None:
    """Measure ranking quality on held-out interactions, through torch, the exported bundle, or a live server."""
    from fuserec import display_report
    from fuserec.errors import DataError
    from fuserec.evaluators import open_evaluator
    from fuserec.id_map import KEEP_NUMBERS, require_same_numbers
    from fuserec.train.data import read_folder
    from fuserec.train.exposure import Popularity
    from fuserec.train.questions import questions_of
    from fuserec.train.report import differences, report
    from fuserec.train.split import leave_one_out

    if plot is not None:
        from fuserec.charts import check_plot

        check_plot(plot)
    ks = list(dict.fromkeys(k or [10]))
    evaluators = [open_evaluator(name, timeout_ms) for name in (recommender, against) if name is not None]
    dataset = read_folder(data)
    for evaluator in evaluators:
        require_same_numbers(evaluator.ids, evaluator.name, dataset.ids, data, DataError, KEEP_NUMBERS)
    whole = leave_one_out(dataset)
    questions, popularity = questions_of(whole, split), Popularity.of(whole)
    if users is not None:
        questions = questions.sample(users, seed)
    answers = [_ask(evaluator, questions, max(ks)) for evaluator in evaluators]
    known_of_users = dataset.users
    reports = [report(questions, answer, popularity, ks, known_of_users) for answer in answers]
    document = _document(evaluators, reports, split)
    if against is not None:
        document["difference"] = differences(answers[0], answers[1], popularity, ks)
    if out is not None:
        _write(out, document)
    if plot is not None:
        from fuserec.charts import draw_report

        draw_report(document, plot)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        display_report.evaluation(document)


def _ask(evaluator: Evaluator, questions: Questions, k: int) -> Answers:
    from fuserec import display

    with display.counting(f"asking {evaluator.name}", len(questions)) as on_progress:
        return evaluator.answer(questions, k, on_progress)


def _document(evaluators: list[Evaluator], reports: list[dict[str, Any]], split: str) -> dict[str, Any]:
    from fuserec.train.evaluation import PROTOCOL

    sides = [
        {"recommender": evaluator.name, "route": evaluator.route, **measured}
        for evaluator, measured in zip(evaluators, reports, strict=True)
    ]
    document = {"protocol": PROTOCOL, "split": split, **sides[0]}
    if len(sides) == 2:
        document["against"] = sides[1]
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    from fuserec.files import replacing_file

    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n")
