"""Fitting: same seed same detector, odd data handled or refused by name; and the lanes that training runs along."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from fits import FOUR, SMALL, fitted, machine
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from detectors.errors import CorruptBundleError, InvalidInputError, PrunewatchError
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, Runner, divided, fit, seeded, trimmed_mean
from detectors.training.fitted import ErrorOptions, Fitted, load, save, warm_up
from detectors.training.networks import KINDS
from detectors.training.stretches import Lanes, Stretches
from pruning.gate import trimmed_error

QUICK = FitOptions(updates=30)


LEARNED = [kind for kind, network in KINDS.items() if network.learned_by_gradient]


def quick(kind: str, data: Stretches, features=FOUR, **fields):
    """A small fit."""
    fields = {"seed": 0, "options": SMALL[kind], "how": QUICK} | fields
    return fit(kind, data, tuple(features), **fields)


def warm_up_of(kind: str) -> int:
    """Points before the first score of a small detector."""
    return warm_up(KINDS[kind].dense(4, SMALL[kind]), ErrorOptions())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_scores(kind: str) -> None:
    """Bit for bit, whatever torch's own generator was at; another seed gives another detector."""
    data = Stretches.of([machine(300)])

    torch.manual_seed(1)
    first = quick(kind, data)
    torch.manual_seed(2)
    second, other = quick(kind, data), quick(kind, data, seed=1)

    np.testing.assert_array_equal(first.scores(data), second.scores(data))
    assert step_graph(first) == step_graph(second)
    assert not np.array_equal(first.scores(data), other.scores(data), equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_leaves_the_global_generators_alone(kind: str) -> None:
    """A library does not reseed its caller."""
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 the global generator is what this is about
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002

    quick(kind, Stretches.of([machine(200)]), how=FitOptions(updates=2))

    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002


def test_seeded_restores_the_generator_after_an_error() -> None:
    """Also when the body fails."""
    before = torch.get_rng_state()

    with suppress(RuntimeError), seeded(3):
        torch.rand(4)
        raise RuntimeError

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", LEARNED)
def test_a_longer_fit_predicts_better(kind: str) -> None:
    """Training works: the raw error on points of the same machine falls well below that of a two-step fit."""
    fresh = Stretches.of([machine(300, seed=9)])

    def error(updates: int) -> float:
        detector = fitted(kind, updates=updates)
        points = torch.from_numpy(detector.scaler(fresh.rows))[None]
        with torch.no_grad():
            residual = detector.network(points, detector.network.fresh(1)).residual
        return float(residual[:, detector.network.warm_up_points :].square().mean())

    assert error(30) < 0.9 * error(2)


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_score_while_warming_up_and_one_ever_after(kind: str) -> None:
    """NaN for exactly `warm_up_points` points of each stretch, also where a stretch is longer than one evaluation."""
    detector = fitted(kind)
    warm_up = detector.warm_up_points
    data = Stretches((machine(1100), machine(warm_up + 1), machine(warm_up)))

    missing = np.isnan(detector.scores(data))

    wanted = np.zeros(len(data), bool)
    for start in (0, 1100, 1100 + warm_up + 1):
        wanted[start : start + warm_up] = True
    np.testing.assert_array_equal(missing, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_in_blocks_carries_state(kind: str) -> None:
    """Scores of a long stretch do not depend on how it was cut into forward passes."""
    detector, data = fitted(kind), machine(1100)
    scores = detector.scores(Stretches((data,)))

    many = detector.trace(np.repeat(data[None], 100, axis=0)).score  # a hundred series a pass: few points of each

    for row in (0, 99):
        np.testing.assert_allclose(many[row], scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", LEARNED)  # a forest never splits a feature that stands still
@pytest.mark.parametrize("constant", [0.0, 7.5, -1e6, 1e-9])
def test_a_constant_feature_neither_breaks_nor_hides_anything(kind: str, constant: float) -> None:
    """Scores stay finite; and when the feature moves for a few points, those are what stands out."""
    rows = machine(300)
    rows[:, 2] = constant
    detector = quick(kind, Stretches.of([rows]))
    moved = rows.copy()
    moved[250:275, 2] += max(3 * abs(constant), 3.0)

    normal, odd = (detector.scores(Stretches((x,))) for x in (rows, moved))

    assert np.isfinite(normal[detector.warm_up_points :]).all()
    assert np.isfinite(odd[detector.warm_up_points :]).all()
    assert odd[250:275].max() > 2
    assert odd[250:275].max() > normal[250:275].max() + 1


@pytest.mark.parametrize("kind", LEARNED)
def test_all_features_constant_can_be_fitted(kind: str) -> None:
    """A machine that stands still is normal, a step of it is not."""
    rows = np.full((200, 2), 5.0, np.float32)
    detector = quick(kind, Stretches.of([rows]), ("a", "b"))
    moved = rows.copy()
    moved[150:158] = 9.0

    scores = detector.scores(Stretches((moved,)))

    assert scores[150:158].max() > 3
    assert (scores[detector.warm_up_points : 150] < 3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_binary_features_can_be_fitted(kind: str) -> None:
    """On-off sensors have finite scores, and normal points mostly low ones."""
    rows = (machine(400) > [10, 200, 0, 0]).astype(np.float32)

    scores = quick(kind, Stretches.of([rows])).scores(Stretches((rows,)))

    scores = scores[np.isfinite(scores)]
    assert len(scores) == 400 - warm_up_of(kind)
    assert np.median(scores) < 1


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_rows_with_missing_or_infinite_values_split_runs(hole: float) -> None:
    """They are left out, and nothing is carried across them; one bad value is enough."""
    rows = machine(400)
    broken = rows.copy()
    broken[[0, 150, 151]] = hole
    broken[300, 3] = hole

    parts = Stretches.of([broken])

    assert [len(part) for part in parts.parts] == [149, 148, 99]
    for part, start in zip(parts.parts, (1, 152, 301), strict=True):
        np.testing.assert_array_equal(part, rows[start : start + len(part)])


def test_a_fit_with_holes_is_a_fit_to_the_runs_between_them() -> None:
    """The same detector as from the runs themselves."""
    rows = machine(500)
    broken = rows.copy()
    broken[260, 1] = np.nan

    with_hole = quick("lstm", Stretches.of([broken]))
    cut = quick("lstm", Stretches.of([rows[:260], rows[261:]]))

    assert step_graph(with_hole) == step_graph(cut)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_too_little_data_is_refused_with_what_is_needed(kind: str, rows: int) -> None:
    """The message counts the usable rows, and says how many are needed in a row."""
    needed = warm_up_of(kind) + 64

    with pytest.raises(
        InvalidInputError, match=f"{rows} usable rows .* needs {needed} complete ones in a row"
    ) as error:
        quick(kind, Stretches.of([machine(400)[:rows]]))

    assert error.value.field == "data"
    assert "missing values" in error.value.hint


def test_many_short_runs_are_not_enough() -> None:
    """A hundred rows between holes each can not warm up an LSTM and train it."""
    rows = machine(2000)
    rows[::80] = np.nan

    with pytest.raises(InvalidInputError, match="79 usable rows"):
        quick("lstm", Stretches.of([rows]))


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_enough_data_is_enough(kind: str) -> None:
    """What the message asks for is what works."""
    needed = warm_up_of(kind) + 64

    detector = quick(kind, Stretches.of([machine(needed)]), how=FitOptions(updates=2))

    assert np.isfinite(detector.scores(Stretches((machine(100),)))[-1])


def test_another_number_of_features_is_refused() -> None:
    """Names and columns must go together."""
    with pytest.raises(InvalidInputError, match="4 values for 2 features"):
        quick("lstm", Stretches.of([machine(300)]), ("a", "b"))


def test_progress_goes_from_nothing_to_all() -> None:
    """Shares in 0..1, never falling within a stage; the last stage is calibration."""
    told: list[tuple[str, float]] = []

    quick("lstm", Stretches.of([machine(200)]), progress=lambda stage, done, _message: told.append((stage, done)))

    shares = [done for stage, done in told if stage == "fit"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) == 31  # thirty updates, and the end
    assert told[-1][0] == "calibrate"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_as_they_were_saved(kind: str) -> None:
    """Everything that makes a score: the graph drawn from loaded weights is the same file."""
    detector = fitted(kind)

    again = load(save(detector))

    assert again.features == detector.features
    assert step_graph(again) == step_graph(detector)
    assert save(again) == save(detector)
    for name, tensor in detector.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_weights_are_refused_or_read_never_worse(data) -> None:
    """Any bit flipped in the header, any cut: an error of ours or a detector, and nothing else."""
    content = bytearray(save(fitted("lstm")))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
        with pytest.raises(CorruptBundleError):
            load(bytes(content))
        return
    header = 8 + int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, header - 1))] ^= 1 << data.draw(st.integers(0, 7))

    with suppress(PrunewatchError):
        assert load(bytes(content)).features


@pytest.mark.parametrize("content", [b"", b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}", b"PK\x03\x04" * 40])
def test_what_is_no_weights_file_is_refused(content: bytes) -> None:
    """Empty, another kind of JSON, no header of ours, another format."""
    with pytest.raises(CorruptBundleError):
        load(content)


@pytest.mark.slow
def test_contaminated_data_are_survived() -> None:
    """Anomalies in a twentieth of the rows: those of another day are found nearly as by a detector that never saw any.

    They raise the threshold; with `contamination` said they do so less. The points after an event, over which its error
    fades, do not count.
    """

    def day(seed: int, anomalies: int) -> tuple[np.ndarray, np.ndarray]:
        rows, odd, rng = machine(2400, seed), np.zeros(2400, bool), np.random.default_rng(seed)
        for at in rng.choice(np.arange(100, 2300, 40), anomalies, replace=False):
            sensor = rng.integers(4)
            rows[at : at + 15, sensor] += 4 * rows[:, sensor].std()
            odd[at : at + 15] = True
        return rows, odd

    def learned(rows: np.ndarray, contamination: float = 0.0):
        how = FitOptions(updates=150, contamination=contamination)
        return fit("lstm", Stretches.of([rows]), FOUR, seed=0, options=SMALL["lstm"], how=how)

    test, odd = day(7, 12)
    counts = odd | ~np.convolve(odd, np.ones(26))[: len(odd)].astype(bool)
    dirty, _ = day(1, 8)
    precision, flagged = {}, {}
    for name, detector in (
        ("clean", learned(day(1, 0)[0])),
        ("dirty", learned(dirty)),
        ("said", learned(dirty, contamination=0.07)),
    ):
        scores = detector.scores(Stretches((test,)))
        warm = np.isfinite(scores) & counts
        precision[name] = average_precision_score(odd[warm], scores[warm])
        flagged[name] = float((scores[warm & ~odd] >= -np.log10(0.05)).mean())

    assert precision["clean"] > 0.6
    assert precision["dirty"] > 0.9 * precision["clean"]
    assert precision["said"] > 0.9 * precision["clean"]
    assert flagged["dirty"] <= flagged["said"]


def test_what_was_said_of_contamination_holds_for_every_calibration() -> None:
    """Calibrated anew, and after it was saved, a detector flags about as many points as it did when it was fitted.

    A twentieth of the rows is wild: without what was said the scale would stretch over them.
    """
    rows = machine(1600, seed=2)
    rows[50::20] += 5 * rows.std(axis=0)
    data, how = Stretches.of([rows]), FitOptions(updates=30, contamination=0.3)
    detector = fit("lstm", data, FOUR, seed=0, options=SMALL["lstm"], how=how)
    recent = data.split(0.5, context=50)

    def flagged(it: Fitted) -> float:
        scores = it.scores(recent[1])
        return float((scores[np.isfinite(scores)] > 2).mean())

    again, forgetful = detector.recalibrated(*recent[::-1]), replace(detector, trim=0.0).recalibrated(*recent[::-1])

    assert detector.trim == load(save(detector)).trim == load(save(again)).trim == 0.3
    assert flagged(detector) > 0.05
    assert flagged(again) == pytest.approx(flagged(detector), rel=0.3)
    assert flagged(forgetful) < 0.5 * flagged(detector)


def test_weights_that_say_nothing_of_contamination_are_of_clean_points() -> None:
    """As files of older versions are."""
    content = save(fitted("lstm"))
    size = int.from_bytes(content[:8], "little")
    older = content[8 : 8 + size].replace(rb", \"trim\": 0.0", b"").ljust(size)
    assert older != content[8 : 8 + size]

    assert load(content[:8] + older + content[8 + size :]).trim == 0.0


def test_a_fit_that_begins_with_another_detector_ends_sooner_and_no_worse() -> None:
    """The same machine on another day: fewer updates, and an error on held-out points that is as low."""
    data = Stretches.of([machine(1500, seed=3)])
    told = {"fresh": 0, "warm": 0}

    def count(name: str):
        def progress(stage: str, done: float, _message: str) -> None:
            told[name] += stage == "fit" and done < 1

        return progress

    how = FitOptions(updates=300)
    first = fit("lstm", Stretches.of([machine(1500, seed=2)]), FOUR, seed=0, options=SMALL["lstm"], how=how)
    fresh = fit("lstm", data, FOUR, seed=1, options=SMALL["lstm"], how=how, progress=count("fresh"))
    before = {name: tensor.clone() for name, tensor in first.network.state_dict().items()}
    warm = fit("lstm", data, FOUR, seed=1, start=first, how=how, progress=count("warm"))

    held_out = Stretches((machine(600, seed=9),))
    assert told["warm"] < 0.7 * told["fresh"]
    assert trimmed_error(warm, held_out) < 1.1 * trimmed_error(fresh, held_out)
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.network.state_dict().items())


def test_a_fit_can_only_begin_with_what_fits() -> None:
    """Another network, another number of features, or sizes of its own: refused by name."""
    start, data = fitted("lstm"), Stretches.of([machine(300)])

    with pytest.raises(InvalidInputError, match="is a lstm of 4 features; wanted is a gru of 4"):
        fit("gru", data, FOUR, seed=0, start=start)
    with pytest.raises(InvalidInputError, match="wanted is a lstm of 2"):
        fit("lstm", Stretches.of([machine(300)[:, :2]]), ("a", "b"), seed=0, start=start)
    with pytest.raises(InvalidInputError) as error:
        fit("lstm", data, FOUR, seed=0, start=start, options={"width": 8})
    assert error.value.field == "options.width"


def test_training_stops_where_held_out_points_get_no_better() -> None:
    """On white noise there is nothing to learn but the mean: far fewer updates than allowed."""
    rows = np.random.default_rng(0).normal(size=(1500, 2)).astype(np.float32)
    told = []

    fit("lstm", Stretches.of([rows]), ("a", "b"), seed=0, options={"width": 8}, progress=lambda *it: told.append(it))

    assert sum(stage == "fit" for stage, _, _ in told) < 250


def numbered(sizes: list[int]) -> list[np.ndarray]:
    """Parts whose values say (part, offset)."""
    return [np.stack([np.full(n, i), np.arange(n)], axis=1).astype(np.float32) for i, n in enumerate(sizes)]


def lanes(sizes: list[int], *, batch=4, length=8, carry=3, blind=0, seed=0) -> Lanes:
    """Lanes over numbered parts."""
    rng = np.random.default_rng(seed)
    return Lanes(numbered(sizes), batch=batch, length=length, carry=carry, blind=blind, rng=rng)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 15),
    st.integers(0, 1000),
)
def test_lanes_run_along_one_stretch_at_a_time(sizes, batch, length, carry, blind, seed) -> None:
    """Between restarts a lane's counted points are consecutive points of one stretch; the blind ones never count."""
    where: list[tuple[int, int, int] | None] = [None] * batch  # part, next offset, points since the restart
    for chunk in lanes(sizes, batch=batch, length=length, carry=carry, blind=blind, seed=seed).chunks(12):
        assert chunk.points.shape == (batch, length, 2)
        for b in range(batch):
            if chunk.restarted[b]:
                where[b] = None
            for t in range(length):
                part, offset = (int(v) for v in chunk.points[b, t])
                expected = (part, offset, 0) if where[b] is None else where[b]
                counted = bool(chunk.counted[b, t])
                if (part, offset) == expected[:2]:
                    assert counted == (expected[2] >= blind)
                else:  # padding after the end of the stretch
                    assert not counted
                    assert (part, offset, expected[1]) == (expected[0], sizes[part] - 1, sizes[part])
                    continue
                where[b] = (part, offset + 1, expected[2] + 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=3), st.integers(2, 9), st.integers(0, 6))
