"""Run commands as forks of a process that has imported PyTorch, BasicSR and the plug-in.

A command then starts in milliseconds instead of seconds. It gets what a process of its own would get: arguments,
working directory, environment, standard streams, signals, random seeds and an exit code. It differs in two ways:
modules that the fork server has imported are not imported again, and environment variables that are read on import
cannot be changed.
"""

import atexit
import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

READ_ON_IMPORT = ('PYTHON', 'LD_', 'OMP_', 'MKL_', 'KMP_', 'OPENBLAS_', 'TORCH', 'CUDA_')
PRELOADED = (
    'lnca_data.prepare.packing',
    'lnca_data.prepare.verification',
    'lnca_model',
    'lnca_restore.export',
    'lnca_restore.restorer',
    'torch.utils.tensorboard',
)
MESSAGE_BYTES = 1 << 20


class ForkServer:
    """A process that forks for each command. Use it as a context manager."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def __enter__(self) -> 'ForkServer':
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._process.wait()

    def start(
        self,
        command: Sequence[Any],
        cwd: Any = None,
        env: Mapping[str, str] | None = None,
        stdout: int = subprocess.PIPE,
        file_size_limit: int | None = None,
        fork_workers: bool = False,
        start_new_session: bool = False,
    ) -> 'ForkedProcess':
        """Start ``python COMMAND``.

        Args:
            command: the path of a script, or ``-m`` and the name of a module, and arguments.
            cwd: the working directory, by default that of this process.
            env: the environment, by default that of this process.
            stdout: ``subprocess.PIPE`` or ``subprocess.DEVNULL``.
            file_size_limit: bytes beyond which no file can grow, as on a full disk.
            fork_workers: fork worker processes even where the command asks for a ``forkserver`` context, whose server
                would import PyTorch anew.
            start_new_session: run the command in a process group of its own.

        Raises:
            ValueError: ``env`` changes a variable that is read on import.
        """
        env = dict(os.environ if env is None else env)
        for name in env.keys() | self._environment.keys():
            changed = env.get(name) != self._environment.get(name)
            # OMP_NUM_THREADS is excepted, since PyTorch can be told later.
            if changed and name.startswith(READ_ON_IMPORT) and name != 'OMP_NUM_THREADS':
                raise ValueError(f'{name}: read on import; start a process of its own')
        request = {
            'command': [os.fspath(part) if isinstance(part, os.PathLike) else str(part) for part in command],
            'cwd': os.fspath(cwd or os.getcwd()),
            'env': env,
            'file_size_limit': file_size_limit,
            'fork_workers': fork_workers,
            'start_new_session': start_new_session,
        }
        read_out, write_out = os.pipe() if stdout == subprocess.PIPE else (None, os.open(os.devnull, os.O_WRONLY))
        read_err, write_err = os.pipe()
        read_report, write_report = os.pipe()
        theirs = [write_out, write_err, write_report]
        try:
            socket.send_fds(self._control, [json.dumps(request).encode()], theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return ForkedProcess(request['command'], read_out, read_err, read_report)

    def run(self, command: Sequence[Any], timeout: float = 300, **more: Any) -> subprocess.CompletedProcess:
        """Run ``python COMMAND`` to its end, as ``subprocess.run`` does. For ``more`` see :meth:`start`."""
        with self.start(command, **more) as process:
            stdout, stderr = process.communicate(timeout)
            return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


class ForkedProcess:
    """A command that runs, with the attributes and methods of ``subprocess.Popen`` that the tests need."""

    def __init__(self, args: list[str], stdout: int | None, stderr: int, report: int) -> None:
        self.args = args
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None if stdout is None else open(stdout)  # noqa: SIM115
        self.stderr: IO[str] = open(stderr)  # noqa: SIM115
        self._report = open(report)  # noqa: SIM115
        self.pid = int(self._report.readline())

    def __enter__(self) -> 'ForkedProcess':
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        for stream in (self.stdout, self.stderr, self._report):
            if stream is not None:
                stream.close()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the command runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the command and return its exit code.

        Raises:
            subprocess.TimeoutExpired: it runs longer than ``timeout`` seconds.
        """
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._report.readline())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read both streams to their ends, wait for the end of the command, and return what was read."""
        timer = threading.Timer(timeout or threading.TIMEOUT_MAX, self.kill)
        timer.start()
        try:
            with ThreadPoolExecutor(1) as reader:
                stdout = reader.submit(self.stdout.read if self.stdout else str)
                stderr = self.stderr.read()
                self.wait()
                if not timer.is_alive():
                    raise subprocess.TimeoutExpired(self.args, timeout or 0, stderr=stderr.encode())
                return stdout.result(), stderr
        finally:
            timer.cancel()

    def send_signal(self, number: int) -> None:
        """Send a signal unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve(control: socket.socket) -> None:
    """Fork for each request, until the other end of the socket is closed."""
    while True:
        message, descriptors, *_ = socket.recv_fds(control, MESSAGE_BYTES, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # monitors that have ended
                pass
        if not message:
            return
        if not os.fork():
            control.close()
            _monitor(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _monitor(request: dict[str, Any], stdout: int, stderr: int, report: int) -> None:
    """Fork a command, report its process id and, when it ends, its exit code."""
    child = os.fork()
    if not child:
        os.close(report)
        _prepare(request, stdout, stderr)
        _execute()
    os.close(stdout)
    os.close(stderr)
    os.write(report, f'{child}\n'.encode())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(report, f'{code}\n'.encode())
    os._exit(0)


def _prepare(request: dict[str, Any], stdout: int, stderr: int) -> None:
    """Give this process what a new one would have."""
    import numpy as np
    import torch

    for descriptor, name, buffering in ((stdout, 'stdout', -1), (stderr, 'stderr', 1)):
        stream = getattr(sys, name)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
        # A new object, since the present one has remembered whether what it writes to is seekable.
        settings = {'encoding': stream.encoding, 'errors': stream.errors}
        setattr(sys, name, open(stream.fileno(), 'w', buffering, **settings, closefd=False))  # noqa: SIM115
    # A shell in whose background the tests run ignores it, and a process would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    tempfile.tempdir = None  # depends on the environment
    sys.argv = request['command']
    sys.path[0] = request['cwd'] if sys.argv[0] == '-m' else os.path.dirname(sys.argv[0])
    if request['start_new_session']:
        os.setsid()
    if request['file_size_limit']:
        resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (request['file_size_limit'],))
    if request['fork_workers']:
        fork = multiprocessing.get_context('fork')
        multiprocessing.get_context = lambda method: fork
    if 'OMP_NUM_THREADS' in os.environ:
        torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    np.random.seed()  # Python's own generator is seeded on forking, and PyTorch's seed is the same in every process


def _execute() -> None:
    """Run what ``sys.argv`` names and end with its exit code, without the seconds that unloading PyTorch takes."""
    code: Any = 0
    try:
        if sys.argv[0] == '-m':
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


if __name__ == '__main__':
    # Not this folder, whose tests of lnca_arch and others would be taken for the packages of these names.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in PRELOADED:
        importlib.import_module(name)
    _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)
