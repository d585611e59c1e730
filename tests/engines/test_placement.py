"""Tests for the plan of a search on different clusters, and for the refusal of trajectories that no node can run."""

from types import SimpleNamespace

import pytest
import torch

from ticket_search.config.base import validate
from ticket_search.config.settings import ResourcesSpec
from ticket_search.engines.job import make_job
from ticket_search.engines.placement import NodeType, check, describe, fitting_on, node_wait_seconds
from ticket_search.engines.ray import nodes
from ticket_search.engines.ray.nodes import Slots, node_types
from ticket_search.engines.worker import prepare
from ticket_search.errors import SpecError
from ticket_search.storage.folder import open_folder

LAPTOP = {"CPU": 8.0}
GPU_NODE = {"CPU": 16.0, "GPU": 4.0}
HEAD = {"CPU": 0.0}


def resources(**given):
    return validate(ResourcesSpec, given)


@pytest.fixture
def spec(search):
    def make(cpus=1, gpus=0.0, trials=1000, **settings):
        made = search({"pruning_rate": {"low": 0.1, "high": 0.5}}, trials=trials, sampler="random", **settings)
        return made.model_copy(update={"resources": resources(cpus=cpus, gpus=gpus)})

    return make


@pytest.mark.parametrize(
    ("wanted", "node", "fits"),
    [
        ({"cpus": 1}, LAPTOP, 8),
        ({"cpus": 0.5}, LAPTOP, 16),
        ({"cpus": 3}, LAPTOP, 2),
        ({"cpus": 9}, LAPTOP, 0),
        ({"cpus": 1, "gpus": 0.25}, GPU_NODE, 16),
        ({"cpus": 2, "gpus": 0.25}, GPU_NODE, 8),
        ({"cpus": 1, "gpus": 0.3333}, GPU_NODE, 12),
        ({"cpus": 1, "gpus": 2}, GPU_NODE, 2),
        ({"cpus": 1, "gpus": 0.25}, LAPTOP, 0),
        ({"cpus": 1}, HEAD, 0),
        ({"cpus": 1}, {}, 0),
    ],
)
def test_how_many_fit_on_a_node(wanted, node, fits):
    assert fitting_on(resources(**wanted), node) == fits


class TestPlan:
    def test_a_laptop(self, spec):
        assert describe(spec(cpus=2), [LAPTOP], []) == [
            "plan: 4 trajectories at a time, each with 2 CPUs and 2 threads",
            "  1 node of 8 CPUs and 0 GPUs: 4",
        ]

    def test_nodes_of_a_kind_are_one_line(self, spec):
        gpu_type = NodeType(name="gpu", resources=GPU_NODE, most=10)
        assert describe(spec(gpus=0.25), [HEAD, GPU_NODE, GPU_NODE, GPU_NODE], [gpu_type]) == [
            "plan: 48 trajectories at a time, each with 1 CPU, 1 thread and 1/4 of a GPU",
            "  1 node of 0 CPUs and 0 GPUs: 0",
            "  3 nodes of 16 CPUs and 4 GPUs: 16 each",
            "  up to 10 more nodes of type gpu with 16 CPUs and 4 GPUs may be started: 16 each",
        ]

    def test_the_limiting_setting_is_named(self, spec):
        assert describe(spec(max_concurrent=3), [LAPTOP], [])[0].startswith(
            "plan: 3 trajectories at a time (limited by search.max_concurrent; 8 would fit), "
        )
        assert describe(spec(trials=1), [LAPTOP], [])[0].startswith(
            "plan: 1 trajectory at a time (the search has no more; 8 would fit), "
        )
        assert "would fit" not in describe(spec(max_concurrent=8), [LAPTOP], [])[0]

    def test_nothing_fits_yet(self, spec):
        unknown = NodeType(name="local.cluster.node", resources={}, most=3)
        assert describe(spec(gpus=1), [LAPTOP], [unknown]) == [
            "plan: 0 trajectories at a time, each with 1 CPU, 1 thread and 1 GPU",
            "  1 node of 8 CPUs and 0 GPUs: 0",
            "  up to 3 more nodes of type local.cluster.node with resources that are not known yet may be started",
            "  waiting up to 900 seconds for a node that can run a trajectory",
        ]


