"""Tests for the transfer of a ticket to another data set: training runs, the table, and the refusal of bad input."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from by_hand import run_by_hand
from helpers import in_process
from safetensors import safe_open
from safetensors.torch import load, save

import ticket_search
from ticket_search.analysis.tickets import tickets as sparsest
from ticket_search.analysis.transfer import transfer_table
from ticket_search.config.trajectory import DatasetSpec
from ticket_search.data.dataset import load_dataset
from ticket_search.errors import SpecError
from ticket_search.follow_up.transfer import read_tickets, transfer
from ticket_search.launch.run import run_search
from ticket_search.lottery.finished import FinishedTrajectory
from ticket_search.lottery.ticket import Ticket, read_ticket
from ticket_search.lottery.trajectory import run_trajectory
from ticket_search.results.reading import Results, load_results
from ticket_search.results.schema import schemas
from ticket_search.runs.store_use import inspect, prune
from ticket_search.storage.local import LocalFolder
from ticket_search.store.level_store import LevelStore
from ticket_search.tasks.images import ImageTask

KEY = "0123456789abcdef" * 2
#: A module with two data sets: four classes of 8x8 images, and ten classes of 6x6 images.
OTHER_DATA = """
from importlib.resources import files
import numpy as np

def _digits():
    with np.load(files("ticket_search.data") / "digits.npz") as file:
        return {s: (file[f"{s}_images"], file[f"{s}_labels"]) for s in ("train", "test")}

def four():
    return {s: (images[labels < 4], labels[labels < 4]) for s, (images, labels) in _digits().items()}

def small():
    return {s: (images[..., 1:7, 1:7], labels) for s, (images, labels) in _digits().items()}
