"""Pruning a store never removes an entry that any search using the store still needs."""

import shutil
import subprocess
import sys

import pytest
from by_hand import run_by_hand
from helpers import finished_levels

from ticket_search.analysis.tickets import tickets
from ticket_search.config.identity import rewind_key
from ticket_search.errors import RunDirectoryError, StorageError
from ticket_search.follow_up.stability import lines_between_copies
from ticket_search.results.events import read_events
from ticket_search.results.reading import load_results
from ticket_search.runs.directory import hold, read_run, read_spec
from ticket_search.runs.places import store_folder
from ticket_search.runs.store_use import inspect, prune, register
from ticket_search.search.driver import SearchDriver
from ticket_search.storage.folder import open_folder
from ticket_search.storage.lease import Leases
from ticket_search.storage.local import LocalFolder
from ticket_search.store.level_store import Entry, LevelStore

KEY = "0123456789abcdef" * 2
CLAIM_AND_DIE = """
import os, sys
from ticket_search.storage.folder import open_folder
from ticket_search.storage.lease import Leases
Leases(open_folder(sys.argv[1])).try_acquire(sys.argv[2])
os._exit(0)
"""


def keep_best(count):
    return lambda results: tickets(results).head(count)


def keys(run_dir):
    """Return a dict from (pruning rate, level) to the level's key, for a search with one seed."""
    levels = load_results(run_dir).levels
    return dict(zip(zip(levels["pruning_rate"], levels["level"], strict=True), levels["level_key"], strict=True))


def names(files):
    return sorted(file.name for file in files)


def entries(store):
    """Return the keys of the entries in a store."""
    return {path.stem for path in store.glob("??/*.safetensors")}


@pytest.fixture(scope="module")
def grid(search):
    """A factory for grid searches. All levels match, so the sparsest ticket is the last level at the highest rate."""

    def make(*rates, store=None):
        space = {"pruning_rate": list(rates), "rewind_iteration": [5]}
        short = {"training.iterations": 10, "training.evaluate_every": 5}
        settings = {"sampler": "grid", "trials": None, "early_stopping": None, "tolerance": 0.99}
        spec = search(space, seeds=(0,), base=short, **settings)
        return spec.model_copy(update={"store": store and str(store)})

    return make