class TestCheck:
    def test_a_request_that_no_node_can_meet_is_refused_with_the_nodes(self):
        with pytest.raises(SpecError) as refused:
            check(resources(cpus=1, gpus=1), [LAPTOP, LAPTOP, HEAD], [NodeType(name="big", resources=LAPTOP, most=5)])
        assert str(refused.value) == (
            "resources: no node has 1 CPU and 1 GPU for a trajectory; available: 2 nodes of 8 CPUs and 0 GPUs; "
            "1 node of 0 CPUs and 0 GPUs, and an autoscaler may start up to 5 more nodes of type big with 8 CPUs and 0 "
            "GPUs"
        )

    @pytest.mark.parametrize(
        "types",
        [
            pytest.param([NodeType(name="gpu", resources=GPU_NODE, most=1)], id="a node that can be started has it"),
            pytest.param([NodeType(name="unknown", resources={}, most=1)], id="a machine that has not joined yet"),
            pytest.param(None, id="Kubernetes"),
        ],
    )
    def test_a_request_that_a_later_node_may_meet_is_accepted(self, types):
        check(resources(cpus=1, gpus=1), [LAPTOP], types)


class TestNodeTypes:
    @pytest.fixture(autouse=True)
    def on_a_head(self, monkeypatch, tmp_path):
        monkeypatch.setattr(nodes, "_LAUNCHED", tmp_path / "bootstrap.yaml")
        monkeypatch.setattr(nodes, "own_processes", list)
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        self.launched = tmp_path / "bootstrap.yaml"
        self.patch = monkeypatch
        self.nodes(1)

    def nodes(self, count, kind="local"):
        labels = {} if kind == "local" else {"ray.io/node-group": kind}
        listed = [{"Alive": True, "Resources": LAPTOP, "Labels": labels}] * count
        listed += [{"Alive": True, "Resources": HEAD, "Labels": {"ray.io/node-group": "head"}}] * (kind != "local")
        listed += [{"Alive": False, "Resources": GPU_NODE, "Labels": labels}]
        self.patch.setattr(nodes, "ray", SimpleNamespace(nodes=lambda: listed))

    def test_a_cloud_may_start_all_types_but_the_heads(self):
        self.launched.write_text(
            "max_workers: 9\nhead_node_type: head\navailable_node_types:\n"
            "  head: {resources: {CPU: 0}}\n  gpu: {resources: {CPU: 16, GPU: 4}, max_workers: 8}\n"
            "  cpu: {resources: {CPU: 8}}\n  none: {resources: {CPU: 8}, max_workers: 0}\n"
        )
        self.nodes(2, "cpu")
        assert node_types() == [
            NodeType(name="gpu", resources=GPU_NODE, most=7),  # two of the nine workers are already running
            NodeType(name="cpu", resources=LAPTOP, most=7),
            NodeType(name="none", resources=LAPTOP, most=0),
        ]

    def test_listed_machines_that_have_not_joined_may_still_come(self):
        self.launched.write_text(
            "max_workers: 3\nhead_node_type: local\navailable_node_types: {local: {resources: {}, max_workers: 3}}"
        )
        assert node_types() == [NodeType(name="local", resources={}, most=3)]
        self.nodes(4)
        assert node_types() == [NodeType(name="local", resources={}, most=0)]
        with pytest.raises(SpecError, match="no node has"):
            check(resources(cpus=1, gpus=1), [LAPTOP], node_types())

    @pytest.mark.parametrize("text", [None, "", "[", "a: b", "available_node_types: 3"])
    def test_a_cluster_started_by_hand_starts_no_nodes(self, text):
        if text is not None:
            self.launched.write_text(text)
        assert node_types() == []

    def test_a_slurm_job_ignores_the_bootstrap_file(self):
        self.launched.write_text("max_workers: 9\nhead_node_type: a\navailable_node_types: {b: {resources: {CPU: 9}}}")
        assert node_types() != []
        self.patch.setenv("SLURM_JOB_ID", "7")
        assert node_types() == []

    def test_on_kubernetes_the_types_are_unknown(self):
        self.patch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        assert node_types() is None

    def test_a_local_ray_starts_no_nodes(self):
        self.launched.write_text("max_workers: 9\nhead_node_type: a\navailable_node_types: {b: {resources: {CPU: 9}}}")
        self.patch.setattr(nodes, "own_processes", lambda: {1})
        assert node_types() == []


