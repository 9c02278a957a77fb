"""Check an LMDB: ``python lmdb_scan.py PATH COUNT`` prints what is wrong with it, if anything.

LMDB trusts the content of its files, so a damaged one can kill the process that reads it. This script is therefore run
as a process of its own. It imports nothing from this package, so it starts quickly and needs no search path.

``COUNT`` is the number of images. If their keys are passed on standard input, one per line, every image is located,
too.
"""

import os
import sys

import lmdb


def find_damage(path: str, count: int, keys: list[bytes]) -> str | None:
    """Return what is wrong with an LMDB, or None."""
    size = os.stat(os.path.join(path, 'data.mdb')).st_size
    # The memory map is longer than the file by the longest possible image, so that an image with a wrong length ends
    # within the map. Readahead stays on, since locating all images reads the whole file.
    environment = lmdb.open(path, size + (1 << 32), readonly=True, lock=False, create=False)
    entries, page_size = environment.stat()['entries'], environment.stat()['psize']
    needed = (environment.info()['last_pgno'] + 1) * page_size
    if size < needed:
        return f'data.mdb is truncated, {size} of {needed} bytes'
    if entries != count:
        return f'meta_info.txt lists {count} images, data.mdb contains {entries}'
    total = 0
    with environment.begin(buffers=True) as transaction:
        for key in keys:
            image = transaction.get(key)
            if image is None:
                return f'data.mdb has no {key.decode()!r}, which meta_info.txt lists'
            image[-1:].tobytes()  # kills this process if the image extends beyond the file
            total += len(image)
    return 'data.mdb is damaged, images overlap' if total > size else None


if __name__ == '__main__':
    keys = sys.stdin.buffer.read()
    try:
        problem = find_damage(sys.argv[1], int(sys.argv[2]), keys.split(b'\n') if keys else [])
    except lmdb.Error as error:
        problem = f'data.mdb is damaged ({error})'
    print(problem or '')
