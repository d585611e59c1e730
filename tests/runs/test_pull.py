"""A pull copies all results of a search from any storage, but no files that only a resume needs."""

import os
import shutil
import threading

import pandas as pd
import pytest
from by_hand import run_by_hand
from helpers import in_process

from ticket_search.errors import RunDirectoryError, StorageError
from ticket_search.results.reading import load_results
from ticket_search.runs.directory import read_spec
from ticket_search.runs.pull import pull
from ticket_search.storage.folder import open_folder
from ticket_search.storage.local import LocalFolder

# A fake ssh that ignores the user and host and runs the remote rsync on this machine.
ON_THIS_MACHINE = '#!/bin/sh\nwhile [ "$1" != rsync ]; do shift; done\nexec "$@"\n'


@pytest.fixture(params=["disk", "s3", "host"])
def source(request, tmp_path, finished_search, monkeypatch):
    """The location of a finished search, as given to `pull`, and its folder."""
    if request.param == "s3":
        folder = open_folder(request.getfixturevalue("s3").location(f"pull {tmp_path.name}/run"))
        for file in open_folder(finished_search).files(recursive=True):
            folder.write(file.name, (finished_search / file.name).read_bytes())
    else:
        (tmp_path / "a place").mkdir()
        folder = open_folder(finished_search.rename(tmp_path / "a place" / "run"))
    name = str(folder)
    if request.param == "host":
        if not shutil.which("rsync"):
            pytest.skip("pulling from a host needs rsync")
        shell = tmp_path / "shell"
        shell.write_text(ON_THIS_MACHINE)
        shell.chmod(0o700)
        monkeypatch.setenv("RSYNC_RSH", str(shell))
        name = f"somebody@head:{name}/"
    return name, folder


def test_results_are_copied_and_the_store_is_not(source, tmp_path):
    name, folder = source
    folder.write("tickets/best.safetensors", b"exported")
    folder.write("confirmation/store/ab/weights", b"large")
    folder.write("confirmation/levels/part", b"small")
    copy = tmp_path / "copies" / "run"
    done = pull(name, copy)
    assert (done.files, done.unchanged) == (len(open_folder(copy).files(recursive=True)), 0)
    for table in ("levels", "trajectories", "curves", "layers"):
        pd.testing.assert_frame_equal(getattr(load_results(copy), table), getattr(load_results(folder), table))
    assert (copy / "tickets" / "best.safetensors").read_bytes() == b"exported"
    assert list((copy / "tensorboard").rglob("events.*"))
    assert (copy / "confirmation" / "levels" / "part").read_bytes() == b"small"
    assert not list(copy.rglob("store"))
    assert not (copy / "lock").exists()
    assert load_results(copy).levels.shape == (24, load_results(folder).levels.shape[1])


def test_a_second_pull_copies_only_changed_files(source, tmp_path):
    name, folder = source
    first = pull(name, tmp_path / "copy")
    assert pull(name, tmp_path / "copy").files == 0
    folder.write("levels/part-00000.parquet", folder.read("levels/part-00000.parquet") + b"more")
    again = pull(name, tmp_path / "copy")
    assert (again.files, again.unchanged) == (1, first.files - 1)
    assert (tmp_path / "copy" / "levels" / "part-00000.parquet").read_bytes().endswith(b"more")


def small_run(finished_search, files=40):
    """Add many small files to a run directory and return it."""
    folder = open_folder(finished_search)
    for number in range(files):
        folder.write(f"many/{number:02}/events", b"%d" % number)
    return folder


def test_many_files_are_read_at_once(finished_search, tmp_path, monkeypatch):
    folder, read = small_run(finished_search), LocalFolder.read
    together = threading.Barrier(8)

    def met(self, name):
        if name.startswith("many/") and int(name[5:7]) < 8:
            together.wait(timeout=10)  # times out with an error unless eight files are read at once
        return read(self, name)

    monkeypatch.setattr(LocalFolder, "read", met)
    pull(str(folder), tmp_path / "copy")
    for number in range(40):
        assert (tmp_path / f"copy/many/{number:02}/events").read_bytes() == b"%d" % number


def test_a_pull_that_fails_can_be_repeated(finished_search, tmp_path, monkeypatch):
    folder, read = small_run(finished_search), LocalFolder.read
    names = sorted(f"many/{number:02}/events" for number in range(40))

    def refused(self, name):
        if name in names[20:]:
            raise StorageError(f"cannot read {name!r}: Connection refused")
        return read(self, name)

    monkeypatch.setattr(LocalFolder, "read", refused)
    with pytest.raises(StorageError, match=r"^cannot read 'many/20/events': Connection refused$"):
        pull(str(folder), tmp_path / "copy")
    monkeypatch.undo()
    again = pull(str(folder), tmp_path / "copy")
    assert again.files >= 20
    assert again.unchanged > 0
    assert pull(str(folder), tmp_path / "copy").files == 0
    assert [name for name in names if (tmp_path / "copy" / name).exists()] == names


def test_the_directory_of_another_search_is_left_unchanged(source, tmp_path):
    name, folder = source
    other = tmp_path / "other"
    run_by_hand(read_spec(folder), other, levels=1)
    before = sorted(path.name for path in other.rglob("*"))
    with pytest.raises(RunDirectoryError, match="is neither empty nor a copy of"):
        pull(name, other)
    assert sorted(path.name for path in other.rglob("*")) == before


def test_a_run_without_run_json_is_recognized_by_its_search(source, tmp_path):
    name, folder = source
    folder.remove("run.json")
    pull(name, tmp_path / "copy")
    assert pull(name, tmp_path / "copy").files == 0


def test_a_source_that_is_not_a_run_directory_is_refused_and_nothing_is_created(source, tmp_path):
    name, _ = source
    place, mark, options = name.rstrip("/").partition("?")
    with pytest.raises(
        (RunDirectoryError, StorageError), match=r"not a run directory|cannot be read: rsync: .*No such"
    ):
        pull(f"{place}_absent{mark}{options}", tmp_path / "copy")
    (tmp_path / "elsewhere").mkdir()
    absent = str(tmp_path / "elsewhere") if mark or "@" not in name else f"somebody@head:{tmp_path / 'elsewhere'}"
    with pytest.raises(RunDirectoryError, match=r"is not a run directory: it has no search\.yaml"):
        pull(absent, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_command(finished_search, tmp_path):
    said = in_process("pull", finished_search, tmp_path / "copy")
    assert said.returncode == 0, said.stderr
    assert "files copied" in said.stdout
    missing = in_process("pull", tmp_path / "nothing", tmp_path / "copy")
    assert missing.returncode == 2
    assert "is not a run directory" in missing.stderr


@pytest.mark.parametrize(
    ("target", "message"), [("x" * 300, "File name too long"), ("pipe", "pipe' is not a directory")]
)
def test_a_target_that_cannot_be_a_directory_is_refused(finished_search, tmp_path, target, message):
    os.mkfifo(tmp_path / "pipe")
    said = in_process("pull", finished_search, tmp_path / target)
    assert said.returncode == 2
    assert message in said.stderr
    source = in_process("pull", "a:" + "x" * 300, tmp_path / "copy", RSYNC_RSH="false")
    assert (source.returncode, len(source.stderr.splitlines())) == (1, 1)
