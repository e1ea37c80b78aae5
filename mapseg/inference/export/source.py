"""What an export is made from: a run's weights as a predictor and as a graph for converters."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mapseg import __version__
from mapseg.config import PredictConfig
from mapseg.inference.export.whole_job import make_whole_job
from mapseg.inference.predictor import Predictor, device_precision, load_model
from mapseg.model.network import Network, convertible_network, frozen_network
from mapseg.runs.checkpoints import checkpoint_step
from mapseg.runs.folder import Run

_ONE_TILE_PX = 2**16  # larger than any image


@dataclass(frozen=True)
class Source:
    """A run, one of its checkpoints, and the options that are fixed in the export.

    Attributes:
      run: from `open_run`.
      checkpoint_path: from `find_checkpoint`.
      config: scales, flip and tile size.
    """

    run: Run
    checkpoint_path: Path
    config: PredictConfig

    @property
    def step(self) -> int:
        """The training step of the weights."""
        return checkpoint_step(self.checkpoint_path)

    @property
    def scale(self) -> str:
        """The factor by which images are resized, as text; `auto` depends on their size."""
        (factor, *others), scale = self.config.factors, self.config.scale
        if others or factor == 1:
            return scale
        return f"auto*{factor:g}" if scale == "auto" else f"{float(scale) * factor:g}"

    @property
    def facts(self) -> dict[str, Any]:
        """What users of an export must know, as JSON values: inside the files of every format."""
        return {
            "classes": [c.to_json() for c in self.run.label_set.classes],
            "scale": self.scale,
            "mapseg": __version__,
            "step": self.step,
        }

    @cached_property
    def predictor(self) -> Predictor:
        """The predictor, in the precision of this machine."""
        precision = device_precision(self.run.train.precision)
        model = self._float_model if precision == "float32" else self._load(precision)
        return Predictor(frozen_network(model, portable=True), self.config, self.run.long_side_px)

    @cached_property
    def whole_predictor(self) -> Predictor:
        """The predictor in float32 without tiles: the reference of `segment`."""
        network = frozen_network(self._float_model, portable=True)
        config = replace(self.config, tile_px=_ONE_TILE_PX)
        return Predictor(network, config, self.run.long_side_px)

    @cached_property
    def network(self) -> Network:
        """The network for converters."""
        return convertible_network(self._float_model)

    @cached_property
    def segment(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """The graph for converters; see `make_whole_job`."""
        return make_whole_job(self.network, self.config, self.run.long_side_px)

    @cached_property
    def _float_model(self) -> keras.Model:
        return self._load("float32")

    def _load(self, precision: str) -> keras.Model:
        return load_model(self.run, self.checkpoint_path, precision)
