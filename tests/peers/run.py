"""Run Transformers' own common tests on this package's classes, beside the native models' suites.

For each release, `.venvs/peers/<release>` gets an environment and the library's `tests` folder: from the source
distribution, and what that lacks (generation, causal language models, the native models' suites) from the release's
tag in the library's public repository, or from `--checkout`. Without it less is run, and the summary says so.

A test that the native model passes and ours fails is a failure, unless `exceptions.json` lists it with its reason; an
exception that no longer fails is stale, which is a failure too. Usage: `make peers`, or
`python -m tests.peers.run --release 5.24.0 -k generate`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import xml.etree.ElementTree as ET
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from tests.window import PACKAGES, PINS, RELEASES


ROOT = Path(__file__).resolve().parents[2]
SUITES = ROOT / "tests" / "peers"
REPOSITORY = "https://github.com/huggingface/transformers"
# What the common tests import beside the packages of the window.
EXTRA = ("httpx", "parameterized==0.9.0", "protobuf", "setuptools")
# What the source distribution lacks, as paths in the library's repository.
LACKING = (
    "tests/causal_lm_tester.py",
    "tests/distributed_testing_utils.py",
    "tests/exporters",
    "tests/fixtures/sample_text.txt",
    "tests/generation/test_utils.py",
    "tests/models/internvl",
    "tests/models/llama",
    "tests/utils/test_configuration_utils.py",
    "tests/utils/tiny_model_summary.json",
    "utils/test_module",
)
# Stand-ins, so that the rest can be imported without it; the last one gives an image of ours for each image of theirs.
STAND_INS = {
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/fixtures/sample_text.txt": "A sentence.\n\nAnother one, with a number: 42.\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/tiny_model_summary.json": "{}\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "utils/fetch_hub_objects_for_ci.py": (
        "import os\n\n\ndef url_to_local_path(url, return_url_if_not_found=True):\n"
        "    return os.environ['PEERS_IMAGE'] if url.endswith(('.png', '.jpg')) else url\n"
    ),
}
# The native suite that stands beside each of ours, by the beginning of the class's name.
NATIVE = {"Chat": "NativeInternVLTest", "InternLM2": "NativeLlamaTest", "Vision": "NativeVisionTest"}
RANK = {"skipped": 0, "passed": 1, "failed": 2}
TIME_LIMIT = 3600 * 3  # seconds


class Result(NamedTuple):
    """One test: its class, its name, "passed", "failed" or "skipped", and the last line of its error."""

    suite: str
    test: str
    status: str
    message: str


class Judgement(NamedTuple):
    """Failures of ours, failures excused by an exception, exceptions that no longer fail."""

    failures: list[Result]
    excused: list[Result]
    stale: list[dict]


def environment(folder: Path, release: str) -> Path:
    """Return the Python of an environment with this release, made if need be."""
    python, done = folder / "env" / "bin" / "python", folder / "packages.txt"
    packages = [f"transformers=={release}", *(f"{name}=={PINS[name]}" for name in PACKAGES), *EXTRA]
    if not done.exists() or done.read_text("utf-8").split() != packages:
        venv.create(folder / "env", clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
        done.write_text("\n".join(packages), "utf-8")
    return python


def copy_lacking(checkout: Path, source: Path) -> None:
    """Copy what the source distribution lacks from a checkout of the library."""
    for name in LACKING:
        if (checkout / name).is_dir():
            shutil.copytree(checkout / name, source / name, dirs_exist_ok=True)
        elif (checkout / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkout / name, source / name)


def clone(release: str, into: Path) -> bool:
    """Bring what the source distribution lacks from the release's tag; return whether that was possible."""
    options = ["--quiet", "--depth", "1", "--filter", "blob:none", "--sparse", "--branch", f"v{release}"]
    done = subprocess.run(["git", "clone", *options, REPOSITORY, into], check=False, timeout=600)
    if done.returncode != 0:
        return False
    subprocess.run(["git", "-C", into, "sparse-checkout", "set", "--no-cone", *LACKING], check=True, timeout=600)
    return True


