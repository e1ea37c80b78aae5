"""Runs for the tests of reports: any number of classes, hostile names, pictures by hand."""

import math

import numpy as np

from mapseg.config import ModelConfig, TrainConfig
from mapseg.evaluation.counting import count_image
from mapseg.evaluation.evaluation import evaluation_of
from mapseg.evaluation.report.thumbnails import Picture
from mapseg.evaluation.stored import evaluation_path, write_evaluation
from mapseg.labels import VOID, LabelClass, make_label_set
from mapseg.pages.thumbnails import encode_photo, to_uri
from mapseg.pictures import encode_png
from mapseg.runs.folder import Run, store_run
from mapseg.runs.history import append_history

HOSTILE = (
    "</script><script>document.title='taken'</script>",
    "\"><img src=x onerror=document.title='taken'>",
    "'; document.title='taken'; '",
    "Straße--grün & <b>fett</b>",
    "$x_1$ {{ 7 * 7 }} {% raw %}",
)
HEIGHT, WIDTH = 48, 64


def make_classes(count, names=()):
    names = [*names, *(f"group--part--class {i}" for i in range(len(names), count))]
    colors = np.random.default_rng(0).integers(0, 256, (count, 3)).tolist()
    pairs = zip(names[:count], colors, strict=True)
    return tuple(LabelClass(i, name, tuple(color)) for i, (name, color) in enumerate(pairs))


def scenes(classes, count, seed=0, wrong=0.2):
    """Labels of vertical stripes with void at the bottom, and predictions with wrong blocks.

    The first one shows the first eight classes.
    """
    rng = np.random.default_rng(seed)
    for i in range(count):
        order = rng.permutation(classes) if i else np.arange(classes)
        stripes = order[:8].astype(np.uint8)
        label = np.tile(np.repeat(stripes, math.ceil(WIDTH / len(stripes)))[:WIDTH], (HEIGHT, 1))
        blocks = rng.random((HEIGHT // 8, WIDTH // 8)) < wrong
        others = rng.choice(stripes, blocks.shape)
        large = np.ones((8, 8), np.uint8)
        prediction = np.where(np.kron(blocks, large), np.kron(others, large), label)
        label[-4:] = VOID
        yield label, prediction.astype(np.uint8)


def store(run_dir, classes, images=6, *, details=True, image_names=(), wrong=0.2, **train):
    """Writes a run folder with a history and an evaluation; returns the scored pairs."""
    train = {"precision": "float32", "steps": 40, "schedule_steps": 40, **train}
    label_set = make_label_set(classes, "all")
    model = ModelConfig(encoder="mobilenet_v2")
    run = Run(run_dir, model, TrainConfig(**train), label_set, 64, classes, "d" * 64)
    store_run(run)
    for step in (10, 20, 30, 40):
        row = {"step": step, "loss": 40 / step, "learning_rate": 0.01, "images_per_s": 8.0}
        append_history(run.history_path, row)
    append_history(run.history_path, {"step": 40, "mean_iou": 0.5, "pixel_accuracy": 0.7})
    pairs = list(scenes(len(classes), images, wrong=wrong))
    names = [*image_names, *(f"image {i}" for i in range(len(image_names), images))]
    counts = [
        count_image(name, *pair, label_set, details=details)
        for name, pair in zip(names, pairs, strict=True)
    ]
    facts = {"split": "validation", "step": 40, "checkpoint": "step-00000040"}
    path = evaluation_path(run_dir, "validation")
    write_evaluation(path, evaluation_of(counts, label_set), facts)
    return pairs


def pictures_of(pairs, palette):
    """Replaces `make_pictures`, which needs a network: the pictures of known pairs."""

    def make(shown, _, places, *__):
        pictures = []
        for place in places:
            label, prediction = (to_uri(encode_png(ids), "png") for ids in pairs[place])
            photo = encode_photo(palette[pairs[place][0]])
            predictions = (prediction,) * len(shown)
            pictures.append(Picture(place, photo, (HEIGHT, WIDTH), label, predictions, {}))
        return pictures

    return make
