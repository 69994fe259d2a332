"""Run the tests on several releases of Transformers, each in an environment of its own without torchvision.

The environments are kept in `.venvs` and made anew when their list of packages changes. Usage: `make window`.
"""

import argparse
import os
import subprocess
import sys
import time
import venv
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
# The oldest supported, the first of the fifth generation, one from its middle, the newest.
RELEASES = ("4.57.6", "5.0.0", "5.10.4", "5.23.0", "5.24.0")
# Training and benchmarks have requirements of their own, which these environments lack.
PINNED_ONLY = ("test_training_*", "test_benchmarks*", "test_memory_table*")
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


def environment(release: str) -> Path:
    """Return the Python of an environment with this release, made if need be."""
    folder = ROOT / ".venvs" / release
    python, done = folder / "bin" / "python", folder / "packages.txt"
    packages = [f"transformers=={release}", *(f"{name}=={PINS[name]}" for name in PACKAGES)]
    if not done.exists() or done.read_text("utf-8").split() != packages:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
        done.write_text("\n".join(packages), "utf-8")
    return python


def run(release: str, jobs: int, arguments: list[str]) -> int:
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
    started = time.monotonic()
    status = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
        check=False,
    ).returncode
    print(f"Transformers {release}: {'passed' if status == 0 else 'FAILED'} in {time.monotonic() - started:.0f} s")
    return status


def main() -> int:
    """Run all releases, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes per run")
    parser.add_argument("--release", action="append", help="only this release (may be repeated)")
    options, arguments = parser.parse_known_args()
    statuses = [run(release, options.jobs, arguments) for release in options.release or RELEASES]
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
