"""Counts the operations and parameters of the PyTorch twin that mapseg is compared with.

    python benchmarks/twin_flops.py --twin=torch_twin.py [--encoder=resnet50] [--crop=513]

--twin is a Python file with a class DeepLabV3Plus(encoder). Needs torch and timm, which mapseg does
not depend on, but no GPU: the network is built on the meta device, without values. Prints JSON: the
operations of a forward pass on one image, a multiply-add counting as two. PyTorch counts only
convolutions and matrix products: no norms, activations, biases or interpolation.
`benchmarks/train_step.py` reports mapseg's count.
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
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("twin", "", "Python file with a class DeepLabV3Plus", flag_values=values)
    flags.DEFINE_string("encoder", "resnet50", "the network's encoder", flag_values=values)
    flags.DEFINE_integer("crop", 513, "side of the image in pixels", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints the figures of one network."""
    path = Path(cli.required(values, "twin"))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Remedy: set --twin=FILE.py")
    figures = measure(path, values.encoder, values.crop)
    print(json.dumps({"encoder": values.encoder, "crop": values.crop, **figures}))
    return 0


def measure(twin_path: Path, encoder: str, crop: int) -> dict[str, Any]:
    """Counts the twin's operations.

    Args:
      twin_path: Python file with a class DeepLabV3Plus(encoder).
      encoder: argument of the class.
      crop: side of the image in pixels.

    Returns:
      Billions of operations of the network and of its encoder, millions of parameters, and the
      versions of torch and timm.
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
    encoder_flops = counter.get_flop_counts()["DeepLabV3Plus.encoder"]
    return {
        "forward_gflop": counter.get_total_flops() / 1e9,
        "encoder_forward_gflop": sum(encoder_flops.values()) / 1e9,
        "million_parameters": sum(p.numel() for p in network.parameters()) / 1e6,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
