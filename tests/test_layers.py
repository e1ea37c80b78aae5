"""Imports run one way, by the rules of the design; flags and addons stay in their modules."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT
from sizes import long_parts

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("mapseg", "data_prep")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.stem != "__init__"
}
BASE = {
    *("config", "labels", "mapping", "json_files", "stored_json", "files", "progress", "errors"),
    *("machine", "startup", "onednn", "compiling", "pictures", "charts", "confusion_chart"),
}
# What each package may import besides its own modules and BASE.
MAY_IMPORT = {
    "data": set(),
    "model": set(),
    "pages": {"data"},
    "runs": {"data", "model"},
    "inference": {"data", "model", "pages", "runs"},
    "evaluation": {"data", "model", "pages", "runs", "inference", "cli"},
    "training": {"data", "model", "runs", "inference", "evaluation"},
    "estimator": {"data", "model", "runs", "inference", "evaluation", "training"},
    "cli": set(),
    "checks": {"data", "model", "runs", "training"},
    "doctor": {"checks", "cli"},
}
COMMANDS = {
    "mapseg.cli",
    "mapseg.doctor",
    "mapseg.evaluation.score",
    "mapseg.evaluation.report.__main__",
    "data_prep.make_sample",
    "data_prep.build_records",
    "data_prep.index_records",
    "data_prep.verify_records",
}


def imports(path):
    """Yields the imports of a module, including those in functions but not those only for types."""
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
    package = name.split(".")[1]
    used = {other.split(".")[1] for other in USED[name] & MODULES.keys()}
    assert used <= BASE | {package} | MAY_IMPORT.get(package, set())
    assert package in BASE | MAY_IMPORT.keys(), "add the new module to the order of imports"
    assert not uses(name, "data_prep")


def test_no_modules_import_each_other_in_a_cycle():
    left = {name: USED[name] & MODULES.keys() for name in MODULES}
    while free := [name for name, used in left.items() if not used & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_only_entry_points_import_flags():
    for package in ("absl", "mapseg.cli"):
        assert {name for name in MODULES if uses(name, package)} <= COMMANDS


def test_only_addons_imports_tensorflow_addons():
    users = {name for name in MODULES if uses(name, "tensorflow_addons")}
    assert users == {"mapseg.training.addons"}


@pytest.mark.parametrize("name", ["mapseg.labels", "mapseg.mapping", "mapseg.evaluation.scores"])
def test_labels_mappings_and_scores_need_only_numpy(name):
    assert not any(uses(name, package) for package in ("tensorflow", "keras", "cv2"))


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}))
def test_init_files_hold_only_a_docstring(folder):
    if folder != ROOT / "mapseg":
        body = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
        assert [type(node) for node in body] == [ast.Expr]


def test_long_modules_and_functions_state_a_reason():
    paths = [*MODULES.values(), ROOT / "train_main.py", ROOT / "infer_main.py"]
    parts = [part for path in paths for part in long_parts(path)]
    assert [name for name, _, reason in parts if not reason] == []


# Bad folders and flags are reported before TensorFlow is imported, which takes seconds; and in
# conversion workers it would cost memory.
WITHOUT_TENSORFLOW = [
    "mapseg",
    *(f"mapseg.{name}" for name in (*sorted(BASE), "cli", "doctor", "estimator")),
    *(f"mapseg.checks.{name}" for name in ("environment", "options", "records", "steps")),
    *(
        f"mapseg.data.{name}"
        for name in (
            "encoded",
            "label_files",
            "pairing",
            "shard_checks",
            "manifest",
            "shards",
            "samples",
            "tiles",
            "resizing",
        )
    ),
    *(f"mapseg.runs.{name}" for name in ("folder", "checkpoints", "history")),
    *(f"mapseg.evaluation.{name}" for name in ("scores", "stored", "score")),
    *(name for name in MODULES if name.startswith("mapseg.evaluation.report.")),
    *(name for name in MODULES if name.startswith(("mapseg.pages.", "mapseg.inference.page."))),
    *(
        f"mapseg.inference.{name}"
        for name in ("batching", "containers", "films", "frames", "infer", "measuring")
    ),
    *(f"mapseg.inference.{name}" for name in ("reading", "results", "videos", "export.formats")),
    "mapseg.model.pretrained",
    "mapseg.training.prepare",
    *(name for name in MODULES if name.startswith("data_prep.")),
    "train_main",
    "infer_main",
]


def run_python(script, *arguments):
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_modules_without_tensorflow():
    script = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if {"tensorflow", "keras"} & sys.modules.keys():
        sys.exit(f"{name} imports TensorFlow")
"""
    done = run_python(script, *WITHOUT_TENSORFLOW)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "code", "message"),
    [
        ("train_main", ["--help"], 0, ""),
        ("train_main", ["--turbo"], 1, "turbo"),
        ("train_main", ["--records_dir=/nowhere", "--run_dir=R"], 1, "/nowhere: must be a folder"),
        ("train_main", ["--mode=evaluate", "--records_dir=/nowhere", "--run_dir=/no"], 1, "/no:"),
        ("train_main", ["--mode=export", "--run_dir=/nowhere"], 1, "/nowhere: not a run folder"),
        ("train_main", ["--mode=plot", "--runs=/nowhere"], 1, "/nowhere/history.csv: no such"),
        ("infer_main", ["--help"], 0, ""),
        ("infer_main", ["--run_dir=/no", "--frames=F", "--out_dir=P"], 1, "/no: not a run folder"),
        ("infer_main", ["--init_checkpoint=/no", "--frames=F", "--out_dir=P"], 1, "F: no such"),
        ("infer_main", ["--init_checkpoint=/no", "--frames=docs", "--out_dir=P"], 1, "/no: init"),
        ("mapseg.doctor", ["--help"], 0, ""),
        ("mapseg.evaluation.score", ["--help"], 0, ""),
        ("mapseg.evaluation.score", ["--compare=/no,/no"], 1, "/no: no such evaluation"),
        ("mapseg.evaluation.report.__main__", ["--run_dir=/no"], 1, "/no: not a run folder"),
        ("data_prep.build_records", ["--vistas_dir=/no", "--records_dir=R"], 1, "/no: no such"),
        ("data_prep.index_records", ["--records_dir=/no", "--classes=/no"], 1, "/no: no such"),
        ("data_prep.verify_records", ["--records_dir=/no"], 1, "/no: must be a folder"),
        ("data_prep.make_sample", ["--help"], 0, ""),
    ],
)
def test_commands_without_tensorflow_do_not_import_it(program, arguments, code, message):
    script = """
import importlib, sys
code = importlib.import_module(sys.argv[1]).main(sys.argv[1:])
sys.exit(99 if {"tensorflow", "keras"} & sys.modules.keys() else code)
"""
    done = run_python(script, program, *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr


def test_the_package_imports_the_estimator_lazily():
    script = """
import sys, mapseg
assert "mapseg.estimator" not in sys.modules
assert mapseg.Estimator.__name__ == "Estimator"
"""
    assert run_python(script).returncode == 0
