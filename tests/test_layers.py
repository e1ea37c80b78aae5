"""Imports run one way, as DESIGN says; flags and addons stay where they belong."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for folder in ("mapseg", "data_prep") for p in (ROOT / folder).glob("*.py"))

# Each module may import only modules that stand before it.
ORDER = [
    "files",
    "machine",
    "compiling",
    "progress",
    "cluster",
    "labels",
    "config",
    "scores",
    "losses",
    "addons",
    "optimizers",
    "tiles",
    "transforms",
    "records",
    "windows",
    "sampling",
    "pipeline",
    "strategy",
    "convolutions",
    "blocks",
    "resampling",
    "efficientnet",
    "ddrnet",
    "torch_files",
    "encoders",
    "recompute",
    "model",
    "plots",
    "checkpoints",
    "transfer",
    "predict",
    "evaluate",
    "step",
    "train",
    "frames",
    "infer",
    "export",
    "estimator",
    "cli",
    "doctor",
]
COMMANDS = {"make_sample", "build_records", "index_records", "verify_records", "doctor"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uses(path, package):
    return any(name == package or name.startswith(f"{package}.") for name in imports(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_imports_run_one_way(path):
    used = {n.split(".")[1] for n in imports(path) if n.startswith("mapseg.")} & set(ORDER)
    if path.parent.name == "mapseg" and path.stem != "__init__":
        assert path.stem in ORDER, "a new module needs its place in ORDER"
        assert used <= set(ORDER[: ORDER.index(path.stem)])
        assert not uses(path, "data_prep")


def test_infer_knows_nothing_of_training():
    used = {n.split(".")[1] for n in imports(ROOT / "mapseg/infer.py") if n.startswith("mapseg.")}
    assert not used & {"train", "pipeline", "losses", "optimizers"}


def test_only_entry_points_know_flags():
    knowing = {p.stem for p in MODULES if uses(p, "absl")}
    assert knowing <= {"cli"} | COMMANDS


def test_only_addons_imports_tensorflow_addons():
    assert {p.stem for p in MODULES if uses(p, "tensorflow_addons")} == {"addons"}


@pytest.mark.parametrize("name", ["labels", "scores"])
def test_labels_and_scores_need_only_numpy(name):
    assert not any(uses(ROOT / f"mapseg/{name}.py", p) for p in ("tensorflow", "keras", "cv2"))
