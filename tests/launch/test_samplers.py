"""Each sampler works in a complete search."""

import pytest

from ticket_search import load_results
from ticket_search.launch.run import run_search


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe"])
def test_samplers_handle_stopped_trajectories(search, tmp_path, sampler):
    spec = search(
        {"pruning_rate": {"low": 0.5, "high": 0.9}, "criterion": ["magnitude", "random"]},
        base={"pruning.max_levels": 6, "pruning.min_density": 0.001},
        sampler=sampler,
        trials=6,
        early_stopping={"collapse": 0.2, "collapse_levels": 2},
    )
    progress = run_search(spec, tmp_path / "run", engine="inline")
    assert progress.done == 6
    trajectories = load_results(tmp_path / "run").trajectories
    stopped = trajectories[trajectories["status"] == "stopped"]
    assert progress.counts["stopped"] == len(stopped) >= 1
    assert stopped["reason"].str.startswith(("collapsed: 2 levels", "no match for")).all()
    assert sorted(trajectories["seed"]) == [0, 0, 1, 1, 2, 2]
