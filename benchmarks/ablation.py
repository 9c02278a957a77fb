"""The ladder from the paper's recipe to LNCA+: what each step of it is worth, on the photographs, noisy and blurred.

python benchmarks/ablation.py --seeds 3 --epochs 2 --batch 8
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import in_one_line, machine, medians
from compare import RESULTS, compare, parse_training_options
from compare_report import of_seeds
from network_configs import (
    ROOT,
    Options,
    check_network,
    device_of,
    known_networks,
    read_network,
    read_task,
    shares_of,
    with_batch,
)
from results_store import command_line, duration, markdown_table, with_deviation, write_csv

from lnca_model.config.yaml_options import read_options
from lnca_utils.atomic import atomic_file, write_json
from lnca_utils.errors import ConfigError, install_excepthook
from lnca_utils.option_checks import check_known, construct

from basicsr.utils.registry import ARCH_REGISTRY

RECIPES = Path(__file__).with_name('recipes.yml')
TASKS = {'noise': ROOT / 'options' / 'lnca_photos.yml', 'blur': ROOT / 'options' / 'lnca_photos_deblur.yml'}
SCORES = {'ssim': 3, 'psnr': 2}  # and digits
INFERENCE = {'32 tiles': (32, 32), '1 picture': (1, 512)}  # images and their sides
TURNS = 9  # of the networks, to restore these


def main() -> None:
    install_excepthook()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = read_options(RECIPES)
    parser.add_argument('--recipes', nargs='+', default=list(recipes), help=f'of {", ".join(recipes)}; all of them')
    arguments = parse_training_options(parser)
    for name in arguments.recipes:
        check_known(name, recipes, '--recipes:')
    known = {name: network_of(name, recipes) for name in recipes}
    check_equally_long(known)
    networks = {name: known[name] for name in arguments.recipes}
    output = arguments.output or RESULTS / 'ablation'
    tasks = {damage: with_batch(read_task(file), arguments.batch) for damage, file in TASKS.items()}
    rows: dict[str, dict[str, Any]] = {
        name: {'recipe': name, 'what it is': recipe['title']} for name, recipe in recipes.items()
    }
    budget = arguments.budget and arguments.budget / len(TASKS)
    for damage, task in tasks.items():
        compared = compare(task, networks, output / damage, arguments.seeds, arguments.epochs, budget)
        _add(rows, damage, compared)
    # Those of earlier calls, too, if they were finished.
    rows = {name: row for name, row in rows.items() if all(f'{damage} epochs' in row for damage in TASKS)}
    finished = {name: known[name] for name in rows}
    for what, (images, side) in INFERENCE.items():
        print(f'measuring inference, {what}')
        for name, seconds in inference_seconds(finished, images, side, device_of(task)).items():
            rows[name][f'{what} inference seconds'] = seconds
    _write(output, list(rows.values()))


def network_of(name: str, recipes: Mapping[str, Any], of: tuple[str, ...] = ()) -> Options:
    """A network as options/networks describes them, from a recipe: that of its ``from`` with the recipe's changes.

    Args:
        name: a key of ``recipes``.
        recipes: name → ``title``; ``from``, the name of a recipe or of a file in options/networks; and changes.
        of: recipes that are made from this one.

    Raises:
        ConfigError: it makes no network, or ``from`` is unknown or leads back to the recipe itself.
    """
    where, of = f'{RECIPES}: {name}', (*of, name)
    recipe = dict(recipes[name])
    for key in ('title', 'from'):
        if key not in recipe:
            raise ConfigError(f'{where}: {key} is missing')
    del recipe['title']
    origin = recipe.pop('from')
    check_known(origin, [*recipes, *known_networks()], f'{where}: from')
    if origin in of:
        raise ConfigError(f'{where}: from leads in a circle: {", ".join(of)}, {origin}')
    before = network_of(origin, recipes, of) if origin in recipes else read_network(origin)
    network = _changed(before, recipe)
    check_network(network, where)
    return network


def _changed(options: Options, changes: Mapping[str, Any]) -> Options:
    """Options, blocks in blocks, with changes; what is changed to None goes."""
    changed = dict(options)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(changed.get(key), Mapping):
            value = _changed(changed[key], value)
        changed[key] = value
    return {key: value for key, value in changed.items() if value is not None}


def check_equally_long(networks: Mapping[str, Options]) -> None:
    """Raise ConfigError unless networks, from :func:`network_of`, train for as many iterations over all phases."""
    lengths = {name: sum(shares_of(network).values()) for name, network in networks.items()}
    first, length = next(iter(lengths.items()))
    for name, other in lengths.items():
        if not math.isclose(other, length):
            raise ConfigError(
                f'{RECIPES}: {name}: the shares of its phases add up to {other:g}, those of {first} to {length:g}; '
                'make them equal'
            )


def inference_seconds(
    networks: Mapping[str, Options], images: int, side: int, device: torch.device
) -> dict[str, float]:
    """How long new networks take to restore square images: name → median of so many turns as all take. Recipes that
    differ in training alone have the same network, which is measured once.

    Args:
        networks: name → as from :func:`network_of`.
        images: in a batch.
        side: of an image, in pixels.
        device: where to.
    """
    batch = torch.rand(images, 3, side, side, device=device)

    def call_of(name: str) -> Callable[[], torch.Tensor]:
        network = construct(networks[name]['network_g'], ARCH_REGISTRY, f'{name}: network_g').eval().to(device)
        return lambda: network(batch).cpu()  # which waits for a GPU

    kinds = {name: json.dumps(network['network_g'], sort_keys=True) for name, network in networks.items()}
    one_of_each = {kind: name for name, kind in kinds.items()}
    with torch.no_grad():
        seconds = medians({kind: call_of(name) for kind, name in one_of_each.items()}, TURNS)
    return {name: seconds[kind] for name, kind in kinds.items()}


def _add(rows: Mapping[str, dict[str, Any]], damage: str, compared: Iterable[Any]) -> None:
    """Add to each recipe's row what a comparison found."""
    for found in compared:
        row = rows.get(found['network'])
        if row is None:  # the corrupted input, or a recipe of an earlier call that is no longer there
            continue
        for score in SCORES:
            for column in (score, f'{score} deviation'):
                row[f'{damage} {column}'] = found[column]
        row |= {
            'seeds': found['seeds'],
            'parameters': found['parameters'],
            f'{damage} epochs': found['epochs'],
            f'{damage} training seconds': found['training seconds'],
            f'{damage} peak training memory bytes': found['peak training memory bytes'],
        }


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    """``table.md``, ``table.csv`` and ``table.json``; the first is printed, too."""
    command = command_line()
    columns = ['recipe', *(f'{damage}, {score.upper()}' for damage in TASKS for score in SCORES)]
    columns += ['parameters', 'training time', 'training memory', *(f'inference, {what}' for what in INFERENCE)]
    first = next(iter(TASKS))
    epochs = ' and '.join(dict.fromkeys(f'{row[f"{damage} epochs"]:g}' for row in rows for damage in TASKS))
    lines = []
    for row in rows:
        line = [row['recipe']]
        for damage in TASKS:
            for score, digits in SCORES.items():
                line.append(with_deviation(row[f'{damage} {score}'], row[f'{damage} {score} deviation'], digits))
        line += [
            f'{row["parameters"]:,}',
            duration(row[f'{first} training seconds']),
            f'{row[f"{first} peak training memory bytes"] / 1e9:.2f} GB',
            *(f'{1000 * row[f"{what} inference seconds"]:.0f} ms' for what in INFERENCE),
        ]
        lines.append(line)
    pictures = '; '.join(f'{what}: {images} of {side}×{side} pixels' for what, (images, side) in INFERENCE.items())
    text = '\n'.join(
        [
            '# The ladder\n',
            markdown_table(columns, lines),
            '',
            *(f'- `{row["recipe"]}`: {row["what it is"]}' for row in rows),
            f'\n`{command}`\n',
            f'{epochs} epochs over all phases, {of_seeds({row["seeds"] for row in rows})}. Time and memory of '
            f'training are those on {first}. Inference ({pictures}): medians of {TURNS}, the networks taking turns.\n',
            in_one_line(machine()),
        ]
    )
    print(text)
    with atomic_file(output / 'table.md') as temporary:
        temporary.write_text(text + '\n', encoding='utf-8')
    write_csv(output / 'table.csv', rows)
    write_json(output / 'table.json', {'command': command, 'machine': machine(), 'rows': rows})
    print(f'{output}: table.md, table.csv, table.json')


if __name__ == '__main__':
    main()
