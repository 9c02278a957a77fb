"""benchmarks/ablation.py on tiny networks."""

import csv
import json
import shutil

import ablation
import pytest
import yaml
from budget_planner import validation_interval
from network_configs import phase_iterations
from outcomes import failed_in_one_line

from lnca_model.config.yaml_options import read_options

RECIPES = ['paper', 'plus']


@pytest.fixture
def ladder(project):
    """Both tasks that the ladder trains on, the second of the same tiles; fewer and smaller images for inference."""
    shutil.copy(project / 'options/lnca_photos.yml', project / 'options/lnca_photos_deblur.yml')
    script = project / 'benchmarks' / 'ablation.py'
    text = script.read_text()
    for constant, small in (
        ('INFERENCE_REPEATS = 9', 'INFERENCE_REPEATS = 1'),
        (': (32, 32)', ': (2, 32)'),
        ('(1, 512)', '(1, 64)'),
    ):
        assert constant in text
        text = text.replace(constant, small)
    script.write_text(text)
    return project


def test_recipes_of_equal_epochs(ladder, benchmark):
    result = benchmark('ablation', '--recipes', *RECIPES, estimated=True)
    assert result.returncode == 0, result.stderr
    output = ladder / 'results' / 'ablation'
    rows = json.loads((output / 'table.json').read_text())['rows']
    assert [row['recipe'] for row in rows] == RECIPES
    with open(output / 'table.csv', newline='') as file:
        in_csv = list(csv.DictReader(file))
    markdown = (output / 'table.md').read_text()
    assert markdown in result.stdout
    for row, line in zip(rows, in_csv, strict=True):
        assert row['seeds'] == 1
        assert row['noise epochs'] == row['blur epochs'] == rows[0]['noise epochs'] > 0
        assert 0 < row['32 tiles inference seconds'] == float(line['32 tiles inference seconds'])
        assert float(line['blur psnr']) == row['blur psnr']
        assert f'| {row["recipe"]} | {row["noise ssim"]:.3f} | ' in markdown
    options = [yaml.safe_load((output / f'noise/runs/{name}_seed0.yml').read_text())['train'] for name in RECIPES]
    assert options[0]['total_iter'] == options[1]['total_iter'] == 8
    assert [options[1][phase]['iters'] for phase in ('autoencoder', 'automaton', 'joint')] == [2, 2, 4]
    assert options[1]['joint']['optim_g']['eps'] == options[0]['automaton']['optim_g']['eps']

    again = benchmark('ablation', '--recipes', 'plus')
    assert again.stdout.count('finished before') == 2
    assert [row['recipe'] for row in json.loads((output / 'table.json').read_text())['rows']] == RECIPES


def test_the_best_of_every_recipe_is_chosen_from_as_many():
    recipes = read_options(ablation.RECIPES)
    for name in recipes:
        network = ablation.recipe_network(name, recipes)
        *before, last = phase_iterations(network, 300).values()
        total, every = sum(before) + last, validation_interval({'val': {'val_freq': 100}}, network, 300)
        validated = {*range(every, total + 1, every), total}
        assert sum(iteration > sum(before) for iteration in validated) == 3, name


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda r: r['joint'].update({'from': 'LatentNAFKA'}),
            ['recipes.yml: joint: from', 'LatentNAFKA', 'Did you mean LatentNAFCA?'],
        ),
        (lambda r: r['joint'].pop('title'), ['recipes.yml: joint: title is missing']),
        (
            lambda r: r['joint'].update({'from': 'structure'}),
            ['recipes.yml: structure: from leads in a circle: joint, structure, joint'],
        ),
        (lambda r: r['joint']['train']['joint'].update(phase_ratio=-1), ['recipes.yml: joint', 'phase_ratio']),
        (lambda r: r['joint'].update(network_g={'latent_chanels': 8}), ['latent_chanels']),
        (
            lambda r: r['unprepared']['train']['joint'].update(phase_ratio=2),
            ['recipes.yml: unprepared', 'up to 2.04'],
        ),
    ],
)
def test_recipes_that_make_no_network(ladder, benchmark, edit, change, words):
    edit('benchmarks/recipes.yml', change)
    line = failed_in_one_line(benchmark('ablation', '--recipes', 'joint'))
    for word in words:
        assert word in line


def test_tiles_that_are_not_there_are_missed_before_anything_trains(ladder, benchmark, edit):
    edit('options/lnca_photos_deblur.yml', lambda o: o['datasets']['val'].update(dataroot_gt='datasets/none.lmdb'))
    assert 'datasets/none.lmdb' in failed_in_one_line(benchmark('ablation', '--recipes', *RECIPES))
    assert not (ladder / 'results').exists()


def test_an_unknown_recipe(ladder, benchmark):
    assert 'Did you mean paper?' in failed_in_one_line(benchmark('ablation', '--recipes', 'papers'))
