"""Tests for ticket files: their contents, and training runs that start from them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy

import ticket_search
from ticket_search.config.identity import trajectory_id
from ticket_search.config.trajectory import DatasetSpec
from ticket_search.data import read_arrays
from ticket_search.errors import SpecError, StorageError
from ticket_search.follow_up.export import export_ticket
from ticket_search.lottery.rows import level_row
from ticket_search.lottery.ticket import read_ticket
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.results.reading import load_results
from ticket_search.results.tables import Tables
from ticket_search.runs import store_use
from ticket_search.search.suggestions import Suggestion, SuggestionRecord
from ticket_search.storage.local import LocalFolder
from ticket_search.store.level_store import LevelStore
from ticket_search.tasks.classification import ACCURACY

RATE = 0.5


@pytest.fixture
def run(tmp_path, search, digits):
    """A function that runs a trajectory and returns its run directory, its levels and the name of its last ticket."""

    def make(seed=1, into="run", **base):
        spec = search({"pruning_rate": [RATE]}, seeds=(seed,), base=base)
        point = spec.trajectory_at({"pruning_rate": RATE}, seed)
        folder = LocalFolder(tmp_path / into)
        folder.write("search.yaml", spec.to_yaml().encode())
        name = trajectory_id(point)
        SuggestionRecord(folder).append(
            Suggestion(number=0, values={"pruning_rate": RATE}, seed=seed, trajectory_id=name)
        )
        tables, levels = Tables(folder, spec.space), list(run_trajectory(point, digits, LevelStore(folder / "store")))
        for level in levels:
            tables.levels.put(level_row(point, level, levels[0], 0.0, ACCURACY))
        tables.flush()
        return folder, levels, f"{name}/{levels[-1].number}"

    return make


TRAIN_AGAIN = """
import json, sys
from pathlib import Path
import torch
from ticket_search.lottery.ticket import read_ticket
from ticket_search.tasks.registry import load_task
from ticket_search.training.executors.plain import train
from ticket_search.training.request import LevelInputs, TrainRequest

torch.set_num_threads(1)
for file in sys.argv[1:]:
    ticket = read_ticket(file)
    task = load_task(ticket.spec, Path())
    network = task.build(ticket.spec.model, 99)
    level = LevelInputs(
        weights=ticket.weights, mask=ticket.mask, seed=ticket.spec.seed, start=ticket.start, shift=ticket.shift
    )
    outputs = train(TrainRequest(level=level, network=network, task=task, training=ticket.spec.training, key=""))
    curve = [[p.iteration, p.train_loss, p.val_loss, p.val_metric] for p in outputs.curve]
    print(json.dumps([curve, outputs.test_loss, outputs.test_metric]))
