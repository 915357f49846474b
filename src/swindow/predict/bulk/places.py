"""Where a file of a long list lies: one connection for a bucket, however many folders its keys look like."""

import functools
import posixpath

from swindow.data.shards.stores import Store, is_url, store_at


def stored(source: str) -> tuple[Store, str]:
    """The store that has a file, and the file's name in it.

    Raises:
        MissingExtra: a URL, and fsspec is not installed.
    """
    if is_url(source):
        protocol, _, rest = source.partition("://")
        bucket, _, name = rest.partition("/")
        if not bucket:  # a protocol without hosts or buckets
            bucket, _, name = rest.rpartition("/")
        return _opened(f"{protocol}://{bucket}"), name
    folder, name = posixpath.split(source.replace("\\", "/"))
    return store_at(folder), name


@functools.cache
def _opened(root: str) -> Store:
    return store_at(root)
