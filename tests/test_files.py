import errno
import os
from pathlib import Path

import pytest

from mapseg.files import (
    WriteError,
    check_writable,
    name_text,
    printable,
    walk,
    whole_dir,
    whole_file,
    write_bytes,
    write_text,
)


def test_a_file_is_written_atomically(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.suffix == ".txt"
    assert path.read_text() == "half"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_former_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_link_to_a_folder_is_kept_and_its_target_replaced(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with whole_dir(tmp_path / "link") as partial:
        (partial / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == {"link", "target"}


def test_a_folder_is_written_atomically(tmp_path):
    path = tmp_path / "d"
    with whole_dir(path) as partial:
        (partial / "a").write_text("1")
        assert not path.exists()
    with pytest.raises(RuntimeError), whole_dir(path) as partial:
        (partial / "b").write_text("2")
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["a"]
    with whole_dir(path) as partial:
        (partial / "c").write_text("3")
    assert [p.name for p in path.iterdir()] == ["c"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_bytes(path, b"old")

    def full(self, data):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"a\.png: cannot be written: No space left.*Remedy"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_walk_follows_links_but_no_loops_and_skips_hidden_files(tmp_path):
    for name in ("b/2.png", "a/1.png", ".hidden/3.png", "a/.4.png"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    (tmp_path / "root" / "b" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "c").symlink_to(tmp_path / "root" / "a")
    (tmp_path / "root" / "dead.png").symlink_to(tmp_path / "nothing")
    paths = [path.relative_to(tmp_path / "root").as_posix() for path in walk(tmp_path / "root")]
    assert paths == ["dead.png", "a/1.png", "b/2.png", "c/1.png"]


def test_check_writable_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(WriteError, match=f"{folder}: cannot be written.*a folder is needed"):
            check_writable(folder)
    with pytest.raises(WriteError, match=r"/proc/none: cannot be written"):
        check_writable(Path("/proc/none"))


def test_a_path_is_the_same_text_in_every_locale():
    assert name_text(Path("Zürich")) == "Zürich"
    assert printable(Path("Zürich")) == printable("Zürich") == "Zürich"
    assert printable(os.fsdecode(b"Z\xfcrich\n")) == r"Z\xfcrich\n"