def test_lanes_cover_the_data(sizes, length, blind) -> None:
    """Every point but the blind first ones of a stretch comes up; only a stretch's very last one may not."""
    seen = set()
    for chunk in lanes(sizes, batch=16, length=length, carry=4, blind=blind).chunks(250):
        seen |= {(int(part), int(offset)) for part, offset in chunk.points[chunk.counted]}

    wanted = {(i, offset) for i, n in enumerate(sizes) for offset in range(blind, n - 1)}
    assert wanted <= seen


def test_lanes_start_where_a_whole_chunk_fits() -> None:
    """Padding is for the ends of stretches and for stretches shorter than a chunk."""
    for chunk in lanes([40], batch=16, length=8, blind=3, carry=1).chunks(50):
        assert chunk.counted[:, 3:].all()


def test_lanes_move_on_after_carry_chunks() -> None:
    """A lane in a long stretch restarts every `carry` chunks, after a first stay of 1 to `carry`: no lockstep."""
    restarts = np.array([chunk.restarted.numpy() for chunk in lanes([10_000], carry=3).chunks(12)])  # [chunk, lane]

    assert restarts[0].all()
    for lane in restarts.T:
        stays = np.diff(np.flatnonzero(lane))
        assert 1 <= stays[0] <= 3
        assert (stays[1:] == 3).all()


