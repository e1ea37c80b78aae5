"""The weights that a run starts from: its `init_from`."""

from pathlib import Path

from mapseg.files import file_sha256
from mapseg.model.pretrained import find_deeplab, find_initial
from mapseg.runs.checkpoints import find_checkpoint, weights_sha256


def find_start(source: str) -> Path:
    """Returns the path of the weights that `init_from` denotes.

    Args:
      source: a run folder, a checkpoint folder or `weights.npz` of mapseg, or the prefix of a TF
        DeepLab checkpoint.

    Returns:
      The folder of the best checkpoint if it is a run folder, else `source`.

    Raises:
      FileNotFoundError: the source does not exist, or is a run without checkpoints.
    """
    path = find_initial(source)
    return find_checkpoint(path) if (path / "config.json").is_file() else path


def start_sha256(source: str) -> str:
    """Returns the digest of the weights that `init_from` denotes.

    Raises:
      FileNotFoundError: they do not exist.
    """
    path = find_start(source)
    if path.is_dir():
        return weights_sha256(path)
    # The index of a TF DeepLab checkpoint holds a checksum of every weight.
    return file_sha256(path if path.is_file() else find_deeplab(source))