@pytest.fixture(scope="module")
def finished_once(grid, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    run_by_hand(grid(0.3, 0.5), run_dir)
    return run_dir


@pytest.fixture
def finished(finished_once, tmp_path):
    """A finished search with its own store: two trajectories of three levels that share level 0."""
    run_dir = tmp_path / "finished"
    shutil.copytree(finished_once, run_dir)
    (note,) = (run_dir / "store/searches").iterdir()
    note.write_text(note.read_text().replace(str(finished_once), str(run_dir)))
    return run_dir


class TestAFinishedSearch:
    def test_needs_every_level_and_the_weights_to_rewind_to(self, finished):
        use = inspect(open_folder(finished))
        assert {kind: len(files) for kind, files in use.kinds.items() if files} == {"levels": 5, "rewind weights": 1}
        assert (use.unneeded, use.searches, use.gone) == ([], [str(finished)], [])
        assert str(use.folder) == str(finished / "store")

    def test_what_it_does_not_need_is_listed_and_removed(self, finished):
        store = LevelStore(finished / "store")
        level = keys(finished)[0.5, 2]
        store.save(KEY, Entry(record={}, tensors={}))
        store.checkpoint(KEY).save(Entry(record={}, tensors={}))
        store.checkpoint(level).save(Entry(record={}, tensors={}))
        before = entries(finished / "store")
        use = inspect(open_folder(finished))
        checkpoints = sorted(f"checkpoints/{key}.safetensors" for key in (KEY, level))
        assert names(use.kinds["of no search"]) == [f"01/{KEY}.safetensors"]
        assert names(use.kinds["checkpoints"]) == checkpoints
        assert names(use.unneeded) == [f"01/{KEY}.safetensors", *checkpoints]
        prune(use)
        assert entries(finished / "store") == before - {KEY}
        assert list((finished / "store/checkpoints").iterdir()) == []
        assert inspect(open_folder(finished)).unneeded == []

    def test_needs_no_damaged_entry_that_was_set_aside(self, finished):
        (path,) = (finished / "store").glob(f"??/{keys(finished)[0.3, 1]}.safetensors")
        path.write_bytes(path.read_bytes()[:-1])
        assert LevelStore(finished / "store").load(path.stem) is None
        use = inspect(open_folder(finished))
        assert len(use.kinds["damaged"]) == 1
        assert use.unneeded == use.kinds["damaged"]

    def test_keeps_the_best_tickets_entry_dense_network_and_rewind_weights(self, finished):
        dense, best = keys(finished)[0.5, 0], keys(finished)[0.5, 2]
        use = inspect(open_folder(finished), keep_best(1))
        assert len(use.unneeded) == 3
        prune(use)
        assert entries(finished / "store") == {dense, best, rewind_key(dense, 5)}
        assert len(load_results(finished).levels) == 6

    def test_keeps_nothing_for_no_tickets(self, finished):
        prune(inspect(open_folder(finished), keep_best(0)))
        assert entries(finished / "store") == set()

    def test_keeps_diverged_levels(self, search, tmp_path):
        """If diverged levels were removed, a resume with more trials would train them again, with the same result."""
        spec = search({"training.optimizer.lr": [1e30]}, seeds=(0,), sampler="grid", trials=None)
        run_by_hand(spec, tmp_path)
        use = inspect(open_folder(tmp_path))
        assert (len(use.kinds["levels"]), use.unneeded) == (1, [])


class TestAnUnfinishedSearch:
    @pytest.mark.parametrize("best", [None, keep_best(0)], ids=["prune", "keep best"])
    @pytest.mark.parametrize("levels", [1, 2, 5])
    def test_trains_no_level_twice_after_pruning(self, grid, tmp_path, levels, best):
        """No level is trained twice, even if the driver was killed before it wrote its last level to the tables."""
        spec = grid(0.3, 0.5, 0.6)
        run_by_hand(spec, tmp_path, levels=levels)
        dense = next(iter(finished_levels(tmp_path)))
        prune(inspect(open_folder(tmp_path), best))
        (rewind,) = tmp_path.glob(f"store/??/{rewind_key(dense, 5)}.safetensors")
        before = rewind.stat().st_mtime_ns
        run_by_hand(spec, tmp_path)
        assert rewind.stat().st_mtime_ns == before
        assert set(finished_levels(tmp_path).values()) == {1}
        assert load_results(tmp_path).trajectories["status"].tolist() == ["completed"] * 3
        assert len(load_results(tmp_path).levels) == 9

    def test_gives_up_the_other_levels_of_ended_trajectories(self, grid, tmp_path):
        run_by_hand(grid(0.3, 0.5, 0.6), tmp_path, levels=7, flush=True)
        before, found = entries(tmp_path / "store"), keys(tmp_path)
        prune(inspect(open_folder(tmp_path), keep_best(1)))
        assert before - entries(tmp_path / "store") == {found[0.3, 1], found[0.3, 2], found[0.5, 1]}

    def test_keeps_the_dense_network_for_its_next_trajectory(self, grid, tmp_path):
        """The dense network is kept even though all started trajectories have ended, because more trials are left."""
        spec = grid(0.3, 0.5)
        one = spec.model_copy(update={"search": spec.search.model_copy(update={"trials": 1})})
        run_by_hand(one, tmp_path)
        with hold(open_folder(tmp_path), spec):
            pass
        prune(inspect(open_folder(tmp_path), keep_best(0)))
        dense = keys(tmp_path)[0.3, 0]
        assert entries(tmp_path / "store") == {dense, rewind_key(dense, 5)}

    def test_keeps_rewind_weights_for_an_iteration_drawn_from_a_range(self, search, tmp_path):
        spec = search({"rewind_iteration": {"low": 3, "high": 30}}, seeds=(0,), sampler="random", trials=2)
        run_by_hand(spec, tmp_path, levels=2)
        use = inspect(open_folder(tmp_path))
        assert (len(use.kinds["rewind weights"]), use.unneeded) == (1, [])

    def test_keeps_only_checkpoints_of_unfinished_levels(self, grid, tmp_path):
        run_by_hand(grid(0.3, 0.5), tmp_path, levels=2)
        store = LevelStore(tmp_path / "store")
        done = next(iter(finished_levels(tmp_path)))
        for key in (KEY, done):
            store.checkpoint(key).save(Entry(record={}, tensors={}))
        use = inspect(open_folder(tmp_path))
        assert len(use.kinds["checkpoints"]) == 2
        assert names(use.unneeded) == [f"checkpoints/{done}.safetensors"]

    def test_can_be_inspected_before_it_has_trained_anything(self, grid, tmp_path):
        spec = grid(0.3, 0.5)
        with hold(open_folder(tmp_path), spec) as held:
            register(store_folder(spec, open_folder(tmp_path)), open_folder(tmp_path), held.run, spec)
            SearchDriver(spec, tmp_path)
        assert inspect(open_folder(tmp_path)).unneeded == []

    def test_reports_a_damaged_entry_and_trains_the_level_again(self, grid, tmp_path):
        run_by_hand(grid(0.3, 0.5), tmp_path, levels=2)
        damaged = finished_levels(tmp_path).most_common()[1][0]
        (path,) = tmp_path.glob(f"store/??/{damaged}.safetensors")
        path.write_bytes(b"not an entry")
        said = []
        run_by_hand(grid(0.3, 0.5), tmp_path, say=said.append)
        aside = next((tmp_path / "store/damaged").iterdir())
        assert said == [
            f"the store's entry {damaged} was damaged (it is incomplete or not an entry); it was moved to {aside}, "
            "and its level is trained again"
        ]
        assert {key: count for key, count in finished_levels(tmp_path).items() if count > 1} == {damaged: 2}


@pytest.fixture
def two(grid, tmp_path):
    """A folder with a store and two finished searches, a and b, that share level 0 and the levels with rate 0.5."""
    for name, rates in {"a": (0.3, 0.5), "b": (0.5, 0.6)}.items():
        run_by_hand(grid(*rates, store=tmp_path / "store"), tmp_path / name)
    return tmp_path


class TestASharedStore:
    def test_is_the_same_when_inspected_through_any_search_or_directly(self, two):
        for directory in ("a", "b", "store"):
            use = inspect(open_folder(two / directory))
            assert sorted(use.searches) == [str(two / "a"), str(two / "b")]
            assert (len(use.kinds["levels"]), use.unneeded, use.gone) == (7, [], [])

    def test_keeps_what_the_other_search_needs_when_one_is_removed(self, two):
        a, b = set(keys(two / "a").values()), set(keys(two / "b").values())
        shutil.rmtree(two / "a")
        use = inspect(open_folder(two / "store"))
        assert (use.searches, use.gone, use.unneeded) == ([str(two / "b")], [str(two / "a")], [])
        use = inspect(open_folder(two / "store"), forget_gone=True)
        assert {name.partition("/")[2] for name in names(use.unneeded)} == {f"{key}.safetensors" for key in a - b}
        prune(use)
        assert b <= entries(two / "store")

    def test_keeps_the_best_of_each_search(self, two):
        a, b = keys(two / "a"), keys(two / "b")
        prune(inspect(open_folder(two / "a"), keep_best(1)))
        assert entries(two / "store") == {a[0.5, 0], a[0.5, 2], b[0.6, 2], rewind_key(a[0.5, 0], 5)}

    @pytest.mark.parametrize("directory", ["a", "store"])
    def test_keeps_what_an_unfinished_search_needs_to_resume(self, grid, tmp_path, directory):
        store = tmp_path / "store"
        run_by_hand(grid(0.5, 0.3, store=store), tmp_path / "a")
        b = grid(0.5, 0.6, store=store)
        run_by_hand(b, tmp_path / "b", levels=2)
        prune(inspect(open_folder(tmp_path / directory), keep_best(0)))
        assert keys(tmp_path / "a")[0.3, 1] not in entries(store)
        reached = {e["level_key"] for e in read_events(tmp_path / "b") if "level_key" in e}
        assert len(reached) == 2
        run_by_hand(b, tmp_path / "b")
        trained = finished_levels(tmp_path / "a", tmp_path / "b")
        assert {trained[key] for key in reached} == {1}

    def test_may_lie_in_the_directory_of_one_of_its_searches(self, finished, grid, tmp_path):
        run_by_hand(grid(0.5, 0.6, store=finished / "store"), tmp_path / "b")
        for directory in (finished, tmp_path / "b"):
            use = inspect(open_folder(directory))
            assert sorted(use.searches) == sorted([str(finished), str(tmp_path / "b")])
            assert (len(use.kinds["levels"]), use.unneeded) == (7, [])


class TestAMovedSearch:
    def test_with_its_own_store_needs_the_same(self, finished, tmp_path):
        finished.rename(tmp_path / "there")
        use = inspect(open_folder(tmp_path / "there"))
        assert (use.searches, use.gone, use.unneeded) == ([str(tmp_path / "there")], [], [])
        assert len(use.kinds["levels"]) == 5

    def test_inspected_through_its_own_store_needs_the_same(self, finished, tmp_path):
        finished.rename(tmp_path / "there")
        use = inspect(open_folder(tmp_path / "there" / "store"), forget_gone=True)
        assert (use.searches, use.gone, use.unneeded) == ([str(tmp_path / "there")], [], [])

    def test_two_copies_are_two_searches(self, two):
        shutil.copytree(two / "a", two / "copy")
        run_by_hand(read_spec(open_folder(two / "copy")), two / "copy")
        use = inspect(open_folder(two / "store"))
        assert sorted(use.searches) == [str(two / name) for name in ("a", "b", "copy")]

    def test_with_a_shared_store_needs_the_same_and_is_registered_again_by_a_resume(self, grid, tmp_path):
        spec = grid(0.3, store=tmp_path / "store")
        run_by_hand(spec, tmp_path / "here")
        (tmp_path / "here").rename(tmp_path / "there")
        use = inspect(open_folder(tmp_path / "there"))
        assert (use.searches, use.unneeded) == ([str(tmp_path / "there")], [])
        assert inspect(open_folder(tmp_path / "store")).gone == [str(tmp_path / "here")]
        run_by_hand(spec, tmp_path / "there")
        use = inspect(open_folder(tmp_path / "store"))
        assert (use.searches, use.unneeded) == ([str(tmp_path / "there")], [])

    def test_is_not_mistaken_for_another_search_at_its_old_path(self, grid, tmp_path):
        run_by_hand(grid(0.3, store=tmp_path / "store"), tmp_path / "here")
        (tmp_path / "here").rename(tmp_path / "there")
        run_by_hand(grid(0.6), tmp_path / "here")
        use = inspect(open_folder(tmp_path / "store"))
        assert (use.searches, use.gone) == ([], [str(tmp_path / "here")])

    def test_is_not_mistaken_for_its_older_copy(self, grid, tmp_path):
        """The original may be on a disk that is not mounted at the moment, so its entries are kept."""
        spec = grid(0.5, 0.3, store=tmp_path / "store")
        run_by_hand(spec, tmp_path / "it", levels=2)
        shutil.copytree(tmp_path / "it", tmp_path / "copy")
        with hold(open_folder(tmp_path / "copy"), spec) as held:
            register(open_folder(tmp_path / "store"), open_folder(tmp_path / "copy"), held.run, spec)
        run_by_hand(spec, tmp_path / "it")
        (tmp_path / "it").rename(tmp_path / "away")
        use = inspect(open_folder(tmp_path / "store"), keep_best(0))
        assert (use.searches, use.gone, use.unneeded) == ([str(tmp_path / "copy")], [str(tmp_path / "it")], [])


class TestRefused:
    def test_while_a_search_runs(self, grid, tmp_path):
        a, b = grid(0.3, store=tmp_path / "store"), grid(0.5, store=tmp_path / "store")
        run_by_hand(a, tmp_path / "a")
        run_by_hand(b, tmp_path / "b")
        with hold(open_folder(tmp_path / "b"), b):
            for directory in ("a", "b", "store"):
                with pytest.raises(RunDirectoryError, match=r"b' is being run by process \d+ on .*; wait until"):
                    inspect(open_folder(tmp_path / directory))
        assert len(inspect(open_folder(tmp_path / "a")).searches) == 2

    @pytest.mark.parametrize("note", [None, {"a.json": "{}"}, {"notes.txt": "x", "search.yaml": "name: x"}])
    def test_a_directory_that_is_not_a_store(self, tmp_path, note):
        """The directory may be a user's folder with other files and a folder that happens to be named ``searches``."""
        (tmp_path / "01").mkdir()
        (tmp_path / f"01/{KEY}.safetensors").touch()
        if note is not None:
            (tmp_path / "searches").mkdir()
            for name, text in note.items():
                (tmp_path / "searches" / name).write_text(text)
        with pytest.raises(RunDirectoryError, match="is neither a run directory nor a level store"):
            inspect(open_folder(tmp_path))

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
    def test_a_store_with_a_damaged_note(self, finished, text):
        """The store is refused, because the search that wrote the note may need entries that no other search needs."""
        (finished / f"store/searches/{KEY}.01234567.json").write_text(text)
        with pytest.raises(RunDirectoryError, match=rf"searches/{KEY}.01234567.json' is damaged"):
            inspect(open_folder(finished))


def test_files_that_do_not_belong_to_the_store_are_left_alone(finished):
    others = ["docs/thesis.tex", f"{KEY}.safetensors", f"02/{KEY}.safetensors", "01/weights.safetensors", "leases/x"]
    for name in others:
        path = finished / "store" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    use = inspect(open_folder(finished), keep_best(0))
    assert not set(others) & {file.name for files in use.kinds.values() for file in files}
    prune(use)
    assert all((finished / "store" / name).exists() for name in others)


def test_claims_of_dead_processes_are_removed_and_others_kept(finished):
    claims = open_folder(finished / "store") / "leases"
    subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(claims), KEY], check=True)
    living = KEY[::-1]
    with Leases(claims).try_acquire(living):
        assert Leases(claims).names() == [KEY, living]
        prune(inspect(open_folder(finished)))
        assert Leases(claims).names() == [living]


