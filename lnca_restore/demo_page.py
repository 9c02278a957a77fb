"""A web page to try networks on photographs and to watch the automaton work.

It needs the extra ``demo``.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lnca_arch.networks.automaton_network import AutomatonNetwork
from lnca_data.corruptions import MotionBlur, Noise
from lnca_data.io.images import BundledPhoto, to_8_bits
from lnca_data.io.photographs import SUFFIXES, Photograph, read_photograph, write_photograph
from lnca_data.prepare.extraction import corrupted
from lnca_restore.restorer import Restorer
from lnca_utils.errors import InstallationError, LNCAError

os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')  # read when gradio is imported
try:
    import gradio
except ModuleNotFoundError:
    raise InstallationError('the page is an extra: pip install -e ".[demo]"') from None

UPLOAD_BYTES = 32 << 20
MAX_PIXELS = 4_000_000  # the images of all steps are kept while the page is open
STEP_INTERVAL = 4
SECONDS_KEPT = 3600
EXAMPLES = {'cat': 'chelsea', 'coffee': 'coffee', 'astronaut': 'astronaut', 'rocket': 'rocket'}
CORRUPTIONS = {'nothing': None, 'noise': Noise(), 'motion blur': MotionBlur()}


class Restoration(NamedTuple):
    """The input of a network, and the restored images by number of steps."""

    image: np.ndarray
    images: dict[int, np.ndarray]


def restore(upload: str | None, example: str | None, corruption_name: str, restorer: Restorer) -> Restoration:
    """Restore an uploaded photograph, or an example if there is none.

    Raises:
        LNCAError: if it cannot be read, or is too large for the page.
    """
    if upload:
        try:
            picture = read_photograph(upload).upright()
        except LNCAError as error:  # show the name of the upload without its temporary folder
            raise LNCAError(str(error).replace(upload, Path(upload).name)) from None
    elif example:
        picture = BundledPhoto(EXAMPLES[example]).read()
    else:
        raise LNCAError('Drop a photograph, or choose an example.')
    height, width = picture.shape[:2]
    if height * width > MAX_PIXELS:
        raise LNCAError(
            f'The photograph has {height * width / 1e6:.1f} megapixels, and the page takes {MAX_PIXELS / 1e6:.0f}; '
            'restore it with lnca restore'
        )
    picture = to_8_bits(picture)[..., :3]
    picture = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture
    corruption = CORRUPTIONS[corruption_name]
    picture = picture if corruption is None else corrupted(picture, corruption, seed=0)
    last = _network_steps(restorer)
    steps = [*range(0, last, STEP_INTERVAL), last]
    return Restoration(picture, dict(zip(steps, restorer.intermediate_outputs(picture, steps), strict=True)))


def _network_steps(restorer: Restorer) -> int:
    assert isinstance(restorer.network, AutomatonNetwork)  # build_page refuses others
    return restorer.network.steps


def build_page(models: Sequence[str]) -> gradio.Blocks:
    """Build the page.

    Args:
        models: names of bundled models, or paths of checkpoints, to choose from.

    Raises:
        LNCAError: if one of them is missing, or has no automaton.
    """
    restorers = {name: Restorer.from_pretrained(name) for name in models}
    for name, restorer in restorers.items():
        if not isinstance(restorer.network, AutomatonNetwork):
            raise LNCAError(f'--model {name}: {type(restorer.network).__name__} has no automaton to show')

    def run(upload: str | None, example: str | None, damage: str, model: str) -> list[Any]:
        try:
            found = restore(upload, example, damage, restorers[model])
        except LNCAError as error:
            raise gradio.Error(str(error), title='This picture cannot be restored') from None
        return [found, *show(found, max(found.images))]

    def show(found: Restoration | None, step: int) -> tuple[Any, str | None]:
        if not found:
            return None, None
        step = min(found.images, key=lambda known: abs(known - step))
        shown = found.images[step]
        file = Path(tempfile.mkdtemp(dir=blocks.GRADIO_CACHE)) / f'restored_{step}_steps.png'
        write_photograph(file, Photograph(shown))
        return (found.image, shown), str(file)

    def slider(last: int) -> gradio.Slider:
        # A slider stops only at multiples of its step, which must include the last step of the automaton.
        between = 1 if last % STEP_INTERVAL else STEP_INTERVAL
        return gradio.Slider(0, last, last, step=between, label='Steps', elem_id='steps')

    # System fonts, so that nothing is downloaded.
    fonts = {'font': ['system-ui', 'sans-serif'], 'font_mono': ['monospace']}
    # delete_cache removes old files.
    with gradio.Blocks(
        title='LNCA', theme=gradio.themes.Default(**fonts), delete_cache=(SECONDS_KEPT, SECONDS_KEPT)
    ) as blocks:
        found = gradio.State(time_to_live=SECONDS_KEPT)
        gradio.Markdown(
            '# Latent neural cellular automata\nDrop a photograph, or choose an example; restore it; then move the '
            'slider to see what the automaton has done after so many steps.'
        )
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                upload = gradio.File(label='Photograph', file_types=list(SUFFIXES), elem_id='upload', height=140)
                example = gradio.Dropdown([None, *EXAMPLES], value='cat', label='or an example', elem_id='example')
                damage = gradio.Radio(list(CORRUPTIONS), value='noise', label='Corrupt it with', elem_id='damage')
                model = gradio.Dropdown(list(models), value=models[0], label='Model', elem_id='model')
                button = gradio.Button('Restore', variant='primary', elem_id='restore')
            with gradio.Column(scale=3):
                picture = gradio.ImageSlider(
                    label='before and after', format='png', interactive=False, elem_id='picture', max_height=640
                )
                step = slider(_network_steps(restorers[models[0]]))
                download = gradio.DownloadButton('Download', elem_id='download')
        # One photograph at a time; other requests wait.
        button.click(run, [upload, example, damage, model], [found, picture, download], concurrency_limit=1).success(
            lambda found: slider(max(found.images)), inputs=found, outputs=step
        )
        # Uploads are usually corrupted already.
        upload.upload(lambda: 'nothing', outputs=damage)
        step.change(show, [found, step], [picture, download], show_progress='hidden', trigger_mode='always_last')
    return blocks


def serve(host: str, port: int, models: Sequence[str]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        host, port: address to serve at.
        models: see :func:`build_page`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # Keep uploads in a folder that only this user can read, and that is removed at exit.
    with tempfile.TemporaryDirectory(prefix='lnca_demo_', ignore_cleanup_errors=True) as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
        page = build_page(models)
        page.queue(max_size=20).launch(server_name=host, server_port=port, max_file_size=UPLOAD_BYTES, show_api=False)