def test_long_stretches_are_visited_more_often() -> None:
    """In proportion to their points."""
    starts = [int(chunk.points[b, 0, 0]) for chunk in lanes([900, 100], carry=1).chunks(500) for b in range(4)]

    assert 0.06 < np.mean(starts) < 0.14


def test_the_same_generator_gives_the_same_lanes() -> None:
    """Seeds decide everything."""
    first, second, other = (list(lanes([50, 40], seed=seed).chunks(5)) for seed in (1, 1, 2))

    assert all(torch.equal(a.points, b.points) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a.points, b.points) for a, b in zip(first, other, strict=True))


def test_a_runner_carries_state_and_forgets_at_restarts() -> None:
    """Losses of later chunks depend on earlier ones, until the lane restarts."""
    network = fitted("lstm").network
    points = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 64, 4)).astype(np.float32))
    carried = Runner(network)
    chunks = list(
        Lanes(list(points.numpy()), batch=2, length=64, carry=1, blind=1, rng=np.random.default_rng(0)).chunks(1)
    )
    restart = chunks[0]
    go_on = type(restart)(restart.points, restart.counted, torch.tensor([False, True]))

    first, second = carried(restart).residual, carried(go_on).residual

    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_split_takes_the_last_share_of_every_part() -> None:
    """With its context, which belongs to both; a part with too short a tail goes to the first side whole."""
    parts = Stretches(tuple(numbered([100, 40, 80])))

    first, second = parts.split(0.25, context=10, minimum=15)

    assert [len(part) for part in first.parts] == [75, 40, 60]
    assert [(int(part[0, 0]), int(part[0, 1]), int(part[-1, 1])) for part in second.parts] == [(0, 65, 99), (2, 50, 79)]


