"""Imports run one way, as DESIGN says; flags and addons stay where they belong."""

import ast

import pytest
from conftest import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("mapseg", "data_prep")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.stem != "__init__"
}
BASE = {"config", "labels", "files", "progress", "machine", "compiling", "pictures", "charts"}
# A package, and what it may import beside its own modules and BASE.
MAY_IMPORT = {
    "data": set(),
    "model": set(),
    "runs": {"data", "model"},
    "inference": {"data", "model", "runs"},
    "evaluation": {"data", "model", "runs", "inference"},
    "training": {"data", "model", "runs", "inference", "evaluation"},
    "estimator": {"data", "model", "runs", "inference", "evaluation", "training"},
    "cli": set(),
    "doctor": {"data", "model", "runs", "training", "cli"},
}
COMMANDS = {
    "mapseg.cli",
    "mapseg.doctor",
    "data_prep.make_sample",
    "data_prep.build_records",
    "data_prep.index_records",
    "data_prep.verify_records",
}


def imports(path):
    """What a module imports, inside functions too, but not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


USED = {name: set(imports(path)) for name, path in MODULES.items()}


def uses(name, package):
    return any(used == package or used.startswith(f"{package}.") for used in USED[name])


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("mapseg.")])
def test_imports_run_one_way(name):
    own = name.split(".")[1]
    used = {other.split(".")[1] for other in USED[name] & MODULES.keys()}
    assert used <= BASE | {own} | MAY_IMPORT.get(own, set())
    assert own in BASE | MAY_IMPORT.keys(), "a new module needs its place in the order"
    assert not uses(name, "data_prep")


def test_no_modules_import_each_other_in_a_cycle():
    left = {name: USED[name] & MODULES.keys() for name in MODULES}
    while free := [name for name, used in left.items() if not used & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_only_entry_points_know_flags():
    assert {name for name in MODULES if uses(name, "absl")} <= COMMANDS


def test_only_addons_imports_tensorflow_addons():
    knowing = {name for name in MODULES if uses(name, "tensorflow_addons")}
    assert knowing == {"mapseg.training.addons"}


@pytest.mark.parametrize("name", ["mapseg.labels", "mapseg.evaluation.scores"])
def test_labels_and_scores_need_only_numpy(name):
    assert not any(uses(name, package) for package in ("tensorflow", "keras", "cv2"))


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}))
def test_init_files_hold_a_docstring_alone(folder):
    if folder != ROOT / "mapseg":
        body = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
        assert [type(node) for node in body] == [ast.Expr]
