"""What the command prints: data verbatim, nothing cut, plain columns for pipes."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console

from fuserec.terminal import print_table, printable, verbatim

TITLES = ("iPhone [refurbished]", "Lamp [/white]", "a :heart: b", "[bold]", "x\\[y]", "ночь 夜 🌙")


def printed(rows: list[tuple[object, ...]], *, width: int, terminal: bool, headers: tuple[str, ...] = ()) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system=None, markup=False, emoji=False,
                      soft_wrap=True, _environ={"TERM": "xterm"})  # fmt: skip
    print_table(headers or ("",) * len(rows[0]), rows, console=console)
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
@pytest.mark.parametrize("title", TITLES)
def test_a_title_is_shown_as_it_is(title: str, terminal: bool) -> None:
    assert title in printed([(1, title)], width=80, terminal=terminal)


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_no_figure_is_cut_however_narrow_the_terminal(width: int) -> None:
    row = ("1234567890123456789", "0.123456", "-98,765,432.10", "a title that is long enough to be folded over lines")
    shown = printed([row], width=width, terminal=True, headers=("item", "score", "bytes", "title"))
    assert "…" not in shown
    for figure in row[:3]:
        assert figure in shown, f"{figure} was cut at {width} columns:\n{shown}"
    folded = "".join(line.split("│")[-2].strip() for line in shown.splitlines() if line.startswith("│"))
    assert folded.replace(" ", "") == row[3].replace(" ", "")


def test_a_pipe_gets_one_plain_line_a_row() -> None:
    long = "t" * 300
    shown = printed([(1, long), (22, "夜"), (333, "")], width=80, terminal=False, headers=("#", "title"))
    assert shown.splitlines() == ["#    title", f"1    {long}", "22   夜", "333"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[31mb", "a\\x1b[31mb"), ("a\rb\nc", "a\\x0db\\x0ac"), ("a\u202eb", "a\\u202eb"), ("\x9b2J", "\\x9b2J")],
)
def test_control_characters_are_shown_by_their_codes(text: str, shown: str) -> None:
    assert printable(text) == shown == verbatim(text).plain


def run_main(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.argv = {['fuserec', *arguments]}\nfrom fuserec.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_help_in_a_pipe_has_no_frames() -> None:
    done = run_main("--help")
    assert done.returncode == 0 and "recommend" in done.stdout
    assert not set("╭│╰─") & set(done.stdout)


def test_help_on_a_dumb_terminal_has_no_frames() -> None:
    shown = on_a_terminal("import sys; sys.argv = ['fuserec', '--help']\nfrom fuserec.cli import main; main()", "dumb")
    assert "recommend" in shown and not set("╭│╰─\x1b") & set(shown)


def test_a_table_on_a_dumb_terminal_has_no_frames() -> None:
    shown = on_a_terminal("from fuserec.terminal import print_table; print_table(('a', 'b'), [(1, 2)])", "dumb")
    assert shown.split() == ["a", "b", "1", "2"]


def on_a_terminal(code: str, term: str) -> str:
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": term}
    with subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # Linux: the other side is closed
                break
            if not part:
                break
            shown += part
    os.close(master)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


def test_an_ascii_stream_gets_codes_and_no_traceback() -> None:
    code = (
        "from fuserec.terminal import accept_any_text, print_table\n"
        "accept_any_text(); print_table(('title',), [('Amélie 夜',)])"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["title", "Am\\xe9lie", "\\u591c"]), done.stderr


def test_a_failure_under_json_is_a_document() -> None:
    done = run_main("inspect", "/nowhere", "--json")
    assert done.returncode == 1
    assert '"kind": "BundleError"' in done.stdout and "/nowhere" in done.stdout
    assert done.stderr.startswith("fuserec: /nowhere")
