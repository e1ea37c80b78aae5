"""Checks of the records: files, ids, batches."""

import time

import numpy as np

from mapseg.checks.case import OK, SKIP, WARN, Case, Finding
from mapseg.labels import VOID, make_label_set
from mapseg.training.prepare import check_same_records

_LABELS_READ = 8
_INPUT_SECS = 3.0


def check_records(case: Case) -> Finding:
    """Checks the manifest, the size of every shard, and the splits."""
    from mapseg.data.manifest import read_manifest  # here: it needs packages that may be missing

    if case.records_dir is None:
        return Finding(SKIP, "no --records_dir given; the step is tested on a synthetic batch")
    case.manifest = read_manifest(case.records_dir)
    split = case.manifest.split(case.train.train_split)
    if case.mode != "train":
        case.manifest.split(case.train.eval_split)
    if case.stored is not None:
        check_same_records(case.stored, case.manifest)
    epochs = case.train.steps * case.train.batch_size / split.samples
    return Finding(
        OK,
        f"{split.samples} samples to train on, in {len(split.shards)} shards; long side "
        f"{split.long_side_px} px; {epochs:.1f} epochs",
    )


def check_ids(case: Case) -> Finding:
    """Builds the label set, and checks the ids of some labels against the class table."""
    from mapseg.data.samples import parse_sample
    from mapseg.data.shards import index_split, read_record

    classes = case.manifest.classes
    stored = case.stored
    labels = stored.label_set if stored else make_label_set(classes, case.train.label_set)
    case.labels, index = labels, index_split(case.manifest, case.train.train_split)
    places = np.unique(np.linspace(0, len(index) - 1, _LABELS_READ).astype(int))
    for place in places:
        sample = parse_sample(read_record(index, int(place)))
        allowed = {c.id for c in classes} | (set() if sample.tiles else {VOID})  # as TF DeepLab
        unknown = sorted(set(np.unique(sample.whole_label).tolist()) - allowed)
        if unknown:
            raise ValueError(
                f"{sample.key}: ids must be in the class table; got {unknown}. Remedy: python -m "
                "data_prep.verify_records lists all such samples; convert them again"
            )
    pixels = case.manifest.split(case.train.train_split).pixels
    case.class_pixels = labels.count(pixels, classes)
    void = sum(pixels.get(c.name, 0) for c in classes if labels.table[c.id] == VOID)
    return Finding(
        OK,
        f"{len(labels.classes)} classes of label set {labels.name}; "
        f"{void / max(sum(pixels.values()), 1):.1%} of the split's pixels are in no class (VOID); "
        f"{len(places)} labels read, all their ids are in the class table",
    )


def check_batch(case: Case) -> Finding:
    """Reads batches of the records for a few seconds."""
    from mapseg.data.batches import CropStream

    if case.labels is None:
        raise ValueError("the label set must be known before batches are read")
    started, count = time.perf_counter(), 1
    stream = CropStream(case.manifest, case.train, case.labels)
    batches = iter(stream.batches(case.start_step))
    image, label = (pixels.numpy() for pixels in next(batches))
    first_secs = time.perf_counter() - started
    while time.perf_counter() - started < _INPUT_SECS:
        next(batches)
        count += 1
    case.input_secs = (time.perf_counter() - started) / count
    case.batch = image, label
    case.samples = ", ".join(stream.keys(case.start_step))
    void = (label == VOID).mean()
    text = (
        f"first batch in {first_secs:.1f} s, {len(label) / case.input_secs:.1f} crops/s overall; "
        f"{void:.0%} of the first batch's pixels are VOID"
    )
    if void == 1:
        return Finding(WARN, f"{text}; nothing to learn from {case.samples}. Remedy: --label_set")
    return Finding(OK, text)
