import hashlib
import json
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from ticket_search.errors import StorageError
from ticket_search.storage.local import _PARTIAL, LocalFolder
from ticket_search.store import level_store
from ticket_search.store.level_store import Claim, Entry, LevelStore, decode

KEY = "ab12"
PATH = f"ab/{KEY}.safetensors"


@pytest.fixture
def events():
    return []


@pytest.fixture
def store(folder, events, monkeypatch):
    monkeypatch.setattr(level_store, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(level_store, "_POLL_SECONDS_REMOTE", 0.01)
    return LevelStore(folder, lambda event, **fields: events.append({"event": event, **fields}))


def entry(number=1):
    return Entry(record={"number": number}, tensors={"w": torch.tensor([number, 2])})


def number(found):
    return found.record["number"]


def get_or_compute(store, key, compute, saved=lambda: None):
    """Return the entry of a key, computed if necessary, and whether it was found in the store."""
    while (claim := store.claim(key)) is None:
        time.sleep(store.poll_seconds)
    if isinstance(claim, Entry):
        return claim, True
    with claim:
        computed = compute()
        found = claim.save(computed)
        if found is computed:
            saved()
    return found, found is not computed


class TestEntries:
    def test_a_saved_entry_is_loaded(self, store):
        tensors = {
            "weights/a": torch.tensor([[1.5, -0.0], [float("inf"), float("nan")]]),
            "bits": torch.tensor([1, 255], dtype=torch.uint8),
            "count": torch.tensor(7),
            "none": torch.empty(0, 3),
            "turned": torch.arange(6.0).reshape(2, 3).T,
        }
        record = {"name": "é", "loss": float("nan"), "curve": [[1, 0.1]], "none": None, "true": True}
        store.save(KEY, Entry(record=record, tensors=tensors))
        found = store.load(KEY)
        assert str(found.record) == str(record)
        assert sorted(found.tensors) == sorted(tensors)
        for name, tensor in tensors.items():
            assert (found.tensors[name].dtype, found.tensors[name].shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found.tensors[name].nan_to_num(9), tensor.nan_to_num(9))
        assert torch.signbit(found.tensors["weights/a"]).tolist()[0] == [False, True]

    def test_an_entry_without_tensors(self, store):
        store.save(KEY, Entry(record={"a": 1}, tensors={}))
        assert store.load(KEY) == Entry(record={"a": 1}, tensors={})

    def test_a_missing_entry_is_none(self, store):
        assert store.load(KEY) is None

    def test_an_entry_may_be_replaced(self, store):
        store.save(KEY, entry(1))
        store.save(KEY, entry(2))
        assert number(store.load(KEY)) == 2

    def test_entries_with_similar_keys_are_independent(self, store):
        store.save("ab1", entry(1))
        store.save("ab2", entry(2))
        assert [number(store.load(key)) for key in ("ab1", "ab2")] == [1, 2]

    def test_saving_leaves_only_the_entry(self, store, folder):
        store.save(KEY, entry())
        assert [file.name for file in folder.files(recursive=True)] == [PATH]

    def test_an_entry_is_a_plain_safetensors_file(self, tmp_path):
        LevelStore(tmp_path).save(KEY, entry(3))
        with safe_open(tmp_path / PATH, framework="pt") as file:
            assert file.get_tensor("w").tolist() == [3, 2]
            assert file.metadata()["record"] == '{"number": 3}'

    def test_a_large_entry_is_not_copied_for_a_write_and_once_for_a_read(self, tmp_path):
        store, values = LevelStore(tmp_path), torch.arange(12_500_000, dtype=torch.float32)
        size = values.nbytes

        def peak(act):
            tracemalloc.start()
            try:
                return act(), tracemalloc.get_traced_memory()[1] / size
            finally:
                tracemalloc.stop()

        _, written = peak(lambda: store.save(KEY, Entry(record={}, tensors={"w": values})))
        found, read = peak(lambda: store.load(KEY))
        assert torch.equal(found.tensors["w"], values)
        # A write needs memory for the file's bytes. A read needs memory for the file's bytes and for the tensors.
        assert (written < 1.1, read < 2.1) == (True, True), (written, read)

    def test_the_bytes_of_an_entry_are_frozen(self):
        """The bytes must never change, except for the order of the metadata entries, which safetensors randomizes."""
        tensors = {"w": torch.tensor([1.5, 2.0]), "m": torch.tensor([3], dtype=torch.uint8)}
        data = encode(Entry(record={"a": "é"}, tensors=tensors))
        metadata = {"format": "ticket_search.entry.1", "record": json.dumps({"a": "é"}), "sha256": "0" * 64}
        length = int.from_bytes(data[:8], "little")
        written = json.loads(data[8 : 8 + length])
        checksum = written["__metadata__"]["sha256"]
        blank = data.replace(checksum.encode(), b"0" * 64)
        assert hashlib.sha256(blank).hexdigest() == checksum
        plain = save(tensors, metadata)
        assert (blank[:8], blank[8 + length :]) == (plain[:8], plain[8 + length :])
        assert json.loads(blank[8 : 8 + length]) == json.loads(plain[8 : 8 + length])


def encode(entry):
    return b"".join(level_store.encode(entry))


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


class TestDamage:
    def test_every_changed_byte_is_noticed(self):
        data = encode(entry())
        assert decode(data).record == {"number": 1}
        for place in range(len(data)):
            with pytest.raises(ValueError, match=r"not an entry|checksum"):
                decode(flipped(data, place))

    def test_every_missing_or_added_byte_is_noticed(self):
        data = encode(entry())
        for size in range(len(data)):
            with pytest.raises(ValueError, match=r"not an entry|checksum"):
                decode(data[:size])
        with pytest.raises(ValueError, match="checksum"):
            decode(data + b"0")

    def test_a_record_may_contain_text_that_looks_like_a_checksum(self):
        record = {"sha256": "0" * 64, "x": '"sha256":"' + "0" * 64 + '"'}
        assert decode(encode(Entry(record=record, tensors={}))).record == record

    def test_an_entry_of_another_format_is_refused(self, monkeypatch):
        monkeypatch.setattr(level_store, "_FORMAT", "ticket_search.entry.9")
        data = encode(entry())
        monkeypatch.undo()
        with pytest.raises(ValueError, match=r"its format is 'ticket_search.entry.9', but this version reads"):
            decode(data)

    @pytest.mark.parametrize("damage", [b"", b"\x00", b"not a store's entry at all", save({"w": torch.zeros(1)})])
    def test_a_damaged_entry_is_moved_aside_reported_and_computed_again(self, store, folder, events, damage):
        folder.write(PATH, damage)
        found, reused = get_or_compute(store, KEY, lambda: entry(5))
        assert (number(found), reused) == (5, False)
        (event,) = events
        assert (event["event"], event["key"]) == ("entry_damaged", KEY)
        assert event["reason"]
        (aside,) = (file.name for file in folder.files(recursive=True) if file.name.startswith("damaged/"))
        assert event["path"] == folder.place(aside)
        assert aside.startswith(f"damaged/{KEY}.safetensors.")
        assert folder.read(aside) == damage
        assert number(store.load(KEY)) == 5

    def test_a_damaged_checkpoint_is_not_used(self, store, folder, events):
        checkpoint = store.checkpoint(KEY)
        checkpoint.save(entry())
        (file,) = folder.files(recursive=True)
        folder.write(file.name, flipped(folder.read(file.name), -1 % file.size))
        assert checkpoint.load() is None
        assert [event["event"] for event in events] == ["entry_damaged"]
        checkpoint.save(entry(2))
        assert number(checkpoint.load()) == 2
        checkpoint.remove()
        assert checkpoint.load() is None


def test_a_damaged_entry_can_be_looked_up(store, folder):
    assert store.damaged(KEY) is None
    folder.write(PATH, b"damage")
    assert store.load(KEY) is None
    (aside,) = (folder / "damaged").files()
    assert LevelStore(folder).damaged(KEY) == (folder / "damaged").place(aside.name)
    assert store.damaged(KEY[:2]) is None


class TestDeletedWhileInUse:
    @pytest.fixture
    def store(self, folder):
        folder.write("searches/note.json", b"{}")
        return LevelStore(folder, note="searches/note.json")

    @pytest.mark.parametrize(
        "act",
        [
            lambda store: store.claim("cd34"),
            lambda store: store.save(KEY, entry()),
            lambda store: store.checkpoint(KEY).save(entry()),
        ],
    )
    def test_the_store_is_not_recreated(self, store, folder, act):
        store.save(KEY, entry())
        folder.remove_all()
        with pytest.raises(StorageError) as refused:
            act(store)
        assert str(refused.value).startswith(f"the level store {str(folder)!r} was deleted or replaced while the ")
        assert folder.files(recursive=True) == []

    def test_an_entry_computed_during_the_deletion_is_not_saved(self, store, folder):
        with store.claim(KEY) as claim:
            folder.remove_all()
            with pytest.raises(StorageError, match="was deleted"):
                claim.save(entry())
        assert folder.files(recursive=True) == []

    def test_a_store_without_a_note_is_created(self, folder):
        LevelStore(folder).save(KEY, entry())
        assert number(LevelStore(folder).load(KEY)) == 1


class TestClaims:
    def test_claim_does_not_wait_for_a_held_claim(self, store, folder):
        claim = store.claim(KEY)
        assert isinstance(claim, Claim)
        other = LevelStore(folder)
        with claim:
            assert (store.claim(KEY), other.claim(KEY)) == (None, None)
            with other.claim("cd34") as another:
                assert isinstance(another, Claim)
            assert claim.save(entry(3)).record == {"number": 3}
            assert number(other.claim(KEY)) == 3
        assert number(store.claim(KEY)) == 3

    def test_a_claim_without_a_save_can_be_made_again(self, store, folder):
        with store.claim(KEY):
            pass
        with pytest.raises(RuntimeError), store.claim(KEY):
            raise RuntimeError
        assert [file.name for file in folder.files(recursive=True)] == []
        with store.claim(KEY) as claim:
            claim.save(entry())
        assert [file.name for file in folder.files(recursive=True)] == [PATH]

    def test_the_claim_of_a_killed_process_can_be_made_again(self, store, folder, events):
        code = (
            "import sys, time; from ticket_search.store.level_store import LevelStore\n"
            "print(LevelStore(sys.argv[1]).claim(sys.argv[2]).__enter__() is None, flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-c", code, str(folder), KEY]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout.readline() == "False\n"
            assert store.claim(KEY) is None
            owner.kill()
        with store.claim(KEY) as claim:
            claim.save(entry(4))
        assert [event["event"] for event in events] == ["lease_broken"]
        assert number(store.load(KEY)) == 4

    def test_an_entry_saved_between_the_lookup_and_the_claim_is_found(self, store, folder, monkeypatch):
        acquire = store._leases.try_acquire

        def late(key):
            store.save(key, entry(6))
            return acquire(key)

        monkeypatch.setattr(store._leases, "try_acquire", late)
        assert number(store.claim(KEY)) == 6
        assert [file.name for file in folder.files(recursive=True)] == [PATH]

    def test_partial_files_of_a_killed_process_are_removed(self, store, tmp_path):
        local = LevelStore(tmp_path / "local")
        local.save("ab99", entry())
        half = tmp_path / "local" / "ab" / f".{KEY}.safetensors.0123456789ab{_PARTIAL}"
        half.write_bytes(b"half")
        with local.claim(KEY) as claim:
            claim.save(entry())
        assert sorted(path.name for path in (tmp_path / "local" / "ab").iterdir()) == [
            f"{KEY}.safetensors",
            "ab99.safetensors",
        ]


class TestComputing:
    def test_an_entry_is_computed_once_and_then_reused(self, store):
        assert [reused for _, reused in (get_or_compute(store, KEY, entry), get_or_compute(store, KEY, entry))] == [
            False,
            True,
        ]
        assert number(get_or_compute(store, KEY, lambda: entry(9))[0]) == 1

    def test_no_lease_is_left_behind(self, store, folder):
        get_or_compute(store, KEY, entry)
        assert [file.name for file in folder.files(recursive=True)] == [PATH]

    def test_a_failed_computation_releases_its_claim(self, store):
        def fail():
            raise RuntimeError("cannot compute")

        with pytest.raises(RuntimeError, match="cannot compute"):
            get_or_compute(store, KEY, fail)
        assert store.load(KEY) is None
        assert get_or_compute(store, KEY, entry)[1] is False

    def test_one_of_several_threads_computes_and_the_others_wait(self, store):
        calls, results = [], []
        everyone = threading.Barrier(4)

        def compute():
            calls.append(1)
            time.sleep(0.1)
            return entry(7)

        def need():
            everyone.wait()
            found, reused = get_or_compute(store, KEY, compute)
            results.append((number(found), reused))

        threads = [threading.Thread(target=need) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert calls == [1]
        assert sorted(results) == [(7, False), (7, True), (7, True), (7, True)]

    def test_other_keys_do_not_wait(self, store):
        def compute():
            return entry(get_or_compute(store, "cd34", lambda: entry(2))[0].record["number"])

        assert number(get_or_compute(store, KEY, compute)[0]) == 2

    def test_a_waiter_takes_over_from_a_killed_process(self, store, folder, events):
        """The waiter keeps waiting while the owner is alive, and computes the entry once the owner has been killed."""
        code = (
            "import sys, time; from ticket_search.store.level_store import LevelStore\n"
            "wait = lambda: print('computing', flush=True) or time.sleep(60)\n"
            "LevelStore(sys.argv[1]).claim(sys.argv[2]).__enter__(); wait()"
        )
        command = [sys.executable, "-c", code, str(folder), KEY]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout.readline() == "computing\n"
            results = []
            thread = threading.Thread(target=lambda: results.append(get_or_compute(store, KEY, entry)[1]))
            thread.start()
            thread.join(0.3)
            assert (thread.is_alive(), results) == (True, [])
            owner.kill()
        thread.join(5)
        assert results == [False]
        (event,) = events
        assert (event["event"], event["key"]) == ("lease_broken", KEY)
        assert event["owner"].startswith(f"process {owner.pid} on ")

    def test_files_of_a_process_that_died_after_saving_are_removed(self, store, folder):
        code = (
            "import os, signal, sys; from ticket_search.store.level_store import Entry, LevelStore\n"
            "store, entry = LevelStore(sys.argv[1]), Entry(record={'number': 1}, tensors={})\n"
            "store.checkpoint(sys.argv[2]).save(entry)\n"
            "store.claim(sys.argv[2]).__enter__().save(entry); os.kill(os.getpid(), signal.SIGKILL)"
        )
        assert subprocess.run([sys.executable, "-c", code, str(folder), KEY]).returncode == -9
        assert len(folder.files(recursive=True)) == 3
        found, reused = get_or_compute(store, KEY, entry)
        assert (number(found), reused) == (1, True)
        store.tidy(KEY)
        assert [file.name for file in folder.files(recursive=True)] == [PATH]

    def test_the_claim_is_held_until_the_save_has_been_reported(self, store, folder):
        order = []

        def saved():
            order.append((number(store.load(KEY)), len((folder / "leases").files())))

        get_or_compute(store, KEY, entry, saved=saved)
        assert order == [(1, 1)]

    def test_a_process_that_lost_its_claim_returns_the_entry_saved_by_the_other(self, store, folder, monkeypatch):
        monkeypatch.setattr("ticket_search.storage.lease.HEARTBEAT_SECONDS", 0.01)

        def compute():
            """Simulate a long suspension, in which another process breaks the claim and saves the entry."""
            (folder / "leases").remove_all()
            time.sleep(0.5)
            LevelStore(folder).save(KEY, entry(8))
            return entry(1)

        found, reused = get_or_compute(store, KEY, compute)
        assert (number(found), reused) == (8, True)


def test_a_full_disk_is_reported_and_existing_entries_are_kept(small_disk):
    store = LevelStore(LocalFolder(small_disk))
    get_or_compute(store, KEY, entry)
    big = Entry(record={}, tensors={"w": torch.zeros(1_000_000)})
    with pytest.raises(StorageError, match=r"cannot write '.*cd34.safetensors': No space left on device"):
        get_or_compute(store, "cd34", lambda: big)
    assert number(store.load(KEY)) == 1
    assert store.load("cd34") is None
    assert get_or_compute(store, "cd34", lambda: entry(2))[1] is False
    assert not list(small_disk.rglob(".*"))
