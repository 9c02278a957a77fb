"""NAFNet and Restormer as registered: sizes, official names, any image."""

import logging

import pytest
import torch
from network_configs import read_network

from lnca_utils.checkpoint import read_weights
from lnca_utils.errors import LNCAError

from basicsr.utils.registry import ARCH_REGISTRY

TINY_NAFNET = {'width': 4, 'enc_blk_nums': [1, 2], 'middle_blk_num': 1, 'dec_blk_nums': [2, 1]}
TINY_RESTORMER = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 2]}


def build(name, **options):
    return ARCH_REGISTRY.get(name)(**options)


@pytest.mark.parametrize(('name', 'millions'), [('NAFNet', 115.98), ('Restormer', 26.13)])
def test_published_sizes(name, millions):
    options = read_network(name)['network_g']
    with torch.device('meta'):
        network = build(options.pop('type'), **options)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def block(where, *names):
    return {f'{where}.{name}' for name in names}


def convolution(where):
    return block(where, 'weight', 'bias')


def official_nafnet_names(encoders, middle, decoders):
    """Those of the checkpoints that the authors of NAFNet published."""

    def naf_block(where):
        names = block(where, 'beta', 'gamma')
        for part in ('conv1', 'conv2', 'conv3', 'sca.1', 'conv4', 'conv5', 'norm1', 'norm2'):
            names |= convolution(f'{where}.{part}')
        return names

    names = convolution('intro') | convolution('ending')
    for level, count in enumerate(encoders):
        names |= convolution(f'downs.{level}').union(*(naf_block(f'encoders.{level}.{i}') for i in range(count)))
    for level, count in enumerate(decoders):
        names |= {f'ups.{level}.0.weight'}.union(*(naf_block(f'decoders.{level}.{i}') for i in range(count)))
    return names.union(*(naf_block(f'middle_blks.{i}') for i in range(middle)))


def official_restormer_names(blocks, refinement):
    """Those of the checkpoints that the authors of Restormer published, with its layer norms that have a bias."""

    def transformer(where):
        names = convolution(f'{where}.norm1.body') | convolution(f'{where}.norm2.body')
        names |= block(f'{where}.attn', 'temperature', 'qkv.weight', 'qkv_dwconv.weight', 'project_out.weight')
        return names | block(f'{where}.ffn', 'project_in.weight', 'dwconv.weight', 'project_out.weight')

    names = {'patch_embed.proj.weight', 'output.weight', 'reduce_chan_level3.weight', 'reduce_chan_level2.weight'}
    names |= {f'{step}.body.0.weight' for step in ('down1_2', 'down2_3', 'down3_4', 'up4_3', 'up3_2', 'up2_1')}
    parts = {f'encoder_level{level}': blocks[level - 1] for level in (1, 2, 3)}
    parts |= {f'decoder_level{level}': blocks[level - 1] for level in (1, 2, 3)}
    parts |= {'latent': blocks[3], 'refinement': refinement}
    return names.union(*(transformer(f'{part}.{i}') for part, count in parts.items() for i in range(count)))


@pytest.mark.parametrize(
    ('name', 'options', 'official'),
    [
        ('NAFNet', TINY_NAFNET, official_nafnet_names([1, 2], 1, [2, 1])),
        ('Restormer', TINY_RESTORMER, official_restormer_names([1, 1, 1, 1], 1)),
    ],
)
def test_official_checkpoints_load_unchanged(name, options, official, tmp_path):
    network = build(name, **options)
    assert set(network.state_dict()) == official
    published = {key: torch.randn_like(value) for key, value in network.state_dict().items()}
    torch.save({'params': published}, tmp_path / 'official.pth')
    network.load_state_dict(read_weights(network, tmp_path / 'official.pth', True, 'params'))
    assert all(torch.equal(value, published[key]) for key, value in network.state_dict().items())
    del published['intro.weight' if name == 'NAFNet' else 'output.weight']
    torch.save({'params': published}, tmp_path / 'other.pth')
    with pytest.raises(LNCAError, match='1 missing, such as'):
        read_weights(network, tmp_path / 'other.pth', True, 'params')


@pytest.mark.parametrize(('name', 'options'), [('NAFNet', TINY_NAFNET), ('Restormer', TINY_RESTORMER)])
@pytest.mark.parametrize('size', [(16, 24), (13, 18), (3, 40)])
def test_any_height_and_width(name, options, size):
    network = build(name, **options).eval()
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        restored = network(image)
    assert restored.shape == image.shape
    assert restored.isfinite().all()


def test_restormer_reflects_at_the_edge_as_its_authors_do():
    network = build('Restormer', **TINY_RESTORMER).eval()
    image = torch.rand(1, 3, 13, 18)
    padded = torch.nn.functional.pad(image, (0, 6, 0, 3), mode='reflect')
    with torch.no_grad():
        assert torch.equal(network(image), network(padded)[..., :13, :18])


def test_restormers_licence_is_said_at_use(caplog):
    with caplog.at_level(logging.WARNING):
        with torch.device('meta'):
            build('Restormer', **TINY_RESTORMER)
        assert not caplog.records
        build('Restormer', **TINY_RESTORMER)
    assert 'non-commercial use only' in caplog.text
