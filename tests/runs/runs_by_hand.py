from mapseg.config import ModelConfig, TrainConfig
from mapseg.labels import LabelClass, make_label_set
from mapseg.runs.folder import Run


def make_run(run_dir, **train):
    classes = tuple(LabelClass(i, f"c{i}", (i, i, i)) for i in range(3))
    labels = make_label_set(classes, "all")
    train = {"precision": "float32", "schedule_steps": 10, **train}
    return Run(
        run_dir,
        ModelConfig(encoder="mobilenet_v2"),
        TrainConfig(**train),
        labels,
        512,
        classes,
        "d",
    )
