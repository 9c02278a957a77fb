"""Exported networks: their outputs equal those of PyTorch."""

import functools

import numpy as np
import onnxruntime
import pytest
import torch

from lnca_arch import LatentNAFCA, LatentViTCA, PixelViTCA
from lnca_restore.export import export_onnx, export_program
from lnca_utils.errors import LNCAError

SHAPES = [(1, 3, 32, 32), (3, 3, 40, 24), (2, 3, 8, 52)]
STEPS, OWN = 5, 3  # asked for, and the networks' own


DEPTHWISE = functools.partial(LatentNAFCA, perception='depthwise')


def network(kind):
    torch.manual_seed(0)
    made = kind(latent_channels=4, hidden_channels=5, embed_channels=8, blend=kind is LatentNAFCA, steps=OWN)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def pictures(made, steps):
    for shape in SHAPES:
        image = torch.rand(shape)
        with torch.no_grad():
            yield image, made(image, steps).clamp(0, 1)


@pytest.mark.parametrize(
    ('kind', 'steps'),
    [
        (LatentNAFCA, STEPS),
        pytest.param(LatentNAFCA, None, marks=pytest.mark.slow),
        pytest.param(DEPTHWISE, 'input', marks=pytest.mark.slow),
        (LatentViTCA, 'input'),
    ],
)
def test_onnx(tmp_path, kind, steps):
    made, path = network(kind), tmp_path / 'a.onnx'
    export_onnx(made, path, steps)
    session = onnxruntime.InferenceSession(path)
    for asked in [0, 1, STEPS] if steps == 'input' else [OWN if steps is None else steps]:
        for image, expected in pictures(made, asked):
            given = {'image': image.numpy()} | ({'steps': np.array(asked)} if steps == 'input' else {})
            (found,) = session.run(None, given)
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_onnx_of_an_automaton_on_pixels(tmp_path):
    torch.manual_seed(0)
    made = PixelViTCA(hidden_channels=5, embed_channels=8, update_rate=1.0).eval()
    export_onnx(made, tmp_path / 'a.onnx', STEPS)
    session = onnxruntime.InferenceSession(tmp_path / 'a.onnx')
    for image, expected in pictures(made, STEPS):
        np.testing.assert_allclose(session.run(None, {'image': image.numpy()})[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ('kind', 'steps'), [(LatentNAFCA, STEPS), pytest.param(LatentViTCA, None, marks=pytest.mark.slow)]
)
def test_program(tmp_path, kind, steps):
    made, path = network(kind), tmp_path / 'a.pt2'
    export_program(made, path, steps)
    program = torch.export.load(path).module()
    for image, expected in pictures(made, OWN if steps is None else steps):
        torch.testing.assert_close(program(image), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize('export', [export_onnx, export_program])
def test_random_networks_are_refused(tmp_path, export):
    with pytest.raises(LNCAError, match='update rate 1'):
        export(PixelViTCA(embed_channels=8), tmp_path / 'a.onnx', STEPS)
    assert not list(tmp_path.iterdir())
