import pytest

from ticket_search.storage import lines as module
from ticket_search.storage.lines import LineFile


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(module, "_LINES_A_PART", 3)


def test_lines_are_appended(folder):
    file = LineFile(folder, "log")
    assert file.read() == []
    texts = ["one", "zwei \u2028 é", "", "four", "five", "six", "seven"]
    for i, text in enumerate(texts):
        file.append(text, durable=bool(i % 2))
        assert file.read() == texts[: i + 1]
    with pytest.raises(ValueError, match="more than one line"):
        file.append("a\nb")


def test_every_new_line_file_continues_the_old_one(folder):
    texts = [str(i) for i in range(10)]
    for text in texts:
        LineFile(folder, "log").append(text)
    assert LineFile(folder, "log").read() == texts


def test_files_with_similar_names_are_independent(folder):
    one, other = LineFile(folder, "log"), LineFile(folder, "log2")
    for i in range(5):
        one.append(f"a{i}")
        other.append(f"b{i}")
    assert one.read() == [f"a{i}" for i in range(5)]


@pytest.mark.parametrize("whole", [b"", b"one\n", b"one\ntwo\n"])
def test_an_incomplete_line_is_ignored_and_not_joined_with_the_next(folder, whole):
    folder.write("log.jsonl", whole + "é".encode()[:1])
    texts = whole.decode().split()
    assert LineFile(folder, "log").read() == texts
    file = LineFile(folder, "log")
    for i in range(4):
        file.append(str(i))
    assert LineFile(folder, "log").read() == [*texts, "0", "1", "2", "3"]


def test_a_file_copied_between_object_storage_and_disk_can_be_continued(s3, tmp_path):
    from ticket_search.storage.folder import open_folder

    remote, local = open_folder(s3.location("lines")), open_folder(tmp_path)
    for i in range(8):
        LineFile(remote, "log").append(str(i))
    for file in remote.files():
        local.write(file.name, remote.read(file.name))
    for i in range(8, 12):
        LineFile(local, "log").append(str(i))
    assert LineFile(local, "log").read() == [str(i) for i in range(12)]
    for file in local.files():
        remote.write(file.name, local.read(file.name))
    LineFile(remote, "log").append("12")
    assert LineFile(remote, "log").read() == [str(i) for i in range(13)]


def test_a_line_cut_off_by_a_full_disk_is_not_joined_with_the_next(small_disk):
    from ticket_search.errors import StorageError
    from ticket_search.storage.local import LocalFolder

    file = LineFile(LocalFolder(small_disk), "log")
    file.append("one")
    with pytest.raises(StorageError, match="No space left on device"):
        file.append("x" * 1_000_000)
    file.append("two")
    assert file.read() == LineFile(LocalFolder(small_disk), "log").read() == ["one", "two"]
