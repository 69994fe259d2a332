"""Compile every file with each supported Python that is installed, and read it with each one's grammar otherwise.

The summary says which Pythons ran. For one that is not installed the grammar is checked with `ast.parse` and its
`feature_version`, and the imports against the modules that some supported Python lacks. Usage: `make pythons`.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 10), (3, 11), (3, 12), (3, 13))
# Compiles in memory, so that nothing is written beside the sources, and prints what the standard library lacks.
COMPILE = """
import platform, sys
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        compile(file.read(), name, "exec", dont_inherit=True)
print(platform.python_version(), *sorted(set(sys.stdin.read().split()) - set(sys.stdlib_module_names)))
"""
# Modules of the standard library that are younger than 3.10 or gone in 3.13.
NOT_EVERYWHERE = {"tomllib", "asynchat", "asyncore", "cgi", "cgitb", "crypt", "distutils", "imp", "pipes", "telnetlib"}


def files(root: Path = ROOT) -> list[Path]:
    """Return every Python file of the repository, hidden folders left out."""
    paths = (path for path in root.rglob("*.py"))
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts))


def standard_imports(paths: list[Path]) -> set[str]:
    """Return the modules of this Python's standard library that the files import."""
    found = set()
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found & set(sys.stdlib_module_names)


def interpreter(version: tuple[int, int]) -> str | None:
    """Return a Python of this version that runs: this one, one on PATH or one that pyenv keeps."""
    own = [sys.executable] if sys.version_info[:2] == version else []
    name = ".".join(map(str, version))
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [*own, shutil.which(f"python{name}"), *map(str, kept.glob(f"{name}.*/bin/python"))]
    check = f"import sys; sys.exit(sys.version_info[:2] != {version})"
    for python in filter(None, candidates):
        # pyenv's commands on PATH exist and start nothing where their version is not chosen.
        if subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0:
            return python
    return None


def compile_with(python: str, paths: list[Path], standard: set[str]) -> str:
    """Compile all files with one interpreter; return what to say. Raises `SyntaxError` with its message."""
    command = [python, "-c", COMPILE, *map(str, paths)]
    done = subprocess.run(command, input="\n".join(standard), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SyntaxError(done.stderr.strip())
    version, *missing = done.stdout.split()
    if missing:
        raise SyntaxError(f"Python {version} has no {', '.join(missing)} in its standard library")
    return f"Python {version}: {len(paths)} files compiled"


def read_as(version: tuple[int, int], paths: list[Path], standard: set[str]) -> str:
    """Read all files with the grammar of a Python that is not installed; return what to say. Raises `SyntaxError`."""
    name = ".".join(map(str, version))
    if missing := standard & NOT_EVERYWHERE:
        raise SyntaxError(f"{', '.join(sorted(missing))} is not in the standard library of every supported Python")
    if version > sys.version_info[:2]:
        return f"Python {name}: not installed and newer than this Python, NOT checked"
    for path in paths:
        ast.parse(path.read_text("utf-8"), str(path), feature_version=version)
    return f"Python {name}: not installed; {len(paths)} files read with its grammar, none compiled"


def check(version: tuple[int, int], paths: list[Path], standard: set[str]) -> str:
    """Check all files for one version; return what to say. Raises `SyntaxError`."""
    python = interpreter(version)
    return compile_with(python, paths, standard) if python else read_as(version, paths, standard)


def passes(version: tuple[int, int], paths: list[Path], standard: set[str]) -> bool:
    """Check all files for one version, print what was found, and return whether they suit it."""
    try:
        print(check(version, paths, standard))
    except SyntaxError as error:
        print(f"Python {'.'.join(map(str, version))}: FAILED: {error}")
        return False
    return True


def main() -> int:
    """Check all supported versions; return 1 if a file does not suit one of them."""
    paths = files()
    standard = standard_imports(paths)
    passed = [passes(version, paths, standard) for version in SUPPORTED]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
