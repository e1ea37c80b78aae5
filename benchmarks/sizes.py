"""Prints modules of over 300 lines and functions of over 60 lines, each with its reason.

    python benchmarks/sizes.py

A reason is a comment `# Long: ...` in the module's first lines, or on the line above the function.
The exit code is 1 if a reason is missing.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("mapseg", "data_prep", "experiments", "benchmarks")
MODULE_LINES, FUNCTION_LINES = 300, 60
_REASON = re.compile(r"#\s*Long: (.+)")
_FIRST_LINES = 30  # lines of a module that may hold its reason


def long_parts(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yields (name, lines, reason) of a long module and its long functions; reason may be empty."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    name = path.relative_to(ROOT).as_posix()
    if len(lines) > MODULE_LINES:
        yield name, len(lines), _reason(lines[:_FIRST_LINES])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            length = node.end_lineno - first + 1
            if length > FUNCTION_LINES:
                yield f"{name}:{node.name}", length, _reason(lines[max(first - 3, 0) : first - 1])


def _reason(lines: list[str]) -> str:
    return next((match[1] for match in map(_REASON.search, lines) if match), "")


def main() -> int:
    """Prints the table; returns 1 if a reason is missing."""
    paths = [ROOT / "train_main.py", ROOT / "infer_main.py"]
    paths += [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    parts = [part for path in paths for part in long_parts(path)]
    for name, length, reason in parts:
        print(f"{length:>5}  {name}: {reason or 'NO REASON'}")
    print(f"{len(paths)} modules, {len(parts)} long parts")
    return 0 if all(reason for *_, reason in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
