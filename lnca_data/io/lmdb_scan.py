"""Program that checks an LMDB: ``python lmdb_scan.py PATH COUNT``; prints what is wrong, if anything.

LMDB trusts the content of a file, so that a damaged one can kill the process that reads it: this one. It imports
nothing of this package, to start quickly and without a search path.

``COUNT`` is the number of images. If their keys come on standard input, one per line, every image is located, too.
"""

import os
import sys

import lmdb


def find_damage(path: str, count: int, keys: list[bytes]) -> str | None:
    """Return what is wrong with an LMDB, or None."""
    size = os.stat(os.path.join(path, 'data.mdb')).st_size
    # The map extends beyond the file by the longest possible image, so that a wrong length does not lead into other
    # memory. lmdb's readahead is on, since locating an image reads its pages.
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
