"""Counts the operations and parameters of the PyTorch twin, beside which mapseg is timed.

    python benchmarks/twin_flops.py --twin=torch_twin.py [--encoder=resnet50] [--crop=513]

--twin is a Python file with a class DeepLabV3Plus(encoder). Needs torch and timm, which are no part
of mapseg, and no GPU: the network has shapes and no values. Prints JSON: the operations of a
forward pass over one image, a multiplication and an addition being two, of the convolutions and
matrix products. PyTorch counts nothing else: no norms, activations, biases or interpolation.
`benchmarks/train_step.py` has mapseg's own count.
"""

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mapseg import cli


def define_flags() -> flags.FlagValues:
    """Defines what the program takes."""
    values = flags.FlagValues()
    flags.DEFINE_string("twin", "", "the file that defines the network", flag_values=values)
    flags.DEFINE_string("encoder", "resnet50", "the network's encoder", flag_values=values)
    flags.DEFINE_integer("crop", 513, "side of the image in pixels", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints the figures of one network."""
    path = Path(cli.required(values, "twin"))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Remedy: --twin=FILE.py")
    found = measure(path, values.encoder, values.crop)
    print(json.dumps({"encoder": values.encoder, "crop": values.crop, **found}))
    return 0


def measure(twin_path: Path, encoder: str, crop: int) -> dict[str, Any]:
    """Counts the twin's operations.

    Args:
      twin_path: Python with a class DeepLabV3Plus(encoder).
      encoder: its argument.
      crop: side of the image in pixels.

    Returns:
      Billions of operations of the whole network and of its encoder, millions of parameters, and
      the versions that were used.
    """
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    spec = importlib.util.spec_from_file_location("twin", twin_path)
    if spec is None or spec.loader is None:
        raise ValueError(f"twin must be a Python file; got {twin_path}")
    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    with torch.device("meta"):
        network = twin.DeepLabV3Plus(encoder).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, crop, crop))
    of_encoder = counter.get_flop_counts()["DeepLabV3Plus.encoder"]
    return {
        "forward_gflop": counter.get_total_flops() / 1e9,
        "encoder_forward_gflop": sum(of_encoder.values()) / 1e9,
        "million_parameters": sum(p.numel() for p in network.parameters()) / 1e6,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
