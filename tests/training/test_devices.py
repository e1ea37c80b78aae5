import pytest

from mapseg.config import TrainConfig
from mapseg.training.devices import check_batch_norm


@pytest.mark.parametrize(
    ("options", "replicas"),
    [({"batch_size": 1}, 1), ({"batch_size": 4, "accumulate_steps": 4}, 1), ({"batch_size": 2}, 2)],
    ids=str,
)
def test_a_batch_norm_that_would_see_one_crop_is_refused(options, replicas):
    """Image pooling leaves it one value: zero in training, anything in prediction."""

    def check(**more):
        check_batch_norm(TrainConfig(**{**options, **more}), replicas)

    with pytest.raises(ValueError, match=r"two crops or more.*got one: batch_size=.*Remedy: --b"):
        check()
    check(batch_norm="frozen")
    check(batch_size=2 * options["batch_size"])
    if replicas > 1:
        check(sync_batch_norm=True)  # they look at the crops of all devices
