"""Property-based tests of the parsers: each accepts its input or raises one LNCAError.

Set ``FUZZ_EXAMPLES=10000`` for a longer search.
"""

import copy
import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import tifffile
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lnca_arch.networks.detection import detect
from lnca_data.io.lmdb_store import TileStore
from lnca_data.io.lmdb_verification import META_INFO
from lnca_data.io.lmdb_writer import write_lmdb
from lnca_data.io.photographs import read_photograph
from lnca_data.prepare.dataset_source import inside, rows_of
from lnca_data.prepare.sources import SOURCES
from lnca_data.prepare.sources.cifar_files import archive_members, cifar_batch
from lnca_model.config import checks
from lnca_model.config.yaml_options import add_derived_options, apply_overrides, read_command_line, read_options
from lnca_restore.pretrained import load_network
from lnca_utils import checkpoint
from lnca_utils.errors import LNCAError

EXAMPLES = int(os.environ.get('FUZZ_EXAMPLES', '100'))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize='FUZZ_EXAMPLES' not in os.environ,  # so that a test that passes does so again
    suppress_health_check=list(HealthCheck),
    database=None,
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(['auto', 'Adam', 'LatentViTCA', 'noise', '~', 'TileDataset', 1e300, -1, 0, 2**40]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def edited(data: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of the bytes with a few of them replaced, removed or repeated."""

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        result = data
        for position, length, new in edits:
            place = position % (len(result) + 1)
            result = result[:place] + new + result[place + length :]
        return result

    edit = st.tuples(st.integers(0, 1 << 20), st.sampled_from([0, 1, 2, 4, 64, 1 << 20]), st.binary(max_size=6))
    return st.lists(edit, min_size=1, max_size=4).map(apply)


def refused_or_taken(call, *arguments, in_one_line=False):
    """Return the result of a call, or None if it raises an LNCAError with a readable message."""
    try:
        return call(*arguments)
    except LNCAError as error:
        assert str(error).strip()
        assert not in_one_line or '\n' not in str(error)
        return None


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


def paths_in(tree, path=()):
    yield path
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from paths_in(value, (*path, key))


@fuzz
@given(data=st.data())
def test_options_of_which_some_are_others(folder, options, data):
    options = copy.deepcopy(options)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in paths_in(options) if path]))
        block = options
        for step in path[:-1]:
            block = block[step]
        action = data.draw(st.sampled_from(['replace', 'replace', 'delete', 'rename']))
        if action == 'replace' or isinstance(block, list):
            block[path[-1]] = data.draw(VALUES)
        elif action == 'delete':
            del block[path[-1]]
        else:
            block[data.draw(st.text(max_size=8))] = block.pop(path[-1])
    file = folder / 'options.yml'
    file.write_text(yaml.safe_dump(options, allow_unicode=True), encoding='utf-8')

    def parse():
        opt = read_options(file)
        refused_or_taken(checks._check_valid_datasets, opt, folder)
        checks.validate_schema(opt, file, is_train=True)
        add_derived_options(opt, read_command_line(['-opt', str(file)]), folder, is_train=True)
        # What the plug-in does not know is BasicSR's to check.
        if opt['model_type'] in ('LNCAModel', 'AutomatonModel', 'RestorationModel') and {
            dataset.get('type') for dataset in opt['datasets'].values()
        } <= {'TileDataset'}:
            checks.check_options(opt)

    refused_or_taken(parse)


@fuzz
@given(content=st.binary(max_size=200) | st.text(alphabet='[]{}&*!:-?|>#\'"%@`,~ \na1', max_size=60).map(str.encode))
def test_option_files_of_any_bytes(folder, content):
    file = folder / 'any.yml'
    file.write_bytes(content)
    refused_or_taken(read_options, file)


@fuzz
@given(entry=st.text(max_size=30) | st.builds('{}={}'.format, st.text(max_size=8), st.text(max_size=20)))
def test_forced_options(entry):
    refused_or_taken(apply_overrides, {'train': {'a': 1}, 'name': 'x'}, [entry])


@fuzz
@given(content=st.binary(max_size=200) | edited(b'RealBlur/gt/gt_1.png RealBlur/blur/blur_1.png\n../a /b c\n'))
def test_list_files(folder, content):
    root = folder / 'lists'
    root.mkdir(exist_ok=True)
    (root / 'RealBlur_J_train_list.txt').write_bytes(content)
    rows = refused_or_taken(lambda: list(rows_of(root / 'RealBlur_J_train_list.txt')))
    for row in rows or []:
        for name in row:
            path = refused_or_taken(inside, root, name)
            assert path is None or Path(os.path.normpath(path)).is_relative_to(root)
    refused_or_taken(lambda: SOURCES['realblur'].list(root, variant='J'))


@pytest.fixture(scope='module')
def lmdb_folder(folder):
    path = folder / 'tiles.lmdb'
    numbers = np.random.default_rng(0)
    write_lmdb(path, [(f'tile_{n}', numbers.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for n in range(3)])
    return path, (path / META_INFO).read_bytes()


@fuzz
@given(data=st.data())
def test_metadata_of_lmdbs(lmdb_folder, data):
    path, right = lmdb_folder
    (path / META_INFO).write_bytes(data.draw(st.binary(max_size=100) | edited(right)))
    store = refused_or_taken(TileStore, path)
    if store is None:
        return
    assert all(0 < len(key) <= 511 for key in store.keys)
    sizes = refused_or_taken(lambda: store.sizes)
    for key in store.keys:
        image = refused_or_taken(lambda key=key: store[key])
        assert image is None or image.shape[:2] in sizes


@fuzz
@given(data=st.data())
def test_images_in_lmdbs(folder, data):
    path = folder / 'images.lmdb'
    if not path.exists():
        write_lmdb(path, [('tile', np.zeros((16, 16, 3), np.uint8))])
    with lmdb.open(str(path)) as environment:
        with environment.begin() as transaction:
            png = transaction.get(b'tile')
        with environment.begin(write=True) as transaction:
            transaction.put(b'tile', data.draw(edited(png)) or b'0')
    store = TileStore(path)
    image = refused_or_taken(lambda: store['tile'])
    assert image is None or image.shape == (16, 16, 3)
    TileStore.close_all()
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b'tile', png)


PAGE = 4096


@pytest.fixture(scope='module', params=[3, 400], ids=['one leaf', 'a tree'])
def pages_of_lmdb(folder, request):
    """Return an LMDB, its pages, and the numbers of the pages that lead to the images."""
    path = folder / f'{request.param}.lmdb'
    write_lmdb(path, [(f'tile_{n}', np.full((16, 16, 3), n % 256, np.uint8)) for n in range(request.param)])
    data = (path / 'data.mdb').read_bytes()
    pages = [data[start : start + PAGE] for start in range(0, len(data), PAGE)]
    return path, pages, [n for n, page in enumerate(pages) if n < 2 or page[10:12] in (b'\1\0', b'\2\0')]


@st.composite
def damaged(draw, pages, leading):
    """Return a strategy of the pages with one overwritten, truncated, removed or moved."""
    pages, place = list(pages), draw(st.sampled_from(leading))
    damage = draw(st.sampled_from(['written over', 'written over', 'cut off', 'left out', 'elsewhere']))
    if damage == 'written over':
        page = bytearray(pages[place])
        position = st.integers(0, 63) | st.integers(0, PAGE - 1)
        for start, new in draw(st.lists(st.tuples(position, st.binary(min_size=1, max_size=8)), min_size=1)):
            page[start : start + len(new)] = new
        pages[place] = bytes(page[:PAGE])
    elif damage == 'cut off':
        pages[place:] = [pages[place][: draw(st.integers(0, PAGE - 1))]]
    elif damage == 'left out':
        del pages[draw(st.integers(0, len(pages) - 1))]
    else:
        other = draw(st.integers(0, len(pages) - 1))
        pages[place], pages[other] = pages[other], pages[place]
    return b''.join(pages)


@fuzz
@given(data=st.data())
def test_data_of_lmdbs(pages_of_lmdb, data):
    """Reading beyond the mapped memory would kill the process."""
    path, pages, leading = pages_of_lmdb
    (path / 'data.mdb').write_bytes(data.draw(damaged(pages, leading)))
    store = refused_or_taken(TileStore, path)
    for key in store.keys if store else ():
        refused_or_taken(lambda key=key: store[key])
    TileStore.close_all()


CIFAR = {b'data': np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072), b'labels': [1, 2]}


@fuzz
@given(data=st.data())
def test_batches_of_cifar(folder, data):
    content = data.draw(
        st.binary(max_size=300) | st.one_of(*(edited(pickle.dumps(CIFAR, protocol)) for protocol in (0, 2, 4)))
    )
    for name in ('data_batch_1', 'data_batch_1.bin'):
        (folder / name).write_bytes(content)
        cifar_batch.cache_clear()
        images = refused_or_taken(cifar_batch, str(folder / name))
        assert images is None or images.shape[1:] == (32, 32, 3)


def packed(names: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@fuzz
@given(content=edited(packed({'cifar-10-batches-py/data_batch_1': pickle.dumps(CIFAR, 2)})))
def test_archives_of_cifar(folder, content):
    path = folder / 'cifar-10-python.tar.gz'
    path.write_bytes(gzip.compress(content, 0))
    for cached in (archive_members, cifar_batch):
        cached.cache_clear()
    for name in refused_or_taken(archive_members, path) or []:
        images = refused_or_taken(cifar_batch, str(path), name)
        assert images is None or images.shape[1:] == (32, 32, 3)


NAMES = [
    *('autoencoder.encoder.down1.conv.weight', 'autoencoder.encoder.down2.conv.weight'),
    *('autoencoder.encoder.down3.conv.weight', 'automaton.perception_norm.weight', 'automaton.embed.weight'),
    *('automaton.ffn_expand.weight', 'automaton.qkv.weight', 'automaton.mlp_in.weight', 'automaton.head.weight'),
]


@fuzz
@given(
    shapes=st.dictionaries(
        st.sampled_from(NAMES), st.lists(st.integers(0, 70), max_size=4), min_size=2 if EXAMPLES < 1000 else 0
    )
)
def test_state_dicts(shapes):
    detected = detect({name: torch.empty(shape, device='meta') for name, shape in shapes.items()})
    if detected:
        assert all(size > 0 for size in detected.arguments.values())


@pytest.fixture(scope='module')
def saved(folder):
    file = folder / 'network.pth'
    checkpoint.save({'params': {'weight': torch.arange(6.0)}, 'iter': 3}, file)
    return file.read_bytes()


@fuzz
@given(data=st.data())
def test_checkpoints(folder, saved, data):
    """A checkpoint that loads equals the one that was saved."""
    content = data.draw(edited(saved) | st.binary(max_size=100))
    file = folder / 'edited.pth'
    file.write_bytes(content)
    loaded = refused_or_taken(checkpoint.load, file)
    if loaded:
        assert torch.equal(loaded['params']['weight'], torch.arange(6.0))
        assert loaded['iter'] == 3


@pytest.fixture(scope='module')
def photographs():
    """Return a small file of each suffix."""
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    files = {suffix: cv2.imencode(suffix, image)[1].tobytes() for suffix in ('.png', '.jpg', '.webp')}
    with io.BytesIO() as file:
        tifffile.imwrite(file, image, photometric='rgb')
        files['.tif'] = file.getvalue()
    return files


@fuzz
@given(data=st.data())
def test_photographs(folder, photographs, data):
    suffix = data.draw(st.sampled_from(sorted(photographs)))
    file = folder / f'any{suffix}'
    file.write_bytes(data.draw(edited(photographs[suffix]) | st.binary(max_size=100)))
    photograph = refused_or_taken(read_photograph, file, in_one_line=True)
    if photograph:
        assert photograph.pixels.shape[-1] in (1, 3, 4)
        assert photograph.pixels.dtype in (np.uint8, np.uint16)


SIZES = ('image_channels', 'latent_channels', 'downsamplings', 'hidden_channels', 'embed_channels', 'update_rate')


@fuzz
@given(
    options=VALUES
    | st.fixed_dictionaries(
        {'type': st.sampled_from(['LatentNAFCA', 'LatentViTCA', 'PixelViTCA'])},
        optional={name: SCALARS | st.integers(1, 20) for name in SIZES},
    )
)
def test_networks_that_files_describe(folder, options):
    file = folder / 'described.safetensors'
    save_file({'automaton.embed.weight': torch.zeros(2, 3, 1, 1)}, file, metadata={'network_g': json.dumps(options)})
    assert refused_or_taken(load_network, file, in_one_line=True) is None  # no network has this one parameter
