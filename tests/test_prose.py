"""The project's text uses the field's words, by its glossary of words to avoid."""

import functools
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".md", ".sh", ".flags", ".toml", ""}
SKIPPED = {"old_versions", "__pycache__"}
SKIPPED_AT_ROOT = {"demo_out", "runs", "build", "mapseg.egg-info"}

# A pattern to avoid, and what to write instead.
GLOSSARY = {
    r"\bgo(es|ing)? on\b|\bwent on\b": "resumes, continues",
    r"\b(told|tells|says)\b": "is reported, reports, prints",
    r"\bpassed over\b|\bleft alone\b": "is ignored, skipped",
    r"\bsound (step|loss|gradient)s?\b|\bbroken gradients?\b": "finite, non-finite step",
    r"\beach device alone\b|\beach replica alone\b": "per device, per replica",
    r"\bothers' (shards|programs?)\b|\banother program's\b": "written by other tools",
    r"\bless its own mean\b": "normalised over a batch of one",
    r"\b(can ?not|not to) be had\b|\bto be had\b": "is unavailable, cannot be downloaded",
    r"\bwhat (it|they) (was|were) made (from|of)\b": "its source",
    r"\bin the moment\b|\bat the moment when\b": "when",
    r"\bthe way (back|in)\b": "the inverse transform, the input pipeline",
    r"\bearns?\b|\bearned\b": "improves mean IoU by",
    r"\ba hop\b": "a step",
}


@functools.cache
def texts():
    """The lines of every text file of the project, by its path; environments are not searched."""
    found = {}
    for folder, folders, names in os.walk(ROOT):
        skipped = SKIPPED | (SKIPPED_AT_ROOT if Path(folder) == ROOT else set())
        folders[:] = [
            name
            for name in folders
            if name not in skipped and (name == ".ci" or not name.startswith("."))
        ]
        for path in sorted(Path(folder) / name for name in names):
            if path.suffix in SUFFIXES and not path.name.startswith(".") and path != Path(__file__):
                found[path] = path.read_text(encoding="utf-8").splitlines()
    return found


@pytest.mark.parametrize("pattern", GLOSSARY)
def test_the_text_uses_the_words_of_the_field(pattern):
    avoid, lines = re.compile(pattern), []
    for path, text in texts().items():
        for number, line in enumerate(text, start=1):
            if avoid.search(line):
                lines.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not lines, "write: " + GLOSSARY[pattern] + "\n" + "\n".join(lines)


def test_there_is_text_to_read():
    names = {path.name for path in texts()}
    assert {"README.md", "train_main.py", "checkpoints.py", "demo.flags", "Makefile"} <= names
