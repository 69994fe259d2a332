"""Every benchmark command runs on the tiny layout, compares what it should and writes what the report reads."""

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import generation, growth, measure, report


pytestmark = pytest.mark.newest
ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--repeats", "1", "--threads", "1")
MODEL = ("--layout", "tiny", "--device", "cpu")


def run(name, folder, *arguments):
    """Run a command as a user would; return its JSON file."""
    model = () if name in ("conversation", "preprocessing", "tokenization") else MODEL
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALL, *model, *arguments, "--output", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob(f"{name}.*.json")
    return json.loads(path.read_text("utf-8")), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "cases", "compared", "subjects"),
    [
        ("preprocessing", ("--tiles", "1"), 1, 1, 4),
        ("vision", ("--tiles", "1", "3"), 2, 2, 2),
        ("generation", ("--tiles", "2", "--new-tokens", "3"), 2, 2, 2),
        ("memory", ("--tiles", "2"), 2, 1, 2),
        ("second_turn", ("--tiles", "2"), 1, 1, 2),
        ("loading", (), 2, 2, 2),
        ("conversation", (), 3, 2, 2),
        ("tokenization", (), 3, 3, 2),
    ],
)
def test_command(name, arguments, cases, compared, subjects, tmp_path):
    result, printed = run(name, tmp_path, *arguments)
    assert f"benchmarks.{name} --repeats" in result["command"]
    rows = result["rows"]
    assert len({row["case"] for row in rows}) == cases
    assert len(rows) == (5 if name == "conversation" else cases * subjects)  # its last case has one subject
    assert all("skipped" in row or row["low"] <= row["median"] <= row["high"] for row in rows)
    assert len({row["case"] for row in rows if row.get("ratio") == 1}) == compared
    assert len({row["case"] for row in rows if row.get("ratio")}) == compared
    assert measure.table(rows) in printed
    if name == "second_turn":
        assert rows[0]["note"] == "2 of 2 answers equal"


@pytest.mark.slow
def test_drafts_are_measured_where_all_guesses_are_right_and_where_none_is(tmp_path):
    result, _ = run("drafts", tmp_path, "--tiles", "1", "--new-tokens", "12", "--dtype", "float32")
    notes = [(row["who"], float(row["note"].split()[0])) for row in result["rows"]]
    never, always, embedded = notes[:3], notes[3:6], notes[6:]
    assert [passes for _, passes in never] == [1, 1, 1]
    assert always[0] == ("greedy", 1)
    assert dict(always)["draft model"] >= 4  # five guesses and one token of its own in each pass
    assert dict(embedded)["prompt lookup"] > 1


def panels(rows):
    return [(axes.get_xlabel(), len(axes.lines)) for axes in growth.plot(rows).axes]


@pytest.mark.slow
def test_growth_is_plotted(tmp_path):
    result, printed = run("growth", tmp_path, "--pictures", "1", "2", "--turns", "1", "2", "--dtype", "float32")
    assert panels(result["rows"]) == [("pictures", 1), ("turns", 2)]
    assert "first run `python -m benchmarks.memory --layout tiny --device cpu --dtype float32`" in printed
    assert list(tmp_path.glob("*.png"))


def cases_of_tiles(*counts):
    """Rows as `memory` yields them."""
    for count in counts:
        samples, place = {"ours": [1.0], "peer": [2.0]}, {"against": "tiles", "x": count}
        yield [
            *measure.rows(f"{count} tiles, memory", samples, "GiB", "peer", quantity="memory", **place),
            *measure.rows(f"{count} tiles, first token", samples, "ms", quantity="first token", **place),
        ]


def options_of(folder):
    return Namespace(layout="tiny", device="cpu", dtype="float32", output=folder)


def test_growth_takes_the_curve_of_tiles_from_memory(tmp_path, capsys):
    measure.write("memory", "How much?", options_of(tmp_path), cases_of_tiles(1, 7))
    assert panels(growth.curve_of_tiles(options_of(tmp_path))) == [("tiles", 2), ("tiles", 2)]
    other = Namespace(**{**vars(options_of(tmp_path)), "dtype": "bfloat16"})
    assert growth.curve_of_tiles(other) == []
    assert "benchmarks.memory --layout tiny --device cpu --dtype bfloat16`" in capsys.readouterr().out


def test_a_run_that_is_stopped_keeps_its_cases(tmp_path):
    def cases():
        yield from cases_of_tiles(1, 7)
        raise KeyboardInterrupt

    old = measure.write("memory", "How much?", options_of(tmp_path), cases_of_tiles(3))
    with pytest.raises(KeyboardInterrupt):
        measure.write("memory", "How much?", options_of(tmp_path), cases())
    rows = measure.read_rows(measure.partial_path(old))  # beside the last whole result, which stays
    assert rows == [row for case in cases_of_tiles(1, 7) for row in case]
    assert measure.read_rows(old) == [row for case in cases_of_tiles(3) for row in case]


def test_a_command_offers_what_it_reads():
    plain = vars(measure.parser(None, has_model=False).parse_args([]))
    assert (plain["layout"], plain["device"]) == ("any", "cpu")
    with pytest.raises(SystemExit):
        measure.parser(None, has_model=False).parse_args(["--device", "cpu"])
    with pytest.raises(SystemExit):
        measure.parser(None).parse_args(["--tiles", "1"])
    assert measure.parser(None, tiles=(7,)).parse_args([]).tiles == [7]


def test_rows_and_table():
    rows = measure.rows("7 tiles", {"peer": [2.0, 4.0, 3.0], "ours": [1.5, 1.0, 6.0]}, "ms", "peer")
    assert [(row["median"], row["low"], row["high"], row["ratio"]) for row in rows] == [(3, 2, 4, 1), (1.5, 1, 6, 0.5)]
    text = measure.table([*rows, {"case": "7 tiles", "who": "other", "skipped": "not installed"}])
    assert text.splitlines()[3:] == [
        "| 7 tiles | ours | 1.5 ms | 1 to 6 | 0.500 |",
        "| 7 tiles | other | skipped: not installed | | |",
    ]


def test_calls_take_turns_after_one_that_is_not_kept():
    order = []
    seconds = measure.in_turns({name: lambda name=name: order.append(name) for name in "ab"}, repeats=2)
    assert "".join(order) == "ababab"
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_peak_memory_sees_what_was_freed_again():
    with measure.PeakMemory("cpu") as peak:
        held = bytearray(b"1") * (64 * 2**20)
        time.sleep(0.2)
        del held
    assert peak.bytes > 32 * 2**20


def test_report_names_question_command_and_versions(tmp_path, monkeypatch):
    result = {
        "question": "How long?",
        "command": "python -m benchmarks.vision",
        "layout": "tiny",
        "dtype": "float32",
        "machine": "a machine",
        "versions": {"torch": "2.13"},
        "rows": measure.rows("1 tile", {"ours": [1.0]}, "ms"),
    }
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "vision.json").write_text(json.dumps(result))
    (folder / "vision.png").touch()
    monkeypatch.setattr(sys, "argv", ["report", "--results", str(folder)])
    report.main()
    text = (tmp_path / "RESULTS.md").read_text()
    for part in (
        "## How long?",
        "`python -m benchmarks.vision`",
        "a machine; torch 2.13.",
        "![How long?](results/vision.png)",
    ):
        assert part in text


def test_a_step_needs_two_tokens(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generation", "--layout", "tiny", "--new-tokens", "1"])
    with pytest.raises(SystemExit):
        generation.main()
    assert "--new-tokens is 1, expected at least 2" in capsys.readouterr().err
