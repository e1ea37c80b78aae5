"""train_main.py with a small network on three devices of the CPU.

    python tests/train_mirrored.py OUT.npz [FLAGS]

OUT.npz gets the moving statistics of each device before and after every averaging:
[averagings, statistics, devices, channels].
"""

import sys

import numpy as np
import tensorflow as tf
from train_small import build_model, build_state

import train_main
from mapseg.training import saving, state, validation
from mapseg.training.updates import tensorflow_variables

DEVICES = 3


def main(out_path, flags):
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * DEVICES
    tf.config.set_logical_device_configuration(cpu, devices)
    notes = {"before": [], "after": []}
    make_averaging = saving.make_averaging

    def make_noted(trained, strategy):
        average = make_averaging(trained, strategy)
        moving = tensorflow_variables(trained.model.non_trainable_variables)

        def note(when):
            values = [strategy.experimental_local_results(v) for v in moving]
            notes[when].append([[np.array(value) for value in devices] for devices in values])

        def noted():
            note("before")
            average()
            note("after")

        return noted

    saving.make_averaging = make_noted
    state.build_state, validation.build_model = build_state, build_model
    code = train_main.main(["train_main.py", *flags, "--compile_cache_dir="])
    np.savez(out_path, **notes)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
