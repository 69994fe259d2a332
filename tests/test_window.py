"""The window's rules: which releases run, which failures count, and what the summary says."""

import subprocess
import sys

import pytest
import window
from window import Result


PINNED = ("4.57.6", "5.9.0")


@pytest.mark.parametrize(
    ("latest", "releases"),
    [
        ("5.10.0", ("4.57.6", "5.9.0", "5.10.0")),
        ("5.9.0", ("4.57.6", "5.9.0")),
        ("5.8.2", ("4.57.6", "5.9.0")),
        (None, ("4.57.6", "5.9.0")),
    ],
)
def test_the_newest_runs_once(latest, releases):
    assert window.chosen(PINNED, latest) == releases


def test_only_pinned_releases_fail_the_command():
    passed, foreign = Result("5.9.0", 0, 1.0), Result("5.10.0", 1, 1.0)
    assert window.exit_status([passed, foreign], PINNED) == 0
    for status in (1, 2, 5, None):
        assert window.exit_status([passed, Result("4.57.6", status, 1.0)], PINNED) == 1


def test_lines_of_the_summary():
    assert Result("5.9.0", 0, 61.4).line(PINNED) == "Transformers 5.9.0: passed in 61 s"
    assert Result("4.57.6", 5, 2).line(PINNED) == "Transformers 4.57.6: FAILED (no test ran) in 2 s"
    assert Result("5.10.0", 1, 2).line(PINNED) == (
        "Transformers 5.10.0 (newest on the index, not pinned): FAILED in 2 s"
    )
    assert "its environment could not be made" in Result("5.9.0", None, 2).line(PINNED)
    assert "the index could not be reached" in window.about_newest(None)
    assert window.about_newest("99.0.0") == "Newest on the index: 99.0.0"


@pytest.mark.parametrize(
    ("printed", "expected"),
    [("transformers (5.24.0)\nAvailable versions: 5.24.0, 5.23.0\n", "5.24.0"), ("", None), (None, None)],
)
def test_the_newest_is_what_pip_finds(monkeypatch, printed, expected):
    def pip(command, **options):
        assert command[1:5] == ["-m", "pip", "index", "versions"]
        if printed is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, 0 if printed else 1, printed, "ERROR: no index")

    monkeypatch.setattr(subprocess, "run", pip)
    assert window.newest() == expected


def test_a_failing_environment_is_the_failure_of_its_release(monkeypatch, capsys):
    def broken(release):
        raise subprocess.CalledProcessError(1, ["pip", "install"])

    monkeypatch.setattr(window, "environment", broken)
    monkeypatch.setattr(window, "newest", lambda: "99.0.0")
    monkeypatch.setattr(window, "RELEASES", PINNED)
    monkeypatch.setattr(sys, "argv", ["window"])
    assert window.main() == 1
    lines = capsys.readouterr().out.split("Summary\n")[1].splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "Transformers 4.57.6",
        "Transformers 5.9.0",
        "Transformers 99.0.0 (newest on the index, not pinned)",
        "Newest on the index",
    ]
