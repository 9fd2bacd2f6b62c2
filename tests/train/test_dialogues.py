"""Conversations: what is read, what is refused, and what is held out."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fuserec.errors import DataError
from fuserec.files import sha256
from fuserec.train import chatterbot
from fuserec.train.dialogues import Dialogues, exchanges_of, read_dialogues, split_contexts

SAID = [
    ["Hello", "Hi", "My screen is dark", "Press the button"],
    ["hello ", "Good day"],
    ["Goodbye", "Bye"],
    ["My screen is dark", "Press the button"],
]


def turns(said: list[list[str]]) -> pl.DataFrame:
    rows = [
        (10 * number, turn, ("user", "agent")[turn % 2], text)
        for number, texts in enumerate(said)
        for turn, text in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema=["dialogue_id", "turn", "speaker", "text"], orient="row")


def test_contexts_are_all_turns_before_a_reply() -> None:
    exchanges = exchanges_of(Dialogues(turns(SAID)), "agent", max_turns=6)
    assert exchanges.contexts == ["Hello", "Hello\nHi\nMy screen is dark", "hello", "Goodbye", "My screen is dark"]
    assert exchanges.replies == ["Hi", "Press the button", "Good day", "Bye"]
    assert exchanges.counts.tolist() == [1, 2, 1, 1]
    assert [row.tolist() for row in map(exchanges.answers.__getitem__, range(5))] == [[1], [2], [3], [4], [2]]
    # Whoever begins with a hello, in whatever spelling, is not told apart by the split.
    assert exchanges.openings.tolist() == [0, 0, 0, 1, 2]


def test_a_context_has_the_last_turns_and_all_its_replies() -> None:
    said = [["Hello", "Hi", "Dark", "Press"], ["Hello", "Hi", "Dark", "Wait"]]
    exchanges = exchanges_of(Dialogues(turns(said)), "agent", max_turns=2)
    assert exchanges.contexts == ["Hello", "Hi\nDark"]
    assert exchanges.answers[1].tolist() == [2, 3]


def test_no_conversation_is_in_two_parts() -> None:
    said = [[f"Question {n % 20}", f"Answer {n}", "And then?", f"Further answer {n}"] for n in range(40)]
    exchanges = exchanges_of(Dialogues(turns(said)), "agent", max_turns=6)
    split = split_contexts(exchanges, held_out=0.2, seed=0)
    openings = [set(exchanges.openings[part]) for part in (split.train, split.validation, split.test)]
    assert [len(part) for part in openings] == [12, 4, 4]
    assert len(set.union(*openings)) == 20, "a conversation is in two parts"
    replies = [set(exchanges.answers.take(part).values) for part in (split.train, split.validation, split.test)]
    assert sum(map(len, replies)) == len(exchanges.replies) == 80
    other = split_contexts(exchanges, held_out=0.2, seed=1)
    assert not np.array_equal(split.test, other.test)


def test_reads_csv_and_drops_what_was_said_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    repeated = turns([*SAID, SAID[0]]).sample(fraction=1.0, shuffle=True, seed=0)
    repeated.write_csv(tmp_path / "dialogues.csv")
    with caplog.at_level("INFO", logger="fuserec"):
        assert read_dialogues(tmp_path).turns.equals(turns(SAID))
    assert "dropped 1 of 5 dialogues" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda t: t.drop("speaker"), "no column 'speaker'", id="no-speaker"),
        pytest.param(lambda t: t.head(0), "no rows", id="empty"),
        pytest.param(lambda t: t.with_columns(turn=pl.lit("first")), "column 'turn' is String", id="turn-is-text"),
        pytest.param(lambda t: t.with_columns(turn=pl.lit(1)), "share dialogue_id and turn", id="repeated-turn"),
        pytest.param(lambda t: t.with_columns(text=pl.lit("  ")), "10 texts are empty", id="empty-text"),
        pytest.param(lambda t: t.with_columns(text=pl.lit(None, pl.String)), "nulls", id="no-text"),
    ],
)
def test_malformed_files_are_refused(change, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    change(turns(SAID)).write_parquet(tmp_path / "dialogues.parquet")
    with pytest.raises(DataError, match=message):
        read_dialogues(tmp_path)


def test_a_folder_without_dialogues_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no dialogues file; expected dialogues.parquet or dialogues.csv"):
        read_dialogues(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        read_dialogues(tmp_path / "nowhere")


def test_a_speaker_who_answers_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="'doctor' answers nothing; the speakers are 'agent', 'user'"):
        exchanges_of(Dialogues(turns(SAID)), "doctor", max_turns=6)


def test_too_few_conversations_are_refused() -> None:
    exchanges = exchanges_of(Dialogues(turns(SAID[:3])), "agent", max_turns=6)
    with pytest.raises(DataError, match="2 different texts begin a conversation"):
        split_contexts(exchanges, held_out=0.2, seed=0)


FILES = {
    "english/conversations.yml": "conversations:\n- - Hello\n  - Hi\n  - How are you?\n  - No\n",
    "english/trivia.yml": "conversations:\n- - When?\n  - 1963\n  - Long ago\n"
    "- - When?\n  - 1963\n- not a list\n- - Alone\n",
    "german/trivia.yml": "conversations:\n- - Wann?\n  - Nie\n",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "wheel.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"{chatterbot.MEMBER}/{name}", content)
    return path


def test_the_corpus_becomes_dialogues(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chatterbot, "fetch_wheel", lambda *_: wheel)
    monkeypatch.setattr(chatterbot, "WHEEL_SHA256", sha256(wheel))
    steps: list[str] = []
    chatterbot.write_chatterbot(tmp_path / "data", progress=steps.append)
    said = read_dialogues(tmp_path / "data").turns.group_by("dialogue_id", maintain_order=True).agg("speaker", "text")
    assert said["text"].to_list() == [["Hello", "Hi", "How are you?", "No"], ["When?", "1963"], ["When?", "Long ago"]]
    assert said["speaker"].to_list()[0] == ["user", "agent", "user", "agent"]
    assert "3 different dialogues of 4, 8 turns" in steps[-1]
    # Once more, in two languages, over the folder that is there.
    chatterbot.write_chatterbot(tmp_path / "data", ["german", "english"])
    assert read_dialogues(tmp_path / "data").turns["text"].to_list()[:2] == ["Wann?", "Nie"]


def test_what_is_not_the_corpus_is_refused(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="language is 'klingon'; expected some of english, german"):
        chatterbot.read_wheel(wheel, ["klingon"])
    monkeypatch.setattr(chatterbot, "fetch_wheel", lambda *_: wheel)
    with pytest.raises(DataError, match="SHA-256"):
        chatterbot.write_chatterbot(tmp_path / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").touch()
    with pytest.raises(DataError, match="not replacing it"):
        chatterbot.write_chatterbot(tmp_path / "data")


@pytest.mark.slow
def test_the_real_download(tmp_path: Path) -> None:
    chatterbot.write_chatterbot(tmp_path / "data")
    assert read_dialogues(tmp_path / "data").turns["dialogue_id"].n_unique() == 1084