"""
TICKETS = {
    "plain": {},
    "rewound resnet8": {"rewind_iteration": 7, "model.name": "resnet8"},
    "finetune": {"retrain": "finetune"},
    "learning rate": {"retrain": "learning_rate", "rewind_iteration": 7},
    "sign": {"reinit_kept": "sign"},
}


def test_exported_tickets_trained_in_a_new_process_are_bit_identical_to_their_levels(run, tmp_path):
    files, expected = [], {}
    for kind, changes in TICKETS.items():
        folder, levels, name = run(into=kind, **changes)
        files.append(tmp_path / f"{kind}.safetensors")
        export_ticket(folder, name, files[-1])
        curve = [[p.iteration, p.train_loss, p.val_loss, p.val_metric] for p in levels[-1].curve]
        expected[kind] = [curve, levels[-1].test_loss, levels[-1].test_metric]
    found = subprocess.run([sys.executable, "-c", TRAIN_AGAIN, *files], capture_output=True, text=True, check=True)
    assert dict(zip(TICKETS, map(json.loads, found.stdout.splitlines()), strict=True)) == expected


def test_a_loaded_network_trains_in_plain_pytorch_to_the_same_accuracy(run, tmp_path, digits):
    folder, levels, name = run()
    export_ticket(folder, name, tmp_path / "ticket.safetensors")
    network = ticket_search.load_ticket(tmp_path / "ticket.safetensors")
    training, stream = network.ticket.spec.training, digits.data.stream(seed=1, batch_size=64)
    optimizer = torch.optim.Adam(network.parameters(), lr=training.optimizer.lr)
    for iteration in range(network.ticket.start, 40):
        images, labels = stream.batch(iteration)
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
    score = digits.score(network, "test", "fp32")
    assert score.value == levels[-1].test_metric
    assert score.loss == pytest.approx(levels[-1].test_loss, rel=1e-4)
    for module, kept in ((network.fc1, "fc1.weight"), (network.output, "output.weight")):
        assert torch.equal(module.weight != 0, levels[-1].mask[kept])


def test_the_contents_of_the_file(run, tmp_path, digits):
    folder, levels, name = run(rewind_iteration=7)
    export_ticket(folder, name, tmp_path / "t.safetensors")
    ticket = read_ticket(tmp_path / "t.safetensors")
    assert (ticket.name, ticket.level_key, ticket.start, ticket.shift) == (name, levels[-1].key, 7, 0)
    export_ticket(folder, name, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()
    assert (ticket.inputs, ticket.spec.seed) == ({"image_shape": (1, 8, 8), "classes": 10}, 1)
    assert all(torch.equal(ticket.mask[n], kept) for n, kept in levels[-1].mask.items())
    assert list(ticket.mask) == list(levels[-1].mask)
    assert ticket.figures["val_accuracy"] == levels[-1].val_metric
    assert ticket.figures["density"] == pytest.approx(0.25, abs=0.01)
    with safe_open(tmp_path / "t.safetensors", framework="np") as file:  # the file can be read without ticket_search
        assert json.loads(file.metadata()["ticket"])["format"] == "ticket_search.ticket.1"
        assert file.get_tensor("mask/fc1.weight").dtype == bool
        assert (file.get_tensor("weights/fc1.weight")[~file.get_tensor("mask/fc1.weight")] == 0).all()


@pytest.mark.parametrize("retrain", ["weights", "finetune"])
def test_export_from_a_pruned_store_that_kept_the_ticket(run, tmp_path, retrain):
    folder, levels, name = run(retrain=retrain, **{"training.iterations": 20})
    store_use.prune(store_use.inspect(folder, lambda results: results.levels[results.levels["level"] == 2]))
    export_ticket(folder, name, tmp_path / "t.safetensors")
    assert read_ticket(tmp_path / "t.safetensors").level_key == levels[-1].key


def test_a_tied_weight_is_masked_under_both_its_names(run, tmp_path, monkeypatch):
    (tmp_path / "own_tied.py").write_text(
        "from torch import nn\n\n\n"
        "def make(image_shape, classes):\n"
        "    one, other = nn.Linear(64, 64), nn.Linear(64, 64)\n"
        "    network = nn.Sequential(nn.Flatten(), one, nn.ReLU(), other, nn.Linear(64, 10))\n"
        "    network[3].weight = network[1].weight\n"
        "    return network\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder, levels, name = run(**{"model.name": "own_tied:make"}, reinit_kept="sign")
    export_ticket(folder, name, tmp_path / "t.safetensors")
    network = ticket_search.load_ticket(tmp_path / "t.safetensors", allow_code=True)
    network(torch.zeros(1, 1, 8, 8))
    kept = levels[-1].mask["1.weight"]
    assert network[1].weight_orig is network[3].weight_orig
    for layer in (network[1], network[3]):
        assert torch.equal(layer.weight != 0, kept)
    assert len(network[1].weight[kept].abs().unique()) == 1  # all kept weights have the same magnitude
    sys.modules.pop("own_tied", None)


class TestRefused:
    @pytest.fixture
    def ticket(self, finished_search):
        """A run directory and the name of one of its tickets."""
        return LocalFolder(finished_search), f"{load_results(finished_search).levels['trajectory_id'][0]}/2"

    def test_an_unknown_ticket(self, run, tmp_path):
        folder, _, name = run()
        with pytest.raises(SpecError, match=rf"unknown ticket 'nonsense'.*known: {name[:-2]}/1, {name}"):
            export_ticket(folder, "nonsense", tmp_path / "t.safetensors")
        with pytest.raises(SpecError, match="unknown ticket"):  # level 0 is the dense network, not a ticket
            export_ticket(folder, f"{name[:-2]}/0", tmp_path / "t.safetensors")

    def test_an_existing_file(self, ticket, tmp_path):
        folder, name = ticket
        (tmp_path / "t.safetensors").write_text("mine")
        with pytest.raises(SpecError, match="already exists; give another name, or remove it"):
            export_ticket(folder, name, tmp_path / "t.safetensors")
        assert (tmp_path / "t.safetensors").read_text() == "mine"

    def test_a_folder_that_is_a_file(self, ticket, tmp_path):
        folder, name = ticket
        (tmp_path / "file").write_text("mine")
        with pytest.raises(SpecError, match=r"file' is a file, not a folder"):
            export_ticket(folder, name, tmp_path / "file" / "t.safetensors")

    def test_a_ticket_with_missing_metadata(self, tmp_path):
        from safetensors.torch import save_file

        said = {"ticket": json.dumps({"format": "ticket_search.ticket.1"})}
        save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors", said)
        with pytest.raises(SpecError, match=r"is a damaged ticket: ticket: is missing\nlevel_key: is missing"):
            ticket_search.load_ticket(tmp_path / "w.safetensors")

    def test_a_level_that_was_removed(self, run, tmp_path):
        folder, levels, name = run()
        folder.remove(f"store/{levels[-1].key[:2]}/{levels[-1].key}.safetensors")
        with pytest.raises(StorageError, match=rf"level 2 \({levels[-1].key}\) is no longer in the store"):
            export_ticket(folder, name, tmp_path / "t.safetensors")

    def test_a_level_whose_entry_is_damaged(self, run, tmp_path):
        folder, levels, name = run()
        entry = tmp_path / "run" / "store" / levels[-1].key[:2] / f"{levels[-1].key}.safetensors"
        data = bytearray(entry.read_bytes())
        data[-1] ^= 1
        entry.write_bytes(data)
        damaged = rf"level 2 \({levels[-1].key}\) was damaged in the store and was moved aside to '.*'; restore"
        for _ in range(2):  # the first attempt moves the damaged entry aside
            with pytest.raises(StorageError, match=damaged):
                export_ticket(folder, name, tmp_path / "t.safetensors")
        assert not (tmp_path / "t.safetensors").exists()

    def test_a_folder_that_does_not_exist(self, ticket, tmp_path):
        folder, name = ticket
        with pytest.raises(
            SpecError, match=r"there is no folder '.*new/folder'; create the folder first, or give another path"
        ):
            export_ticket(folder, name, tmp_path / "new" / "folder" / "t.safetensors")
        assert not (tmp_path / "new").exists()

    def test_changed_data(self, ticket, tmp_path, monkeypatch):
        folder, name = ticket
        other = read_arrays(DatasetSpec(name="digits", validation=300), Path())
        object.__setattr__(other, "fingerprint", "0" * 32)
        monkeypatch.setattr("ticket_search.tasks.classification.read_arrays", lambda *_: other)
        with pytest.raises(SpecError, match="the data differ from those that the search used"):
            export_ticket(folder, name, tmp_path / "t.safetensors")

    def test_pruned_weights_that_are_not_zero(self, run, tmp_path):
        folder, _, name = run(reinit_pruned="initial")
        with pytest.raises(SpecError, match=r"keeps its pruned weights at their initial values"):
            export_ticket(folder, name, tmp_path / "t.safetensors")

    @pytest.mark.parametrize("content", [b"", b"nonsense", None])
    def test_a_file_that_is_not_a_ticket(self, tmp_path, content):
        path = tmp_path / "t.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SpecError, match=r"is not a ticket: |does not exist"):
            ticket_search.load_ticket(path)

    def test_a_safetensors_file_without_a_ticket(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
        with pytest.raises(
            SpecError, match="is not a ticket: its metadata has no key 'ticket'; `ticket-search export` writes"
        ):
            ticket_search.load_ticket(tmp_path / "w.safetensors")
