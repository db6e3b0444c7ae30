"""Fine-tuning: towards the points, towards the parent, and towards what kept units said in the parent."""

from __future__ import annotations

import copy

import pytest
import torch
from fits import FOUR, SMALL, fitted, machine
from strategies import noise

from detectors.training.fit import FitOptions, Runner, chunks_over, fit
from detectors.training.fitted import Fitted, mean_square
from detectors.training.networks import LSTM, Autoencoder, Network, Pass
from detectors.training.stretches import Stretches
from pruning.finetune import HIDDEN_FLOOR, Kept, finetune, hidden_distance, longer, shared
from pruning.importance import Evidence, importance
from pruning.surgery import remove

TRAINED = 150
DATA = Stretches.of([machine(700)])


def fresh(detector: Fitted) -> torch.Tensor:
    """Scaled points of the same machine that nothing was fitted to, [1, T, F]."""
    return torch.from_numpy(detector.scaler(machine(400, seed=5)))[None]


def residual(network: Network, points: torch.Tensor) -> torch.Tensor:
    """From a fresh state."""
    with torch.no_grad():
        return network(points, network.fresh(len(points))).residual


def loss(network: Network, detector: Fitted) -> float:
    """Mean squared residual on fresh points, warm-up left out."""
    return float(mean_square(residual(network, fresh(detector)))[:, network.warm_up_points :].mean())


