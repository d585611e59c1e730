"""Workers that train several trajectories together, with every engine."""

import json
from collections import Counter

import pandas as pd
import pytest
from test_engines import (
    USER_MODULE,
    engine,  # noqa: F401
    engine_of_processes,  # noqa: F401
    finished,
    run_unchecked,
    tables_of,
    user_module,  # noqa: F401
)

from ticket_search import load_results
from ticket_search.config.executors import STACKED_LANES
from ticket_search.engines.engine import open_engine
from ticket_search.engines.worker import lanes_of
from ticket_search.errors import SpecError
from ticket_search.launch import preflight
from ticket_search.launch.run import run_search
from ticket_search.results.events import read_events

SPACE = {"pruning_rate": [0.3, 0.6, 0.7], "rewind_iteration": [0, 20]}
GRID = {"sampler": "grid", "trials": None, "early_stopping": None}


def with_lanes(spec, lanes, cpus=1.0):
    return spec.model_copy(update={"resources": spec.resources.model_copy(update={"lanes": lanes, "cpus": cpus})})


@pytest.fixture(scope="module")
def stacked(search):
    return lambda space=SPACE, **settings: search(
        space, base={"training.executor": "stacked"}, seeds=(0, 1), **{**GRID, **settings}
    )


@pytest.fixture(scope="module")
def alone(stacked, tmp_path_factory):
    """The run directory of a search whose trajectories were trained one after the other."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    run_search(with_lanes(stacked(), 1), run_dir, engine="inline")
    return run_dir


def test_tables_do_not_depend_on_the_lanes(engine, stacked, alone, tmp_path):  # noqa: F811
    run_search(with_lanes(stacked(), 5), tmp_path / "run", engine=engine)
    for name, table in tables_of(alone).items():
        # Trajectories of one seed share level 0. Any of them may be the one that trains it.
        table, mine = (
            one.drop(columns="reused", errors="ignore") for one in (table, tables_of(tmp_path / "run")[name])
        )
        pd.testing.assert_frame_equal(mine, table, check_exact=True)
    assert set(finished(tmp_path / "run").values()) == {1}


def test_searches_with_different_lanes_share_levels(stacked, alone, tmp_path):
    spec = with_lanes(stacked(), 4).model_copy(update={"store": str(alone / "store")})
    results = run_search(spec, tmp_path / "run", engine="inline")
    assert results.levels
    assert load_results(tmp_path / "run").levels["reused"].all()


def test_trajectories_are_trained_together(stacked, tmp_path, monkeypatch):
    from ticket_search.training.executors import stacked as module

    widths = Counter()
    update = module._Group.update
    monkeypatch.setattr(module._Group, "update", lambda group: (widths.update([len(group.held)]), update(group)))
    run_search(with_lanes(stacked(), 4), tmp_path / "run", engine="inline")
    assert max(widths) == 4
    assert widths[4] > sum(widths.values()) / 2


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_a_trajectory_that_collapses_or_diverges_ends_alone(engine, search, tmp_path):  # noqa: F811
    base = {"training.executor": "stacked", "pruning.max_levels": 5, "pruning.min_density": 0.0001}
    early = {"collapse": 0.2, "collapse_levels": 2}
    points = [(0.9, 2e-3), (0.2, 2e-3), (0.2, 1e30)]
    space = {"pruning_rate": [0.9, 0.2], "training.optimizer.lr": [2e-3, 1e30]}
    spec = search(space, base=base, seeds=(0,), **{**GRID, "early_stopping": early})
    spec = spec.model_copy(update={"points": tuple(dict(zip(space, point, strict=True)) for point in points)})
    run_search(with_lanes(spec, 4), tmp_path / "run", engine=engine)
    trajectories = load_results(tmp_path / "run").trajectories.set_index(list(space)).sort_index()
    assert list(trajectories.loc[points, "status"]) == ["stopped", "completed", "diverged"]
    assert trajectories.loc[points[0], "reason"].startswith("collapsed: 2 levels")
    assert trajectories.loc[points[0], "levels"] < 6 == trajectories.loc[points[1], "levels"]


def test_trajectories_of_a_killed_worker_are_all_restarted(engine_of_processes, user_module, search, tmp_path):  # noqa: F811
    """Afterwards, one of them is stopped early."""
    name = f"killed_lanes_{engine_of_processes}"
    marker = user_module / name
    (user_module / f"{name}.py").write_text(USER_MODULE.replace('os.environ["KILLED_ONCE"]', repr(str(marker))))
    base = {"training.executor": "stacked", "model.name": f"{name}:killed_once", "pruning.min_density": 0.0001}
    settings = {**GRID, "max_concurrent": 3, "early_stopping": {"collapse": 0.2, "collapse_levels": 1}}
    spec = with_lanes(search({"pruning_rate": [0.3, 0.5, 0.99]}, base=base, seeds=(0,), **settings), 3)
    results = run_unchecked(engine_of_processes, spec, tmp_path)
    assert marker.exists()
    trajectories = results.trajectories.sort_values("pruning_rate")
    assert list(trajectories["status"]) == ["completed", "completed", "stopped"]
    assert list(trajectories["levels"]) == [3, 3, 2]
    assert "trajectory_restarted" in {event["event"] for event in read_events(tmp_path)}


def test_the_number_of_lanes(search):
    stacked = search({}, base={"training.executor": "stacked"})
    assert lanes_of(stacked) == STACKED_LANES
    assert lanes_of(with_lanes(stacked, 3)) == 3
    assert lanes_of(search({}, base={"training.executor": "stacked"}, max_concurrent=2)) == 2
    assert lanes_of(search({}, base={"training.executor": "auto"})) == 1
    assert lanes_of(with_lanes(search({"training.executor": ["plain", "stacked"]}), 5)) == 5


@pytest.mark.parametrize("executor", ["plain", "sparse", "auto"])
def test_lanes_need_an_executor_that_has_them(search, executor):
    spec = with_lanes(search({}, base={"training.executor": executor}), 2)
    with pytest.raises(SpecError, match=r"resources.lanes: executor '\w+' trains one trajectory at a time, not 2"):
        preflight.check(spec, local=True)


def test_the_plan_says_how_many_train_together(search):
    spec = with_lanes(search({}, base={"training.executor": "stacked"}, trials=100, seeds=range(100)), 4)
    with open_engine("inline", None) as opened:
        assert opened.plan(spec) == [
            "plan: 4 trajectories at a time, trained together in this process, with 1 CPU and 1 thread"
        ]
    with open_engine("processes", None) as opened:
        first, node = opened.plan(spec)
    assert "4 to a worker that trains them together, each worker with 1 CPU and 1 thread" in first
    assert node.endswith(" x 4")


def test_lanes_may_change_when_a_search_is_resumed(stacked, alone):
    before = json.dumps(sorted(finished(alone).items()))
    run_search(with_lanes(stacked(), 3), alone, engine="inline")
    assert json.dumps(sorted(finished(alone).items())) == before
