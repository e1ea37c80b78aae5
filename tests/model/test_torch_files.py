import os
import pickle
import re

import numpy as np
import pytest

from mapseg.model.pretrained import imagenet_weights
from mapseg.model.torch_files import read_tensors

PATH, _ = imagenet_weights("efficientnet_lite0")
COUNT = (1152).to_bytes(8, "little")  # number of values in its first storage


def test_tensors_have_their_names_types_and_strides():
    tensors = read_tensors(PATH)
    assert len(tensors) == 296
    assert list(tensors)[:2] == ["_conv_stem.weight", "_bn0.weight"]
    assert tensors["_bn0.num_batches_tracked"].shape == ()
    assert tensors["_bn0.num_batches_tracked"].dtype == np.int64
    # The file has this kernel as [height, width, 1, channels], last axis first.
    kernel = tensors["_blocks.0._depthwise_conv.weight"]
    assert (kernel.shape, kernel.dtype) == ((32, 1, 3, 3), np.float32)
    stored = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)).tobytes()
    assert stored in PATH.read_bytes()


class Evil:
    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.mkdir, (self.made,)


@pytest.mark.parametrize("place", range(5))
def test_functions_named_in_a_file_are_not_called(place, tmp_path):
    parts = [0x1950A86A20F9469CFC6C, 1001, {}, {}, []]
    parts[place] = Evil(str(tmp_path / "made"))
    path = tmp_path / "evil.pth"
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    with pytest.raises(ValueError, match=r"evil\.pth: .* names posix\.mkdir.* Remedy"):
        read_tensors(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda data: data[: len(data) // 2], "buffer"),
        (lambda data: data[:20_000], "Error"),
        (lambda data: data.replace(b"LongStorage", b"HalfStorage"), r"torch\.HalfStorage"),
        (lambda data: pickle.dumps(7, protocol=2) + data, "begins with 7"),
        (lambda data: data.replace(COUNT, bytes(8), 1), "must have 1152 values; got 0"),
        (lambda data: b"", "EOFError"),
    ],
)
def test_a_damaged_or_unsupported_file_is_refused(damage, complaint, tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(damage(PATH.read_bytes()))
    with pytest.raises(ValueError) as error:
        read_tensors(path)
    assert re.search(rf"other\.pth: .* legacy format; .*{complaint}.*Remedy", str(error.value))


def test_the_newer_format_has_a_separate_remedy(tmp_path):
    path = tmp_path / "new.pth"
    path.write_bytes(b"PK\3\4" + PATH.read_bytes())
    with pytest.raises(ValueError, match=r"new\.pth: .*_use_new_zipfile_serialization=False"):
        read_tensors(path)
