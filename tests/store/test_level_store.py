import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from ticket_search.errors import StoreError
from ticket_search.store import level_store
from ticket_search.store.level_store import Entry, LevelStore

KEY = "ab12"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(level_store, "_POLL_SECONDS", 0.01)
    return LevelStore(tmp_path / "store")


def entry(number=1):
    return Entry(record={"number": number}, tensors={"w": torch.tensor([number, 2])})


def number(found):
    return found.record["number"]


class TestEntries:
    def test_what_is_saved_is_loaded(self, store):
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

    def test_what_is_not_there_is_none(self, store):
        assert store.load(KEY) is None

    def test_an_entry_may_be_replaced(self, store):
        store.save(KEY, entry(1))
        store.save(KEY, entry(2))
        assert number(store.load(KEY)) == 2

    def test_keys_do_not_meet(self, store):
        store.save("ab1", entry(1))
        store.save("ab2", entry(2))
        assert [number(store.load(key)) for key in ("ab1", "ab2")] == [1, 2]

    @pytest.mark.parametrize("damage", [b"", b"\x00", b"not a store's entry at all"])
    def test_a_damaged_entry_is_named(self, store, damage):
        store.save(KEY, entry())
        path = store._path(KEY)
        path.write_bytes(damage)
        with pytest.raises(StoreError) as error:
            store.load(KEY)
        assert str(error.value).startswith(f"the store's entry {path} cannot be read: ")
        assert str(error.value).endswith("; remove it to have it trained again")
        with pytest.raises(StoreError):
            store.get_or_compute(KEY, entry)

    def test_an_entry_cut_short_is_named(self, store):
        store.save(KEY, entry())
        path = store._path(KEY)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(StoreError, match="cannot be read"):
            store.load(KEY)

    @pytest.mark.parametrize("metadata", [None, {"other": "1"}, {"record": "{"}])
    def test_a_file_of_somebody_elses_is_named(self, store, metadata):
        store.save(KEY, entry())
        save_file({"w": torch.zeros(1)}, store._path(KEY), metadata)
        with pytest.raises(StoreError, match="cannot be read"):
            store.load(KEY)

    def test_nothing_is_left_beside_an_entry(self, store):
        store.save(KEY, entry())
        assert [p.name for p in store._path(KEY).parent.iterdir()] == [f"{KEY}.safetensors"]


class TestComputing:
    def test_once_then_reused(self, store):
        assert [reused for _, reused in (store.get_or_compute(KEY, entry), store.get_or_compute(KEY, entry))] == [
            False,
            True,
        ]
        assert number(store.get_or_compute(KEY, lambda: entry(9))[0]) == 1

    def test_nothing_is_left_of_the_lock(self, store):
        store.get_or_compute(KEY, entry)
        assert list((store._root / "locks").iterdir()) == []

    def test_a_computation_that_fails_gives_the_lock_back(self, store):
        def fail():
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            store.get_or_compute(KEY, fail)
        assert store.load(KEY) is None
        assert store.get_or_compute(KEY, entry)[1] is False

    def test_of_threads_that_need_it_one_computes_and_the_others_wait(self, store):
        calls, results = [], []
        everyone = threading.Barrier(4)

        def compute():
            calls.append(1)
            time.sleep(0.1)
            return entry(7)

        def need():
            everyone.wait()
            found, reused = store.get_or_compute(KEY, compute)
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
            return entry(store.get_or_compute("cd34", lambda: entry(2))[0].record["number"])

        assert number(store.get_or_compute(KEY, compute)[0]) == 2

    def test_the_lock_of_a_killed_process_is_free(self, store):
        """It is waited for while its owner lives."""
        code = (
            "import sys, time; from pathlib import Path; from ticket_search.store.level_store import LevelStore\n"
            "wait = lambda: print('computing', flush=True) or time.sleep(60)\n"
            "LevelStore(Path(sys.argv[1])).get_or_compute(sys.argv[2], wait)"
        )
        command = [sys.executable, "-c", code, str(store._root), KEY]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout.readline() == "computing\n"
            results = []
            thread = threading.Thread(target=lambda: results.append(store.get_or_compute(KEY, entry)[1]))
            thread.start()
            thread.join(0.3)
            assert (thread.is_alive(), results) == (True, [])
            owner.kill()
        thread.join(5)
        assert results == [False]
