"""Files that call the section ``pruning`` by its older name, ``trajectory``, keep their meaning."""

import pytest

from ticket_search.config.identity import trajectory_id
from ticket_search.config.loading import parse_search
from ticket_search.errors import SpecError

TEXT = """
name: old
dataset: {name: digits, validation: 300}
model: {name: lenet_4}
training: {optimizer: {name: adam, lr: 0.02}, batch_size: 64, iterations: 60, evaluate_every: 20}
SECTION: {max_levels: 2, rewind_iteration: 5}
space: {pruning_rate: [0.25, 0.5], SECTION.min_density: [0.1, 0.2]}
seeds: [0]
search: {sampler: grid, trials: null}
"""
OLD, NEW = (TEXT.replace("SECTION", name) for name in ("trajectory", "pruning"))


def test_both_names_make_the_same_search():
    old, new = parse_search(OLD, "old"), parse_search(NEW, "new")
    assert old.pruning == new.pruning
    assert old.identity() == new.identity() == "06330115234cfb0b4731831966b1a7c0"
    (one,) = {trajectory_id(spec.trajectory_at(spec.grid()[0], 0)) for spec in (old, new)}
    assert one == "72f9ff9146cd5b71"


def test_a_searched_field_keeps_the_name_that_the_file_gives_it():
    """The name must not change, because it is also the name of the field's column in the tables."""
    assert list(parse_search(OLD, "old").space) == ["pruning_rate", "trajectory.min_density"]


@pytest.mark.parametrize("text", [OLD, NEW])
@pytest.mark.parametrize("key", ["trajectory.max_levels", "pruning.max_levels"])
def test_settings_may_use_either_name(text, key):
    assert parse_search(text, "file", (f"{key}=4",)).pruning.max_levels == 4


def test_giving_both_sections_is_refused():
    text = NEW + "trajectory: {max_levels: 3}\n"
    message = "file: 'trajectory' is the old name of the section 'pruning'; give the section once, as 'pruning'"
    with pytest.raises(SpecError) as error:
        parse_search(text, "file")
    assert str(error.value) == message
