"""Checks of how a command ended."""

from subprocess import CompletedProcess


def failed_in_one_line(result: CompletedProcess, *words: str) -> str:
    """Check that a command failed with a single error line that holds the words, and return that line."""
    assert result.returncode != 0
    assert 'Traceback' not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    assert result.stderr.rstrip().endswith(lines[0])
    for word in words:
        assert word in lines[0]
    return lines[0]
