"""benchmarks/stability.py on tiny networks."""

import csv
import json

import pytest
from stability import summarize, table_line

BASE = ['-opt', 'task.yml', '--jobs', '2', '--uncompiled']


def rows(output):
    return {row['configuration']: row for row in json.loads((output / 'table.json').read_text())['rows']}


def test_seeds_of_two_configurations(project, benchmark, edit):
    edit('task.yml', lambda opt: opt['train']['automaton'].update(iters=40))
    edit('task.yml', lambda opt: opt['train'].update(total_iter=44))
    output = project / 'results' / 'stability'
    result = benchmark('stability', *BASE, '--seeds', '2')
    assert result.returncode == 0, result.stderr
    # Every step of the optimizer throws the weights far away: not a number, and no snapshot helps for long.
    more = ['--rate', '1e30', '--seeds', '1', '--iterations', '20', '--name', 'too fast']
    fast = benchmark('stability', *BASE, *more)
    assert fast.returncode == 0, fast.stderr
    table = rows(output)
    assert table['lnca_photos']['runs'] == table['lnca_photos']['finished'] == 2
    assert table['lnca_photos']['diverged'] == 0
    assert table['lnca_photos']['gain, deviation'] >= 0
    assert table['too_fast']['diverged'] == table['too_fast']['runs'] == 1
    assert 0 < table['too_fast']['first diverged at iteration'] <= 20
    with open(output / 'table.csv', newline='') as file:
        assert [int(row['runs']) for row in csv.DictReader(file)] == [row['runs'] for row in table.values()]
    assert '| too fast | 1 | 1 |' in (output / 'table.md').read_text()
    for name in ('reconstruction', 'state_max'):
        assert (output / f'{name}.png').read_bytes().startswith(b'\x89PNG')
    record = json.loads((output / 'lnca_photos' / 'seed0.json').read_text())
    assert record['trajectory']['iteration'] == list(range(6, 41, 10))  # of a log every 10 iterations of all phases
    assert len(record['trajectory']['state_max']) == 4
    assert min(record['trajectory']['state_max']) > 0
    assert record['scores']['photos_test ssim']['gain'] == pytest.approx(
        record['scores']['photos_test ssim']['restored'] - record['scores']['photos_test ssim']['corrupted']
    )
    assert not list((project / 'experiments').glob('stability_*'))

    again = benchmark('stability', *BASE, '--seeds', '2')
    assert '2 seeds, 2 finished before' in again.stdout
    assert rows(output) == table


def test_a_table_of_runs():
    def record(gain, diverged=()):
        return {
            'seed': 0,
            'diverged': list(diverged),
            'first iteration of the automaton': 101,
            'trajectory': {'iteration': [1], 'state_max': [5.0]},
            'scores': {'test ssim': {'gain': gain}},
        }

    row = summarize('a_b', [record(0.25), record(0.375), record(-0.5, [('automaton', 150)])])
    assert table_line(row) == {
        'configuration': 'a b',
        'runs': '3',
        'diverged': '1',
        'at iteration': '50 to 50',
        'largest state': '5',
        'finished': '3',
        'gain': '0.312 ± 0.088',
        'least gain': '-0.500',
    }
