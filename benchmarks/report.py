"""Write RESULTS.md from the JSON files of the other commands.

python -m benchmarks.report
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, table
from training.durable import write_text


HEADER = """# Results

Written by `python -m benchmarks.report` from the JSON files in `results/`. Medians; the spread is from the lowest to
the highest measurement. A ratio is to the subject whose ratio is 1.000, measured in the same run; where there is no
ratio, nothing was compared. Weights are random: only shapes are those of the published models.
"""


def section(path: Path, folder: Path) -> str:
    """Write the section of one file: question, command, machine, versions, table, and the plot if there is one.

    Args:
        path: A JSON file that `measure.write` wrote.
        folder: Where RESULTS.md will be; the plot is named from there.

    Returns:
        Markdown.
    """
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"## {result['question']}", "", f"`{result['command']}`", ""]
    lines += [f"Layout {result['layout']}, {result['dtype']}; {result['machine']}; {versions}.", ""]
    lines += [table(result["rows"]), ""]
    picture = path.with_suffix(".png")
    if picture.is_file():
        lines += [f"![{result['question']}]({picture.relative_to(folder).as_posix()})", ""]
    return "\n".join(lines)


def main() -> None:
    """Write the report."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    options = line.parse_args()
    folder = options.results.parent
    sections = [section(path, folder) for path in sorted(options.results.glob("*.json"))]
    write_text(folder / "RESULTS.md", "\n".join([HEADER, *sections]))


if __name__ == "__main__":
    main()