def test_a_store_in_object_storage(s3, grid, tmp_path):
    """A store can be pruned even if its location has options and the run directory is local."""
    store = open_folder(s3.location("store-use"))
    run_by_hand(grid(0.5, store=store), tmp_path / "run")
    use = inspect(open_folder(tmp_path / "run"), keep_best(1))
    assert (len(use.kinds["levels"]), len(use.unneeded)) == (3, 1)
    prune(use)
    use = inspect(store)
    assert (len(use.kinds["levels"]), use.searches) == (2, [str(tmp_path / "run")])


def test_stability_refuses_nodes_without_the_storage(finished_search, monkeypatch):
    """A node without the storage would write its copies to a local folder that no other node can read."""
    folder = LocalFolder(finished_search)

    def check(engine, place):
        assert (place.run_dir, place.run_id) == (folder, read_run(folder).run_id)
        raise StorageError("node 10.0.0.2 cannot reach the storage")

    monkeypatch.setattr("ticket_search.engines.inline.InlineEngine.check_storage", check)
    ticket = f"{load_results(folder).levels['trajectory_id'][0]}/1"
    with pytest.raises(StorageError, match=r"10\.0\.0\.2 cannot reach"):
        lines_between_copies(folder, ticket, copies=2, points=3, engine="inline")


def test_stability_locks_the_directory(finished_search):
    """Without the lock, `store --keep-best` could remove copies, and another `stability` could overwrite the table."""
    folder, refused = LocalFolder(finished_search), []
    ticket = f"{load_results(folder).levels['trajectory_id'][0]}/1"
    options = {"copies": 2, "points": 3, "engine": "inline"}

    def say(line):
        for act in (lambda: inspect(folder), lambda: lines_between_copies(folder, ticket, **options)):
            with pytest.raises(RunDirectoryError, match="is being run by process"):
                act()
            refused.append(line)

    lines_between_copies(folder, ticket, rewinds=(20,), say=say, **options)
    assert len(refused) >= 2
    assert len(inspect(folder).kinds["copies"]) == 4
