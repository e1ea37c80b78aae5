"""Frames of any sizes, in any iterable, are segmented in batches as frame by frame."""

import itertools

import numpy as np
import pytest
from conftest import tiny_scene, use_tiny_encoder

from mapseg.estimator import Estimator
from mapseg.inference import batching, predictor
from mapseg.inference.predictor import Predictor

RNG = np.random.default_rng(3)
WIDTHS = (80, 80, 80, 80, 96, 70, 70, 80)
FRAMES = [tiny_scene(RNG, width=width)[0] for width in WIDTHS]


@pytest.fixture(scope="module")
def estimator(tiny_run):
    """Its network is loaded once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoder(patch)
        made = Estimator(tiny_run)
        made.predict(FRAMES[0])
    return made


@pytest.fixture
def batches(monkeypatch):
    """The numbers of frames per forward pass, at most three, while a test runs."""
    numbers, segment_batch = [], Predictor.segment_batch

    def note(self, frames, **options):
        numbers.append(len(frames))
        return segment_batch(self, frames, **options)

    monkeypatch.setattr(Predictor, "segment_batch", note)
    monkeypatch.setattr(batching, "default_batch_size", lambda: 3)
    return numbers


def assert_equal(results, expected):
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.ids, one.ids)
        assert result.confidence == pytest.approx(one.confidence, rel=1e-5)
        assert result.scale == one.scale


def test_any_iterable_of_frames_gives_what_each_frame_gives(run_dir, batches, monkeypatch):
    loads, load = [], predictor.load_predictor
    monkeypatch.setattr(predictor, "load_predictor", lambda *a: loads.append(a) or load(*a))
    estimator = Estimator(run_dir)
    expected = [estimator.predict(frame) for frame in FRAMES]
    assert len({one.ids.tobytes() for one in expected}) == len(FRAMES)  # they tell frames apart
    for frames in (FRAMES, tuple(FRAMES), iter(FRAMES), (frame for frame in FRAMES)):
        batches.clear()
        assert_equal(estimator.predict(frames), expected)
        assert batches == [3, 1, 1, 2, 1]
    batches.clear()
    assert_equal(estimator.predict(np.stack(FRAMES[:4])), expected[:4])
    assert batches == [3, 1]
    assert list(estimator.predict([])) == []
    assert len(loads) == 1


def test_frames_are_read_a_batch_ahead_and_copied(estimator, batches):
    """As from a camera: without end, in memory that is used again for the next frame."""
    read, memory = [], np.empty_like(FRAMES[0])

    def camera():
        for i in itertools.count():
            read.append(i)
            memory[:] = FRAMES[i % 4]
            yield memory

    results = estimator.predict(camera())
    assert read == []
    first = list(itertools.islice(results, 7))
    assert len(read) == 9
    assert_equal(first, [estimator.predict(FRAMES[i % 4]) for i in range(7)])


@pytest.mark.usefixtures("batches")
def test_probabilities_are_returned_for_batches(estimator):
    for frame, result in zip(FRAMES, estimator.predict(FRAMES, probability=True), strict=True):
        expected = estimator.predict(frame, probability=True).probability
        np.testing.assert_allclose(result.probability, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (FRAMES[0].astype(np.float32), r"float32 \[60, 80, 3\]"),
        (FRAMES[0][..., 0], r"uint8 \[60, 80\]"),
        (np.dstack([FRAMES[0], FRAMES[0][..., :1]]), r"uint8 \[60, 80, 4\]"),
        (FRAMES[0][:0], r"uint8 \[0, 80, 3\]"),
        ((FRAMES[0], "key"), "tuple"),
        (None, "NoneType"),
    ],
)
@pytest.mark.usefixtures("batches")
def test_a_bad_frame_is_named_after_the_results_before_it(estimator, bad, got):
    results = estimator.predict([*FRAMES[:2], bad, FRAMES[3]])
    assert [next(results).ids.shape for _ in range(2)] == [(60, 80)] * 2
    expected = rf"^frame 2 must be an array \[H, W, 3\] uint8 \(RGB\).* pixel; got {got}$"
    with pytest.raises(ValueError, match=expected):
        next(results)


@pytest.mark.usefixtures("batches")
def test_an_error_of_the_callers_iterator_follows_the_results_before_it(estimator):
    def broken():
        yield from FRAMES[:2]
        raise OSError("the camera is unplugged")

    results = estimator.predict(broken())
    assert [next(results).ids.shape for _ in range(2)] == [(60, 80)] * 2
    with pytest.raises(OSError, match="unplugged"):
        next(results)


def test_a_batch_that_fails_is_segmented_frame_by_frame(estimator, batches, monkeypatch):
    segment_batch = Predictor.segment_batch

    def refuse(self, frames, **options):
        if len(frames) > 1 or frames.shape[2] == 96:
            raise MemoryError(f"{len(frames)} frames")
        return segment_batch(self, frames, **options)

    monkeypatch.setattr(Predictor, "segment_batch", refuse)
    results = estimator.predict(FRAMES)
    assert_equal(itertools.islice(results, 4), map(estimator.predict, FRAMES[:4]))
    assert batches == [1] * 8
    with pytest.raises(MemoryError, match="1 frames"):
        next(results)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (FRAMES[0] / 255, r"a frame must be .*; got float64 \[60, 80, 3\]"),
        (FRAMES[0][:, :0], r"a frame must be .* at least one pixel; got uint8 \[60, 0, 3\]"),
        (np.stack([FRAMES[:2]]), r"a frame must be .*; got uint8 \[1, 2, 60, 80, 3\]"),
        ("frame.png", r"frames must be .* or an iterable of arrays; got str"),
        (7, r"frames must be .* or an iterable of arrays; got int"),
    ],
)
def test_other_arguments_are_rejected_at_once(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):  # before the run is opened
        Estimator(tmp_path).predict(frames)