class TestSlots:
    @pytest.fixture(autouse=True)
    def cluster(self, monkeypatch):
        self.there, self.may_come = [LAPTOP], []
        monkeypatch.setattr(
            nodes,
            "_nodes",
            lambda without=(): [node for number, node in enumerate(self.there) if str(number) not in without],
        )
        monkeypatch.setattr(nodes, "node_types", lambda: self.may_come)
        monkeypatch.setattr(nodes, "own_processes", list)
        monkeypatch.setattr(nodes, "_LOOK_SECONDS", 0.0)

    def test_there_are_as_many_slots_as_fit_and_one_to_request_another_node(self):
        slots = Slots(resources(cpus=2), None)
        assert slots.count() == 5
        self.there = [LAPTOP, LAPTOP]
        assert slots.count() == 9
        assert Slots(resources(cpus=2), 3).count() == 3

    def test_a_cluster_that_can_grow_doubles_and_stops_at_its_bounds(self):
        self.there, self.may_come = [HEAD], [NodeType(name="cpu", resources=LAPTOP, most=3)]
        slots = Slots(resources(cpus=2), None)
        assert slots.count() == 1
        self.there, self.may_come = [HEAD, LAPTOP], [NodeType(name="cpu", resources=LAPTOP, most=2)]
        assert slots.count() == 8
        self.there, self.may_come = [HEAD, LAPTOP, LAPTOP], [NodeType(name="cpu", resources=LAPTOP, most=1)]
        assert slots.count() == 12
        self.there, self.may_come = [HEAD, LAPTOP, LAPTOP, LAPTOP], []
        assert slots.count() == 13

    def test_gpu_machines_are_not_requested_by_trajectories_without_gpus(self):
        full, gpus = NodeType(name="cpu", resources=LAPTOP, most=0), NodeType(name="gpu", resources=GPU_NODE, most=5)
        self.there, self.may_come = [HEAD, LAPTOP], [full, gpus]
        assert Slots(resources(cpus=2), None).count() == 4
        self.may_come = [gpus]
        assert Slots(resources(cpus=2), None).count() == 8

    def test_the_search_ends_if_no_suitable_node_joins_but_not_if_one_is_lost(self):
        self.may_come = [NodeType(name="not joined yet", resources={}, most=1)]
        slots = Slots(resources(cpus=1, gpus=1), None)
        assert slots.count() == 1
        self.may_come = []
        with pytest.raises(SpecError, match="no node has 1 CPU and 1 GPU"):
            slots.count()
        self.there = [GPU_NODE]
        assert slots.count() == 5
        self.there = [LAPTOP]
        assert slots.count() == 1

    def test_a_node_that_is_left_out_does_not_count(self):
        self.there = [LAPTOP, LAPTOP]
        slots = Slots(resources(cpus=2), None)
        assert slots.count() == 9
        assert slots.leave_out("1")
        assert slots.left_out == ("1",)
        assert slots.count() == 5
        assert not slots.leave_out("0")

    def test_the_wait_is_limited_if_the_node_types_are_unknown(self, monkeypatch):
        clock = [1000.0]
        monkeypatch.setattr(nodes.time, "monotonic", lambda: clock[0])
        monkeypatch.setenv("TICKET_SEARCH_NODE_WAIT_SECONDS", "60")
        self.may_come = None
        slots = Slots(resources(cpus=1, gpus=8), None)
        clock[0] += 59
        assert slots.count() == 1
        clock[0] += 2
        with pytest.raises(SpecError) as error:
            slots.count()
        assert str(error.value) == (
            "resources: no node with 1 CPU and 8 GPUs for a trajectory joined within 60 seconds; available: 1 node of "
            "8 CPUs and 0 GPUs. Ask for less, or let the autoscaler start larger nodes; "
            "the environment variable TICKET_SEARCH_NODE_WAIT_SECONDS sets how many seconds to wait"
        )


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", ""])
def test_an_invalid_time_to_wait_is_refused(monkeypatch, text):
    monkeypatch.setenv("TICKET_SEARCH_NODE_WAIT_SECONDS", text)
    with pytest.raises(
        SpecError, match=f"TICKET_SEARCH_NODE_WAIT_SECONDS='{text}' in the environment is not valid: give a number"
    ):
        node_wait_seconds()


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (3, 3)])
def test_a_trajectory_has_as_many_threads_as_cpus(spec, tmp_path, cpus, threads):
    asked = spec(cpus=cpus)
    job = make_job(asked, 0, asked.trajectory_at({"pruning_rate": 0.5}, 0), open_folder(tmp_path), "")
    before = torch.get_num_threads()
    try:
        prepare(job)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
