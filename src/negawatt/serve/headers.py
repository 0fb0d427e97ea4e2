"""Headers: what belongs to one hop, and what to the client and the server."""

from __future__ import annotations

from collections.abc import Iterable

from negawatt.serve.exchange import Headers

_ONE_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
"""Of RFC 9110, 7.6.1, and `trailer`, as trailers are not passed on."""
_CONTROLS = bytes({*range(32), 127} - {ord("\t")})


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers without those of one hop, and without those that `connection` names (RFC 9110, 7.6.1)."""
    kept, named = [], b""
    for header in headers:
        if header[0] == b"connection":
            named += b"," + header[1]
        elif header[0] not in _ONE_HOP:
            kept.append(header)
    if named and named.lower() not in (b",keep-alive", b",close"):
        left_out = {token.strip() for token in named.lower().split(b",")}
        kept = [header for header in kept if header[0] not in left_out]
    return tuple(kept)


def first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first header of that name (lower case), or None."""
    return next((value for key, value in headers if key == name), None)


def size_of(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Bytes that the headers take on the wire."""
    return sum(len(name) + len(value) + 4 for name, value in headers)


def clean(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether no name or value holds a line break or another control character, so that each stays in its line."""
    text = b"".join([part for header in headers for part in header])
    return len(text.translate(None, _CONTROLS)) == len(text)
