"""Chooses the images that a report shows."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice, zip_longest

import numpy as np

from mapseg.evaluation.evaluation import Evaluation


def by_score(evaluation: Evaluation) -> list[int]:
    """Returns the positions of the images with labels, by ascending mean IoU."""
    scores = evaluation.image_mean_iou
    return [int(i) for i in np.argsort(scores, kind="stable") if not np.isnan(scores[i])]


def worst_of_classes(evaluation: Evaluation) -> list[int]:
    """Returns the worst image of each class, the class with the lowest IoU first."""
    iou, by_image = evaluation.iou, evaluation.image_iou
    classes = [c for c in np.argsort(iou, kind="stable") if not np.isnan(iou[c])]
    return [int(np.nanargmin(by_image[:, c])) for c in classes]


def largest_changes(before: Evaluation, after: Evaluation) -> list[int]:
    """Returns the positions of the images by descending change of their mean IoU.

    Args:
      before: an evaluation of the same images in any order.
      after: the evaluation whose positions are returned.
    """
    scores = dict(zip([image.name for image in before.images], before.image_mean_iou, strict=True))
    changes = [
        abs(score - scores[image.name])
        for image, score in zip(after.images, after.image_mean_iou, strict=True)
    ]
    order = np.argsort(-np.array(changes), kind="stable")
    return [int(i) for i in order if not np.isnan(changes[i])]


def choose_images(
    evaluation: Evaluation, count: int, others: Iterable[Sequence[int]] = ()
) -> list[int]:
    """Chooses images: in turn the worst, the best, the worst of each class, and of other lists.

    Args:
      evaluation: with the counts of each image.
      count: the most to choose.
      others: further lists of positions, the most important first.

    Returns:
      Positions of images, ascending by mean IoU.
    """
    order = by_score(evaluation)
    lists = [order, order[::-1], worst_of_classes(evaluation), *others]
    in_turn = (i for i in chain.from_iterable(zip_longest(*lists)) if i is not None)
    chosen = {*islice(dict.fromkeys(in_turn), count)}
    return [i for i in order if i in chosen]
