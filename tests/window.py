"""Run the tests on several releases of Transformers, each in an environment of its own without torchvision.

The releases are the pinned ones and the newest that pip finds on the day. A failure of a release newer than every
pinned one is printed but does not fail the command, so that a foreign release cannot block this repository. The
environments are kept in `.venvs` and rebuilt when their list of packages changes. Usage: `make window`.
"""

import argparse
import os
import re
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
# The oldest supported, the first of the fifth generation, one from its middle, the two newest.
RELEASES = ("4.57.6", "5.0.0", "5.10.4", "5.23.0", "5.24.0")
# Training and benchmarks have requirements of their own, which these environments lack.
PINNED_ONLY = (
    "test_training_*",
    "test_benchmarks*",
    "test_memory_table*",
    "test_family_page*",
    "test_window*",
    "test_pythons*",
    "test_peers*",
)
PINS = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines() if "==" in line)
PACKAGES = (
    "torch",
    "numpy",
    "pillow",
    "sentencepiece",
    "safetensors",
    "accelerate",
    "jinja2",
    "pytest",
    "pytest-xdist",
)


@dataclass(frozen=True)
class Result:
    """What came of one release: pytest's exit status (None: no environment could be made) and the seconds it took."""

    release: str
    status: int | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether tests ran and all passed; pytest's status 5 means that there were none."""
        return self.status == 0

    def line(self, pinned: tuple[str, ...]) -> str:
        """Return the line of the summary."""
        verdict = "passed" if self.passed else "FAILED"
        if self.status is None:
            verdict += " (its environment could not be made)"
        elif self.status == 5:
            verdict += " (no test ran)"
        note = "" if self.release in pinned else " (newest on the index, not pinned)"
        return f"Transformers {self.release}{note}: {verdict} in {self.seconds:.0f} s"


def newest(python: str = sys.executable) -> str | None:
    """Return the newest release that pip finds, without pre-releases, or None if the index cannot be reached."""
    command = [python, "-m", "pip", "index", "versions", "transformers", "--disable-pip-version-check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return None
    found = re.search(r"^transformers \(([^)]+)\)", done.stdout, re.MULTILINE)
    return found[1] if found else None


def numbers(release: str) -> tuple[int, ...]:
    """Return a release as numbers, which compare as releases do."""
    return tuple(map(int, re.findall(r"\d+", release)))


def chosen(pinned: tuple[str, ...], latest: str | None) -> tuple[str, ...]:
    """Return the pinned releases, followed by the newest if it is newer than all of them."""
    return (*pinned, latest) if latest and numbers(latest) > max(map(numbers, pinned)) else pinned


def environment(release: str) -> Path:
    """Return the Python of an environment with this release, made if need be."""
    if PINS["transformers"] == release and (ROOT / ".venv" / "ready").exists():
        return ROOT / ".venv" / "bin" / "python"  # what `make test` runs in
    folder = ROOT / ".venvs" / release
    python, done = folder / "bin" / "python", folder / "packages.txt"
    packages = [f"transformers=={release}", *(f"{name}=={PINS[name]}" for name in PACKAGES)]
    if not done.exists() or done.read_text("utf-8").split() != packages:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
        done.write_text("\n".join(packages), "utf-8")
    return python


def run_tests(release: str, jobs: int, arguments: list[str]) -> int:
    """Run the tests on one release and return pytest's exit status."""
    python = environment(release)
    check = "import importlib.util as i, torch; print(i.find_spec('torchvision') is None, torch.version.cuda is None)"
    found = subprocess.run([python, "-c", check], check=True, capture_output=True, text=True).stdout.split()
    if found[0] != "True":
        raise RuntimeError(f"torchvision is installed in the environment of Transformers {release}; it must not be.")
    if found[1] != "True":
        print("note: pip chose a CUDA build of PyTorch; the tests run on the CPU all the same")
    command = [python, "-m", "pytest", "-q", "-n", str(jobs), "-m", "not slow and not gpu and not newest"]
    command += [*(f"--ignore-glob=*/{name}" for name in PINNED_ONLY), *arguments]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, check=False).returncode


def run(release: str, jobs: int, arguments: list[str]) -> Result:
    """Run one release; an environment that cannot be made is a failure of that release alone."""
    print(f"== Transformers {release}", flush=True)
    started = time.monotonic()
    try:
        status = run_tests(release, jobs, arguments)
    except subprocess.CalledProcessError as error:
        print(f"Transformers {release}: {error}")
        status = None
    return Result(release, status, time.monotonic() - started)


def exit_status(results: list[Result], pinned: tuple[str, ...]) -> int:
    """Return 1 if a pinned release failed: one that nobody pinned yet is reported only."""
    return int(any(not result.passed for result in results if result.release in pinned))


def about_newest(latest: str | None) -> str:
    """Return the line of the summary that names the newest release."""
    if latest is None:
        return "Newest on the index: unknown, because the index could not be reached; only pinned releases ran."
    return f"Newest on the index: {latest}" + (
        "" if numbers(latest) > numbers(RELEASES[-1]) else ", not newer than pinned"
    )


def main() -> int:
    """Run all releases, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes per run")
    parser.add_argument("--release", action="append", help="only this release (may be repeated)")
    parser.add_argument("--others", action="store_true", help="not the release that `make test` runs on")
    options, arguments = parser.parse_known_args()
    if options.release:
        latest, releases, pinned = None, options.release, tuple(options.release)
    else:
        latest, pinned = newest(), RELEASES
        releases = chosen(pinned, latest)
        if options.others:
            releases = tuple(release for release in releases if release != PINS["transformers"])
            print(f"Transformers {PINS['transformers']} is left to `make test`")
    results = [run(release, options.jobs, arguments) for release in releases]
    print("\nSummary", *(result.line(pinned) for result in results), sep="\n")
    if not options.release:
        print(about_newest(latest))
    return exit_status(results, pinned)


if __name__ == "__main__":
    sys.exit(main())
