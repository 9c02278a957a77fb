"""What a command's end must look like."""

from subprocess import CompletedProcess


def failed_in_one_line(result: CompletedProcess, *words: str) -> str:
    """The error line, after checking that it is alone, that it holds the words, and that the exit code is not 0."""
    assert result.returncode != 0
    assert 'Traceback' not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    assert result.stderr.rstrip().endswith(lines[0])
    for word in words:
        assert word in lines[0]
    return lines[0]
