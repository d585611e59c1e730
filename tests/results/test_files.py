import os
import subprocess
import sys

import pytest

from ticket_search.files import append_line, read_lines, sweep, write_whole


def test_a_file_is_written_and_replaced_whole(tmp_path):
    path = tmp_path / "a" / "b"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["b"]


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_whole(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_before_the_replace_leaves_the_old_content_and_a_leftover_that_sweep_removes(tmp_path):
    path = tmp_path / "a"
    write_whole(path, b"old")
    kill = (
        "import os, pathlib, signal, sys; from ticket_search.files import write_whole;"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL); write_whole(pathlib.Path(sys.argv[1]), b'new')"
    )
    assert subprocess.run([sys.executable, "-c", kill, str(path)]).returncode == -9
    (leftover,) = (p for p in tmp_path.iterdir() if p != path)
    assert leftover.name.startswith(".")
    assert path.read_bytes() == b"old"
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_lines_are_appended(tmp_path):
    path = tmp_path / "a" / "log"
    assert read_lines(path) == []
    append_line(path, "one")
    append_line(path, "zwei \u2028 é", durable=False)
    assert read_lines(path) == ["one", "zwei \u2028 é"]
    with pytest.raises(ValueError, match="more than one line"):
        append_line(path, "a\nb")


@pytest.mark.parametrize("whole", [b"", b"one\n", b"one\ntwo\n"])
def test_a_half_line_is_not_read_and_the_next_line_does_not_join_it(tmp_path, whole):
    path = tmp_path / "log"
    path.write_bytes(whole + "é".encode()[:1])
    lines = whole.decode().split()
    assert read_lines(path) == lines
    append_line(path, "next")
    assert read_lines(path) == [*lines, "next"]