def test_split_context_never_reaches_before_the_part() -> None:
    """Nor into the part before."""
    _, second = Stretches(tuple(numbered([100, 100]))).split(0.5, context=500)

    assert [(int(part[0, 0]), int(part[0, 1])) for part in second.parts] == [(0, 0), (1, 0)]


def test_longer_than_counts_strictly() -> None:
    """A part of as many points as the warm-up has no score at all."""
    assert [len(part) for part in Stretches(tuple(numbered([5, 6, 7]))).longer_than(6).parts] == [7]


def test_trimmed_mean_leaves_out_the_largest_of_the_counted() -> None:
    """Uncounted losses do not matter; without counted ones the loss is zero and can still be differentiated."""
    losses = torch.tensor([[1.0, 2.0, 3.0, 100.0], [4.0, 1000.0, 1000.0, 5.0]], requires_grad=True)
    counted = torch.tensor([[True, True, True, True], [True, False, False, True]])

    assert trimmed_mean(losses, counted, 0.2).item() == pytest.approx(3.0)
    nothing = trimmed_mean(losses, torch.zeros_like(counted))
    nothing.backward()
    assert nothing.item() == 0
    assert losses.grad is not None
    assert not losses.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_sees_only_errors_that_training_did_not_push_down(kind: str) -> None:
    """Of 400 points the last 100: the tail begins where the worst twenty of exactly those do."""
    detector = quick(kind, Stretches((machine(400),)), how=FitOptions(updates=2))

    for view in detector.views:
        assert view.calibration.levels[-1] == pytest.approx(-np.log10(20 / 100))


def test_the_error_of_a_fit_is_of_points_that_it_was_not_trained_on() -> None:
    """The last quarter, after points to warm up on; all of them where a quarter is too few."""
    detector = fitted("lstm")
    warm, rows = detector.warm_up_points, machine(700)

    (judged,) = divided(Stretches.of([rows]), detector.network, warm)[1].parts
    (few,) = divided(Stretches.of([rows[: warm + 20]]), detector.network, warm)[1].parts

    assert (judged == rows[700 - 175 - warm :]).all()
    assert len(few) == warm + 20
