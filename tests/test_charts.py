from pathlib import Path

import cv2
import numpy as np
import pytest

from mapseg import charts


def test_smoothed_by_hand():
    # 1st: 0.5 * 2 / 0.5 = 2; 2nd: (0.5 * 1 + 0.5 * 4) / 0.75; 3rd: (0.5 * 2.5 + 0.5 * 8) / 0.875
    np.testing.assert_allclose(charts.smoothed([2, 4, 8], 0.5), [2, 2.5 / 0.75, 5.25 / 0.875])
    np.testing.assert_array_equal(charts.smoothed([2, 4, 8], 0), [2, 4, 8])
    np.testing.assert_allclose(charts.smoothed([3.0] * 50, 0.95), 3)
    assert charts.smoothed([], 0.9).shape == (0,)


def test_smoothed_skips_non_finite_values():
    result = charts.smoothed([np.nan, 2, np.inf, 4, -np.inf], 0.5)
    np.testing.assert_allclose(result, [np.nan, 2, 2, 2.5 / 0.75, 2.5 / 0.75])


@pytest.mark.parametrize("weight", [1, -0.1])
def test_smoothed_refuses_a_weight_out_of_range(weight):
    with pytest.raises(ValueError, match="loss_smoothing must be"):
        charts.smoothed([1.0], weight)


def make_rows(count, scored=True):
    rows = [{"step": 10.0 * i, "loss": 4.0 / i, "learning_rate": 0.01 / i} for i in range(1, count)]
    return rows + [{"step": 10.0 * count, "mean_iou": 0.5}] * scored


def test_figure_draws_raw_and_smoothed_loss_rate_and_score():
    rows = make_rows(40)
    rows[3]["loss"], rows[7]["loss"] = np.nan, np.inf
    loss, rate, score = charts._figure({"": rows}, 0.9).axes
    raw, smooth = loss.lines
    values = np.array([row["loss"] for row in rows[:-1]])
    np.testing.assert_array_equal(raw.get_ydata()[:3], values[:3])
    assert np.isnan(raw.get_ydata()[[3, 7]]).all()
    np.testing.assert_allclose(smooth.get_ydata(), charts.smoothed(values, 0.9))
    assert rate.lines[0].get_ydata()[1] == 0.005
    assert score.lines[0].get_xydata().tolist() == [[400, 50]]
    labels = [axis.get_ylabel() for axis in (loss, rate, score)]
    assert labels == ["training loss", "learning rate", "mean IoU, %"]
    assert score.get_xlabel() == "step"
    assert len(charts._figure({"": make_rows(40, scored=False)}, 0.9).axes) == 2


@pytest.mark.parametrize(
    "rows",
    [
        make_rows(30),
        make_rows(2),
        [{"step": 1.0, "loss": np.nan, "learning_rate": 0.1}],
        [{"step": 5.0, "mean_iou": 0.1}],
    ],
    ids=["many", "one", "not-finite", "score-only"],
)
def test_plot_history_writes_a_picture_and_nothing_else(tmp_path, rows):
    path = tmp_path / "run" / "loss.png"
    charts.plot_history(rows, path, 0.9)
    assert cv2.imread(str(path)).std() > 5
    assert list(path.parent.iterdir()) == [path]


def test_plot_runs_draws_each_run_in_its_own_colour(tmp_path):
    runs = {"first": make_rows(40), "second": make_rows(50, scored=False)}
    axis = charts._figure(runs, 0.9).axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["first", "second"]
    assert len({line.get_color() for line in axis.lines}) == 2
    charts.plot_runs(runs, tmp_path / "runs.png", 0.9)
    assert (tmp_path / "runs.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="runs must be"):
        charts.plot_runs({}, tmp_path / "none.png", 0.9)


def test_pyplot_is_never_touched():
    assert "pyplot" not in Path(charts.__file__).read_text().replace("never through pyplot", "")
