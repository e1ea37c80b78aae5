"""Reads PyTorch weights files without PyTorch.

The legacy format is five pickles: a magic number, the version, system information, the tensors by
name without their values, and the keys of the storages. Then come, for each storage, the number
of values and the values.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_ZIP = b"PK"  # the first bytes of files from PyTorch 1.6 and later


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_: Any,
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    """Creates only tensors: a pickle may otherwise call any Python function."""

    _KNOWN = {  # noqa: RUF012
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"the file names {module}.{name}, which is not allowed")
        return self._KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, size, _ = pid
        return _Storage(key, dtype, size)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict in PyTorch's legacy format.

    Args:
      path: a .pth file of float32 and int64 tensors.

    Returns:
      Arrays by name, in the file's order.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file has another format or is damaged; no function that it names was called.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            raise ValueError(
                f"{path}: a .pth file must be in PyTorch's legacy format; got the zip format. "
                "Remedy: with PyTorch, torch.save(torch.load(PATH), NEW_PATH, "
                "_use_new_zipfile_serialization=False)"
            )
        file.seek(0)
        try:
            return _read(file)
        except Exception as error:  # unpickling other data may raise any error
            raise ValueError(
                f"{path}: a .pth file must be a complete state dict in PyTorch's legacy format; "
                f"{error!r}. Remedy: install or download it again"
            ) from error


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    magic, version, _, tensors, keys = (_Unpickler(file).load() for _ in range(5))
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError(f"the file begins with {magic!r}, {version!r}")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    values = {key: _read_values(file, storages[key]) for key in keys}
    return {name: _view(tensor, values[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_values(file: BinaryIO, storage: _Storage) -> np.ndarray:
    (size,) = np.frombuffer(file.read(8), "<i8")
    if size != storage.size:
        raise ValueError(f"storage {storage.key} must have {storage.size} values; got {size}")
    return np.frombuffer(file.read(size * np.dtype(storage.dtype).itemsize), storage.dtype, size)


def _view(tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    steps = [np.arange(n) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)]
    return np.asarray(values[sum(np.ix_(*steps), start=tensor.offset)])
