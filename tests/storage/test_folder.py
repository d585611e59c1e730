"""The contract that every kind of folder fulfills, tested on a disk and on an S3 server."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from ticket_search.errors import SpecError, StorageError
from ticket_search.storage import remote
from ticket_search.storage.folder import open_folder
from ticket_search.storage.local import LocalFolder
from ticket_search.storage.remote import impatient


def names(folder, **how):
    return [file.name for file in folder.files(**how)]


class TestContract:
    def test_written_data_are_read_back(self, folder):
        for data in (b"old", b"", bytes(range(256)) * 1000):
            folder.write("a", data)
            assert folder.read("a") == data
        assert names(folder) == ["a"]

    def test_missing_files(self, folder):
        assert folder.read("a") is None
        assert folder.files() == folder.files(recursive=True) == []
        assert (folder / "b").read("a") is None
        folder.remove("a")
        assert folder.files() == []

    def test_subfolders(self, folder):
        (folder / "b").write("x", b"1")
        folder.write("b/y/z", b"22")
        folder.write("a", b"")
        assert names(folder) == ["a"]
        assert names(folder / "b") == ["x"]
        assert (folder.folders(), (folder / "b").folders(), (folder / "absent").folders()) == (["b"], ["y"], [])
        assert [(file.name, file.size) for file in folder.files(recursive=True)] == [("a", 0), ("b/x", 1), ("b/y/z", 2)]
        assert (folder / "b" / "y").read("z") == b"22"

    def test_removing(self, folder):
        for name in ("a", "b/c"):
            folder.write(name, b"1")
        folder.remove("a")
        assert names(folder, recursive=True) == ["b/c"]
        folder.remove_all()
        assert names(folder, recursive=True) == []

    def test_a_rewrite_changes_the_time(self, folder):
        folder.write("a", b"1")
        (before,) = folder.files()
        time.sleep(1.1)  # S3 stores times with a resolution of one second
        folder.write("a", b"1")
        (after,) = folder.files()
        assert after.modified > before.modified

    def test_its_location_opens_it_again(self, folder):
        folder.write("b/c", b"1")
        assert open_folder(str(folder / "b")).read("c") == b"1"
        assert open_folder(folder) is folder

    def test_pandas_reads_it(self, folder, tmp_path):
        pd.DataFrame({"a": [1, 2]}).to_parquet(tmp_path / "p")
        folder.write("t/part-00000.parquet", (tmp_path / "p").read_bytes())
        assert list(pd.read_parquet(str(folder / "t"))["a"]) == [1, 2]
        assert list(pd.read_parquet(**(folder / "t").parquet())["a"]) == [1, 2]

    def test_a_reader_never_sees_partial_content(self, folder):
        contents = [bytes([i]) * 100_000 for i in range(4)]
        folder.write("a", contents[0])
        done, seen = threading.Event(), []

        def read():
            while not done.is_set():
                seen.append(folder.read("a"))

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(10):
            for content in contents:
                folder.write("a", content)
        done.set()
        reader.join()
        assert seen
        assert set(seen) <= set(contents)


class TestOnADisk:
    def test_a_failed_write_leaves_the_old_content_and_nothing_else(self, tmp_path, monkeypatch):
        folder = LocalFolder(tmp_path)
        folder.write("a", b"old")

        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(StorageError, match=rf"^cannot write '{tmp_path}/a': No space left on device$"):
            folder.write("a", b"new")
        assert folder.read("a") == b"old"
        assert list(tmp_path.iterdir()) == [tmp_path / "a"]

    def test_a_kill_before_the_rename_leaves_the_old_content_and_a_partial_file_that_sweep_removes(self, tmp_path):
        folder = LocalFolder(tmp_path)
        folder.write("a", b"old")
        kill = (
            "import os, pathlib, signal, sys; from ticket_search.storage.local import LocalFolder;"
            "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
            "LocalFolder(pathlib.Path(sys.argv[1])).write('a', b'new')"
        )
        assert subprocess.run([sys.executable, "-c", kill, str(tmp_path)]).returncode == -9
        (leftover,) = (p for p in tmp_path.iterdir() if p.name != "a")
        assert leftover.name.startswith(".")
        assert names(folder) == ["a"]
        assert folder.read("a") == b"old"
        folder.sweep()
        assert list(tmp_path.iterdir()) == [tmp_path / "a"]

    @pytest.mark.parametrize("act", [lambda f: f.read("a/b"), lambda f: f.write("a/b", b""), lambda f: f.remove("a/b")])
    def test_a_refusal_is_one_message_that_names_the_file(self, tmp_path, act):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b").mkdir()
        with pytest.raises(StorageError, match=rf"^cannot (read|write|remove) '{tmp_path}/a/b': ") as error:
            act(LocalFolder(tmp_path))
        assert "\n" not in str(error.value)

    def test_a_full_disk(self, small_disk):
        folder = LocalFolder(small_disk)
        folder.write("a", b"1" * 100_000)
        with pytest.raises(StorageError, match=r"cannot write '.*/b': No space left on device"):
            folder.write("b", b"2" * 1_000_000)
        folder.append("log", b"x" * 1000)
        with pytest.raises(StorageError, match="No space left on device"):
            folder.append("log", b"y" * 1_000_000)
        assert (names(folder), folder.read("log")) == (["a", "log"], b"x" * 1000)
        assert sorted(path.name for path in small_disk.iterdir()) == ["a", "log"]
        folder.remove("a")
        folder.write("b", b"2" * 100_000)
        assert folder.read("b") == b"2" * 100_000

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("x" * 300, "File name too long"),
            ("absent/" + "x" * 300, "File name too long"),
            ("x/" * 3000, "File name too long"),
            ("loop/run", "Too many levels of symbolic links"),
            ("a\0b", "it contains a NUL character"),
        ],
    )
    def test_a_path_that_cannot_be_a_folder(self, tmp_path, monkeypatch, name, reason):
        monkeypatch.chdir(tmp_path)
        Path("loop").symlink_to("loop")
        with pytest.raises(SpecError, match=rf"cannot be a folder: {reason}; give another path$") as refused:
            open_folder(name)
        assert len(str(refused.value)) < 200

    def test_reading_a_pipe_or_device_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "zero").symlink_to("/dev/zero")
        for name in ("pipe", "zero"):
            with pytest.raises(StorageError, match=rf"^cannot read '{tmp_path}/{name}': it is not a regular file$"):
                LocalFolder(tmp_path).read(name)

    def test_a_relative_path_is_resolved_when_the_folder_is_opened(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = open_folder("a")
        monkeypatch.chdir("/")
        folder.write("b", b"1")
        assert Path(str(folder)) == tmp_path / "a"
        assert (tmp_path / "a" / "b").exists()


class TestInObjectStorage:
    def test_all_folders_of_a_bucket_share_a_client(self, s3, monkeypatch):
        made, make = [], remote._s3
        monkeypatch.setattr(remote, "_s3", lambda *named: made.append(named) or make(*named))
        remote._client.cache_clear()
        root = open_folder(s3.location("clients"))
        for _ in range(2):
            shards = [root / f"{number:03x}" for number in range(300)]
        shards.append(open_folder(f"{root / 'shard'}"))
        assert len(made) == 1
        assert len({id(shard._filesystem) for shard in shards}) == 1

    def test_reading_a_file_does_not_list_its_folder(self, s3, monkeypatch):
        folder = open_folder(s3.location("one"))
        folder.write("ab/a", b"1")
        monkeypatch.setattr(remote.RemoteFolder, "_list", None)
        assert (folder.read("ab/a"), folder.read("ab/b")) == (b"1", None)

    def test_a_write_waits_for_a_server_that_restarts(self, s3):
        folder = open_folder(s3.location("restart"))
        folder.write("a", b"1")
        s3.kill()
        restart = threading.Timer(1.0, s3.start)
        restart.start()
        folder.write("b", b"2")
        restart.join()
        assert (folder.read("a"), folder.read("b")) == (b"1", b"2")

    def test_a_lost_server_gives_one_message(self, s3, monkeypatch):
        folder = open_folder(s3.location("away"))
        s3.kill()
        try:
            started = time.monotonic()
            with (
                impatient(),
                pytest.raises(StorageError, match=r"^cannot write 's3://tests/away/a': .*connect") as error,
            ):
                folder.write("a", b"1")
            assert time.monotonic() - started < 5
            assert "\n" not in str(error.value)
        finally:
            s3.start()

    def test_an_error_that_waiting_does_not_help_is_raised_at_once(self, s3):
        location = s3.location("x").replace("tests", "nobodys")
        with pytest.raises(StorageError, match=r"cannot write 's3://nobodys/x/a': .*bucket does not exist"):
            open_folder(location).write("a", b"")

    @pytest.mark.parametrize(
        ("location", "message"),
        [
            ("s3://key:secret@bucket/x", "contains credentials"),
            ("s3:///x", "'s3:///x' names no bucket"),
            ("s3://bucket/x?endpont=1", "unknown option 'endpont'; known: endpoint_override"),
            ("ftp://host/x", "'ftp://host/x' cannot be opened: .*give a path, or s3://bucket/path"),
        ],
    )
    def test_an_invalid_location_is_refused(self, location, message):
        with pytest.raises(SpecError, match=message) as error:
            open_folder(location)
        assert "secret" not in str(error.value)
