"""Inference of the automata, 64 steps: ``python benchmarks/rollout.py``."""

import argparse
from pathlib import Path

import torch
from measure import matmul_gflops, medians, report

from lnca_arch import LatentNAFCA, LatentViTCA, PixelViTCA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--batch', type=int, default=8, help='images')
    parser.add_argument('--size', type=int, default=32, help='height and width of an image, in pixels')
    parser.add_argument('--repeats', type=int, default=10, help='runs, of which the median counts')
    parser.add_argument('--json', type=Path, help='write the figures there, too')
    arguments = parser.parse_args()

    image = torch.rand(arguments.batch, 3, arguments.size, arguments.size)
    networks = {kind.__name__: kind().eval() for kind in (LatentNAFCA, LatentViTCA, PixelViTCA)}
    mm_name, mm, gflops = matmul_gflops()
    calls = {mm_name: mm} | {name: lambda network=network: network(image) for name, network in networks.items()}
    with torch.no_grad():
        seconds = medians(calls, arguments.repeats)
    figures = {f'{mm_name}, GFLOP/s': gflops(seconds.pop(mm_name))}
    shape = f'{arguments.batch}×{arguments.size}×{arguments.size}×3'
    figures |= {f'{name} at {shape}, s': value for name, value in seconds.items()}
    report(figures, arguments.json)


if __name__ == '__main__':
    main()
