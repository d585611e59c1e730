"""A node that does not share the search's storage is detected before anything is trained on it."""

import pytest
from by_hand import run_by_hand

from ticket_search.engines.job import make_job
from ticket_search.engines.worker import run_job
from ticket_search.errors import RunDirectoryError, SpecError, StorageError
from ticket_search.launch.run import run_search
from ticket_search.runs import sharing
from ticket_search.runs.directory import read_run
from ticket_search.runs.places import store_folder
from ticket_search.runs.sharing import check_shared, check_shared_once
from ticket_search.search.reports import LevelReport, NotShared
from ticket_search.storage.folder import open_folder


@pytest.fixture(autouse=True)
def on_a_node(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    check_shared_once.cache_clear()


@pytest.fixture
def begun(folder, search):
    """The specification of a finished search, and the arguments with which a node checks the storage."""
    spec = search({"pruning_rate": [0.5]}, seeds=[0], sampler="grid", trials=None)
    run_by_hand(spec, folder)
    check_shared_once.cache_clear()
    return spec, [str(store_folder(spec, folder)), str(folder), read_run(folder).run_id]


def test_shared_storage_is_accepted(begun):
    check_shared(*begun[1])


@pytest.mark.parametrize("which", ["store", "run_dir", "run_id"])
def test_storage_that_is_not_shared_is_named_with_the_node(begun, tmp_path, which):
    _, (store, run_dir, run_id) = begun
    other = str(tmp_path / "of_this_node_alone")
    asked = {"store": store, "run_dir": run_dir, "run_id": run_id} | {which: other}
    with pytest.raises(StorageError) as refused:
        check_shared(**asked)
    place = other if which != "run_id" else run_dir
    assert str(refused.value).startswith(
        f"on node7, {place!r} is not the folder that the search uses; give an --output"
    )


def test_unwritable_storage_leaves_the_node_out_instead_of_failing_the_trajectory(begun, monkeypatch):
    spec, (_, run_dir, run_id) = begun

    def refuse(folder):
        raise RunDirectoryError(f"cannot write to {str(folder)!r}: Read-only file system")

    monkeypatch.setattr(sharing, "check_writable", refuse)
    job = make_job(spec, 0, spec.trajectory_at({"pruning_rate": 0.5}, 0), open_folder(run_dir), run_id)
    (report,) = run_job(job)
    assert isinstance(report, NotShared)
    assert report.reason.startswith("on node7: cannot write to '")


def test_a_worker_checks_the_storage_once(begun, monkeypatch):
    spec, (_, run_dir, run_id) = begun
    job = make_job(spec, 0, spec.trajectory_at({"pruning_rate": 0.5}, 0), open_folder(run_dir), run_id)
    assert isinstance(next(run_job(job)), LevelReport)
    monkeypatch.setattr(sharing, "read_run", lambda folder: pytest.fail("the worker checked again"))
    assert isinstance(next(run_job(job)), LevelReport)


def test_a_search_that_a_node_cannot_join_leaves_nothing_behind(ray_address, tmp_path, search, monkeypatch):
    def refuse(function, arguments):
        function(*arguments)  # the check succeeds on this machine
        raise SpecError("node 10.0.0.2 cannot reach the storage")

    monkeypatch.setattr("ticket_search.engines.ray.engine.on_each_other_node", refuse)
    spec = search({"pruning_rate": [0.5]}, seeds=[0], sampler="grid", trials=None)
    shared = tmp_path / "shared" / "store"
    with pytest.raises(SpecError, match="cannot reach the storage"):
        run_search(spec.model_copy(update={"store": str(shared)}), tmp_path / "runs" / "run")
    assert list(tmp_path.iterdir()) == []
    open_folder(shared).write("ab/kept", b"an entry of another search")
    with pytest.raises(SpecError, match="cannot reach the storage"):
        run_search(spec.model_copy(update={"store": str(shared)}), tmp_path / "runs" / "run")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kept"]
