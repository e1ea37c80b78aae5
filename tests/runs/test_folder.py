import dataclasses
import json

import pytest
from runs_by_hand import make_run

from mapseg.labels import make_label_set
from mapseg.runs.folder import amend_run, check_classes, lock_run, open_run, store_run


def test_a_run_is_read_back_as_stored(tmp_path):
    run = make_run(tmp_path / "run", seed=5)
    store_run(run)
    assert open_run(run.run_dir) == run


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing.*Remedy"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "damaged"), ("{}", "damaged"), ('{"format_version": 9}', "format")]
)
def test_a_damaged_or_newer_run_is_refused(tmp_path, text, message):
    run = make_run(tmp_path)
    store_run(run)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path)


def test_changeable_options_change_and_others_are_refused(tmp_path):
    run = make_run(tmp_path, steps=10)
    later = amend_run(run, {"steps": 20, "seed": 1, "precision": "auto"})
    assert later == dataclasses.replace(run, train=dataclasses.replace(run.train, steps=20))
    for name, value in (("seed", 2), ("encoder", "resnet50"), ("precision", "mixed_float16")):
        with pytest.raises(ValueError, match=f"{name}=.*stored.*{name}={value} is requested"):
            amend_run(run, {name: value})


def test_records_of_other_classes_are_refused(tmp_path):
    run = make_run(tmp_path)
    check_classes(run, run.source_classes, tmp_path)
    others = [dataclasses.replace(c, name=f"v2-{c.name}") for c in run.source_classes]
    with pytest.raises(ValueError, match="classes must be those"):
        check_classes(run, others, tmp_path)


def test_one_process_at_a_time(tmp_path):
    with (
        lock_run(tmp_path),
        pytest.raises(ValueError, match="one process"),
        lock_run(tmp_path),
    ):
        pass
    with lock_run(tmp_path):
        pass


def test_a_removed_or_replaced_run_folder_is_noticed(tmp_path):
    run_dir = tmp_path / "run"
    removed = pytest.raises(FileNotFoundError, match=r"run: the run folder must stay.*removed")
    with lock_run(run_dir) as check:
        check()
        error = pytest.raises(ValueError, match="another process is running")
        with error, lock_run(run_dir):
            pass
        check()  # the refused process changed nothing
        run_dir.rename(tmp_path / "moved")
        with removed:
            check()
        with lock_run(run_dir) as check_other:  # a new run in its place
            check_other()
            with removed:
                check()
        assert not run_dir.exists()  # nothing was written
        with removed:
            check()
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_a_file_of_the_label_set_is_compared_by_content(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    names = [c.name for c in run.source_classes]

    def write(name, *groups):
        classes = [{"name": g, "color": [i, 0, 0], "sources": [g]} for i, g in enumerate(groups)]
        (tmp_path / name).write_text(json.dumps({"classes": classes}))
        return str(tmp_path / name)

    path = write("set.json", *names)
    train = dataclasses.replace(run.train, label_set=path)
    run = dataclasses.replace(run, train=train, label_set=make_label_set(run.source_classes, path))
    moved = write("moved.json", *names)
    assert amend_run(run, {"label_set": path}) == amend_run(run, {"label_set": moved}) == run
    with pytest.raises(ValueError, match=r"label_set=.*other\.json is requested"):
        amend_run(run, {"label_set": write("other.json", *reversed(names))})
    write("set.json", *reversed(names))
    assert capsys.readouterr().err == ""
    assert amend_run(run, {"label_set": path}) == run
    assert "set.json was changed since" in capsys.readouterr().err
    (tmp_path / "set.json").unlink()
    assert amend_run(run, {"label_set": path}) == run
