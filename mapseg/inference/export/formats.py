"""The formats of an export, what each needs, and which folders it may replace.

All of this is checked before TensorFlow is imported.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mapseg.config import PredictConfig


@dataclass(frozen=True)
class Format:
    """A format that an export can have.

    Attributes:
      name: its name in `--format`.
      files: names of the files and folders that it consists of.
      packages: names of the modules that writing and checking it import.
      plain: whether it is written from the graph of plain operations, which has one scale, no
        mirror image and no tiles; see `whole_job`.
      rounded: whether its weights are rounded to 8 bits, so that other ids are expected.
      calibrated: whether the ranges of its tensors are measured on images of records.
    """

    name: str
    files: tuple[str, ...]
    packages: tuple[str, ...] = ()
    plain: bool = True
    rounded: bool = False
    calibrated: bool = False

    @property
    def least_equal(self) -> float:
        """The smallest share of ids that must equal the predictor's."""
        return 0.5 if self.rounded else 0.999


SAVED_MODEL = Format(
    "saved_model",
    ("assets", "fingerprint.pb", "keras_metadata.pb", "saved_model.pb", "variables"),
    plain=False,
)
ONNX = Format("onnx", ("model.onnx",), ("tf2onnx", "onnx", "onnxruntime"))
_LITERT = ("ai_edge_litert",)
LITERT = Format("litert", ("model.tflite",), _LITERT)
LITERT_DYNAMIC_INT8 = Format(
    "litert_dynamic_int8", ("model_dynamic_int8.tflite",), _LITERT, rounded=True
)
LITERT_INT8 = Format("litert_int8", ("model_int8.tflite",), _LITERT, rounded=True, calibrated=True)
FORMATS = (SAVED_MODEL, ONNX, LITERT, LITERT_DYNAMIC_INT8, LITERT_INT8)

_OWN_FILES = {"export.json", "labels.json", *(name for x in FORMATS for name in x.files)}


def choose_formats(
    names: Sequence[str], config: PredictConfig, records_dir: Path | str = ""
) -> tuple[Format, ...]:
    """Returns the formats of these names.

    Args:
      names: the names.
      config: the options of the export.
      records_dir: records whose images calibrate, or empty.

    Raises:
      ValueError: there is none, or an unknown one; a format does not support an option of
        `config`, or lacks records; or a package is not installed.
    """
    known = {form.name: form for form in FORMATS}
    if isinstance(names, str):
        raise ValueError(f"formats must be a list of names; got the text {names!r}")
    if not names or set(names) - known.keys():
        raise ValueError(
            f"format must be a comma-separated list of {', '.join(known)}; got "
            f"{','.join(names or ()) or 'none'}"
        )
    formats = tuple(known[name] for name in dict.fromkeys(names))
    for form in formats:
        if form.plain:
            _check_plain(form.name, config)
        if form.calibrated:
            _check_calibrated(form.name, config, records_dir)
        lacking = [x for x in form.packages if importlib.util.find_spec(x) is None]
        if lacking:
            raise ValueError(
                f"format {form.name} needs packages that must be installed; missing: "
                f"{', '.join(lacking)}. Remedy: pip install 'mapseg[export]'"
            )
    return formats


def check_export_dir(export_dir: Path) -> None:
    """Checks that a folder can be replaced by an export.

    Raises:
      ValueError: it holds other files, is a file or the current folder.
    """
    if export_dir.exists() and not export_dir.is_dir():
        raise ValueError(
            f"{export_dir}: export_dir must be a folder; got a file. Remedy: choose another "
            "--export_dir"
        )
    if export_dir.resolve() == Path.cwd():
        raise ValueError(
            f"{export_dir}: export_dir must not be the current folder, which would be replaced. "
            "Remedy: choose another --export_dir"
        )
    names = {p.name for p in export_dir.iterdir()} if export_dir.exists() else set()
    is_export = "labels.json" in names and names & {"export.json", "saved_model.pb"}
    if names and not (is_export and names <= _OWN_FILES):
        raise ValueError(
            f"{export_dir}: export_dir must be new, empty or an earlier export; it holds other "
            "files. Remedy: choose another --export_dir"
        )


def _check_plain(name: str, config: PredictConfig) -> None:
    refused = []
    if len(config.factors) > 1:
        refused.append(f"scales must be a single number; got {config.scales}")
    if config.flip_average:
        refused.append("flip_average must be off; got true")
    if refused:
        raise ValueError(
            f"format {name}: {'; '.join(refused)}. Remedy: leave these options out, or export "
            f"with --format={SAVED_MODEL.name}"
        )


def _check_calibrated(name: str, config: PredictConfig, records_dir: Path | str) -> None:
    if config.scale == "auto" or float(config.scale) * config.factors[0] != 1:
        got = config.scale + (f", with scales={config.scales}" if config.scales != "1" else "")
        raise ValueError(
            f"format {name}: scale must be 1, because integers of 8 bits cannot resize images; got "
            f"{got}. Remedy: export with --scale=1, and give the network images of about "
            "the size of the training images"
        )
    if not str(records_dir):
        raise ValueError(
            f"format {name}: records_dir must be given, because the ranges of the integers are "
            "measured on training images; got none. Remedy: --records_dir=R, the records that the "
            "run was trained on"
        )
