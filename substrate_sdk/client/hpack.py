"""Header compression of HTTP/2 (RFC 7541): all of decoding, the simplest of encoding."""

from __future__ import annotations

import functools

Header = tuple[bytes, bytes]


class HpackError(Exception):
    """A header block that the RFC does not allow."""


# Appendix A: the static table, "name=value" or "name", from index 1 on.
_STATIC: tuple[Header, ...] = tuple(
    (name, value)
    for name, _, value in (
        entry.partition(b"=")
        for entry in (
            b":authority|:method=GET|:method=POST|:path=/|:path=/index.html|:scheme=http|"
            b":scheme=https|:status=200|:status=204|:status=206|:status=304|:status=400|"
            b":status=404|:status=500|accept-charset|accept-encoding=gzip, deflate|"
            b"accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|"
            b"authorization|cache-control|content-disposition|content-encoding|"
            b"content-language|content-length|content-location|content-range|content-type|"
            b"cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|"
            b"if-none-match|if-range|if-unmodified-since|last-modified|link|location|"
            b"max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|"
            b"retry-after|server|set-cookie|strict-transport-security|transfer-encoding|"
            b"user-agent|vary|via|www-authenticate"
        ).split(b"|")
    )
)

# Appendix B: the code is canonical, so the lengths of its 257 symbols in bits say all of it.
_HUFFMAN_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08"
    "0606060505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807"
    "080d130d0e060f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616"
    "171617171717171817181816171817171717151617161717181615141616171715171616181516171715151615"
    "1716171714161616171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14"
    "181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
_EOS = 256


@functools.cache
def _huffman_symbols() -> dict[tuple[int, int], int]:
    """(length, code) of each symbol."""
    symbols = {}
    code = length = 0
    for symbol in sorted(range(257), key=lambda item: (_HUFFMAN_LENGTHS[item], item)):
        code <<= _HUFFMAN_LENGTHS[symbol] - length
        length = _HUFFMAN_LENGTHS[symbol]
        symbols[length, code] = symbol
        code += 1
    return symbols


def huffman_decode(data: bytes) -> bytes:
    """Decode a Huffman-coded string (section 5.2)."""
    symbols = _huffman_symbols()
    out = bytearray()
    code = length = 0
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = symbols.get((length, code))
            if symbol is not None:
                if symbol == _EOS:
                    raise HpackError("a string holds the end-of-string symbol")
                out.append(symbol)
                code = length = 0
    if length > 7 or code != (1 << length) - 1:
        raise HpackError("a string ends within a symbol")
    return bytes(out)


def encode_header(name: bytes, value: bytes) -> bytes:
    """A literal that nobody keeps, without Huffman coding (section 6.2.2)."""
    return b"\0" + _encode_integer(len(name)) + name + _encode_integer(len(value)) + value


def _encode_integer(value: int) -> bytes:
    if value < 127:
        return bytes((value,))
    out = bytearray((127,))
    value -= 127
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class HpackDecoder:
    """Decodes the header blocks of one connection, in order."""

    def __init__(self) -> None:
        self._entries: list[Header] = []  # newest first
        self._size = 0
        self._limit = 4096

    def decode(self, block: bytes) -> list[Header]:
        """The headers of one block.

        Raises:
            HpackError: it is malformed; the connection cannot be used any more.
        """
        headers: list[Header] = []
        at = 0
        try:
            while at < len(block):
                first = block[at]
                if first & 0x80:
                    index, at = _integer(block, at, 7)
                    headers.append(self._entry(index))
                elif first & 0xE0 == 0x20:
                    self._limit, at = _integer(block, at, 5)
                    if self._limit > 4096:
                        raise HpackError("the table is to be larger than was offered")
                    self._evict()
                else:
                    keep = bool(first & 0x40)
                    index, at = _integer(block, at, 6 if keep else 4)
                    if index:
                        name = self._entry(index)[0]
                    else:
                        name, at = _string(block, at)
                    value, at = _string(block, at)
                    headers.append((name, value))
                    if keep:
                        self._keep(name, value)
        except IndexError:
            raise HpackError("a header block is cut short, or names what is not there") from None
        return headers

    def _entry(self, index: int) -> Header:
        if index == 0:
            raise HpackError("index 0 names nothing")
        if index <= len(_STATIC):
            return _STATIC[index - 1]
        return self._entries[index - len(_STATIC) - 1]

    def _keep(self, name: bytes, value: bytes) -> None:
        self._entries.insert(0, (name, value))
        self._size += len(name) + len(value) + 32
        self._evict()

    def _evict(self) -> None:
        while self._size > self._limit:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + 32


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """An integer with a prefix of so many bits (section 5.1), and where it ends."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 127) << shift
        shift += 7
        if not byte & 128:
            return value, at
        if shift > 28:
            raise HpackError("an integer is too large")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """A string (section 5.2), and where it ends."""
    coded = block[at] & 0x80
    length, at = _integer(block, at, 7)
    data = block[at : at + length]
    if len(data) != length:
        raise HpackError("a string is cut short")
    return huffman_decode(data) if coded else data, at + length
