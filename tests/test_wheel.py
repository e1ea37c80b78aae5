"""The wheel is self-contained: built, installed, and used outside the checkout."""

import shutil
import subprocess
import sys
import sysconfig

import pytest
from conftest import ROOT

PARTS = ("mapseg", "data_prep", "train_main.py", "infer_main.py", "setup.py", "pyproject.toml")


def run(*command, cwd):
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bin_dir(tmp_path_factory):
    """Commands of a fresh environment with the wheel and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: a build leaves files behind, and packages stray files
    source.mkdir()
    for name in (*PARTS, "README.md", "LICENSE"):
        path = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=ignored)
        else:
            shutil.copy(path, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    run(*pip, "wheel", *options, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = run(python, "-c", where, cwd=folder).strip()
    with open(f"{packages}/dependencies.pth", "w") as file:  # noqa: PTH123
        file.write(sysconfig.get_path("purelib") + "\n")
    return python.parent


def test_the_wheel_is_used(bin_dir, tmp_path):
    shown = run(bin_dir / "python", "-c", "import mapseg; print(mapseg.__file__)", cwd=tmp_path)
    assert shown.startswith(str(bin_dir.parent))


@pytest.mark.parametrize("name", ["train", "infer", "convert", "doctor", "score", "report"])
def test_every_command_shows_its_help(bin_dir, tmp_path, name):
    assert "--" in run(bin_dir / f"mapseg-{name}", "--help", cwd=tmp_path)


def test_every_module_is_in_it(bin_dir, tmp_path):
    names = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("mapseg", "data_prep")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem != "__init__"
    )
    script = """
import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
"""
    assert run(bin_dir / "python", "-c", script, *names, cwd=tmp_path).split() == []


def test_the_mappings_are_in_it(bin_dir, tmp_path):
    script = """
from mapseg.mapping import read_mapping, shipped_names
print(*(f"{name} {len(read_mapping(name).targets)}" for name in shipped_names()))
"""
    shown = run(bin_dir / "python", "-c", script, cwd=tmp_path)
    assert shown == "vistas_to_cityscapes19 19\n"


@pytest.mark.parametrize(
    ("package", "page"),
    [("evaluation.report", "page"), ("inference.page", "page"), ("pages", "base")],
)
def test_the_files_of_pages_are_in_it(bin_dir, tmp_path, package, page):
    script = f"""
from importlib.resources import files
print(*sorted(path.name for path in (files("mapseg.{package}") / "templates").iterdir()))
"""
    names = run(bin_dir / "python", "-c", script, cwd=tmp_path).split()
    assert names == [f"{page}.css", f"{page}.html", f"{page}.js"]


def test_a_small_conversion(bin_dir, tmp_path):
    counts = ["--training=2", "--validation=1", "--testing=0", "--frames=0"]
    command = [bin_dir / "python", "-m", "data_prep.make_sample", "--out_dir=sample", *counts]
    run(*command, cwd=tmp_path)
    folders = ["--vistas_dir=sample", "--records_dir=records", "--max_side=64"]
    shown = run(bin_dir / "mapseg-convert", *folders, cwd=tmp_path)
    assert "training: 2 samples" in shown
    assert (tmp_path / "records" / "manifest.json").is_file()
