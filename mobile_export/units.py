"""Bytes and counts as people read them. MB is 10**6 bytes (files), MiB is 2**20 (memory)."""


def megabytes(count: int) -> str:
    """88_412_345 -> "88.41 MB"; below 0.1 MB in kB.

    >>> megabytes(88_412_345), megabytes(12_300)
    ('88.41 MB', '12.3 kB')
    """
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def mebibytes(count: int) -> str:
    """123_731_968 -> "118.0 MiB".

    >>> mebibytes(123_731_968)
    '118.0 MiB'
    """
    return f"{count / 2**20:.1f} MiB"


def counted(count: int, noun: str) -> str:
    """A count with its noun, plural by "s".

    >>> counted(1, "block"), counted(30, "block")
    ('1 block', '30 blocks')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
