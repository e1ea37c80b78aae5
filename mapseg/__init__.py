"""mapseg: street-scene segmentation with TensorFlow, from raw images to segmented frames."""

import importlib.metadata
import os
from typing import TYPE_CHECKING, Any

from mapseg import onednn

__version__ = "0.1.0"


def _check_stack() -> None:
    """Rejects an unsupported TensorFlow or Keras before it is imported.

    Errors carry the package name, so that `python -m mapseg.X` prints one line, not a traceback.
    """
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise ImportError(
            f"KERAS_BACKEND must be tensorflow; got {backend}. Remedy: unset KERAS_BACKEND",
            name=__name__,
        )
    if os.environ.get("TF_USE_LEGACY_KERAS", "0").lower() not in ("", "0", "false"):
        raise ImportError(
            "TF_USE_LEGACY_KERAS must not be set: mapseg uses the Keras that comes with "
            "TensorFlow. Remedy: unset TF_USE_LEGACY_KERAS",
            name=__name__,
        )
    try:
        version = importlib.metadata.version("tensorflow")
    except importlib.metadata.PackageNotFoundError:
        return  # a nightly or vendor build, or none: the import error is then clearer
    major, minor, patch = (int("".join(filter(str.isdigit, p))) for p in version.split(".")[:3])
    if (major, minor) == (2, 15) and patch >= 1:
        return
    if (major, minor) >= (2, 21):
        return
    raise ImportError(
        f"tensorflow must be 2.21 or newer, or 2.15.1 with mapseg[addons]; got {version}. "
        "Remedy: pip install --upgrade tensorflow",
        name=__name__,
    )


if TYPE_CHECKING:
    from mapseg.estimator import Estimator as Estimator
else:

    def __getattr__(name: str) -> Any:
        # Lazy, because conversion workers import mapseg too.
        if name == "Estimator":
            from mapseg.estimator import Estimator

            return Estimator
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_check_stack()
onednn.turn_on()
