"""The check of the supported Pythons says what ran, and finds grammar and modules that are too new."""

import sys

import pytest
import pythons


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.py").write_text("import json\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "b.py").write_text("not Python\n")
    return tmp_path


def test_environments_are_left_out(folder):
    assert [path.name for path in pythons.files(folder)] == ["a.py"]


def test_an_installed_python_compiles(folder):
    said = pythons.check(sys.version_info[:2], pythons.files(folder), {"json"})
    assert said.startswith(f"Python {sys.version_info[0]}.{sys.version_info[1]}.")
    assert said.endswith(": 1 files compiled")


def test_a_python_that_is_not_installed_is_said(folder, monkeypatch):
    monkeypatch.setattr(pythons, "interpreter", lambda version: None)
    said = pythons.check((3, 10), pythons.files(folder), {"json"})
    assert said == "Python 3.10: not installed; 1 files read with its grammar, none compiled"
    assert pythons.check((3, 99), [], set()).endswith("newer than this Python, NOT checked")


def test_what_is_too_new_is_found(folder, monkeypatch):
    with pytest.raises(SyntaxError, match=r"has no no_such_module in its standard library"):
        pythons.check(sys.version_info[:2], pythons.files(folder), {"no_such_module"})
    monkeypatch.setattr(pythons, "interpreter", lambda version: None)
    with pytest.raises(SyntaxError, match="tomllib is not in the standard library of every supported Python"):
        pythons.check((3, 10), [], {"json", "tomllib"})
    (folder / "a.py").write_text("try:\n    pass\nexcept* ValueError:\n    pass\n")
    with pytest.raises(SyntaxError, match="supported in Python 3.11"):
        pythons.check((3, 10), pythons.files(folder), set())


def test_one_version_fails_the_command_and_the_others_are_still_said(monkeypatch, capsys):
    def check(version, paths, standard):
        if version == (3, 10):
            raise SyntaxError("a.py, line 3")
        return "compiled"

    monkeypatch.setattr(pythons, "check", check)
    assert pythons.main() == 1
    assert capsys.readouterr().out.splitlines() == ["Python 3.10: FAILED: a.py, line 3", *["compiled"] * 3]