def bring(folder: Path, python: Path, release: str, checkout: Path | None) -> Path:
    """Return a folder with the release's `tests` package, made if need be."""
    source = folder / "source"
    if (source / "complete").exists():
        return source
    shutil.rmtree(source, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        command = [python, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-binary", ":all:"]
        command += ["--no-deps", "--no-build-isolation", "-d", temporary, f"transformers=={release}"]
        subprocess.run(command, check=True)
        with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
            archive.extractall(temporary, filter="data")
        (unpacked,) = (path for path in Path(temporary).iterdir() if path.is_dir())
        for name in ("src", "tests"):  # some tests read the sources
            shutil.copytree(unpacked / name, source / name)
        if checkout is None and clone(release, Path(temporary) / "clone"):
            checkout = Path(temporary) / "clone"
        if checkout is not None:
            copy_lacking(checkout, source)
    for name, text in STAND_INS.items():
        if not (source / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(text, "utf-8")
    for path in (source / "tests", *(path for path in (source / "tests").rglob("*") if path.is_dir())):
        (path / "__init__.py").touch()
    (source / "complete").touch()
    return source


def run_suites(python: Path, source: Path, jobs: int, arguments: list[str]) -> list[Result]:
    """Run our suites and the native ones and return what came of each test."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, report = Path(temporary) / "checkpoint", Path(temporary) / "report.xml"
        shutil.copytree(ROOT / "tiny", folder)
        for file in [*ROOT.glob("*.py"), ROOT / "chat_template.jinja"]:
            shutil.copy(file, folder)
        command = [python, "-m", "pytest", "-q", "-n", str(jobs), "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-o", "python_files=suite_*.py", "-o", "filterwarnings=", "--confcutdir", SUITES, "--tb=short"]
        environ = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(source),
            "PEERS_FOLDER": str(folder),
            "PEERS_IMAGE": str(ROOT / "examples" / "shapes.png"),
            "PEERS_MODULES": str(Path(temporary) / "modules"),
        }
        command += ["-o", "addopts=", "--rootdir", SUITES, *arguments, SUITES]
        with (source.parent / "log.txt").open("w") as log:
            subprocess.run(command, env=environ, cwd=source, stdout=log, stderr=log, check=False, timeout=TIME_LIMIT)
        if not report.exists():
            raise RuntimeError(f"pytest wrote no report; see {source.parent / 'log.txt'}")
        shutil.copy(report, source.parent / "report.xml")
        return read(report)


def read(report: Path) -> list[Result]:
    """Read the results from pytest's report in XML; of several entries (subtests) the worst counts."""
    results: dict[tuple[str, str], Result] = {}
    for case in ET.parse(report).iter("testcase"):
        suite, test = case.get("classname", "").rsplit(".", 1)[-1], case.get("name", "")
        found = {element.tag: element for element in case}
        bad = found.get("failure", found.get("error"))
        status = "failed" if bad is not None else "skipped" if "skipped" in found else "passed"
        message = " ".join(bad.get("message", "").split())[:300] if bad is not None else ""
        known = results.get((suite, test))
        if known is None or RANK[status] > RANK[known.status]:
            results[suite, test] = Result(suite, test, status, message)
    return list(results.values())


def exceptions() -> list[dict]:
    """Return the exceptions: patterns of suite and test, the reason, and the releases where it holds, if not all."""
    return json.loads((SUITES / "exceptions.json").read_text("utf-8"))


def native_of(suite: str) -> str | None:
    """Return the name of the native suite beside one of ours, or None."""
    return next((native for start, native in NATIVE.items() if suite.startswith(start)), None)


def fits(exception: dict, result: Result, release: str) -> bool:
    """Return whether an exception speaks of this test."""
    releases = exception.get("releases", [release])
    named = fnmatchcase(result.suite, exception["suite"]) and fnmatchcase(result.test, exception["test"])
    return named and release in releases


def judge(results: list[Result], listed: list[dict], release: str) -> Judgement:
    """Compare by test name: a failure is ours unless the native suite fails or lacks the test, or it is excused.

    Where no native suite stands beside ours, or it did not run, every failure is ours.
    """
    native = {(result.suite, result.test): result.status for result in results}
    ran = {result.suite for result in results}
    failures, excused = [], []
    for result in results:
        beside = native_of(result.suite)
        counts = beside not in ran or native.get((beside, result.test)) == "passed"
        if result.status != "failed" or result.suite.startswith("Native") or not counts:
            continue
        known = any(fits(exception, result, release) for exception in listed)
        (excused if known else failures).append(result)
    spoken = [exception for exception in listed if any(fits(exception, result, release) for result in results)]
    stale = [entry for entry in spoken if not any(fits(entry, result, release) for result in excused)]
    return Judgement(failures, excused, stale)


def table(results: list[Result]) -> str:
    """Return the counts of each suite, the native one's beside ours."""
    counts = {suite: Counter() for suite in sorted({result.suite for result in results})}
    for result in results:
        counts[result.suite][result.status] += 1

    def row(suite: str) -> str:
        return " / ".join(str(counts[suite][status]) for status in ("passed", "failed", "skipped"))

    lines = [f"{'suite':24}{'passed / failed / skipped':28}native"]
    for suite in counts:
        if not suite.startswith("Native"):
            native = native_of(suite)
            lines.append(f"{suite:24}{row(suite):28}{f'{native} {row(native)}' if native in counts else '-'}")
    return "\n".join(lines)


def check(release: str, options: argparse.Namespace, arguments: list[str]) -> bool:
    """Run the peers of one release, print what came of it and return whether it holds."""
    folder = ROOT / ".venvs" / "peers" / release
    python = environment(folder, release)
    source = bring(folder, python, release, options.checkout)
    results = run_suites(python, source, options.jobs, ["-k", options.k, *arguments])
    judgement = judge(results, exceptions(), release)
    print(f"\nTransformers {release}\n{table(results)}")
    if not (source / "tests" / "causal_lm_tester.py").exists():
        print("Generation, causal language models and the native suites were not to be had: less was run.")
    for result in judgement.failures:
        print(f"FAILED {result.suite}::{result.test}: {result.message}")
    for exception in judgement.stale:
        print(f"STALE exception {exception['suite']}::{exception['test']}: it no longer fails; delete it.")
    print(f"{len(judgement.failures)} failures, {len(judgement.excused)} excused, {len(judgement.stale)} stale")
    return bool(results) and not judgement.failures and not judgement.stale


def main() -> int:
    """Run the newest release of the window, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes per run")
    parser.add_argument("--release", action="append", help="this release (may be repeated)")
    parser.add_argument(
        "-k", default="not compil", help="which tests, as pytest's -k (by default all but those that compile)"
    )
    parser.add_argument("--checkout", type=Path, help="a checkout of the library, for what the archive lacks")
    options, arguments = parser.parse_known_args()
    held = [check(release, options, arguments) for release in options.release or RELEASES[-1:]]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
