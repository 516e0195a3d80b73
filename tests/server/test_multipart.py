"""Form bodies, however they are cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.server.multipart import FormParser, PartBegin, PartData, PartEnd, boundary_of

Part = tuple[str, str | None, bytes]
NAMES = st.text("abc[]_", min_size=1, max_size=8)
PARTS = st.lists(st.tuples(NAMES, st.none() | st.text("xyzäß. /", min_size=1), st.binary(max_size=200)), min_size=1, max_size=4)


def encoded(parts: list[Part], boundary: str) -> bytes:
    body = b""
    for name, filename, data in parts:
        extra = f'; filename="{filename}"' if filename is not None else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def read(parser: FormParser, pieces: list[bytes]) -> list[Part]:
    found: list[Part] = []
    for piece in pieces:
        for event in parser.feed(piece):
            match event:
                case PartBegin():
                    found.append((event.name, event.filename, b""))
                case PartData():
                    found[-1] = (*found[-1][:2], found[-1][2] + event.data)
                case PartEnd():
                    pass
    return found


@given(PARTS, st.data())
def test_any_cut_gives_the_same_parts(parts: list[Part], data: st.DataObject) -> None:
    body = encoded([(name, filename, value.replace(b"--q", b"--r")) for name, filename, value in parts], "q")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    parser = FormParser(b"q")
    want = [(name, filename.strip() if filename else filename, value.replace(b"--q", b"--r")) for name, filename, value in parts]
    got = [(name, filename.strip() if filename else filename, value) for name, filename, value in read(parser, pieces)]
    assert got == want
    assert parser.complete


def test_data_that_looks_like_a_boundary() -> None:
    tricky = b"\r\n--\r\n--boundar\r\n\r\n--boundarx--"
    parser = FormParser(b"boundary")
    assert read(parser, [bytes([byte]) for byte in encoded([("f", "n", tricky)], "boundary")]) == [("f", "n", tricky)]


@pytest.mark.parametrize(
    "body",
    [
        b"hello" * 10,
        b"--q\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--q--",
        b"--q\r\nContent-Disposition: form-data\r\n\r\nx\r\n--q--",
        b"--q\r\nnothing\r\n\r\nx\r\n--q--",
        b"--q\r\nContent-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\nx\r\n--q--",
        b"--q\r\nContent-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=b\r\n\r\nx\r\n--q--",
        b"--q\r\n\xff\xfe: x\r\n\r\nx\r\n--q--",
        b"--q\r\nA: " + b"x" * 10_000,
        b"--qq\r\n",
    ],
)
def test_what_is_no_form(body: bytes) -> None:
    with pytest.raises(HeadraceError):
        read(FormParser(b"q"), [body])


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/json",
        "multipart/form-data",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "x" * 71,
    ],
)
def test_what_names_no_boundary(kind: str) -> None:
    with pytest.raises(HeadraceError):
        boundary_of(kind)


def test_boundaries_of_clients() -> None:
    assert boundary_of("multipart/form-data; boundary=abc") == b"abc"
    assert boundary_of('Multipart/Form-Data; charset=utf-8; boundary="a b"') == b"a b"


ODD_NAMES = [b"*=idna''abc", b"*=undefined''abc", b"*=unicode_escape''%5Cud800", b"*=utf-8''a%0d%0ab", b"*" + b"1" * 5000 + b"=abc"]


@pytest.mark.parametrize("given", ODD_NAMES)
@pytest.mark.parametrize("what", [b"name", b"filename"])
def test_odd_spellings_of_names_are_refused(what: bytes, given: bytes) -> None:
    other = b'; name="file"' if what == b"filename" else b""
    with pytest.raises(HeadraceError):
        read(FormParser(b"q"), [b"--q\r\nContent-Disposition: form-data" + other + b"; " + what + given + b"\r\n\r\nx\r\n--q--"])


def test_an_endless_number_in_the_boundary_is_refused() -> None:
    with pytest.raises(HeadraceError):
        boundary_of("multipart/form-data; boundary*" + "1" * 5000 + "=q")
