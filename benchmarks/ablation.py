"""Measure what each step from the paper's recipe to LNCA+ contributes, on noisy and on blurred photographs:

python benchmarks/ablation.py --seeds 3 --epochs 2 --batch 8
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import machine, machine_line, medians
from compare import RESULTS, compare, parse_training_arguments
from compare_report import describe_seeds
from network_configs import (
    ROOT,
    Options,
    check_network,
    device_for,
    known_networks,
    phase_ratios,
    read_network,
    read_task,
    with_batch_size,
)
from results_store import command_line, duration, markdown_table, with_deviation, write_tables

from lnca_model.config.yaml_options import read_options
from lnca_utils.errors import ConfigError, install_excepthook
from lnca_utils.option_checks import check_known, construct

from basicsr.utils.registry import ARCH_REGISTRY

RECIPES = Path(__file__).with_name('recipes.yml')
TASKS = {'noise': ROOT / 'options' / 'lnca_photos.yml', 'blur': ROOT / 'options' / 'lnca_photos_deblur.yml'}
SCORES = {'ssim': 3, 'psnr': 2}  # metric → digits
INFERENCE = {'32 tiles': (32, 32), '1 picture': (1, 512)}  # name → number of images, and their height and width
INFERENCE_REPEATS = 9


def main() -> None:
    install_excepthook()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = read_options(RECIPES)
    parser.add_argument('--recipes', nargs='+', default=list(recipes), help=f'from {", ".join(recipes)}; default: all')
    arguments = parse_training_arguments(parser)
    for name in arguments.recipes:
        check_known(name, recipes, '--recipes:')
    known = {name: recipe_network(name, recipes) for name in recipes}
    check_equal_lengths(known)
    networks = {name: known[name] for name in arguments.recipes}
    output = arguments.output or RESULTS / 'ablation'
    tasks = {corruption: with_batch_size(read_task(file), arguments.batch) for corruption, file in TASKS.items()}
    rows = {name: {'recipe': name, 'what it is': recipe['title']} for name, recipe in recipes.items()}
    budget = arguments.budget and arguments.budget / len(TASKS)
    for corruption, task in tasks.items():
        results = compare(task, networks, output / corruption, arguments.seeds, arguments.epochs, budget)
        _add(rows, corruption, results)
    # Includes the finished recipes of earlier calls.
    rows = {name: row for name, row in rows.items() if all(f'{corruption} epochs' in row for corruption in TASKS)}
    finished = {name: known[name] for name in rows}
    for label, (images, side) in INFERENCE.items():
        print(f'measuring inference, {label}')
        for name, seconds in inference_seconds(finished, images, side, device_for(task)).items():
            rows[name][f'{label} inference seconds'] = seconds
    _write_report(output, list(rows.values()))


def recipe_network(name: str, recipes: Mapping[str, Any], ancestors: tuple[str, ...] = ()) -> Options:
    """Return the network of a recipe: the options of its ``from`` with the recipe's changes.

    Args:
        name: a key of ``recipes``.
        recipes: name → ``title``; ``from``, another recipe or a file of ``options/networks``; and the changes.
        ancestors: recipes that are derived from this one.

    Raises:
        ConfigError: if the recipe is invalid, or its ``from`` is unknown or leads back to itself.
    """
    where, ancestors = f'{RECIPES}: {name}', (*ancestors, name)
    changes = dict(recipes[name])
    for key in ('title', 'from'):
        if key not in changes:
            raise ConfigError(f'{where}: {key} is missing')
    del changes['title']
    origin = changes.pop('from')
    check_known(origin, [*recipes, *known_networks()], f'{where}: from')
    if origin in ancestors:
        raise ConfigError(f'{where}: from leads in a circle: {", ".join(ancestors)}, {origin}')
    network = recipe_network(origin, recipes, ancestors) if origin in recipes else read_network(origin)
    network = _merge(network, changes)
    check_network(network, where)
    return network


def _merge(options: Options, changes: Mapping[str, Any]) -> Options:
    """Return nested options with changes; an option that is changed to None is removed."""
    merged = dict(options)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            value = _merge(merged[key], value)
        merged[key] = value
    return {key: value for key, value in merged.items() if value is not None}


def check_equal_lengths(networks: Mapping[str, Options]) -> None:
    """Raise ConfigError unless all networks train for the same number of iterations, summed over phases."""
    lengths = {name: sum(phase_ratios(network).values()) for name, network in networks.items()}
    first, expected = next(iter(lengths.items()))
    for name, length in lengths.items():
        if not math.isclose(length, expected):
            raise ConfigError(
                f'{RECIPES}: {name}: its phase_ratios add up to {length:g}, those of {first} to {expected:g}; make '
                'them equal'
            )


def inference_seconds(
    networks: Mapping[str, Options], images: int, side: int, device: torch.device
) -> dict[str, float]:
    """Return the median seconds that untrained networks take for a batch of square images.

    Recipes that differ in training only have equal networks, which are measured once.

    Args:
        networks: name → options, from :func:`recipe_network`.
        images: batch size.
        side: height and width of an image.
        device: where to run.
    """
    batch = torch.rand(images, 3, side, side, device=device)
    keys = {name: json.dumps(network['network_g'], sort_keys=True) for name, network in networks.items()}
    calls = {}
    for name, key in keys.items():
        network = construct(networks[name]['network_g'], ARCH_REGISTRY, f'{name}: network_g').eval().to(device)
        calls[key] = lambda network=network: network(batch).cpu()  # which waits for a GPU
    with torch.no_grad():
        seconds = medians(calls, INFERENCE_REPEATS)
    return {name: seconds[key] for name, key in keys.items()}


def _add(rows: Mapping[str, dict[str, Any]], corruption: str, results: Iterable[Mapping[str, Any]]) -> None:
    """Add the results of a comparison to the rows of the recipes."""
    for result in results:
        row = rows.get(result['network'])
        if row is None:  # the corrupted input, or a recipe of an earlier call that no longer exists
            continue
        scores = [key for metric in SCORES for key in (metric, f'{metric} deviation')]
        row |= {f'{corruption} {key}': result[key] for key in scores}
        row |= {key: result[key] for key in ('seeds', 'parameters')}
        costs = ('epochs', 'training seconds', 'peak training memory bytes')
        row |= {f'{corruption} {key}': result[key] for key in costs}


def _write_report(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``table.md``, ``table.csv`` and ``table.json``, and print the first."""
    columns = ['recipe', *(f'{corruption}, {metric.upper()}' for corruption in TASKS for metric in SCORES)]
    columns += ['parameters', 'training time', 'training memory', *(f'inference, {label}' for label in INFERENCE)]
    first = next(iter(TASKS))
    lines = [
        [
            row['recipe'],
            *(
                with_deviation(row[f'{corruption} {metric}'], row[f'{corruption} {metric} deviation'], digits)
                for corruption in TASKS
                for metric, digits in SCORES.items()
            ),
            f'{row["parameters"]:,}',
            duration(row[f'{first} training seconds']),
            f'{row[f"{first} peak training memory bytes"] / 1e9:.2f} GB',
            *(f'{1000 * row[f"{label} inference seconds"]:.0f} ms' for label in INFERENCE),
        ]
        for row in rows
    ]
    epochs = ' and '.join(dict.fromkeys(f'{row[f"{corruption} epochs"]:g}' for row in rows for corruption in TASKS))
    sizes = '; '.join(f'{label}: {images} of {side}×{side} pixels' for label, (images, side) in INFERENCE.items())
    command = command_line()
    text = '\n'.join(
        [
            '# Ablation\n',
            markdown_table(columns, lines),
            '',
            *(f'- `{row["recipe"]}`: {row["what it is"]}' for row in rows),
            f'\n`{command}`\n',
            f'{epochs} epochs, summed over phases; {describe_seeds({row["seeds"] for row in rows})}. Training time and '
            f'memory: on {first}. Inference ({sizes}): medians of {INFERENCE_REPEATS}, the networks taking turns.\n',
            machine_line(machine()),
        ]
    )
    print(text)
    write_tables(output, text + '\n', rows, {'command': command, 'machine': machine(), 'rows': rows})
    print(f'{output}: table.md, table.csv, table.json')


if __name__ == '__main__':
    main()
