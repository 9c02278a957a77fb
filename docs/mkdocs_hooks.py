"""Hooks of ``mkdocs build``. Pages link to files by their paths in the repository, as GitHub needs it.

The README becomes the start page, and what pages link to outside of ``docs`` becomes part of the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'
OUTSIDE = (
    *('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'LICENSE', 'lnca_restore/weights/README.md'),
    *('options/*.yml', 'options/*.json', 'benchmarks/results/**/*.md', 'benchmarks/results/**/*.json'),
    *('benchmarks/results/**/*.png', 'benchmarks/results/**/*.csv'),
)
LINK = re.compile(r'(\]\()([^)#:\s]+)')
ROLE = re.compile(r':(?:class|meth|func|attr|data|mod):<code>~?(?:[\w.]*\.)?(\w+)</code>')


def site_path(file: Path) -> str:
    """Return where a file of the repository is in the site."""
    if file == ROOT / 'README.md':
        return 'index.md'
    return file.relative_to(DOCS if file.is_relative_to(DOCS) else ROOT).as_posix()


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside of ``docs``."""
    for file in sorted(file for pattern in OUTSIDE for file in ROOT.glob(pattern)):
        files.append(File.generated(config, site_path(file), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    folder = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match) -> str:
        target = (Path(page.file.abs_src_path).parent / match[2]).resolve()
        return match[1] + (posixpath.relpath(site_path(target), folder) if target.exists() else match[2])

    return LINK.sub(link, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show the Sphinx roles of docstrings, such as :class:`Name`, as code."""
    return ROLE.sub(r'<code>\1</code>', html)
