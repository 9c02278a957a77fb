"""Listing of public datasets in their published layouts, and reading of their images."""

import functools
import gzip
import hashlib
import operator
import os
import pickle
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import cv2
import miniatures
import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from lnca_data.io.images import BundledPhoto, ImageFile, RawFile, to_8_bits
from lnca_data.prepare.sources import SOURCES
from lnca_data.prepare.sources import cifar_files as cifar
from lnca_data.prepare.sources.cifar_files import CifarImage
from lnca_utils.errors import LNCAError

CIFAR_FORMS = ['cifar10_pickled', 'cifar10_binary', 'cifar10_pickled_archive', 'cifar10_binary_archive']
PUBLISHED = dict((*CIFAR10.train_list, *CIFAR10.test_list))
# Miniature → source and its options.
LISTINGS = {
    'gopro': ('gopro', {'blur': 'blur'}),
    'realblur': ('realblur', {'variant': 'J'}),
    'sid': ('sid', {'cameras': None}),
    'renoir': ('renoir', {}),
    'celeba': ('celeba', {}),
    'tinyimagenet': ('tinyimagenet', {}),
    **dict.fromkeys(CIFAR_FORMS, ('cifar10', {})),
}


@pytest.fixture(scope='module')
def miniature(tmp_path_factory):
    """Return the folder of a miniature; it is created once and not modified."""
    root = tmp_path_factory.mktemp('miniatures')
    return functools.cache(lambda name: getattr(miniatures, name)(root / name))


def publish(monkeypatch, count=12):
    """Replace the MD5s of the published files by those of the miniatures."""
    md5s = [
        [batch, hashlib.md5(miniatures.cifar_pickle(batch_images, batch)).hexdigest()]
        for batch, batch_images in miniatures.cifar_images(count).items()
    ]
    monkeypatch.setattr(CIFAR10, 'train_list', md5s[:5])
    monkeypatch.setattr(CIFAR10, 'test_list', md5s[5:])
    cifar.cifar_batch.cache_clear()


@pytest.fixture(autouse=True)
def published(monkeypatch):
    publish(monkeypatch)


def listed(source, folder, **choices):
    """Return name → scene, split, and relative paths of gt and lq."""
    return {
        pair.name: (pair.scene, pair.split, *(os.path.relpath(image.path, folder) for image in images(pair)))
        for pair in SOURCES[source].list(folder, **choices)
    }


def images(pair):
    return [pair.gt, pair.lq] if pair.lq else [pair.gt]


