"""How a search whose executor is ``auto`` gets its executor, and how an executor that cannot train it is refused."""

from pathlib import Path

import pytest

from ticket_search import run_search
from ticket_search.config.executors import best_executor
from ticket_search.config.identity import trajectory_id
from ticket_search.errors import SpecError
from ticket_search.launch import preflight
from ticket_search.launch.executor import with_executor
from ticket_search.runs.directory import read_spec
from ticket_search.storage.folder import open_folder

AUTO = {"training.executor": "auto"}
GOLDEN = Path(__file__).parent.parent / "golden"


def chosen(spec, folder):
    return with_executor(open_folder(folder), spec).training.executor


@pytest.mark.parametrize(
    ("changes", "gpus", "name"),
    [
        ({}, 0, "sparse"),
        ({"model.name": "mlp_30"}, 0, "sparse"),
        ({"training.optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}, 0, "sparse"),
        ({}, 0.5, "plain"),
        ({"model.name": "conv2"}, 0, "plain"),
        ({"model.name": "mine:network"}, 0, "plain"),
        ({"task": "mine:Task"}, 0, "plain"),
        ({"training.precision": "bf16"}, 0, "plain"),
        ({"pruning.reinit_pruned": "initial"}, 0, "plain"),
    ],
)
def test_the_best_executor(trajectory, changes, gpus, name):
    assert best_executor(trajectory(AUTO | changes), gpus) == name


@pytest.mark.parametrize(
    ("space", "name"),
    [
        ({"pruning_rate": [0.3, 0.6]}, "sparse"),
        ({"model.name": ["lenet_16", "mlp_8"]}, "sparse"),
        ({"model.name": ["lenet_16", "conv2"]}, "plain"),
        ({"reinit_pruned": ["zero", "initial"]}, "plain"),
        ({"training.executor": ["plain", "sparse"]}, "auto"),
    ],
)
def test_one_executor_for_all_points(search, tmp_path, space, name):
    assert chosen(search(space, base=AUTO), tmp_path / "run") == name


def test_a_stated_executor_is_kept(search, tmp_path):
    assert chosen(search({}, base={"training.executor": "plain"}), tmp_path / "run") == "plain"


def test_the_choice_is_recorded_and_used(search, tmp_path):
    spec = search({"pruning_rate": [0.5]}, base=AUTO, seeds=(0,))
    results = run_search(spec, tmp_path / "run", engine="inline", say=lambda line: None)
    assert spec.training.executor == "auto"
    recorded = read_spec(open_folder(tmp_path / "run"))
    assert recorded.training.executor == "sparse"
    plain = run_search(
        spec, tmp_path / "plain", engine="inline", settings={"training.executor": "plain"}, say=lambda line: None
    )
    keys = [set(found.levels["level_key"]) for found in (results, plain)]
    assert len(keys[0]) == len(keys[1]) > 0
    assert not keys[0] & keys[1]
    (row,) = results.trajectories["trajectory_id"]
    assert row == trajectory_id(recorded.trajectory_at({"pruning_rate": 0.5}, 0))


def test_running_the_same_file_again_resumes_the_search(search, tmp_path):
    spec, notices = search({"pruning_rate": [0.5]}, base=AUTO), []
    first = run_search(spec, tmp_path / "run", engine="inline", say=lambda line: None)
    again = run_search(spec, tmp_path / "run", engine="inline", say=notices.append)
    assert list(first.levels["level_key"]) == list(again.levels["level_key"])
    assert not any("executor" in line for line in notices)


def test_a_directory_of_an_earlier_version_stays_plain(tmp_path):
    """Its search file says ``auto`` or does not mention the executor. `test_golden` resumes such directories."""
    golden = GOLDEN / "version_1"
    spec = read_spec(open_folder(golden))
    assert spec.training.executor == "auto"
    assert chosen(spec, golden) == "auto"
    assert chosen(spec, tmp_path / "new") == "sparse"


def test_a_directory_cannot_change_its_executor(finished_search):
    with pytest.raises(SpecError, match=r"contains another search .* training.executor"):
        run_search(
            read_spec(open_folder(finished_search)),
            finished_search,
            engine="inline",
            settings={"training.executor": "sparse"},
            say=lambda line: None,
        )


def test_the_sparse_executor_is_refused_on_a_gpu(search):
    spec = search({}, base={"training.executor": "sparse"})
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"gpus": 0.5})})
    with pytest.raises(SpecError, match=r"training.executor: 'sparse' trains on the CPU, but resources.gpus is 0.5"):
        preflight.check(spec, local=False)
