import pytest

from ticket_search.config.trajectory import OptimizerSpec, ScheduleSpec, TrainingSpec
from ticket_search.training.schedule import learning_rate


def rates(iterations, total=8, lr=1.0, **schedule):
    training = TrainingSpec(
        optimizer=OptimizerSpec(name="sgd", lr=lr),
        schedule=ScheduleSpec(**schedule),
        batch_size=1,
        iterations=total,
        evaluate_every=1,
    )
    return [round(learning_rate(training, i), 6) for i in iterations]


def test_constant():
    assert rates([0, 3, 7], lr=0.5, name="constant") == [0.5, 0.5, 0.5]


def test_the_rate_drops_with_the_update_after_a_milestone():
    assert rates(range(8), name="step", milestones=(2, 5), gamma=0.5) == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_milestones_in_any_order():
    assert rates([1, 2, 5], name="step", milestones=(5, 2)) == [1.0, 0.1, 0.01]


def test_cosine_falls_towards_zero():
    assert rates(range(4), total=4, name="cosine") == [1.0, 0.853553, 0.5, 0.146447]


@pytest.mark.parametrize("schedule", [{"name": "cosine"}, {"name": "step", "milestones": (2, 9)}])
def test_the_rate_is_constant_past_the_end(schedule):
    assert rates([4, 9, 100], total=4, **schedule) == rates([3], total=4, **schedule) * 3


def test_warm_up_grows_to_the_full_rate():
    assert rates(range(6), lr=2.0, warmup=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_warm_up_then_steps():
    assert rates(range(5), name="step", milestones=(1, 4), gamma=0.5, warmup=2) == [0.5, 0.5, 0.5, 0.5, 0.25]


def test_warm_up_then_cosine_over_the_rest():
    assert rates([0, 3, 4, 6, 7], warmup=4, name="cosine") == [0.25, 1.0, 1.0, 0.5, 0.146447]


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_a_warm_up_as_long_as_the_training(name):
    assert rates([0, 3, 7], name=name, warmup=8) == [0.125, 0.5, 1.0]