def refusal(function, *arguments, **keywords):
    with pytest.raises(LNCAError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert '\n' not in message
    return message


def own_pairs(folder, gt, lq):
    """Write small images with these names below gt and lq, and list them as pairs."""
    for side, names in (('gt', gt), ('lq', lq)):
        (folder / side).mkdir()
        for name in names:
            miniatures.save(folder / side / name, np.zeros((4, 4, 3), np.uint8))
    return SOURCES['pairs'].list(None, gt=folder / 'gt', lq=folder / 'lq')


# --- listings


@pytest.mark.parametrize('blur', ['blur', 'blur_gamma'])
def test_gopro(miniature, blur):
    found = listed('gopro', miniature('gopro'), blur=blur)
    assert len(found) == 2 * 7
    for sequence, split in (('GOPR0384_11_01', 'train'), ('GOPR0384_11_00', 'test')):
        place = f'{split}/{sequence}'
        expected = ('GOPR0384', split, f'{place}/sharp/000048.png', f'{place}/{blur}/000048.png')
        assert found[f'{sequence}_000048'] == expected
    assert {scene for scene, *_ in found.values()} == {'GOPR0372', 'GOPR0384', 'GOPR0477', 'GOPR0871', 'GOPR0410'}


@pytest.mark.parametrize('variant', ['J', 'R'])
def test_realblur(miniature, variant):
    found = listed('realblur', miniature('realblur'), variant=variant)
    assert len(found) == 2 * 7
    for scene, split in (('scene001', 'train'), ('scene009', 'test')):
        gt, blur = (f'{miniatures.REALBLUR[variant]}/{scene}/{side}/{side}_2.png' for side in ('gt', 'blur'))
        assert found[f'{variant}_{scene}_blur_2'] == (scene, split, gt, blur)


def test_sid(miniature):
    found = listed('sid', miniature('sid'), cameras=None)
    assert len(found) == 2 * 8
    assert found['Sony_00001_01_0_04s'] == (
        'Sony_00001',
        'train',
        'Sony/long/00001_00_10s.ARW',
        'Sony/short/00001_01_0.04s.ARW',
    )
    assert found['Fuji_20003_00_0_1s'] == (
        'Fuji_20003',
        'val',
        'Fuji/long/20003_00_10s.RAF',
        'Fuji/short/20003_00_0.1s.RAF',
    )
    splits = {scene.split('_')[1][0]: split for scene, split, *_ in found.values()}
    assert splits == {'0': 'train', '1': 'test', '2': 'val'}
    assert {os.path.basename(gt) for scene, _, gt, _ in found.values() if scene == 'Sony_00001'} == {'00001_00_10s.ARW'}


def test_sid_cameras(miniature, tmp_path):
    both = miniature('sid')
    assert {scene[:4] for scene, *_ in listed('sid', both, cameras=['Fuji']).values()} == {'Fuji'}
    assert len(listed('sid', both, cameras=['Fuji', 'Sony'])) == 16
    sony = miniatures.sid(tmp_path, ['Sony'])
    assert {scene[:4] for scene, *_ in listed('sid', sony, cameras=None).values()} == {'Sony'}
    assert 'no Fuji there' in refusal(listed, 'sid', sony, cameras=['Sony', 'Fuji'])


def test_sid_exposures(miniature):
    """The ratio comes from the names and is limited to 300; the long exposure is not scaled."""
    pairs = {pair.name: pair for pair in SOURCES['sid'].list(miniature('sid'), cameras=['Sony'])}
    assert {name: pair.lq.brightness for name, pair in pairs.items()} == pytest.approx(
        {
            'Sony_00001_00_0_04s': 250,
            'Sony_00001_00_0_1s': 100,
            'Sony_00001_01_0_04s': 250,
            'Sony_00002_00_0_033s': 300,
            'Sony_00042_00_0_1s': 300,
            'Sony_10003_00_0_04s': 250,
            'Sony_20003_00_0_1s': 100,
            'Sony_20003_01_0_1s': 100,
        }
    )
    assert {pair.gt.brightness for pair in pairs.values()} == {1}


@pytest.mark.parametrize('name', ['00001_00.ARW', '00001_00_0s.ARW', '00001_00_slow.ARW'])
def test_sid_name_without_exposure(tmp_path, name):
    (tmp_path / 'Sony_train_list.txt').write_text(f'./Sony/short/{name} ./Sony/long/00001_00_10s.ARW ISO200 F8\n')
    message = refusal(listed, 'sid', tmp_path, cameras=None)
    assert name in message
    assert 'exposure' in message


def test_renoir(miniature):
    found = listed('renoir', miniature('renoir'))
    assert len(found) == 8
    for noisy in ('IMG_4913', 'IMG_4914'):
        place = 'T3i_Aligned/Batch_001'
        expected = ('T3i_Batch_001', None, f'{place}/IMG_4912Reference.bmp', f'{place}/{noisy}Noisy.bmp')
        assert found[f'T3i_Batch_001_{noisy}Noisy'] == expected
    # Batch_001 of each camera is another scene.
    assert len({scene for scene, *_ in found.values()}) == 6


def test_celeba(miniature, tmp_path):
    found = listed('celeba', miniature('celeba'))
    assert len(found) == 60
    assert found['000048'] == ('000048', 'train', 'img_align_celeba/000048.jpg')
    assert [found[name][1] for name in ('000001', '000049', '000055')] == ['train', 'val', 'test']
    miniatures.celeba(tmp_path, count=10)
    (tmp_path / 'list_eval_partition.txt').unlink()
    assert {split for _, split, _ in listed('celeba', tmp_path).values()} == {None}


def test_tinyimagenet(miniature):
    found = listed('tinyimagenet', miniature('tinyimagenet'))
    assert len(found) == 3 * 20 + 5 + 5
    assert found['n01629819_7'] == ('n01629819_7', 'train', 'train/n01629819/images/n01629819_7.JPEG')
    assert found['val_4'] == ('val_4', 'val', 'val/images/val_4.JPEG')
    assert found['test_0'] == ('test_0', 'test', 'test/images/test_0.JPEG')


@pytest.mark.parametrize('form', CIFAR_FORMS)
def test_cifar10(miniature, form):
    """Names, splits and pixels."""
    pairs = {pair.name: pair for pair in SOURCES['cifar10'].list(miniature(form))}
    expected = miniatures.cifar_images()
    assert len(pairs) == 6 * 12
    for batch, batch_images in expected.items():
        for index, image in enumerate(batch_images):
            pair = pairs[f'{batch}_{index:05d}']
            assert pair.split == ('test' if batch == 'test_batch' else 'train')
            assert (pair.scene, pair.lq) == (pair.name, None)
            np.testing.assert_array_equal(pair.gt.read(), image)


@pytest.mark.parametrize('form', ['cifar10_pickled', 'cifar10_binary'])
def test_cifar10_given_its_inner_folder(miniature, form):
    folder = miniature(form)
    (inner,) = folder.iterdir()
    assert list(listed('cifar10', inner)) == list(listed('cifar10', folder))


def test_miniature_of_cifar10_is_of_python_2(miniature):
    """It unpickles as the published file does, and its strings are those of Python 2."""
    data = (miniature('cifar10_pickled') / 'cifar-10-batches-py' / 'data_batch_3').read_bytes()
    batch = pickle.loads(data, encoding='bytes')
    assert batch.keys() == {b'batch_label', b'labels', b'data', b'filenames'}
    assert batch[b'data'].shape == (12, 3072)
    assert data.startswith(b'\x80\x02}q\x00(U\x0bbatch_labelq\x01U\x15training batch 3 of 5')
    assert b'cnumpy.core.multiarray\n_reconstruct\n' in data


def test_pairs(tmp_path):
    """A subfolder is a scene; formats may differ; hidden files of macOS are ignored."""
    pairs = own_pairs(
        tmp_path,
        gt=['bed room/1.png', 'bed room/2.png', 'hall/deep/1.png', 'cat.png', 'dog.tiff', '._cat.png'],
        lq=['bed room/1.jpg', 'bed room/2.PNG', 'hall/deep/1.png', 'cat.bmp', 'dog.png'],
    )
    assert {pair.name: pair.scene for pair in pairs} == {
        'bed_room_1': 'bed_room',
        'bed_room_2': 'bed_room',
        'hall_deep_1': 'hall_deep',
        'cat': 'cat',
        'dog': 'dog',
    }
    for pair in pairs:
        assert Path(pair.gt.path).stem == Path(pair.lq.path).stem
        assert (Path(pair.gt.path).parents[-2] == Path(pair.lq.path).parents[-2]) and pair.split is None
        assert str(tmp_path / 'gt') in pair.gt.path
        assert str(tmp_path / 'lq') in pair.lq.path


def test_pairs_of_raw_files(tmp_path):
    light = miniatures.photograph(np.random.default_rng(0))[..., 0] / 255
    for side in ('gt', 'lq'):
        miniatures.write_raw(tmp_path / side / 'one.DNG', light)
    (pair,) = SOURCES['pairs'].list(None, gt=tmp_path / 'gt', lq=tmp_path / 'lq')
    assert pair.lq.read().shape == (*miniatures.SIZE, 3)
    np.testing.assert_array_equal(pair.gt.read(), pair.lq.read())


@pytest.mark.parametrize(
    ('gt', 'lq', 'stray', 'absent'),
    [(['a.png', 'b.png'], ['b.png'], 'gt/a', 'lq'), (['b.png'], ['b.png', 'c.jpg'], 'lq/c', 'gt')],
)
def test_pairs_without_partner(tmp_path, gt, lq, stray, absent):
    message = refusal(own_pairs, tmp_path, gt, lq)
    assert message.startswith(f'{tmp_path / stray}.*: no image of that name in {tmp_path / absent} ')
    assert SOURCES['pairs'].layout in message


def test_pairs_with_one_name_twice(tmp_path):
    message = refusal(own_pairs, tmp_path, ['a.jpg', 'a.png'], ['a.png'])
    assert message == f'{tmp_path / "gt" / "a.png"}: there is a.jpg, too; keep one of the two'


def test_photos():
    pairs = {pair.name: pair for pair in SOURCES['photos'].list(None)}
    for name in ('chelsea', 'china', 'flower'):
        held_out = pairs.pop(name)
        assert held_out.split == 'test'
        assert held_out.gt.read().shape == ((300, 451, 3) if name == 'chelsea' else (427, 640, 3))
    assert len(pairs) == 2 * 7
    for name, pair in pairs.items():
        assert pair.split == {'top': 'train', 'bottom': 'val'}[name.rpartition('_')[2]]
    assert {pairs[f'motorcycle_{side}_top'].scene for side in ('left', 'right')} == {'motorcycle'}
    for name in ('coffee', 'motorcycle_right'):
        top, bottom = (pairs[f'{name}_{part}'].gt for part in ('top', 'bottom'))
        whole = BundledPhoto(top.path).read()
        assert len(top.read()) % 64 == 0
        assert len(top.read()) == pytest.approx(0.8 * len(whole), abs=64)
        np.testing.assert_array_equal(np.concatenate([top.read(), bottom.read()]), whole)


@pytest.mark.parametrize('name', LISTINGS)
def test_order_is_the_same_everywhere(miniature, name, monkeypatch):
    """Pairs of a scene are adjacent, and independent of the order of files on disk."""
    source, choices = LISTINGS[name]
    before = SOURCES[source].list(miniature(name), **choices)
    glob = Path.glob
    monkeypatch.setattr(Path, 'glob', lambda *arguments: reversed(list(glob(*arguments))))
    assert SOURCES[source].list(miniature(name), **choices) == before
    scenes = [pair.scene for pair in before]
    assert len(list(dict.fromkeys(scenes))) == 1 + sum(map(operator.ne, scenes, scenes[1:]))
    assert all(Path(image.path).exists() for pair in before for image in images(pair))


# --- refused input


@pytest.mark.parametrize(('source', 'choices'), dict(LISTINGS.values()).items())
def test_wrong_folder(tmp_path, source, choices):
    """Another or a missing folder is refused in one line that names the expected files."""
    miniatures.save(tmp_path / 'some' / 'holidays' / '1.gif', np.zeros((4, 4, 3), np.uint8))
    for folder in (tmp_path / 'some', tmp_path / 'nowhere', tmp_path / 'some' / 'holidays' / '1.gif'):
        message = refusal(SOURCES[source].list, folder, **choices)
        assert message.startswith(str(folder))
        assert SOURCES[source].title in message
        assert SOURCES[source].layout in message


def test_wrong_folder_of_pairs(tmp_path):
    (tmp_path / 'gt').mkdir()
    for place in ('gt', 'nowhere'):
        message = refusal(SOURCES['pairs'].list, None, gt=tmp_path / place, lq=tmp_path)
        assert message.startswith(f'{tmp_path / place}: no images there')
        assert SOURCES['pairs'].layout in message


@pytest.mark.parametrize('name', ['../../etc/passwd_10s.ARW', '/etc/passwd_10s.ARW', 'Sony/../../passwd_10s.ARW'])
@pytest.mark.parametrize('place', [0, 1])
@pytest.mark.parametrize(
    ('source', 'choices', 'file', 'row'),
    [
        (
            'realblur',
            {'variant': 'J'},
            'RealBlur_J_train_list.txt',
            'a/scene001/gt/gt_1.png a/scene001/blur/blur_1.png',
        ),
        (
            'sid',
            {'cameras': None},
            'Sony_test_list.txt',
            './Sony/short/10003_00_0.04s.ARW ./Sony/long/10003_00_10s.ARW',
        ),
    ],
)
def test_list_that_leads_out_of_the_folder(tmp_path, source, choices, file, row, place, name):
    (tmp_path / file).write_text(row.replace(row.split()[place], name))
    message = refusal(SOURCES[source].list, tmp_path, **choices)
    assert message == f'{tmp_path}: its list names {name!r}, which is outside the folder; download the list again'


def test_list_with_half_a_line(tmp_path):
    (tmp_path / 'RealBlur_J_test_list.txt').write_text('a/s/gt/gt_1.png a/s/blur/blur_1.png\n\na/s/gt/gt_2.png\n')
    message = refusal(SOURCES['realblur'].list, tmp_path, variant='J')
    assert f'{tmp_path / "RealBlur_J_test_list.txt"}:3: ' in message
    assert 'gt_2.png' in message


def test_two_images_of_one_name(tmp_path):
    twice = miniatures.gopro(tmp_path / 'gopro', frames=1)
    shutil.copytree(twice / 'train' / 'GOPR0871_11_00', twice / 'test' / 'GOPR0871_11_00')
    message = refusal(SOURCES['gopro'].list, twice, blur='blur')
    assert '/GOPR0871_11_00/sharp/000047.png: ' in message
    assert 'GOPR0871_11_00_000047' in message


@pytest.mark.parametrize('names', [('a b.png', 'a_b.png'), ('a/b.png', 'a_b.png'), ('é1.png', 'ü1.png')])
def test_two_pairs_of_one_key(tmp_path, names):
    message = refusal(own_pairs, tmp_path, names, names)
    assert any(str(tmp_path / 'gt' / name) in message for name in names)
    assert 'rename one' in message


class Hostile:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


NOT_PUBLISHED = (
    'not the published batch of CIFAR-10, its MD5 differs; download it again, or use the binary version, '
    'cifar-10-binary.tar.gz'
)


@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('wrap', [lambda it: it, lambda it: {b'data': it}, lambda it: {b'data': [], b'labels': [it]}])
@pytest.mark.parametrize(
    ('function', 'code'), [(os.system, 'touch {}'), (eval, "open('{}', 'w')"), (getattr, 'touch {}')]
)
def test_hostile_cifar10(tmp_path, protocol, wrap, function, code):
    place = tmp_path / 'cifar-10-batches-py'
    place.mkdir()
    done = tmp_path / 'done'
    arguments = (os, 'system') if function is getattr else (code.format(done),)
    value = wrap(Hostile(function, *(str(it) for it in arguments)))
    (place / 'data_batch_1').write_bytes(pickle.dumps(value, protocol))
    message = refusal(SOURCES['cifar10'].list, tmp_path)
    assert not done.exists()
    assert message == f'{place / "data_batch_1"}: {NOT_PUBLISHED}'


def test_hostile_cifar10_in_an_archive(tmp_path):
    batch = tmp_path / 'data_batch_1'
    batch.write_bytes(pickle.dumps(Hostile(os.system, f'touch {tmp_path / "done"}'), 2))
    archive_path = tmp_path / 'cifar-10-python.tar.gz'
    with tarfile.open(archive_path, 'w:gz') as archive:
        archive.add(batch, 'cifar-10-batches-py/data_batch_1')
    message = refusal(SOURCES['cifar10'].list, tmp_path)
    assert message == f'{archive_path}: cifar-10-batches-py/data_batch_1: {NOT_PUBLISHED}'
    assert not (tmp_path / 'done').exists()


def test_the_published_md5s():
    """They are those of the files that torchvision downloads."""
    assert list(PUBLISHED) == list(miniatures.CIFAR_LABELS)
    assert PUBLISHED['test_batch'] == '40351d587109b95175f43aff81a1287e'


def test_a_batch_in_the_place_of_another(tmp_path):
    """Otherwise test images could be used for training."""
    folder = miniatures.cifar10_pickled(tmp_path) / 'cifar-10-batches-py'
    shutil.copy(folder / 'test_batch', folder / 'data_batch_2')
    assert refusal(SOURCES['cifar10'].list, tmp_path) == f'{folder / "data_batch_2"}: {NOT_PUBLISHED}'


@pytest.mark.parametrize('form', ['cifar10_pickled', 'cifar10_binary'])
def test_a_batch_of_cifar10_that_is_too_large(tmp_path, monkeypatch, form):
    folder = getattr(miniatures, form)(tmp_path / 'right')
    monkeypatch.setattr(cifar, 'MAX_BATCH_BYTES', 1 << 20)
    (batch,) = folder.glob('*/data_batch_2*')
    with open(batch, 'ab') as file:
        file.truncate((1 << 20) + 1)
    assert refusal(SOURCES['cifar10'].list, folder) == f'{batch}: larger than 1 MB; not a file of this dataset'


@pytest.mark.parametrize('form', ['cifar10_pickled_archive', 'cifar10_binary_archive'])
def test_a_batch_in_an_archive_that_is_too_large(tmp_path, monkeypatch, form):
    folder = getattr(miniatures, form)(tmp_path / 'right')
    monkeypatch.setattr(cifar, 'MAX_BATCH_BYTES', 1 << 10)
    message = refusal(SOURCES['cifar10'].list, folder)
    assert 'is larger than the batches of CIFAR-10; download it again' in message


def archive_header(kind, size, goes_on=False):
    header = tarfile.TarInfo('long')
    header.type, header.size = kind, size
    data = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    data[482] = goes_on  # where GNU says whether the map of a sparse file is longer
    data[148:155] = b'%06o\0' % tarfile.calc_chksums(data)[0]
    return bytes(data)


@pytest.mark.parametrize('name', ['cifar-10-python.tar.gz', 'cifar-10-binary.tar.gz'])
@pytest.mark.parametrize(
    'content',
    [
        archive_header(tarfile.XHDTYPE, 8 << 30),
        archive_header(tarfile.GNUTYPE_LONGNAME, 8 << 30),
        archive_header(tarfile.GNUTYPE_LONGNAME, 8 << 30) + bytes(64 << 20),
        500 * archive_header(tarfile.GNUTYPE_LONGLINK, 0),  # each read within the one before
        500 * (archive_header(tarfile.XGLTYPE, 512) + b'512 key=' + bytes(504)),
        archive_header(tarfile.GNUTYPE_SPARSE, 0, goes_on=True) + 500 * (21 * b'00000000001\0' + b'1\0\0\0'),  # and on
        # tarfile raises IndexError for this truncated sparse map.
        archive_header(tarfile.GNUTYPE_SPARSE, 0, goes_on=True),
    ],
)
def test_an_archive_of_headers(tmp_path, monkeypatch, content, name):
    monkeypatch.setattr(cifar, 'MAX_ARCHIVE_BYTES', 32 << 20)
    (tmp_path / name).write_bytes(gzip.compress(content))
    tracemalloc.start()
    message = refusal(SOURCES['cifar10'].list, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message.startswith(f'{tmp_path / name}: not a readable archive')
    assert peak < 100 << 20


@pytest.mark.parametrize('form', ['cifar10_pickled_archive', 'cifar10_binary_archive'])
def test_an_archive_that_unpacks_to_too_much(tmp_path, monkeypatch, form):
    (archive,) = getattr(miniatures, form)(tmp_path / 'right', count=2).iterdir()
    monkeypatch.setattr(cifar, 'MAX_ARCHIVE_BYTES', len(gzip.decompress(archive.read_bytes())) // 2)
    assert 'it contains more than' in refusal(SOURCES['cifar10'].list, archive.parent)


@pytest.mark.parametrize('form', CIFAR_FORMS)
@pytest.mark.parametrize('share', [0, 0.3, 0.9])
def test_truncated_cifar10(tmp_path, monkeypatch, form, share):
    publish(monkeypatch, count=2)
    folder = getattr(miniatures, form)(tmp_path / 'some', count=2)
    file = next(
        file
        for file in sorted(folder.rglob('*'))
        if file.name.startswith(('data_batch_1', 'cifar-10-')) and file.is_file()
    )
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert refusal(SOURCES['cifar10'].list, folder).startswith(str(file))


@pytest.mark.parametrize('form', CIFAR_FORMS[2:])
def test_damaged_archive_of_cifar10(tmp_path, monkeypatch, form):
    """An archive with a wrong byte is refused, unless all pixels are right."""
    publish(monkeypatch, count=2)
    (archive,) = getattr(miniatures, form)(tmp_path / 'some', count=2).iterdir()
    data = archive.read_bytes()
    expected = np.concatenate(list(miniatures.cifar_images(2).values()))
    for position in range(0, len(data), len(data) // 100):
        copy = tmp_path / str(position) / archive.name
        copy.parent.mkdir()
        copy.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        try:
            found = [pair.gt.read() for pair in SOURCES['cifar10'].list(copy.parent)]
        except LNCAError as error:
            assert str(error).startswith(str(copy)) and '\n' not in str(error)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=f'byte {position} is another')


@pytest.mark.parametrize(
    'value', [{b'labels': []}, [1, 2], {b'data': b'pixels'}, {b'data': np.zeros((2, 100), np.uint8)}]
)
def test_not_a_batch_of_cifar10(tmp_path, value):
    (tmp_path / 'cifar-10-batches-py').mkdir()
    (tmp_path / 'cifar-10-batches-py' / 'test_batch').write_bytes(miniatures.python2_pickle(value))
    assert NOT_PUBLISHED in refusal(SOURCES['cifar10'].list, tmp_path)


# --- reading of images


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.bmp', '.tiff', '.webp'])
@pytest.mark.parametrize('share', [0, 0.02, 0.5, 0.95])
def test_truncated_image(tmp_path, suffix, share):
    file = miniatures.save(tmp_path / f'some{suffix}', miniatures.photograph(np.random.default_rng(0)))
    data = file.read_bytes()
    assert ImageFile(str(file)).read().shape == (*miniatures.SIZE, 3)
    file.write_bytes(data[: int(share * len(data))])
    assert refusal(ImageFile(str(file)).read).startswith(f'{file}: not a readable image')


def test_damaged_png(tmp_path):
    """The file has its full length and one wrong byte."""
    file = miniatures.save(tmp_path / 'some.png', miniatures.photograph(np.random.default_rng(0)))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    assert refusal(ImageFile(str(file)).read).startswith(f'{file}: not a readable image')


@pytest.mark.parametrize('share', [0, 0.02, 0.5, 0.99])
def test_truncated_raw_file(tmp_path, share):
    file = miniatures.write_raw(tmp_path / 'some.ARW', np.full(miniatures.SIZE, 0.5))
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert refusal(RawFile(str(file)).read).startswith(f'{file}: not a readable raw file')


@pytest.mark.parametrize('kind', [ImageFile, RawFile, functools.partial(CifarImage, index=0)])
def test_missing_image(tmp_path, kind):
    for place in (tmp_path / 'nowhere.bin', tmp_path):
        assert refusal(kind(str(place)).read).startswith(f'{place}: ')


COLOURS = miniatures.photograph(np.random.default_rng(0), 20, 30)
FINE_COLOURS = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), np.uint16)


@pytest.mark.parametrize('suffix', ['.png', '.tiff'])
@pytest.mark.parametrize(('pixels'), [COLOURS, FINE_COLOURS])
def test_colours_grey_and_alpha(tmp_path, suffix, pixels):
    """Of 8 and 16 bits; grey becomes RGB; alpha is dropped without effect on the colours."""
    blue_green_red = pixels[..., ::-1]
    alpha = np.concatenate([blue_green_red, np.zeros_like(pixels[..., :1])], axis=2)
    green = pixels[..., 1]
    for name, stored, expected in (
        ('colours', blue_green_red, pixels),
        ('alpha', alpha, pixels),
        ('grey', green, np.stack([green] * 3, axis=2)),
    ):
        path = str(tmp_path / f'{name}{suffix}')
        cv2.imwrite(path, stored)
        image = ImageFile(path).read()
        assert image.dtype == pixels.dtype
        np.testing.assert_array_equal(image, expected, err_msg=name)


def test_grey_jpeg(miniature):
    place = miniature('tinyimagenet') / 'train/n01443537/images'
    assert cv2.imread(str(place / 'n01443537_1.JPEG'), cv2.IMREAD_UNCHANGED).ndim == 2
    image = ImageFile(str(place / 'n01443537_1.JPEG')).read()
    assert image.shape == (64, 64, 3)
    assert (image == image[..., :1]).all()


def test_floating_point_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / 'some.tiff'), np.zeros((4, 4, 3), np.float32))
    assert '8 or 16 bits per channel' in refusal(ImageFile(str(tmp_path / 'some.tiff')).read)


