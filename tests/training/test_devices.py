import pytest

from mapseg.config import TrainConfig
from mapseg.training.devices import check_batch_norm


@pytest.mark.parametrize(
    ("options", "replicas"),
    [({"batch_size": 1}, 1), ({"batch_size": 4, "accumulate_steps": 4}, 1), ({"batch_size": 2}, 2)],
    ids=str,
)
def test_batch_norm_over_one_crop_is_refused(options, replicas):
    """Image pooling leaves one value: normalized, it is zero in training."""

    def check(**changes):
        check_batch_norm(TrainConfig(**{**options, **changes}), replicas)

    with pytest.raises(ValueError, match=r"two crops or more.*got one: batch_size=.*Remedy: --b"):
        check()
    check(batch_norm="frozen")
    check(batch_size=2 * options["batch_size"])
    if replicas > 1:
        check(sync_batch_norm=True)  # normalizes over the crops of all devices
