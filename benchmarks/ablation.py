"""The ladder from the paper's recipe to LNCA+: what each step of it is worth, on the photographs, noisy and blurred.

python benchmarks/ablation.py --seeds 3 --epochs 2 --batch 8
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compare import RESULTS, compare, parse_training_options
from compare_plan import ESTIMATES
from measure import in_one_line, machine
from networks import ROOT, Options, check_network, read_network, read_task, with_batch
from results_folder import command_line, duration, markdown_table, read_json, with_deviation, write_csv

from lnca_arch.errors import check_known, report_in_one_line
from lnca_data.atomic import whole_file, write_json
from lnca_model.options import read_options

RECIPES = Path(__file__).with_name('recipes.yml')
TASKS = {'noise': ROOT / 'options' / 'lnca_photos.yml', 'blur': ROOT / 'options' / 'lnca_photos_deblur.yml'}
SCORES = {'ssim': 3, 'psnr': 2}  # and digits


def main() -> None:
    report_in_one_line()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = read_options(RECIPES)
    parser.add_argument('--recipes', nargs='+', default=list(recipes), help=f'of {", ".join(recipes)}; all of them')
    arguments = parse_training_options(parser)
    for name in arguments.recipes:
        check_known(name, recipes, '--recipes:')
    networks = {name: network_of(name, recipes) for name in arguments.recipes}
    output = arguments.output or RESULTS / 'ablation'
    rows: dict[str, dict[str, Any]] = {
        name: {'recipe': name, 'what it is': recipes[name]['title']} for name in arguments.recipes
    }
    budget = arguments.budget and arguments.budget / len(TASKS)
    for damage, file in TASKS.items():
        task = with_batch(read_task(file), arguments.batch)
        compared = compare(task, networks, output / damage, arguments.seeds, arguments.epochs, budget)
        _add(rows, damage, compared, read_json(output / damage / ESTIMATES) or {})
    _write(output, list(rows.values()))


def network_of(name: str, recipes: Mapping[str, Any]) -> Options:
    """A network as options/networks describes them, from a recipe: that of its ``from`` with the recipe's changes.

    Args:
        name: a key of ``recipes``.
        recipes: name → ``title``; ``from``, the name of a recipe or of a file in options/networks; and changes.

    Raises:
        InputError: it makes no network, or ``from`` is unknown.
    """
    recipe = dict(recipes[name])
    recipe.pop('title')
    origin = recipe.pop('from')
    before = network_of(origin, recipes) if origin in recipes else read_network(origin)
    network = _changed(before, recipe)
    check_network(network, f'{RECIPES}: {name}')
    return network


def _changed(options: Options, changes: Mapping[str, Any]) -> Options:
    """Options, blocks in blocks, with changes; what is changed to None goes."""
    changed = dict(options)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(changed.get(key), Mapping):
            value = _changed(changed[key], value)
        changed[key] = value
    return {key: value for key, value in changed.items() if value is not None}


def _add(
    rows: Mapping[str, dict[str, Any]], damage: str, compared: Iterable[Any], estimates: Mapping[str, Any]
) -> None:
    """Add to each recipe's row what a comparison found."""
    for found in compared:
        row = rows.get(found['network'])
        if row is None:  # the corrupted input, or a recipe of an earlier call
            continue
        for score in SCORES:
            for column in (score, f'{score} deviation'):
                row[f'{damage} {column}'] = found[column]
        row |= {
            'seeds': found['seeds'],
            'epochs': found['epochs'],
            'parameters': found['parameters'],
            f'{damage} training seconds': found['training seconds'],
            f'{damage} peak training memory bytes': found['peak training memory bytes'],
            f'{damage} inference seconds': estimates.get(found['network'], {}).get('inference_seconds'),
        }


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    """``table.md``, ``table.csv`` and ``table.json``; the first is printed, too."""
    command = command_line()
    columns = ['recipe', *(f'{damage}, {score.upper()}' for damage in TASKS for score in SCORES)]
    columns += ['parameters', 'training time', 'training memory', 'inference']
    first = next(iter(TASKS))
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
            f'{1000 * row[f"{first} inference seconds"]:.0f} ms',
        ]
        lines.append(line)
    text = '\n'.join(
        [
            '# The ladder\n',
            markdown_table(columns, lines),
            '',
            *(f'- `{row["recipe"]}`: {row["what it is"]}' for row in rows),
            f'\n`{command}`\n',
            f'{rows[0]["epochs"]:g} epochs over all phases, {rows[0]["seeds"]} seeds, mean ± standard deviation. Time '
            'and memory are those of training on noise; inference is that of a batch.\n',
            in_one_line(machine()),
        ]
    )
    print(text)
    with whole_file(output / 'table.md') as temporary:
        temporary.write_text(text + '\n', encoding='utf-8')
    write_csv(output / 'table.csv', rows)
    write_json(output / 'table.json', {'command': command, 'machine': machine(), 'rows': rows})
    print(f'{output}: table.md, table.csv, table.json')


if __name__ == '__main__':
    main()
