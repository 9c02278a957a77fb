"""A page to try a network on photographs, and to watch it work: ``python inference/demo.py``.

Needs the extra: ``pip install -e ".[demo]"``. It is served to this computer alone, unless ``--host`` says otherwise.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lnca_arch.networks.automaton_network import AutomatonNetwork
from lnca_data.corruptions import MotionBlur, Noise
from lnca_data.io.images import BundledPhoto, to_8_bits
from lnca_data.io.photographs import SUFFIXES, Photograph, read_photograph, write_photograph
from lnca_data.prepare.extraction import corrupted
from lnca_restore.pretrained import BUNDLED, DEFAULT_MODEL
from lnca_restore.restorer import Restorer
from lnca_utils.errors import ConfigError, InstallationError, LNCAError, install_excepthook

os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')  # is read when gradio is imported
try:
    import gradio
except ModuleNotFoundError:
    gradio = None

UPLOAD_BYTES = 32 << 20
SHOWN_PIXELS = 4_000_000  # of each picture all steps are kept as long as its page is open
STEPS_BETWEEN = 4
SECONDS_KEPT = 3600
EXAMPLES = {'cat': 'chelsea', 'coffee': 'coffee', 'astronaut': 'astronaut', 'rocket': 'rocket'}
DAMAGES = {'nothing': None, 'noise': Noise(), 'motion blur': MotionBlur()}


class Shown(NamedTuple):
    """A picture as it is given to a network, and after so many steps of its automaton."""

    given: np.ndarray
    after: dict[int, np.ndarray]


def restore(upload: str | None, example: str | None, damage: str, restorer: Restorer) -> Shown:
    """The picture that was dropped, or else the example, restored.

    Raises:
        ConfigError: it cannot be read, or is too large for a page.
    """
    if upload:
        try:
            picture = read_photograph(upload).upright()
        except LNCAError as error:  # the user knows the name, not the folder that it was put into
            raise ConfigError(str(error).replace(upload, Path(upload).name)) from None
    elif example:
        picture = BundledPhoto(EXAMPLES[example]).read()
    else:
        raise ConfigError('Drop a photograph, or choose an example.')
    height, width = picture.shape[:2]
    if height * width > SHOWN_PIXELS:
        raise ConfigError(
            f'The picture has {height * width / 1e6:.1f} megapixels, and the page takes {SHOWN_PIXELS / 1e6:.0f}; '
            'restore it with python inference/restore.py'
        )
    picture = to_8_bits(picture)[..., :3]
    picture = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture
    corruption = DAMAGES[damage]
    picture = picture if corruption is None else corrupted(picture, corruption, seed=0)
    last = restorer.network.steps
    at = [*range(0, last, STEPS_BETWEEN), last]
    return Shown(picture, dict(zip(at, restorer.intermediate_outputs(picture, at), strict=True)))


def page(models: Sequence[str]) -> 'gradio.Blocks':
    """The page.

    Args:
        models: what to choose from, each as :meth:`Restorer.from_pretrained` takes it.

    Raises:
        ConfigError: one of them is not there, or has no automaton.
    """
    restorers = {name: Restorer.from_pretrained(name) for name in models}
    for name, restorer in restorers.items():
        if not isinstance(restorer.network, AutomatonNetwork):
            raise ConfigError(f'--model {name}: {type(restorer.network).__name__} has no automaton to watch')

    def run(upload, example, damage, model):
        try:
            found = restore(upload, example, damage, restorers[model])
        except LNCAError as error:
            raise gradio.Error(str(error), title='This picture cannot be restored') from None
        return [found, *show(found, max(found.after))]

    def show(found, step):
        if not found:
            return None, None
        step = min(found.after, key=lambda known: abs(known - step))
        shown = found.after[step]
        file = Path(tempfile.mkdtemp(dir=blocks.GRADIO_CACHE)) / f'restored_{step}_steps.png'
        write_photograph(file, Photograph(shown))
        return (found.given, shown), str(file)

    def slider(last):
        # The browser counts from 0, and could not come back to a last step that is no multiple.
        between = 1 if last % STEPS_BETWEEN else STEPS_BETWEEN
        return gradio.Slider(0, last, last, step=between, label='Steps', elem_id='steps')

    fonts = {'font': ['system-ui', 'sans-serif'], 'font_mono': ['monospace']}  # fetched from nowhere
    # Files of a picture are removed when they are old.
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
                damage = gradio.Radio(list(DAMAGES), value='noise', label='Damage it with', elem_id='damage')
                model = gradio.Dropdown(list(models), value=models[0], label='Model', elem_id='model')
                button = gradio.Button('Restore', variant='primary', elem_id='restore')
            with gradio.Column(scale=3):
                picture = gradio.ImageSlider(
                    label='before and after', format='png', interactive=False, elem_id='picture', max_height=640
                )
                step = slider(restorers[models[0]].network.steps)
                download = gradio.DownloadButton('Download', elem_id='download')
        # One picture at a time; who comes meanwhile waits.
        button.click(run, [upload, example, damage, model], [found, picture, download], concurrency_limit=1).success(
            lambda found: slider(max(found.after)), inputs=found, outputs=step
        )
        # What is dropped is damaged already, more often than not.
        upload.upload(lambda: 'nothing', outputs=damage)
        step.change(show, [found, step], [picture, download], show_progress='hidden', trigger_mode='always_last')
    return blocks


def main() -> None:
    install_excepthook()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--host', default='127.0.0.1', help='address to serve at; 0.0.0.0 for every computer around')
    parser.add_argument('--port', type=int, default=7860, help='port to serve at')
    models = [DEFAULT_MODEL, *(name for name in BUNDLED if name != DEFAULT_MODEL)]
    parser.add_argument('--model', nargs='+', default=models, help='models to choose from: names or checkpoints')
    arguments = parser.parse_args()
    if gradio is None:
        raise InstallationError('the page needs an extra: pip install -e ".[demo]"')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # Nobody else may see what is uploaded, and nothing of it stays.
    with tempfile.TemporaryDirectory(prefix='lnca_demo_', ignore_cleanup_errors=True) as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
        blocks = page(arguments.model)
        blocks.queue(max_size=20).launch(
            server_name=arguments.host, server_port=arguments.port, max_file_size=UPLOAD_BYTES, show_api=False
        )


if __name__ == '__main__':
    main()
