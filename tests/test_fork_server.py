"""Commands that the fork server runs end as they would in a process of their own."""

import os
import signal
import subprocess

import pytest

SCRIPT = """
import atexit, os, signal, sys, time
atexit.register(print, 'at exit')
how = sys.argv[1]
if how == 'exit':
    sys.exit(int(sys.argv[2]))
if how == 'message':
    sys.exit('a message')
if how == 'raise':
    raise ValueError('a mistake')
if how == 'wait':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print('ready', file=sys.stderr)
    time.sleep(60)
print(sys.stdin.read(), os.getcwd(), os.environ.get('OF_THE_TEST'), os.getsid(0) == os.getpid(), sys.path[0], __name__)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'scripts' / 'script.py'
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


def test_surroundings(fork_server, script, tmp_path, monkeypatch):
    monkeypatch.setenv('OF_THE_TEST', 'a value')
    result = fork_server.run([script, 'print'], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path), 'a', 'value', 'False', str(script.parent), '__main__', 'at', 'exit']
    result = fork_server.run([script, 'print'], env={**os.environ, 'OF_THE_TEST': 'other'}, start_new_session=True)
    assert result.stdout.split()[1:3] == ['other', 'True']
    with pytest.raises(ValueError, match='TORCHDYNAMO_DISABLE: read on import'):
        fork_server.run([script, 'print'], env={**os.environ, 'TORCHDYNAMO_DISABLE': '0'})


@pytest.mark.parametrize(
    ('arguments', 'code', 'last_line'),
    [
        (['exit', '0'], 0, None),
        (['exit', '3'], 3, None),
        (['message'], 1, 'a message'),
        (['raise'], 1, 'ValueError: a mistake'),
    ],
)
def test_exit_codes(fork_server, script, arguments, code, last_line):
    result = fork_server.run([script, *arguments])
    assert result.returncode == code
    assert result.stdout == 'at exit\n'
    assert result.stderr.splitlines()[-1:] == ([last_line] if last_line else [])


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals(fork_server, script, number, code):
    with fork_server.start([script, 'wait']) as process:
        assert process.stderr.readline() == 'ready\n'
        assert process.poll() is None
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=60)
        assert process.returncode == code
        assert stdout == ('at exit\n' if code > 0 else '')


def test_timeout(fork_server, script):
    with pytest.raises(subprocess.TimeoutExpired):
        fork_server.run([script, 'wait'], timeout=0.5)
