"""Inference of the automata, 64 steps: ``python benchmarks/rollout.py``."""

import torch
from measure import argument_parser, matmul_gflops, medians, report

from lnca_arch import LatentNAFCA, LatentViTCA, PixelViTCA


def main() -> None:
    parser = argument_parser(__doc__, repeats=10)
    parser.add_argument('--batch', type=int, default=8, help='images')
    parser.add_argument('--size', type=int, default=32, help='height and width of an image, in pixels')
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
