"""Steps, epochs, validations and time, against numbers that were counted by hand."""

import pytest

from lightning_app.training.course import Costs, Course, Plan, Texts, Work, first_step, validated_every


def test_a_step_does_not_cross_the_end_of_an_epoch():
    course = Course(batches=5, accumulated=lambda epoch: 2)  # 2 + 2 + 1 | 2 + 2 + 1
    assert [course.batches_at(step) for step in range(8)] == [0, 2, 4, 5, 7, 9, 10, 12]
    assert course.steps_in(3) == 9


def test_batches_of_a_step_change_with_the_epoch():
    course = Course(batches=4, accumulated=lambda epoch: (1, 4)[min(epoch, 1)])  # 1 + 1 + 1 + 1 | 4 | 4
    assert [course.batches_at(step) for step in range(7)] == [0, 1, 2, 3, 4, 8, 12]


@pytest.mark.parametrize(
    ("every", "of_epochs", "expected"),
    [
        (3, None, [3, 6, 9, 12]),  # over all epochs of 5
        (2, 1, [2, 4, 7, 9, 12]),  # anew in each
        (5, 2, [10]),  # in each second one
        (None, None, []),
    ],
)
def test_validations_are_where_lightning_has_them(every, of_epochs, expected):
    course = Course(batches=5, accumulated=lambda epoch: 1, validates_every=every, of_epochs=of_epochs)
    assert course.validations(13) == expected


def test_a_validation_within_a_step_counts_with_the_step():
    course = Course(batches=6, accumulated=lambda epoch: 4, validates_every=2)
    assert course.validations(3) == [1, 1, 2, 3, 3]  # behind batches 2, 4 | 6 | 8, 10 of steps 4 + 2 | 4


def test_the_work_of_a_fit():
    course = Course(batches=100, accumulated=lambda epoch: 1, validates_every=4)
    plan = Plan(course, saves_every=6, best=1)
    # 10 steps: validated after 4, 8 and at the end; last.ckpt after 4, 6, 8, 10 and the last validation; best 3 times
    assert plan.until(10) == Work(batches=10, validations=3, checkpoints=5 + 3)
    assert plan.before(9) == Work(batches=9, validations=2, checkpoints=3 + 2)


def test_a_fit_that_goes_on_does_the_rest():
    course = Course(batches=100, accumulated=lambda epoch: 1, validates_every=4)
    assert Plan(course, start=5, saves_every=6).until(10) == Work(batches=5, validations=2, checkpoints=4 + 2)
    assert Plan(course, start=10, saves_every=6).until(10) == Work()


def test_without_validations_or_checkpoints():
    course = Course(batches=100, accumulated=lambda epoch: 1, validates_every=4)
    assert Plan(course, saves_every=5, validates=False).until(10) == Work(batches=10, checkpoints=2)
    assert Plan(course, saves_every=None).until(10) == Work(batches=10, validations=3)


def test_further_checkpoints_by_steps():
    course = Course(batches=100, accumulated=lambda epoch: 1)
    assert Plan(course, start=3, saves_every=50, further=[4, 5], validates=False).until(11).checkpoints == 1 + 2 + 2


def test_seconds_are_those_of_the_parts():
    costs = Costs(batch=1.0, validation=10.0, checkpoint=100.0, texts=[Texts(every=2, before=1, seconds=1000.0)])
    assert Work(batches=3, validations=4, checkpoints=2).seconds(costs) == 3 + 40 + 200 + 2 * 1000  # after 2nd and 4th


@pytest.mark.parametrize(
    ("limit", "step"),
    [
        (3.5, 4),  # in the middle of the fourth step
        (4.0, 4),  # at its end
        (13.0, 5),  # in the validation after it: the next step's end is the first to ask
        (15.5, 6),  # 5 steps and a validation are 15 s
        (998.0, 288),  # 71 validations and 288 steps
        (1000.0, 289),  # a 72nd comes first
    ],
)
def test_a_limit_of_time_ends_with_the_step_in_work(limit, step):
    course = Course(batches=100, accumulated=lambda epoch: 1, validates_every=4)
    assert Plan(course).step_at(limit, Costs(batch=1.0, validation=10.0)) == step


def test_the_first_step_of_which_something_holds():
    for wanted in (4, 5, 37, 1000):
        assert first_step(lambda step: step >= wanted, after=3) == wanted  # noqa: B023


@pytest.mark.parametrize(
    ("share", "steps", "accumulated", "every"),
    [(0.05, 2500, 1, 125), (0.05, 2341, 1, 118), (0.05, 709, 2, 72), (0.05, 9, 4, 4)],
)
def test_validations_at_shares_of_a_run(share: float, steps: int, accumulated: int, every: int):
    assert validated_every(share, steps=steps, accumulated=accumulated) == every
    plan = Plan(Course(batches=64 * accumulated, accumulated=lambda _: accumulated, validates_every=every))
    assert plan.until(steps).validations == min(20, steps)


def test_an_epoch_without_an_end_is_not_counted_through():
    course = Course(batches=10**12, accumulated=lambda _: 1, validates_every=2)
    assert course.validations(7) == [2, 4, 6]
