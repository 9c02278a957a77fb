"""benchmarks/compare.py, all five networks."""


def test_compares_all_five(project, benchmark):
    result = benchmark('compare', '-opt', 'task.yml')
    print(result.stdout, result.stderr)
    assert result.returncode == 0, result.stderr
