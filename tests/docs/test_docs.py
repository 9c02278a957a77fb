"""The documentation agrees with the code: its commands parse, its links resolve, its page of options is current."""

import argparse
import functools
import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'datasets/README.md')),
        ROOT / 'lnca_restore' / 'weights' / 'README.md',
        *(ROOT / 'docs').glob('*.md'),
    ]
)
CODE = re.compile(r'```.*?```|`[^`]*`', re.DOTALL)
LINK = re.compile(r'\]\(([^)\s]+)\)')
COMMAND = re.compile(r'\bpython (-m [\w.]+|\S+\.py)([^`|;&\n]*)|\btorchrun .*?(\S+\.py)([^`|;&\n]*)')
SUBCOMMAND = re.compile(r'^ *lnca (\w+)([^`|;&\n]*)', re.MULTILINE)
OPTION = re.compile(r'(?<![\w-])--[a-z][\w-]*')
#: Options of pip, mkdocs, TensorBoard, torchrun, srun and Slurm.
FOREIGN = {
    *('--force-reinstall', '--strict', '--logdir', '--nproc_per_node', '--nnodes', '--rdzv_backend', '--rdzv_endpoint'),
    *('--rdzv_id', '--max_restarts', '--kill-on-bad-exit', '--wait', '--nodes', '--ntasks-per-node', '--gpus-per-node'),
    *('--cpus-per-task', '--signal', '--requeue', '--help'),
}


class _CapturedError(Exception):
    """Carries the parser of a command out of it."""


@functools.cache
def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of ``FOLDER/SCRIPT.py``, ``-m MODULE`` or ``lnca COMMAND``, without running more than that."""

    def capture(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _CapturedError(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', capture)
        patch.setattr(sys, 'argv', [command])
        patch.setattr(sys, 'excepthook', sys.excepthook)
        with pytest.raises(_CapturedError) as captured:
            if command.startswith('lnca '):
                importlib.import_module(f'lnca.commands.{command.removeprefix("lnca ")}').main([])
            elif command.startswith('-m '):
                runpy.run_module(command.removeprefix('-m '), run_name='__main__')
            else:
                runpy.run_path(str(ROOT / command), run_name='__main__')
    return captured.value.args[0]


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the commands that a page names, and their arguments."""
    text = page.read_text(encoding='utf-8').replace('\\\n', ' ')
    for match in COMMAND.finditer(text):
        yield (match[1], match[2]) if match[1] else (match[3], match[4])
    for match in SUBCOMMAND.finditer(text):
        yield f'lnca {match[1]}', match[2]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a parser and of its subcommands."""
    options = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options.update(*map(options_of, action.choices.values()))
    return options


def heading_anchor(heading: str) -> str:
    return re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-')


def test_readme_is_one_page():
    assert (ROOT / 'README.md').stat().st_size <= 7000


def test_readme_names_the_commands_of_ci():
    """CI runs the test command of the README."""
    line = 'pip install -e ".[test]" && pytest\n'
    assert line in (ROOT / 'README.md').read_text(encoding='utf-8')
    assert line in (ROOT / '.ci' / 'run').read_text(encoding='utf-8')


def test_the_page_of_options_is_generated():
    """If this fails: python docs/generate_options.py"""
    spec = importlib.util.spec_from_file_location('generate_options', ROOT / 'docs' / 'generate_options.py')
    generate_options = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate_options)
    assert (ROOT / 'docs' / 'options.md').read_text(encoding='utf-8') == generate_options.page()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    for target in LINK.findall(CODE.sub('', page.read_text(encoding='utf-8'))):
        if target.startswith(('http://', 'https://')):
            continue
        path, _, anchor = target.partition('#')
        file = page.parent / path if path else page
        assert file.is_file(), f'{page}: no file {target}'
        if anchor:
            headings = re.findall(r'^#+ (.*)$', file.read_text(encoding='utf-8'), re.MULTILINE)
            assert anchor in map(heading_anchor, headings), f'{page}: no heading {target}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, capsys):
    for command, text in commands(page):
        if page.name == 'CONTRIBUTING.md' and 'mydataset' in text:
            continue
        arguments = shlex.split(text, comments=True)
        if command == 'docs/generate_options.py':
            assert not arguments
            continue
        parser = parser_of(command)
        try:
            parser.parse_args(arguments)
        except SystemExit:
            pytest.fail(f'{page}: python {command} {text}\n{capsys.readouterr().err}')


def test_options_exist():
    """Also those that pages name apart from a command."""
    scripts = {command for page in PAGES for command, _ in commands(page)} - {'docs/generate_options.py'}
    known = FOREIGN.union(*(options_of(parser_of(script)) for script in scripts))
    for page in PAGES:
        if page.name == 'CHANGELOG.md':  # names former options, too
            continue
        unknown = set(OPTION.findall(page.read_text(encoding='utf-8'))) - known
        assert not unknown, f'{page}: {unknown}'


def test_option_files_exist():
    for page in PAGES:
        for name in re.findall(r'options/[\w+/]+\.(?:yml|json)', page.read_text(encoding='utf-8')):
            assert (ROOT / name).is_file() or 'NAME' in name, f'{page}: no file {name}'
