"""Restoring photographs of every size and kind, tiled inference, and loading networks."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lnca_arch import LatentNAFCA, LatentViTCA, PixelViTCA
from lnca_arch.networks.baselines import NAFNet
from lnca_arch.networks.detection import detect
from lnca_restore import Restorer
from lnca_restore.pretrained import BUNDLED, load_network, save_network
from lnca_restore.tiled_inference import windows
from lnca_utils.errors import LNCAError

SMALL = {'latent_channels': 4, 'hidden_channels': 5, 'embed_channels': 8}


def perturbed(network):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture(scope='module')
def network():
    return perturbed(LatentNAFCA(**SMALL))


def image(*shape, dtype=np.float32):
    values = np.random.default_rng(0).random(shape, np.float32)
    return values if dtype == np.float32 else np.rint(values * np.iinfo(dtype).max).astype(dtype)


def whole(network, pixels, steps):
    with torch.no_grad():
        return network(torch.from_numpy(pixels).permute(2, 0, 1)[None], steps)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize(
    ('tile', 'overlap', 'stride'),
    [(32, 8, 4), (32, 16, 4), (32, 16, 8), (64, 16, 8), (24, 0, 1), (24, 12, 1), (48, 16, 4), (8, 0, 8)],
)
def test_windows_cover_a_side_with_shares_of_one(tile, overlap, stride, exact):
    for length in [*range(1, 200), 255, 1001]:
        found = windows(length, tile, overlap, stride, exact)
        total = np.zeros(length, np.float32)
        cells = set()
        for window in found:
            assert window.read.start % stride == 0
            assert 0 <= window.read.start <= window.written.start < window.written.stop <= window.read.stop <= length
            cells.add(-(-(window.read.stop - window.read.start) // stride))
            total[window.written] += window.weight
            # Away from the image's own borders a tile sees more than it writes.
            for inner, border, end in (
                (window.written.start - window.read.start, window.written.start, 0),
                (window.read.stop - window.written.stop, window.written.stop, length),
            ):
                assert border == end or inner >= overlap // 4
        np.testing.assert_allclose(total, 1, atol=1e-6)
        assert (len(found) == 1) == (length <= tile)
        (side,) = cells
        assert side <= tile // stride
        if exact and len(found) > 1:
            assert side == tile // stride


@pytest.mark.parametrize('tile', [None, 8, 16, 24, 32, 64, 1000])
@pytest.mark.parametrize('downsamplings', [2, 3])
def test_default_overlaps_suit_every_tile(tile, downsamplings):
    restorer = Restorer(LatentNAFCA(**{**SMALL, 'downsamplings': downsamplings}), tile)
    side, overlap = restorer.tiles
    assert 0 <= overlap <= side // 2
    assert overlap % (2 * restorer.stride) == 0
    assert overlap > 0 or side < 4 * restorer.stride


@pytest.mark.parametrize('shape', [(1, 1), (5, 70, 1), (70, 131, 3), (64, 64, 4), (200, 33, 3)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_any_size_and_kind(network, shape, dtype):
    pixels = image(*shape, dtype=dtype)
    restored = Restorer(network, tile=64, overlap=16)(pixels, steps=2)
    assert restored.shape == pixels.shape
    assert restored.dtype == dtype
    if shape[-1] == 4:
        np.testing.assert_array_equal(restored[..., 3], pixels[..., 3])
        np.testing.assert_array_equal(restored[..., :3], Restorer(network)(pixels[..., :3], steps=2))


def test_is_what_the_network_makes(network):
    pixels = image(70, 53, 3)
    np.testing.assert_array_equal(Restorer(network)(pixels, steps=4), whole(network, pixels, 4))
    of_bytes = Restorer(network)(image(70, 53, 3, dtype=np.uint8), steps=4)
    expected = whole(network, image(70, 53, 3, dtype=np.uint8).astype(np.float32) / 255, 4)
    np.testing.assert_array_equal(of_bytes, np.rint(expected * 255))


def test_tiles_are_as_the_whole(network):
    pixels = image(300, 211, 3)
    expected = whole(network, pixels, 4)
    # What four steps see: four cells of four pixels, and the convolutions around them.
    found = Restorer(network, tile=192, overlap=96)(pixels, steps=4)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_small_tiles_go_together(network, monkeypatch):
    pixels = image(64, 200, 3)
    batches = []
    frames = network.intermediate_outputs
    monkeypatch.setattr(
        network,
        'intermediate_outputs',
        lambda given, *rest, **named: batches.append(len(given)) or frames(given, *rest, **named),
    )
    Restorer(network, tile=32, overlap=8)(pixels, steps=1)
    assert max(batches) > 1


def test_grey_and_colours_suit_every_network():
    grey = perturbed(LatentNAFCA(image_channels=1, **SMALL))
    pixels = image(20, 24, 3)
    restored = Restorer(grey)(pixels, steps=2)
    for channel in range(3):
        one = Restorer(grey)(pixels[..., channel], steps=2)
        np.testing.assert_allclose(restored[..., channel], one, atol=1e-6)


def test_a_network_takes_its_own_steps_unless_told_otherwise():
    pixels = image(9, 12, 3)
    restorer = Restorer(LatentNAFCA(latent_channels=4, hidden_channels=5, embed_channels=8, steps=3))
    np.testing.assert_array_equal(restorer(pixels), restorer(pixels, steps=3))
    assert len(restorer.intermediate_outputs(pixels)) == 1


def test_intermediate_outputs_end_in_the_restored_picture(network):
    pixels = image(40, 40, 3, dtype=np.uint8)
    restorer = Restorer(network)
    frames = restorer.intermediate_outputs(pixels, [0, 3, 7])
    np.testing.assert_array_equal(frames[2], restorer(pixels, steps=7))
    np.testing.assert_array_equal(frames[1], restorer(pixels, steps=3))
    assert not np.array_equal(frames[0], frames[1])


def test_defaults_are_those_of_the_paper(network):
    pixels = image(16, 16, 3)
    np.testing.assert_array_equal(Restorer(network)(pixels), whole(network, pixels, 64))


@pytest.mark.parametrize('kind', [LatentViTCA, PixelViTCA])
@pytest.mark.parametrize('downsamplings', [2, 3])
@pytest.mark.parametrize('shape', [(70, 50), (32, 33), (41, 9), (1, 1), (100, 31)])
def test_a_vitca_sees_no_grid_but_the_one_it_was_trained_at(kind, downsamplings, shape, monkeypatch):
    sizes = {'hidden_channels': 5, 'embed_channels': 8}
    if kind is LatentViTCA:
        sizes |= {'latent_channels': 4, 'downsamplings': downsamplings}
    network = perturbed(kind(**sizes))
    grids = set()
    rollout = network.automaton.forward
    monkeypatch.setattr(
        network.automaton,
        'forward',
        lambda state, *arguments: grids.add(tuple(state.shape[2:])) or rollout(state, *arguments),
    )
    restorer = Restorer(network)
    assert restorer.tiles.side == 32
    pixels = image(*shape, 3)
    restored = restorer(pixels, steps=1)
    assert restored.shape == pixels.shape
    assert np.isfinite(restored).all()
    side = 32 // network.stride
    assert grids == {(side, side)}


def test_networks_without_an_automaton():
    restorer = Restorer(NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1]))
    assert restorer(image(33, 20, 3)).shape == (33, 20, 3)
    with pytest.raises(LNCAError, match='NAFNet has no automaton'):
        restorer(image(8, 8, 3), steps=3)


@pytest.mark.parametrize(
    ('pixels', 'message'),
    [
        (np.zeros((4, 4, 2), np.uint8), r'\(4, 4, 2\)'),
        (np.zeros((0, 4, 3), np.uint8), r'\(0, 4, 3\)'),
        (np.zeros((4, 4, 3), np.int64), 'int64'),
        (np.full((4, 4, 3), np.nan, np.float32), 'NaNs'),
    ],
)
def test_bad_images(network, pixels, message):
    with pytest.raises(LNCAError, match=message):
        Restorer(network)(pixels)


def test_bad_arguments(network):
    for tile in (30, 0, -8):
        with pytest.raises(LNCAError, match='tile: must be a multiple of 8'):
            Restorer(network, tile=tile)
    for overlap in (4, 40, -8):
        with pytest.raises(LNCAError, match='overlap: must be a multiple of 8 and at most half of the tile'):
            Restorer(network, tile=64, overlap=overlap)
    for device in ('coda', 'meta'):
        with pytest.raises(LNCAError, match=f'device {device}: cannot be used here'):
            Restorer.from_pretrained('denoise', device=device)
    with pytest.raises(LNCAError, match='steps'):
        Restorer(network)(image(8, 8, 3), steps=-1)


NETWORKS = [
    (LatentNAFCA, {**SMALL, 'ffn_expand': 2}),
    (LatentNAFCA, {**SMALL, 'latent_channels': 8, 'downsamplings': 3, 'image_channels': 1}),
    (LatentViTCA, {**SMALL, 'mlp_channels': 12, 'blend': True}),
    (PixelViTCA, {'hidden_channels': 5, 'embed_channels': 8, 'mlp_channels': 12, 'image_channels': 1}),
]


@pytest.mark.parametrize(('kind', 'sizes'), NETWORKS)
def test_a_network_comes_back_from_every_kind_of_file(tmp_path, kind, sizes):
    network = perturbed(kind(**sizes))
    options = {'type': kind.__name__, **sizes}
    save_network(network, options, tmp_path / 'a.safetensors')
    shutil.copy(tmp_path / 'a.safetensors', tmp_path / 'A.SAFETENSORS')
    torch.save({'params': network.state_dict()}, tmp_path / 'basicsr.pth')
    torch.save(network.state_dict(), tmp_path / 'bare.pth')
    # Who may read the one may read the other.
    assert (tmp_path / 'a.safetensors').stat().st_mode == (tmp_path / 'basicsr.pth').stat().st_mode
    for name in ('a.safetensors', 'A.SAFETENSORS', 'basicsr.pth', 'bare.pth'):
        found, found_options = load_network(tmp_path / name)
        assert isinstance(found, kind)
        assert not found.training
        assert found_options['type'] == kind.__name__
        for key, value in network.state_dict().items():
            assert torch.equal(found.state_dict()[key], value), key


def test_options_are_found_from_the_folder_of_the_models(tmp_path, monkeypatch):
    """And what a state dict does not tell is said, where there are none."""
    network, path = LatentViTCA(**SMALL, heads=2), tmp_path / 'models' / 'net_g_best.pth'
    path.parent.mkdir()
    torch.save({'params': network.state_dict()}, path)
    monkeypatch.chdir(path.parent)
    warnings = []
    monkeypatch.setattr(logging.getLogger('lnca'), 'warning', lambda text, *values: warnings.append(text % values))
    assert load_network('net_g_best.pth').network.automaton.heads == 4
    assert 'number of heads and update rate of LatentViTCA are unknown, using the defaults 4 and 1;' in warnings[0]
    options = {'type': 'LatentViTCA', **SMALL, 'heads': 2}
    (tmp_path / 'a.yml').write_text(f'network_g: {json.dumps(options)}\n')
    assert load_network('net_g_best.pth').network.automaton.heads == 2
    assert len(warnings) == 1


def test_what_a_checkpoint_says_goes_before_the_options_beside_it(tmp_path):
    network, path = LatentNAFCA(**SMALL, steps=7), tmp_path / 'models' / 'net_g_best.pth'
    path.parent.mkdir()
    options = {'type': 'LatentNAFCA', **SMALL}
    (tmp_path / 'a.yml').write_text(f'network_g: {json.dumps(options)}\n')
    torch.save({'params': network.state_dict(), 'network_g': options | {'steps': 7}}, path)
    assert load_network(path).network.steps == 7
    assert load_network(path, tmp_path / 'a.yml').network.steps == 64
    torch.save({'params': network.state_dict(), 'network_g': ['LatentNAFCA']}, path)
    with pytest.raises(LNCAError, match='net_g_best.pth: network_g must be a block of options, got list'):
        load_network(path)


@pytest.mark.parametrize(('kind', 'sizes'), NETWORKS)
def test_sizes_are_read_from_the_parameters(kind, sizes):
    detected = detect(kind(**sizes).state_dict())
    assert detected.kind is kind
    assert sizes.items() <= detected.arguments.items()


def test_a_moving_average_goes_before_the_weights(tmp_path, network):
    zeros = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    torch.save({'params': zeros, 'params_ema': network.state_dict()}, tmp_path / 'a.pth')
    found = load_network(tmp_path / 'a.pth').network
    assert torch.equal(found.automaton.head.weight, network.automaton.head.weight)


def test_options_beside_an_experiment(tmp_path):
    network = NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1])
    path = tmp_path / 'models' / 'net_g_best.pth'
    path.parent.mkdir()
    torch.save({'params': network.state_dict()}, path)
    with pytest.raises(LNCAError, match='the parameters are of no known network; name its option file with --opt'):
        load_network(path)
    options = {'type': 'NAFNet', 'width': 4, 'enc_blk_nums': [1], 'dec_blk_nums': [1]}
    (tmp_path / 'nafnet.yml').write_text(f'network_g: {json.dumps(options)}\n')
    assert isinstance(load_network(path).network, NAFNet)
    (tmp_path / 'other.yml').write_text('network_g: {type: LatentNAFCA}\n')
    with pytest.raises(LNCAError, match='not a checkpoint of this LatentNAFCA'):
        load_network(path, tmp_path / 'other.yml')


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_broken_checkpoints(tmp_path, name):
    with pytest.raises(LNCAError, match=f'{name}: no such file or bundled model'):
        load_network(tmp_path / name)
    (tmp_path / name).write_bytes(b'what is this')
    with pytest.raises(LNCAError, match=f'{name}: not (a )?readable'):
        load_network(tmp_path / name)


def test_a_training_state_is_no_checkpoint(tmp_path):
    torch.save({'epoch': 1, 'iter': 3}, tmp_path / '3.state')
    with pytest.raises(LNCAError, match='contains no parameters of a network'):
        load_network(tmp_path / '3.state')


def test_an_option_file_that_runs_code_is_refused(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / 'a.pth')
    (tmp_path / 'a.yml').write_text('network_g: !!python/object/apply:os.system ["touch hacked"]\n')
    with pytest.raises(LNCAError, match='not a readable option file'):
        load_network(tmp_path / 'a.pth', tmp_path / 'a.yml')


@pytest.mark.parametrize('name', sorted(BUNDLED))
def test_bundled_models_load(name):
    restored = Restorer.from_pretrained(name)(image(17, 30, 3, dtype=np.uint8))
    assert restored.shape == (17, 30, 3)


def test_two_models_come_along():
    assert sorted(BUNDLED) == ['deblur', 'denoise']


@pytest.mark.parametrize('shape', [(), (0, 4), (4,)])
def test_names_of_a_network_with_shapes_of_none(network, shape):
    weights = dict(network.state_dict())
    weights['autoencoder.encoder.down1.conv.weight'] = torch.zeros(shape)
    weights['autoencoder.encoder.down2.conv.weight'] = torch.zeros(shape)
    assert detect(weights) is None


def test_what_is_no_photograph_in_python(tmp_path):
    restorer = Restorer(LatentNAFCA(latent_channels=4, hidden_channels=5, embed_channels=8))
    pixels = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(LNCAError, match='got Image; use np.asarray'):
        restorer(Image.fromarray(pixels))
    with pytest.raises(LNCAError, match=r'values must be in \[0, 1\], got 0 to 255'):
        restorer(np.linspace(0, 255, 192, dtype=np.float32).reshape(8, 8, 3))
    with pytest.raises(LNCAError, match='steps: must be ascending whole numbers'):
        restorer(pixels, steps=2.5)
    frames = [Image.fromarray(pixels + value) for value in (0, 90)]
    frames[0].save(tmp_path / 'moving.webp', save_all=True, append_images=frames[1:])
    with pytest.raises(LNCAError, match='moving.webp: holds 2 pictures; save each by itself'):
        restorer(tmp_path / 'moving.webp')


def test_progress_is_by_steps(capsys):
    """Of one tile, too, and what comes out is the same."""
    restorer = Restorer(LatentNAFCA(latent_channels=4, hidden_channels=5, embed_channels=8), tile=32, overlap=8)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 44, 3), dtype=np.uint8)
    expected = restorer.intermediate_outputs(pixels, [0, 3, 3, 13])
    assert capsys.readouterr().err == ''
    found = restorer.intermediate_outputs(pixels, [0, 3, 3, 13], progress=True)
    assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))
    said = capsys.readouterr().err
    assert '0/26 [' in said and 'step/s]' in said


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'type': 'LatentNAFCA', 'embed_channels': 1 << 40}, 'of another shape'),
        ({'type': 'LatentNAFCA', 'embed_channels': 1 << 20}, 'of another shape'),
        (['LatentNAFCA'], 'must be a block of options, got list'),
        ('LatentNAFCA', 'must be a block of options, got str'),
        ({'type': 'LatentNAFCA', '': 3}, 'is unknown'),
    ],
)
def test_a_file_that_lies_about_its_network(tmp_path, network, options, message):
    """Without taking the memory that it claims."""
    save_file(network.state_dict(), tmp_path / 'a.safetensors', metadata={'network_g': json.dumps(options)})
    with pytest.raises(LNCAError, match=message) as error:
        load_network(tmp_path / 'a.safetensors')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('text', ['network_g: 2001-99-99', '[' * 5000, 'network_g: [1]', '\0'])
def test_an_option_file_that_is_none(tmp_path, network, text):
    torch.save(network.state_dict(), tmp_path / 'a.pth')
    (tmp_path / 'a.yml').write_text(text)
    with pytest.raises(LNCAError, match='a.yml: (not a readable option file|has no block network_g)') as error:
        load_network(tmp_path / 'a.pth', tmp_path / 'a.yml')
    assert '\n' not in str(error.value)
