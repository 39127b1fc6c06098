"""The smallest arm64 program: says a word, waits, exits with a code. Assembled here, so that no compiler is needed."""

from __future__ import annotations

import struct

ADDRESS = 0x400000
HEADERS = 64 + 56  # ELF header, one program header
X0, X1, X2, X8 = 0, 1, 2, 8
SYSCALL = 0xD4000001  # svc #0
WRITE, EXIT, NANOSLEEP = 64, 93, 101  # system calls of arm64 Linux


def program(word: str, code: int, *, seconds: int = 0) -> bytes:
    """An ELF file for arm64 Linux, static.

    Args:
        word: printed first.
        code: what it exits with at the end.
        seconds: what it sleeps in between, below 65536.
    """
    text = word.encode()
    instructions = 14
    words_at = HEADERS + 4 * instructions
    times_at = words_at + len(text) + -len(text) % 8
    assembled = [
        *(_move(X0, 1), *_address(X1, words_at), _move(X2, len(text)), _move(X8, WRITE), SYSCALL),
        *(*_address(X0, times_at), _move(X1, 0), _move(X8, NANOSLEEP), SYSCALL),
        *(_move(X0, code), _move(X8, EXIT), SYSCALL),
    ]
    assert len(assembled) == instructions
    padded = text.ljust(times_at - words_at, b"\0")
    content = struct.pack(f"<{instructions}I", *assembled) + padded + struct.pack("<2Q", seconds, 0)
    size = HEADERS + len(content)
    identification = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bit, little-endian, version 1
    executable, arm64 = 2, 183
    header = struct.pack("<2HI3QI6H", executable, arm64, 1, ADDRESS + HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    load, read_and_execute = 1, 5
    segment = struct.pack("<2I6Q", load, read_and_execute, 0, ADDRESS, ADDRESS, size, size, 0x10000)
    return identification + header + segment + content


def _move(register: int, value: int) -> int:
    """movz register, #value"""
    return 0xD2800000 | value << 5 | register


def _address(register: int, offset: int) -> tuple[int, int]:
    """Two instructions that load the address of a byte of the file."""
    address = ADDRESS + offset
    return 0xD2A00000 | (address >> 16) << 5 | register, 0xF2800000 | (address & 0xFFFF) << 5 | register