def test_16_bits_become_8():
    values = np.array([0, 128, 129, 257, 385, 386, 65406, 65407, 65535], np.uint16)
    np.testing.assert_array_equal(to_8_bits(values), np.round(values / 257))
    assert to_8_bits(COLOURS) is COLOURS


@pytest.mark.parametrize('peak', [0.5, 0.8])
@pytest.mark.parametrize('ratio', [8, 100])
def test_raw_files_are_amplified_linearly(tmp_path, peak, ratio):
    """A short exposure, amplified by the ratio, equals the long one at any brightness."""
    light = 0.02 + (peak - 0.02) * miniatures.photograph(np.random.default_rng(0))[..., 0] / 255
    long, short = (
        str(miniatures.write_raw(tmp_path / f'{name}.ARW', values))
        for name, values in (('long', light), ('short', light / ratio))
    )
    expected, dark, amplified = (RawFile(*it).read() for it in ((long,), (short,), (short, ratio)))
    assert (amplified.shape, amplified.dtype) == ((*miniatures.SIZE, 3), np.uint16)

    def difference(image):
        return np.abs(image / 65535 - expected / 65535).mean()

    # Quantization makes them differ slightly.
    assert difference(amplified) < 0.005
    assert difference(dark) > 0.2


def test_short_exposures_look_like_the_long_ones(miniature):
    for pair in SOURCES['sid'].list(miniature('sid'), cameras=None):
        gt, lq = (image.read().astype(float) for image in images(pair))
        assert lq.mean() == pytest.approx(gt.mean(), rel=0.05)
        assert np.corrcoef(gt.ravel(), lq.ravel())[0, 1] > 0.95
