"""README's commands, run as written; options, links and lengths in README and docs."""

import os
import re
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, TINY
from PIL import Image

import mapseg
import train_main
from data_prep.make_sample import write_sample
from mapseg import cli, machine
from mapseg.config import ENCODERS, ModelConfig, TrainConfig

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
}
# Their options belong to other programs: benchmarks; Slurm, which test_several_machines.py checks.
OTHER_OPTIONS = {"docs/benchmarks.md", "docs/several_machines.md"}


def road():
    block = README.split("<!-- run by tests/test_readme.py -->\n```\n")[1].split("```")[0]
    return block.strip().splitlines()


def test_the_two_commands_come_with_the_packages_that_they_need():
    section = README.split("\n## Two commands\n")[1].split("\n## ")[0]
    assert "make demo " in section and "make test " in section
    assert "`apt-get install git make python3-venv`" in section


def test_readme_is_short():
    assert len(README.splitlines()) < 120


@pytest.mark.parametrize("name", PAGES)
def test_lines_of_a_page_are_short(name):
    assert [line for line in PAGES[name].splitlines() if len(line) > 140] == []


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_the_links_of_a_page_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        if link.startswith("https:") or path == ROOT / "docs/options.md":
            continue  # options.md is written by a command and has a test of its own
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), link


def test_the_index_links_to_every_page():
    linked = re.findall(r"\]\((\w+\.md)\)", PAGES["docs/README.md"])
    pages = {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")}
    assert pages - {"README.md"} <= set(linked)


def test_the_road_to_kitti_overlays(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    environment, *commands = road()
    assert environment == "make env && . .venv/bin/activate"
    assert len(commands) == 3
    write_sample(
        tmp_path / "sample",
        {"training": 3, "validation": 2, "testing": 1, "frames": 2},
        seed=1,
        progress=print,
    )
    places = {
        "VISTAS": tmp_path / "sample",
        "KITTI": tmp_path / "sample" / "frames",
        "runs/first": tmp_path / "run",
        "kitti_overlays": tmp_path / "out",
        "=records": f"={tmp_path / 'records'}",
    }
    for command in commands:
        for word, place in places.items():
            command = command.replace(word, str(place))
        program, *arguments = shlex.split(command)
        assert program == "python"
        if arguments[0] == "train_main.py":
            arguments += [f"--{name}={value}" for name, value in TINY.items()]
        done = run_python(*arguments, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        if not machine.has_nvidia_driver():  # nothing is hidden where there is one
            noise = ("InitializeLog", "oneDNN", "cuda drivers", "cuInit")
            assert not [word for word in noise if word in done.stderr]
    page = (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count('class="picture"') == 2
    frames = sorted((tmp_path / "sample" / "frames").rglob("*.png"))
    assert len(frames) == 2
    for frame in frames:
        name = frame.relative_to(tmp_path / "sample" / "frames")
        ids = Image.open(tmp_path / "out" / "ids" / name)
        assert ids.mode == "P"
        assert np.asarray(ids).shape == cv2.imread(str(frame)).shape[:2]
        assert (tmp_path / "out" / "overlay" / name).with_suffix(".jpg").is_file()


def run_python(*arguments, env=None):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_every_option_that_the_pages_name_exists():
    programs = [["train_main.py"], ["infer_main.py"]]
    programs += [["benchmarks/overfit.py"], ["benchmarks/exports.py"]]
    programs += [[f"experiments/{name}.py"] for name in ("recipes", "ablation", "compare_2018")]
    programs += [
        ["-m", f"data_prep.{name}"] for name in ("build_records", "index_records", "verify_records")
    ]
    programs += [["-m", f"mapseg.evaluation.{name}"] for name in ("score", "report")]
    known = set()
    for program in programs:
        text = run_python(*program, "--help").stdout
        known |= set(re.findall(r"--(?:\[no\])?(\w+)", text))
        known |= {f"no{name}" for name in re.findall(r"--\[no\](\w+)", text)}
    text = "".join(page for name, page in PAGES.items() if name not in OTHER_OPTIONS)
    named = set(re.findall(r"(?<![\w*])--(\w+)", text)) - {"help", "flagfile", "logdir"}
    assert {"vistas_dir", "label_set", "scales", "predictions_dir"} <= named
    assert named - known == set()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*.flags")), ids=lambda p: p.stem
)
def test_every_flag_file_can_be_read(path):
    values = train_main.define_flags()
    values(["train_main.py", f"--flagfile={path}"])
    train = TrainConfig(**cli.explicit_options(values, TrainConfig))
    assert ModelConfig(**cli.explicit_options(values, ModelConfig)).encoder in ENCODERS
    if "What 2018 really did" in path.read_text(encoding="utf-8"):
        assert (train.steps, train.batch_size, train.crop_size) == (100_000, 1, (513, 513))


def test_the_changelog_has_the_version():
    assert f"## {mapseg.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
