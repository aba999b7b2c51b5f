"""Header compression, against the examples of RFC 7541 and the rules of its codes."""

from __future__ import annotations

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate_sdk.client import hpack
from substrate_sdk.client.hpack import HpackDecoder, HpackError, encode_header, huffman_decode


def test_the_huffman_code_is_complete() -> None:
    assert len(hpack._HUFFMAN_LENGTHS) == 257
    assert sum(Fraction(1, 2**length) for length in hpack._HUFFMAN_LENGTHS) == 1


@pytest.mark.parametrize(
    ("coded", "text"),
    [
        ("f1e3c2e5f23a6ba0ab90f4ff", b"www.example.com"),  # C.4.1
        ("a8eb10649cbf", b"no-cache"),  # C.4.2
        ("25a849e95bb8e8b4bf", b"custom-value"),  # C.4.3
        ("d07abe941054d444a8200595040b8166e082a62d1bff", b"Mon, 21 Oct 2013 20:13:21 GMT"),  # C.6.1
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", b"https://www.example.com"),  # C.6.1
    ],
)
def test_huffman_strings_of_the_rfc(coded: str, text: bytes) -> None:
    assert huffman_decode(bytes.fromhex(coded)) == text


@pytest.mark.parametrize("coded", ["ff" * 4, "00" + "f8", "f1e3c2e5f23a6ba0ab90f4"])
def test_malformed_huffman_strings_are_refused(coded: str) -> None:
    with pytest.raises(HpackError):
        huffman_decode(bytes.fromhex(coded))


def encode_huffman(data: bytes) -> bytes:
    codes = {symbol: key for key, symbol in hpack._huffman_symbols().items()}
    bits = "".join(f"{codes[byte][1]:0{codes[byte][0]}b}" for byte in data)
    bits += "1" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


@given(st.binary(max_size=200))
def test_any_bytes_survive_huffman(data: bytes) -> None:
    assert huffman_decode(encode_huffman(data)) == data


def test_a_connection_remembers_headers_as_in_the_rfc() -> None:
    # C.3: three requests, each building on the table of those before.
    decoder = HpackDecoder()
    first = decoder.decode(bytes.fromhex("828684410f7777772e6578616d706c652e636f6d"))
    assert first[3] == (b":authority", b"www.example.com")
    second = decoder.decode(bytes.fromhex("828684be58086e6f2d6361636865"))
    assert second[3:] == [(b":authority", b"www.example.com"), (b"cache-control", b"no-cache")]
    third = decoder.decode(
        bytes.fromhex("828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565")
    )
    assert third == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ]


def test_old_entries_leave_a_full_table() -> None:
    decoder = HpackDecoder()
    big = b"v" * 2000
    for name in (b"a", b"b", b"c"):
        literal = b"\x40" + encode_header(name, big)[1:]
        assert decoder.decode(literal) == [(name, big)]
    assert decoder.decode(b"\xbe\xbf") == [(b"c", big), (b"b", big)]
    with pytest.raises(HpackError):
        decoder.decode(b"\xc0")
    assert decoder.decode(b"\x20") == []  # the table is made empty
    with pytest.raises(HpackError):
        decoder.decode(b"\xbe")


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=5))
def test_what_is_encoded_is_decoded(headers: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(encode_header(name, value) for name, value in headers)
    assert HpackDecoder().decode(block) == headers


@given(st.binary(max_size=100))
def test_no_block_breaks_the_decoder(block: bytes) -> None:
    with contextlib.suppress(HpackError):
        HpackDecoder().decode(block)


@pytest.mark.parametrize("block", ["80", "3fe21f", "00ffffffffffff7f", "0005", "4005616263"])
def test_malformed_blocks_are_refused(block: str) -> None:
    with pytest.raises(HpackError):
        HpackDecoder().decode(bytes.fromhex(block))
