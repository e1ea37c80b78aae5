"""train_main.py with the small network of take_steps.py, which builds in a second."""

import sys

from take_steps import SmallState

import train_main
from mapseg.config import TrainConfig
from mapseg.training import devices, state, validation


def build_state(run, progress, *, fresh):
    return SmallState(run.train)


def build_model(config, num_classes, *, precision):
    return SmallState(TrainConfig(schedule_steps=1)).model


if __name__ == "__main__":
    devices._CONNECT_SECS = 1200.0  # for slow machines
    state.build_state, validation.build_model = build_state, build_model
    sys.exit(train_main.main([*sys.argv, "--compile_cache_dir="]))
