import pytest

from mapseg.runs.history import append_history, cut_history, read_history, training_secs


def test_history_is_cut_where_a_run_resumes(tmp_path):
    path = tmp_path / "history.csv"
    for step in (10, 20, 30):
        append_history(path, {"step": step, "loss": step / 10})
    append_history(path, {"step": 30, "mean_iou": 0.5})
    rows = cut_history(path, 20)
    assert (
        rows
        == read_history(path)
        == [
            {"step": 10, "loss": 1.0},
            {"step": 20, "loss": 2.0},
        ]
    )
    with path.open("a") as file:
        file.write("30,3.")  # as a killed process leaves it
    assert read_history(path) == rows


def test_a_history_of_an_earlier_version_gets_the_new_columns_where_a_run_resumes(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,loss,mean_iou\n2,1.5,\n2,,0.25\n")
    rows = [{"step": 2, "loss": 1.5}, {"step": 2, "mean_iou": 0.25}]
    assert cut_history(path, 2) == rows
    row = {"step": 4, "loss": 1.25, "gradient_norm": 0.5, "weight_norm": 8.0}
    append_history(path, row)
    assert read_history(path) == [*rows, row]


def test_a_missing_history_and_a_file_that_is_not_one_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="train first"):
        read_history(tmp_path / "history.csv")
    (tmp_path / "history.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns step, loss"):
        read_history(tmp_path / "history.csv")


def test_a_history_without_numbers_is_refused(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,loss\n1,much\n")
    with pytest.raises(ValueError, match=r"history\.csv, line 2: loss must be a number"):
        read_history(path)


def test_training_secs_sums_the_time_of_the_steps():
    rows = [
        {"step": 2, "loss": 1.0},  # the compiled step alone has no rate
        {"step": 10, "loss": 1.0, "images_per_s": 4.0},
        {"step": 10, "mean_iou": 0.5},
        {"step": 20, "loss": 1.0, "images_per_s": 8.0},
    ]
    assert training_secs(rows, batch_size=2) == 8 * 2 / 4 + 10 * 2 / 8
    rows.insert(3, {"step": 15, "mean_iou": 0.5})  # evaluated between two reports of the loss
    assert training_secs(rows, batch_size=2) == 8 * 2 / 4 + 10 * 2 / 8