"""


@pytest.fixture
def other_data(tmp_path, monkeypatch):
    (tmp_path / "other_data.py").write_text(OTHER_DATA)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: ImageTask(load_dataset(DatasetSpec(name=f"other_data:{name}", validation=100), tmp_path))


@pytest.fixture
def found(trajectory, digits, stores):
    """A function that finds a ticket with half of the weights, and returns the ticket and its level."""

    def make(changes=(), seed=1):
        spec = trajectory({"max_levels": 1, "pruning_rate": 0.5, **dict(changes)}, seed=seed)
        store = stores()
        level = list(run_trajectory(spec, digits, store))[-1]
        return FinishedTrajectory(spec, digits, store).ticket(1, f"aa{seed}/1", {"density": 0.5}), level

    return make


@pytest.fixture
def stores(tmp_path):
    numbers = iter(range(99))
    return lambda: LevelStore(tmp_path / f"store{next(numbers)}")


def moved(ticket, data, stores, *, weights="ticket", seed=None, controls=(), **dataset):
    """Train `ticket` on `data`; return the levels of the trajectory."""
    store = stores()
    store.save(KEY, ticket.to_entry())
    pruning = {"ticket": KEY, "ticket_weights": weights, "rewind_iteration": ticket.spec.pruning.rewind_iteration}
    spec = ticket.spec.model_copy(
        update={
            "dataset": ticket.spec.dataset.model_copy(update=dataset | {"normalize": None}),
            "pruning": type(ticket.spec.pruning)(**pruning),
            "controls": type(ticket.spec.controls)(kinds=controls),
            "seed": ticket.spec.seed if seed is None else seed,
        }
    )
    return list(run_trajectory(spec, data, store))


def points(level):
    return [(p.iteration, p.train_loss, p.val_loss, p.val_metric) for p in level.curve]


@pytest.mark.parametrize(
    "changes", [{}, {"rewind_iteration": 7, "model.name": "resnet8"}, {"reinit_kept": "sign"}], ids=str
)
def test_a_ticket_trained_on_its_own_data_and_seed_is_bit_identical(found, digits, stores, changes):
    ticket, level = found(changes)
    _, again = moved(ticket, digits, stores)
    assert again.number == 1
    assert points(again) == points(level)
    assert again.test_loss == level.test_loss
    assert all(torch.equal(again.mask[n], kept) for n, kept in level.mask.items())


@pytest.mark.parametrize("k", [0, 7])
def test_a_mask_alone_starts_from_the_dense_network_of_the_new_data(found, digits, trainings, stores, k):
    ticket, _ = found({"rewind_iteration": k})
    for seen in (trainings.inputs, trainings.levels, trainings.outputs):
        seen.clear()
    moved(ticket, digits, stores, weights="own", seed=9)
    rewind = trainings.outputs[0].kept[k]
    assert [level.seed for level in trainings.levels] == [9, 9]
    assert trainings.levels[1].start == k
    for name, given in trainings.inputs[1].items():
        kept = ticket.mask.get(name)
        assert torch.equal(given, rewind[name] if kept is None else rewind[name] * kept)
    assert not torch.equal(trainings.inputs[1]["fc1.weight"], ticket.weights["fc1.weight"])


def test_for_other_classes_the_head_is_new_and_dense(found, trainings, other_data, stores):
    ticket, _ = found()
    trainings.inputs.clear()
    data = other_data("four")
    dense, level = moved(ticket, data, stores, seed=4, name="other_data:four", controls=["shuffled_mask"])
    given = trainings.inputs[1]
    assert level.mask["output.weight"].shape == (4, 16)
    assert level.mask["output.weight"].all()
    assert torch.equal(level.mask["fc1.weight"], ticket.mask["fc1.weight"])
    assert torch.equal(given["fc1.weight"], ticket.weights["fc1.weight"])
    assert torch.equal(given["output.weight"], trainings.inputs[0]["output.weight"])
    (control,) = level.controls
    assert control.level.mask["output.weight"].all()
    assert int(control.level.mask["fc1.weight"].sum()) == int(ticket.mask["fc1.weight"].sum())
    assert level.val_metric > 0.5 < dense.val_metric


def test_images_of_another_size_are_refused(found, other_data, stores):
    ticket, _ = found()
    with pytest.raises(SpecError, match="takes images of 1 x 8 x 8, but the data set has images of 1 x 6 x 6"):
        moved(ticket, other_data("small"), stores, name="other_data:small")


def test_a_ticket_of_another_network_is_refused(found, digits, stores):
    ticket, _ = found()
    store = stores()
    store.save(KEY, ticket.to_entry())
    other = found({"model.name": "lenet_8"})[0].spec.model_copy(
        update={"pruning": type(ticket.spec.pruning)(ticket=KEY)}
    )
    with pytest.raises(SpecError, match="belongs to the network 'lenet_16', not to 'lenet_8'"):
        list(run_trajectory(other, digits, store))


@pytest.fixture
def files(found, tmp_path):
    """Two ticket files. The first ticket was found with seed 1, the second with seed 2."""
    paths = []
    for seed in (1, 2):
        paths.append(tmp_path / f"{seed}.safetensors")
        paths[-1].write_bytes(found(seed=seed)[0].to_bytes())
    return paths


def test_the_search_of_a_transfer(files):
    tickets = read_tickets(files)
    spec = transfer(tickets, "mnist", seeds=3, draws=2, mask_alone=False, settings=("training.iterations=7",))
    assert re.fullmatch("2_tickets_[0-9a-f]{8}_on_mnist", spec.name)
    assert (spec.seeds, spec.dataset.name, spec.dataset.validation) == ((3, 4, 5), "mnist", 300)
    assert spec.dataset.normalize is None
    assert spec.space["ticket"] == tuple(tickets)
    assert (spec.controls.kinds, spec.controls.draws) == (("random_reinit", "shuffled_mask"), 2)
    assert spec.training.iterations == 7
    assert spec.planned_trials == 6
    alone = transfer(tickets, "digits", seeds=1, draws=1, mask_alone=True)
    assert alone.pruning.ticket_weights == "own"
    assert alone.controls.kinds == ("shuffled_mask",)
    assert alone.name == spec.name.replace("mnist", "digits_mask_alone")


@pytest.mark.parametrize(
    "changes",
    [
        {"training.iterations": 30},
        {"rewind_iteration": 3},
        {"criterion": "random"},
        {"dataset.augment": {"crop": 1}},
        {"model.name": "lenet_8"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_tickets_found_in_different_ways_are_not_pooled(files, found, tmp_path, changes):
    other = tmp_path / "other.safetensors"
    other.write_bytes(found(changes, seed=2)[0].to_bytes())
    with pytest.raises(
        SpecError, match=f"found with different settings of .*{next(iter(changes))}.*; transfer them one by one"
    ):
        transfer(read_tickets([files[0], other]), "digits", seeds=1, draws=1, mask_alone=False)


def test_the_same_ticket_in_two_files_is_refused(files, found, tmp_path):
    """Tickets that differ only in their names and figures count as the same, because neither affects training."""
    again = tmp_path / "again.safetensors"
    ticket = read_ticket(files[0])
    again.write_bytes(dataclasses.replace(ticket, name="bb/1", figures={"density": 0.5, "train_seconds": 9}).to_bytes())
    with pytest.raises(SpecError, match="contains the same ticket as another file"):
        read_tickets([files[0], again])
    for name in ("fc1.weight", "fc1.bias"):
        weights = ticket.weights | {name: ticket.weights[name] + 1}
        assert dataclasses.replace(ticket, weights=weights).key != ticket.key
    mask = ticket.mask | {"fc1.weight": ~ticket.mask["fc1.weight"]}
    assert dataclasses.replace(ticket, mask=mask).key != ticket.key
    assert dataclasses.replace(ticket, inputs=ticket.inputs | {"classes": 9}).key != ticket.key


def test_a_key_that_looks_like_a_number_stays_text(found):
    key = "1234567890123456789012345678e901"
    spec = transfer({key: found()[0]}, "digits", seeds=1, draws=1, mask_alone=False)
    assert (spec.pruning.ticket, spec.space) == (key, {"ticket": (key,)})


@pytest.mark.parametrize("retrain", ["finetune", "learning_rate"])
def test_trained_weights_are_not_transferred(found, retrain):
    ticket, _ = found({"retrain": retrain, "max_levels": 1})
    options = {"seeds": 1, "draws": 1}
    with pytest.raises(SpecError, match=r"starts from trained weights .* use only its mask, with --mask-alone"):
        transfer({ticket.key: ticket}, "digits", mask_alone=False, **options)
    assert transfer({ticket.key: ticket}, "digits", mask_alone=True, **options).pruning.ticket_weights == "own"


def test_a_user_network_whose_code_has_changed_is_refused(found, digits, stores, tmp_path, monkeypatch):
    """If the number of classes is the same, a tensor with a different shape cannot be a new output layer."""
    ticket, _ = found()
    shapes = {name: value.shape for name, value in ticket.weights.items()}
    wider = shapes | {"fc1.weight": torch.Size([24, 64])}
    for changed in (
        wider,
        shapes | {"new.weight": torch.Size([3, 3])},
        {n: s for n, s in shapes.items() if n != "fc1.bias"},
    ):
        with pytest.raises(SpecError, match="the network's code or the ticket file has changed; export"):
            ticket.cut_to(changed, ticket.inputs)
    assert set(ticket.cut_to(shapes, ticket.inputs).weights) == set(shapes)
    other_head = shapes | {"output.weight": torch.Size([4, 16]), "output.bias": torch.Size([4])}
    four = ticket.inputs | {"classes": 4}
    assert set(ticket.cut_to(other_head, four).weights) == {"fc1.weight", "fc1.bias"}
    assert list(ticket.cut_to(other_head, four).mask) == ["fc1.weight"]


def test_the_command_writes_the_table_and_a_second_run_trains_nothing(files, tmp_path, other_data):
    options = (*files, "--dataset", "other_data:four", "--seeds", 2, "--output", "run", "--engine", "inline")
    said = in_process("transfer", *options, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    table = pd.read_parquet(tmp_path / "run" / "transfer")
    assert list(table["arm"]) == ["dense", "ticket", "random_reinit", "shuffled_mask"]
    assert table["tickets"].tolist() == table["seeds"].tolist() == [2] * 4
    assert table["verdict"].notna().tolist() == [False, True, False, False]
    assert table["verdict"][1] in said.stdout
    results = load_results(tmp_path / "run")
    assert set(results.levels["seed"]) == {3, 4}
    # Both tickets share one dense network for each seed.
    assert results.levels.loc[results.levels["level"] == 0, "level_key"].nunique() == 2
    again = in_process("transfer", *options, cwd=tmp_path)
    assert again.returncode == 0
    pd.testing.assert_frame_equal(load_results(tmp_path / "run").levels, results.levels)
    # The transfer needs everything in its store, so pruning would remove nothing.
    use = inspect(LocalFolder(tmp_path / "run"))
    assert len(use.kinds["tickets"]) == 2
    assert use.unneeded == []
    store = LevelStore(tmp_path / "run" / "store")
    assert {Ticket.from_entry(store.load(key)).name for key in results.levels["ticket"]} == {"aa1/1", "aa2/1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dataset", "other_data:small"],
            "takes images of 1 x 8 x 8, but the data set has images of 1 x 6 x 6",
        ),
        (["--dataset", "minst"], "unknown dataset 'minst' (did you mean 'mnist'?)"),
        (["--dataset", "mnist"], "dataset 'mnist' not found"),
        (
            ["--dataset", "digits", "--set", "model.name=lenet_8"],
            "belongs to the network 'lenet_16', not to 'lenet_8'",
        ),
        (["--dataset", "digits", "--set", "retrain=finetune"], "set retrain to 'weights', or ticket to null"),
        (
            ["--dataset", "digits", "--set", "space.strategy=[global]"],
            "the space of a transfer must contain only its tickets",
        ),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(files, tmp_path, other_data, arguments, message):
    said = in_process("transfer", files[0], *arguments, cwd=tmp_path)
    assert said.returncode == 2
    assert message in said.stderr
    assert len(said.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def altered(file, changes, tensors=()):
    """Return the bytes of a ticket file after changing metadata and tensors and removing the checksum.

    Files of older versions have no checksum either, so the file is not refused for the lack of one.
    """
    with safe_open(file, framework="pt") as opened:
        plain = json.loads(opened.metadata()["ticket"])
    del plain["sha256"]
    return save(load(file.read_bytes()) | dict(tensors), {"ticket": json.dumps(plain | changes)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"figures": [1, 2]}, "figures: [1, 2] is not valid: input should be a mapping of keys to values"),
        ({"classes": "ten"}, "classes: 'ten' is not valid: input should be a valid integer"),
        ({"classes": None}, "it needs 'image_shape' and 'classes', or else 'inputs'"),
        ({"image_shape": [1, 8, -8]}, "image_shape.2: -8 is not valid: input should be greater than or equal to 1"),
        ({"mask": []}, "mask: [] is not valid"),
        ({"mask": ["fc9.weight"]}, "it has no tensor mask/fc9.weight, which its metadata lists"),
        ({"trajectory": {}}, "trajectory.model: is missing"),
        ({"start": None}, "start: None is not valid"),
        ({"level_key": 7}, "level_key: 7 is not valid: input should be a valid string"),
    ],
)
def test_a_damaged_ticket_is_one_message(files, tmp_path, changes, message):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(altered(files[0], changes))
    said = in_process("transfer", bad, "--dataset", "digits", cwd=tmp_path)
    assert said.returncode == 2
    assert f"error: '{bad}' is a damaged ticket: " in said.stderr
    assert message in said.stderr
    assert "Traceback" not in said.stderr


def test_invalid_masks_are_refused(files, tmp_path):
    kept, bad = read_ticket(files[0]).mask["fc1.weight"], tmp_path / "bad.safetensors"
    for other in (kept.float(), kept[:5]):
        bad.write_bytes(altered(files[0], {}, {"mask/fc1.weight": other.contiguous()}))
        with pytest.raises(SpecError, match=r"is a damaged ticket: the mask of 'fc1.weight' is torch"):
            read_tickets([bad])


def test_weights_with_nan_are_refused(files, tmp_path):
    weights, bad = read_ticket(files[0]).weights["fc1.weight"].clone(), tmp_path / "bad.safetensors"
    weights[3, 5] = torch.nan
    bad.write_bytes(altered(files[0], {}, {"weights/fc1.weight": weights}))
    with pytest.raises(SpecError, match=r"is a damaged ticket: its weights 'fc1.weight' contain NaN"):
        read_tickets([bad])


def test_a_file_without_a_checksum_is_read(files, tmp_path):
    (tmp_path / "old.safetensors").write_bytes(altered(files[0], {}))
    assert read_ticket(tmp_path / "old.safetensors").key == read_ticket(files[0]).key


def test_a_flipped_byte_is_found_wherever_it_is(files, tmp_path):
    data, bad = files[0].read_bytes(), tmp_path / "bad.safetensors"
    whole = read_ticket(files[0]).to_bytes()
    for place in (*range(0, 400, 7), *range(400, len(data), 97), len(data) - 1):
        bad.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        # A flip may go unnoticed if the ticket stays the same, for example if the flip is in the checksum's name.
        try:
            assert read_ticket(bad).to_bytes() == whole, place
        except SpecError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("lenet_8", r"'fc1.weight' has the shape \[16, 64\] in the ticket and \[8, 64\] in the network 'lenet_8'"),
        ("conv2", "in the network 'conv2': the network's code or the ticket file has changed; export the ticket again"),
        ("vgg19", "model 'vgg19': images of 8x8 pixels are too small"),
    ],
)
def test_metadata_with_another_network_are_refused(files, tmp_path, model, message):
    trajectory = read_ticket(files[0]).spec.model_dump(mode="json") | {"model": {"name": model}}
    (tmp_path / "bad.safetensors").write_bytes(altered(files[0], {"trajectory": trajectory}))
    with pytest.raises(SpecError, match=message):
        ticket_search.load_ticket(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is a damaged ticket: its metadata is not JSON"),
        ("[" * 10**5, "is a damaged ticket: its metadata is not JSON"),
        ("[]", "is None, but this version reads 'ticket_search.ticket.1'"),
        ('{"format": "ticket_search.ticket.9"}', "is 'ticket_search.ticket.9', but this version reads"),
    ],
    ids=["not JSON", "too deep", "a list", "another format"],
)
def test_metadata_that_are_not_a_tickets_are_refused(tmp_path, text, message):
    (tmp_path / "bad.safetensors").write_bytes(save({"w": torch.zeros(2)}, {"ticket": text}))
    with pytest.raises(SpecError, match=message):
        read_ticket(tmp_path / "bad.safetensors")


def test_the_table_of_tickets_names_the_transferred_ones(files, tmp_path):
    tickets = read_tickets(files)
    spec = transfer(tickets, "digits", seeds=1, draws=1, mask_alone=False, settings=("search.tolerance=0.99",))
    for key, ticket in tickets.items():
        LevelStore(tmp_path / "run" / "store").save(key, ticket.to_entry())
    run_by_hand(spec, tmp_path / "run")
    found = sparsest(load_results(tmp_path / "run"), spec.space)
    assert found.columns.is_unique
    assert set(found["trajectory.ticket"]) == set(tickets)
    assert found["ticket"].str.endswith("/1").all()
    assert set(found["pruning_rate"]) == {0.5}  # the rate of the search that found the tickets


def test_a_file_that_is_not_a_ticket(tmp_path):
    said = in_process("transfer", "absent.safetensors", "--dataset", "digits", cwd=tmp_path)
    assert (said.returncode, said.stderr) == (2, "error: ticket file 'absent.safetensors' does not exist\n")


def test_a_ticket_that_is_missing_from_the_store_is_refused(search, tmp_path):
    spec = search({"ticket": [KEY]}, sampler="grid", trials=None)
    with pytest.raises(SpecError, match=f"pruning.ticket: '{KEY}' is not in the level store"):
        run_search(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_entry_that_is_not_a_ticket_is_refused(search, tmp_path, stores):
    from ticket_search.store.level_store import Entry

    LevelStore(tmp_path / "shared").save(KEY, Entry(record={"level": 1}, tensors={}))
    spec = search({"ticket": [KEY]}, sampler="grid", trials=None).model_copy(update={"store": str(tmp_path / "shared")})
    with pytest.raises(SpecError, match=f"the entry '{KEY}' of the level store is not a ticket: its format is"):
        run_search(spec, tmp_path / "run")


def test_a_transfer_resumes_after_an_interruption_and_a_prune(files, tmp_path):
    """Pruning keeps tickets that have not been trained yet, because the search still needs them."""
    tickets = read_tickets(files)
    spec = transfer(tickets, "digits", seeds=1, draws=1, mask_alone=False)
    folder = LocalFolder(tmp_path / "run")
    store = LevelStore(folder / "store")
    for key, ticket in tickets.items():
        store.save(key, ticket.to_entry())
    run_by_hand(spec, folder.path, levels=1, flush=True)
    use = inspect(folder)
    assert len(use.kinds["tickets"]) == 2
    prune(use)
    run_by_hand(spec, folder.path)
    assert len(load_results(folder).levels) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ticket": "a/1"}, r"'a/1' is not a ticket key \(32 hexadecimal digits\)"),
        ({"ticket": KEY, "retrain": "finetune"}, "set retrain to 'weights', or ticket to null"),
        ({"ticket": KEY, "early_bird": {}}, "set early_bird to null, or ticket to null"),
        ({"ticket": KEY, "target_densities": 0.1}, "set target_densities to null, or ticket to null"),
        ({"ticket_weights": "own"}, "ticket_weights 'own' needs a ticket, but ticket is null"),
    ],
)
def test_incompatible_fields_are_refused(trajectory, changes, message):
    with pytest.raises(SpecError, match=message):
        trajectory(changes)


def results(tickets, controls=()):
    """Return the tables of a transfer.

    `tickets` has an item (ticket, seed, level, accuracy) for each level, and `controls` has an item
    (ticket, seed, draw, accuracy) for each control.
    """
    fixed = {"pruning_rate": 0.2, "strategy": "layerwise", "criterion": "magnitude", "rewind_iteration": 0}
    levels = [
        fixed
        | {"trajectory_id": f"{ticket}{seed}", "ticket": ticket, "seed": seed, "level": level}
        | {"kept_weights": 100 if level == 0 else 50, "prunable_weights": 100, "density": 1.0 if level == 0 else 0.5}
        | {"test_accuracy": accuracy, "early_stop_test_accuracy": accuracy, "early_stop_iteration": 100 * (2 - level)}
        for ticket, seed, level, accuracy in tickets
    ]
    drawn = [
        {"trajectory_id": f"{ticket}{seed}", "level": 1, "control": "shuffled_mask", "draw": draw, "seed": seed}
        | {"test_accuracy": accuracy, "early_stop_test_accuracy": accuracy, "early_stop_iteration": 300}
        for ticket, seed, draw, accuracy in controls
    ]
    empty = {name: schema.empty_table().to_pandas() for name, schema in schemas({}).items()}
    tables = empty | {"levels": pd.DataFrame(levels)}
    if drawn:
        tables["controls"] = pd.DataFrame(drawn)
    return Results(**tables)


CELLS = [("a", 0, 0.93), ("a", 1, 0.92), ("b", 0, 0.95), ("b", 1, 0.94)]
DENSE = {0: 0.92, 1: 0.90}


def test_the_table_pairs_tickets_with_the_dense_networks_and_controls_of_their_seeds():
    rows = [row for t, s, accuracy in CELLS for row in ((t, s, 0, DENSE[s]), (t, s, 1, accuracy))]
    controls = [(t, s, draw, accuracy - 0.02 + 0.01 * (2 * draw - 1)) for t, s, accuracy in CELLS for draw in (0, 1)]
    table = transfer_table(results(rows, controls), margin=0.005).set_index("arm")
    assert table["tickets"].tolist() == table["seeds"].tolist() == [2, 2, 2]
    assert table["density"].tolist() == [1.0, 0.5, 0.5]
    assert table.loc["dense", "test_accuracy"] == pytest.approx(0.91)
    assert table.loc["ticket", "test_accuracy"] == pytest.approx(0.935)
    assert table.loc["ticket", "test_accuracy_gain"] == pytest.approx(0.025)
    # With two tickets and two seeds, the most extreme resamples draw one ticket twice and one seed twice.
    assert table.loc["ticket", "test_accuracy_gain_low"] == pytest.approx(0.01)
    assert table.loc["ticket", "test_accuracy_gain_high"] == pytest.approx(0.04)
    for end in ("", "_low", "_high"):
        assert table.loc["shuffled_mask", f"test_accuracy_lead{end}"] == pytest.approx(0.02)
        assert table.loc["ticket", f"speed{end}"] == 2.0
        assert table.loc["shuffled_mask", f"slowdown{end}"] == 3.0
    assert table.loc["ticket", "verdict"] == "better, beats shuffled_mask"


def test_tickets_of_different_sizes_are_not_pooled_and_controls_may_be_absent():
    rows = [row for t, s, accuracy in CELLS for row in ((t, s, 0, DENSE[s]), (t, s, 1, accuracy))]
    tables = results(rows)
    tables.levels.loc[(tables.levels["ticket"] == "b") & (tables.levels["level"] == 1), "kept_weights"] = 49
    table = transfer_table(tables, margin=0.005)
    assert table["kept_weights"].tolist() == [100, 50, 100, 49]
    assert table["verdict"].tolist() == [None, "better", None, "better"]


def test_the_table_does_not_depend_on_the_order_of_the_rows():
    rows = [row for t, s, accuracy in CELLS for row in ((t, s, 0, DENSE[s]), (t, s, 1, accuracy))]
    controls = [(t, s, 0, accuracy - 0.01 * (s + 1)) for t, s, accuracy in CELLS]
    tables = results(rows, controls)
    table = transfer_table(tables, margin=0.005)
    for seed in range(3):
        shuffled = {
            name: getattr(tables, name).sample(frac=1, random_state=seed).reset_index(drop=True)
            for name in ("levels", "controls")
        }
        pd.testing.assert_frame_equal(transfer_table(dataclasses.replace(tables, **shuffled), margin=0.005), table)


def test_each_arm_counts_its_training_runs():
    rows = [row for t, s, accuracy in CELLS for row in ((t, s, 0, DENSE[s]), (t, s, 1, accuracy))]
    controls = [(t, s, 0, accuracy if t == "a" else np.nan) for t, s, accuracy in CELLS]
    # The third seed has only a dense network, as if its tickets had diverged.
    table = transfer_table(results([*rows, ("a", 2, 0, 0.9)], controls), margin=0.005).set_index("arm")
    assert table["seeds"].to_dict() == {"dense": 3, "ticket": 2, "shuffled_mask": 2}
    assert table["tickets"].to_dict() == {"dense": 2, "ticket": 2, "shuffled_mask": 1}
    assert table["trainings"].to_dict() == {"dense": 3, "ticket": 4, "shuffled_mask": 2}


def test_one_pair_is_undecided():
    table = transfer_table(results([("a", 0, 0, 0.9), ("a", 0, 1, 0.95)], [("a", 0, 0, 0.8)]), margin=0.005)
    assert table["verdict"].tolist() == [None, "undecided", None]


def test_a_missing_training_run_does_not_exclude_the_others():
    rows = [row for t, s, accuracy in CELLS[:-1] for row in ((t, s, 0, DENSE[s]), (t, s, 1, accuracy))]
    table = transfer_table(results([*rows, ("b", 1, 0, 0.9)]), margin=0.005).set_index("arm")
    assert table.loc["ticket", "test_accuracy"] == pytest.approx(np.mean([0.93, 0.92, 0.95]))


def test_a_ticket_survives_a_round_trip_through_the_store(found, tmp_path):
    ticket, _ = found({"rewind_iteration": 7})
    (tmp_path / "t.safetensors").write_bytes(ticket.to_bytes())
    again = Ticket.from_entry(ticket.to_entry())
    assert again.to_bytes() == ticket.to_bytes() == read_ticket(tmp_path / "t.safetensors").to_bytes()
