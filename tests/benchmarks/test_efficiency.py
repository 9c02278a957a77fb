"""benchmarks/efficiency.py on tiny networks, and the paper's numbers."""

import csv
import json

import cv2
import published_results
import pytest
from outcomes import failed_in_one_line

NETWORKS = ['LatentNAFCA', 'LatentViTCA', 'ViTCA', 'NAFNet', 'Restormer']


@pytest.mark.parametrize('networks', [NETWORKS[:1], pytest.param(NETWORKS, marks=pytest.mark.slow)])
def test_quick_and_again(project, benchmark, edit, networks):
    # ViTCA exceeds the memory limit in training only: it takes about 0.65 GB, the others at most 0.15.
    edit('options/networks/ViTCA.yml', lambda n: n['network_g'].update(embed_channels=128, mlp_channels=64))
    edit('options/networks/ViTCA.yml', lambda n: n['train']['automaton'].update(steps=[40, 40]))
    command = ['--quick', '--models', *networks, '--memory-limit', '0.4']
    result = benchmark('efficiency', *command)
    assert result.returncode == 0, result.stderr
    assert 'quick: ' in result.stdout
    results = project / 'results' / 'efficiency_quick'
    table = json.loads((results / 'table.json').read_text())
    rows = {(row['quantity'], row['network']): row for row in table['rows']}
    assert len(rows) == 3 * len(networks)
    for (quantity, name), row in rows.items():
        if name == 'ViTCA' and quantity.startswith('training'):
            assert row['ours'] is None
            assert row['dash'] == 'out of memory'
        else:
            assert row['ours'] > 0
            assert row['ratio'] == pytest.approx(row['ours'] / row['paper'])
    with open(results / 'table.csv', newline='') as file:
        for line in csv.DictReader(file):
            ours = rows[line['quantity'], line['network']]['ours']
            assert line['ours'] == ('' if ours is None else str(ours))
    assert ('| ViTCA | – (8.7) |' in result.stdout) == ('ViTCA' in networks)
    assert 'measured with 40 and scaled' in result.stdout
    assert table['settings']['machine']['torch']
    with open(results / 'growth.csv', newline='') as file:
        growth = list(csv.DictReader(file))
    assert [line['size'] for line in growth] == ['32', '64', '128', '256']
    # The rule is local: the memory per pixel does not grow with the image, as it would with global attention.
    assert 0 < float(growth[-1]['training, bytes']) < 2 * float(growth[1]['training, bytes'])
    for name in ('memory.png', 'training.png', 'inference.png', 'growth.png'):
        assert cv2.imread(str(results / name)).std() > 10

    files = {file: file.stat().st_mtime_ns for file in (results / 'measurements').iterdir()}
    assert len(files) == len(networks) + 4
    next(iter(files)).unlink()
    result = benchmark('efficiency', *command)
    assert result.returncode == 0, result.stderr
    again = {file: file.stat().st_mtime_ns for file in (results / 'measurements').iterdir()}
    assert [again[file] == time for file, time in files.items()] == [False] + [True] * (len(networks) + 3)
    line = failed_in_one_line(benchmark('efficiency', *command[:-1], '1'))
    assert 'memory limit, GB was 0.4, now 1.0' in line


def test_a_measurement_that_takes_too_long_is_tried_again_with_more_time(project, benchmark):
    command = ['--quick', '--models', 'NAFNet', '--output', 'out', '--cell-timeout']
    result = benchmark('efficiency', *command, '0.05')
    assert result.returncode == 0, result.stderr
    rows = json.loads((project / 'out' / 'table.json').read_text())['rows']
    assert [row['dash'] for row in rows] == ['longer than the timeout'] * 3
    result = benchmark('efficiency', *command, '100')
    assert result.returncode == 0, result.stderr
    rows = json.loads((project / 'out' / 'table.json').read_text())['rows']
    assert all(row['ours'] > 0 for row in rows)


def test_a_measurement_that_fails_is_not_taken_for_a_dash(project, benchmark, edit):
    edit('options/networks/NAFNet.yml', lambda n: n['train']['optim_g'].update(lr=1e30))
    result = benchmark('efficiency', '--quick', '--models', 'NAFNet')
    assert '1 of 1 measurements failed' in failed_in_one_line(result)
    assert 'NAFNet_32_8 failed: ' in result.stderr
    assert not (project / 'results' / 'efficiency_quick' / 'measurements').exists()


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [(['--models', 'Nafnet'], 'Did you mean NAFNet?'), (['--cell-timeout', '0'], '--cell-timeout: must be above 0')],
)
def test_bad_arguments(benchmark, arguments, word):
    assert word in failed_in_one_line(benchmark('efficiency', '--quick', *arguments))


def test_the_papers_numbers():
    """Where the paper's text repeats its tables (section 4.4)."""
    memory = {key[1:]: value for key, value in published_results.EFFICIENCY.items() if key[0] == 'training memory, GB'}
    assert 1 - memory['LatentViTCA', 32, 8] / memory['ViTCA', 32, 8] == pytest.approx(0.94, abs=0.005)
    inference = {key[1:]: value for key, value in published_results.EFFICIENCY.items() if key[0] == 'inference, s'}
    largest = (128, 32)
    assert 1 - inference[('LatentViTCA', *largest)] / inference[('ViTCA', *largest)] == pytest.approx(0.72, abs=0.01)
    assert 1 - inference[('LatentNAFCA', *largest)] / inference[('ViTCA', *largest)] == pytest.approx(0.89, abs=0.005)
    assert 1 - inference[('LatentNAFCA', *largest)] / inference[('Restormer', *largest)] == pytest.approx(
        0.37, abs=0.005
    )
    assert len(published_results.EFFICIENCY) == 3 * 5 * 9
    assert len(published_results.SSIM) == 50
    assert sum(value is None for value in memory.values()) == 5
    assert published_results.SSIM['gopro', 'Restormer'] == 0.934
    assert published_results.SSIM['sid', 'LatentNAFCA'] == 0.652
