"""train_main.py --mode=plot."""

import cv2

import train_main
from mapseg import charts
from mapseg.runs.history import append_history


def test_the_runs_are_drawn_in_one_picture(tmp_path, capsys, monkeypatch):
    drawn, draw = [], charts._figure
    monkeypatch.setattr(charts, "_figure", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    for name, losses in (("one", [4.0, 2.0, 1.0]), ("two", [3.0, 3.0])):
        (tmp_path / name).mkdir()
        for i, loss in enumerate(losses):
            row = {"step": 10 * (i + 1), "loss": loss, "learning_rate": 0.1}
            append_history(tmp_path / name / "history.csv", row)
    append_history(tmp_path / "one" / "history.csv", {"step": 30, "mean_iou": 0.25})
    runs = [str(tmp_path / name) for name in ("one", "two")]
    picture = tmp_path / "both.png"
    arguments = [f"--runs={','.join(runs)}", f"--plot_path={picture}", "--loss_smoothing=0.5"]
    assert train_main.main(["train_main.py", "--mode=plot", *arguments]) == 0
    assert f"wrote {picture}" in capsys.readouterr().out

    [figure] = drawn
    loss, _, score = figure.axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == runs
    raw_one, smooth_one, raw_two, _ = loss.lines
    assert raw_one.get_xydata().tolist() == [[10, 4], [20, 2], [30, 1]]
    assert raw_two.get_xydata().tolist() == [[10, 3], [20, 3]]
    assert smooth_one.get_ydata().tolist() == charts.smoothed([4, 2, 1], 0.5).tolist()
    assert score.lines[0].get_xydata().tolist() == [[30, 25]]
    assert cv2.imread(str(picture)).std() > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both.png", "one", "two"]


def test_without_runs_nothing_is_drawn(tmp_path, capsys):
    picture = tmp_path / "none.png"
    assert train_main.main(["train_main.py", "--mode=plot", f"--plot_path={picture}"]) == 1
    assert "runs must be one or more" in capsys.readouterr().err
    assert not picture.exists()