def halves(network: Network, seed: int) -> dict[str, torch.Tensor]:
    """A random half of each prunable group."""
    scores = importance("random", Evidence(network, None, seed))
    return {name: values.topk(len(values) // 2).indices.sort().values for name, values in scores.items()}


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_fine_tuning_lowers_the_error(kind: str) -> None:
    """In place, against a parent that stays as it is; the same seed gives the same child."""
    detector = fitted(kind, updates=TRAINED)
    teacher = detector.network
    before = copy.deepcopy(teacher.state_dict())
    first, second = (remove(teacher, halves(teacher, 0)) for _ in range(2))
    error = loss(first, detector)

    for student in (first, second):
        finetune(student, teacher, DATA, detector.scaler, updates=40, seed=1)

    assert loss(first, detector) < 0.8 * error
    assert loss(first, detector) == loss(second, detector)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_a_student_comes_nearer_to_its_parent(kind: str) -> None:
    """On fresh points what the two say differs by less."""
    detector = fitted(kind, updates=TRAINED)
    teacher, points = detector.network, fresh(detector)
    student = remove(teacher, halves(teacher, 0))

    def apart() -> float:
        return float(mean_square(residual(student, points) - residual(teacher, points))[:, 50:].mean())

    before = apart()
    finetune(student, teacher, DATA, detector.scaler, updates=60, seed=1)

    assert apart() < 0.7 * before


def test_a_student_moves_towards_its_parent() -> None:
    """A parent that predicts one standard deviation too high pulls its student up: half of the loss is agreement."""
    detector = fitted("lstm", updates=TRAINED)
    teacher, student = copy.deepcopy(detector.network), copy.deepcopy(detector.network)
    teacher.state_dict()["head.bias"].add_(1.0)

    finetune(student, teacher, DATA, detector.scaler, updates=60, seed=0)

    lower = residual(student, fresh(detector)) - residual(detector.network, fresh(detector))
    assert 0.2 < -float(lower.mean()) < 1.0


def test_a_variational_student_stays_one() -> None:
    """It samples, and its divergence is held down: a teacher that says nothing of it does not switch that off."""
    detector = fitted("variational_autoencoder", updates=TRAINED)
    teacher = detector.network
    student = copy.deepcopy(teacher)
    student.state_dict()["log_variance.bias"].sub_(4.0)  # latents that keep more to themselves than they need to

    def diverged() -> float:
        with torch.no_grad():
            return float(student(fresh(detector), student.fresh(1)).loss.mean())

    before = diverged()
    finetune(student, teacher, DATA, detector.scaler, updates=80, seed=0)

    assert diverged() < 0.9 * before
    assert not student.training
    assert not teacher.training


def test_fine_tuning_draws_from_its_own_seed() -> None:
    """What a variational student samples too: global generators neither move nor matter."""
    detector = fitted("variational_autoencoder", updates=TRAINED)
    students = [copy.deepcopy(detector.network) for _ in range(2)]

    for i, student in enumerate(students):
        torch.manual_seed(i)
        state = torch.get_rng_state()
        finetune(student, detector.network, DATA, detector.scaler, updates=5, seed=3)
        assert torch.equal(torch.get_rng_state(), state)

    assert loss(students[0], detector) == loss(students[1], detector)


def test_as_much_is_left_out_as_may_be_anomalies() -> None:
    """A tenth of wild rows pulls a student that is to leave out two hundredths, less one that is to leave out more."""
    detector = fitted("lstm", updates=TRAINED)
    rows = machine(700)
    rows[::10] += 3 * rows.std(axis=0)
    errors = []

    for trim in (0.02, 0.4):
        student = copy.deepcopy(detector.network)
        finetune(student, detector.network, Stretches.of([rows]), detector.scaler, updates=80, seed=0, trim=trim)
        errors.append(loss(student, detector))

    assert errors[1] < errors[0]


def test_kept_units_are_held_to_what_they_said() -> None:
    """A student that is told which units it kept stays nearer to them than one that is not."""
    detector = fitted("lstm", updates=TRAINED)
    teacher, keep, points = detector.network, halves(detector.network, 0), fresh(detector)
    kept = [Kept(name, name, indices) for name, indices in keep.items()]
    counted = torch.ones(points.shape[:2], dtype=torch.bool)
    apart = []

    for told in (kept, []):
        student = remove(teacher, keep)
        finetune(student, teacher, DATA, detector.scaler, kept=told, updates=60, seed=1)
        with torch.no_grad():
            ours, theirs = (each(points, each.fresh(1)) for each in (student, teacher))
        apart.append(float(hidden_distance(ours, theirs, kept, counted)))

    assert apart[0] < 0.9 * apart[1]


@pytest.mark.parametrize("kind", ["lstm", "autoencoder", "conv_autoencoder", "lstm_autoencoder"])
def test_a_teacher_is_at_no_distance_from_itself(kind: str) -> None:
    """Of every group, over chunks as training has them."""
    detector = fitted(kind)
    network = detector.network
    chunk = next(iter(chunks_over(DATA, detector.scaler, network, 0).chunks(1)))
    with torch.no_grad():
        out = Runner(network)(chunk)
    kept = [Kept(name, name, torch.arange(width)) for name, width in network.units.items()]

    assert float(hidden_distance(out, out, kept, chunk.counted)) == 0


def spoken(**said: torch.Tensor) -> Pass:
    """A pass of which only the activations matter."""
    return Pass(torch.zeros(1), (), said)


def test_the_distance_of_hidden_units_by_hand() -> None:
    """Squared, by the unit's variance in the teacher, over counted points; of kept units alone; groups count alike."""
    theirs = noise(2, 50, 3)
    counted = torch.ones(2, 50, dtype=torch.bool)
    counted[:, :10] = False
    variance = theirs[counted].var(dim=0, unbiased=False)
    ours = theirs[..., [0, 2]] + torch.tensor([1.0, 0.0])
    ours[:, :10] += 100

    one = hidden_distance(
        spoken(mine=ours), spoken(theirs=theirs), [Kept("mine", "theirs", torch.tensor([0, 2]))], counted
    )
    two = hidden_distance(
        spoken(mine=ours, same=theirs),
        spoken(theirs=theirs),
        [Kept("mine", "theirs", torch.tensor([0, 2])), Kept("same", "theirs", torch.arange(3))],
        counted,
    )

    assert float(one) == pytest.approx(0.5 / float(variance[0]))
    assert float(two) == pytest.approx(float(one) / 2)


def test_a_unit_that_hardly_moves_is_not_held_to_noise() -> None:
    """Its variance counts as a thousandth at the least."""
    still, counted = torch.full((1, 20, 1), 0.5), torch.ones(1, 20, dtype=torch.bool)

    distance = hidden_distance(
        spoken(mine=still + 0.1), spoken(theirs=still), [Kept("mine", "theirs", torch.tensor([0]))], counted
    )

    assert float(distance) == pytest.approx(0.01 / HIDDEN_FLOOR)


def test_units_that_speak_for_other_points_are_left_out() -> None:
    """A window of another length; with no group left the distance is zero."""
    ours, theirs = noise(2, 5, 3), noise(2, 1, 3)
    counted = torch.ones(2, 1, dtype=torch.bool)

    distance = hidden_distance(
        spoken(mine=ours), spoken(theirs=theirs), [Kept("mine", "theirs", torch.arange(3))], counted
    )

    assert float(distance) == 0


def test_the_longer_window_decides_what_is_shown() -> None:
    """A teacher has to see all of its own; where none is longer it is the student's."""
    long, short = (Autoencoder(2, window, {"encoder0": 3, "bottleneck": 2, "decoder0": 3}) for window in (20, 10))

    assert longer(short, long) is long
    assert longer(long, long) is long
    assert longer(LSTM(2, (3,)), LSTM(2, (4,))).window == 0


def test_both_judge_the_last_points_and_positions() -> None:
    """[B, T, R, F]: what only one of them has an opinion on is left out."""
    long, short = noise(2, 1, 20, 3), noise(2, 11, 10, 3)

    ours, theirs = shared(short, long)

    assert torch.equal(ours, short[:, -1:])
    assert torch.equal(theirs, long[:, :, -10:])


@pytest.mark.parametrize("kind", ["autoencoder", "lstm_autoencoder"])
def test_a_student_with_a_shorter_window_learns_from_its_teacher(kind: str) -> None:
    """At the positions that both reconstruct; kept units that speak for other points do not disturb it."""
    options = SMALL[kind] | {"window": 16}
    detector = fit(kind, DATA, FOUR, seed=0, options=options, how=FitOptions(updates=TRAINED))
    teacher, points = detector.network, fresh(detector)
    keep = halves(teacher, 0)
    student = remove(teacher, keep).pulled("window", 8)
    kept = [Kept(name, name, indices) for name, indices in keep.items()]

    def apart() -> float:
        ours, theirs = shared(residual(student, points), residual(teacher, points))
        return float(mean_square(ours - theirs)[:, teacher.warm_up_points :].mean())

    before = apart()
    finetune(student, teacher, DATA, detector.scaler, kept=kept, updates=60, seed=0)

    assert apart() < 0.7 * before
    assert student.window == 8
