"""HTTP/1.1 as bytes: how a request is written, and what comes back read as a reply.

No I/O: ``Reply.feed`` takes what a socket gave and returns what of it is body. Its bounds are those of a client that
does not trust the server: ``MAX_HEAD`` bytes without one of body are an error, be they headers, interim responses or
trailers. What is no HTTP, or ends too early, becomes an httpx2 exception in ``Reply.error``, never one that is raised.
"""

import re

import httpx2
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_HEAD = 64 * 1024
"""Bytes that a server may send in a row without one of a body among them."""

NO_RESPONSE = "Server disconnected without sending a response."
"""httpcore2's words, by which a call that may be made again is known (``chains.retries``)."""

CUT = "peer closed connection without sending complete message body"

# As strict as h11, which the stock transport writes with: no header can end its line and begin another.
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/1\.1\r\n")
_HEADER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: (?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?\r\n")


def head(request: httpx2.Request) -> bytes:
    """The request's line and headers, with the empty line. Raises ``LocalProtocolError`` for what is not to be sent."""
    target: bytes = request.extensions.get("target", request.url.raw_path)
    line = b"%b %b HTTP/1.1\r\n" % (request.method.encode(), target)
    hosts_first = sorted(request.headers.raw, key=lambda header: header[0].lower() != b"host")  # RFC 9110, 7.2
    headers = [b"%b: %b\r\n" % header for header in hosts_first]
    if not _REQUEST_LINE.fullmatch(line) or not all(map(_HEADER_LINE.fullmatch, headers)):
        raise httpx2.LocalProtocolError("The request's method, target or headers hold what HTTP does not allow.")
    return b"".join((line, *headers, b"\r\n"))


class Framing:
    """How a request's body goes on the wire, as its headers say: in chunks, or as long as announced."""

    def __init__(self, request: httpx2.Request) -> None:
        self._chunked = request.headers.get("transfer-encoding", "").lower() == "chunked"
        length = request.headers.get("content-length", "0")
        if not self._chunked and not (length.isascii() and length.isdigit()):
            raise httpx2.LocalProtocolError("The request's Content-Length is no number.")
        self._left = 0 if self._chunked else int(length)

    def piece(self, data: bytes) -> bytes:
        """A piece that is not empty."""
        if self._chunked:
            return b"%x\r\n%b\r\n" % (len(data), data)
        self._left -= len(data)
        if self._left < 0:
            raise httpx2.LocalProtocolError("Too much data for declared Content-Length")
        return data

    def end(self) -> bytes:
        """What comes behind the last piece."""
        if self._left:
            raise httpx2.LocalProtocolError("Too little data for declared Content-Length")
        return b"0\r\n\r\n" if self._chunked else b""


class Reply:
    """What comes back for one request. Call ``close`` when done with it: it and its parser hold each other."""

    def __init__(self, method: str) -> None:
        self.status = 0
        """0: the head is not there yet. Interim responses (1xx) are passed over."""
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.version = b""
        self.complete = False
        self.error: httpx2.RemoteProtocolError | None = None
        self.keeps = False
        """Whether the server keeps the connection, and has sent nothing that nobody asked for."""
        self._bodiless = method == "HEAD"
        self._pieces: list[bytes] = []
        self._unspent = 0
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        # What h11 takes as well, from servers that are not quite right.
        self._parser.set_dangerous_leniencies(
            lenient_chunked_length=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    def feed(self, data: bytes) -> bytes:
        """What of ``data`` is body, though something behind it is an ``error``."""
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._wrong(error)
        if not self._pieces:
            return self._without_body(data)
        self._unspent = 0
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        return body

    def cut(self) -> httpx2.RemoteProtocolError | None:
        """What it means that the server closes the connection here; None: that is how the body ends."""
        if not self.status:
            return httpx2.RemoteProtocolError(NO_RESPONSE)
        names = {name.lower() for name, _ in self.headers}
        return httpx2.RemoteProtocolError(CUT) if names & {b"content-length", b"transfer-encoding"} else None

    def close(self) -> None:
        """Let the parser go, so that neither waits for the garbage collector."""
        self._parser = None

    def _without_body(self, data: bytes) -> bytes:
        self._unspent += len(data)
        if self._unspent > MAX_HEAD and not self.complete:
            self.keeps = False
            self.error = httpx2.RemoteProtocolError(f"The server sent over {MAX_HEAD} bytes of headers.")
        return b""

    def _wrong(self, error: Exception) -> None:
        self.keeps = False
        if not self.complete:
            upgraded = isinstance(error, HttpParserUpgrade)
            what = "it switches protocols unasked" if upgraded else str(error)
            self.error = httpx2.RemoteProtocolError(f"The server's response is not valid HTTP/1.1: {what}")
            self.error.__cause__ = error

    # -- the parser's calls ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The response begins; or a second one that nobody asked for."""
        self._without_keeping()

    def on_status(self, reason: bytes) -> None:
        """A piece of the reason phrase."""
        if not self.status:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers are thrown away."""
        if not self.status:
            self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head is there, or an interim response's; or a second one, which is nobody's."""
        assert self._parser is not None
        if self.status:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.reason = b""
            self.headers.clear()
            return
        self.status = status
        self.version = b"HTTP/" + self._parser.get_http_version().encode()
        self.keeps = self._parser.should_keep_alive()
        self.complete = self._bodiless or status in (204, 304)

    def on_body(self, data: bytes) -> None:
        """A piece of the body; or bytes behind a response that has none."""
        if self.complete:
            self._without_keeping()
        else:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        """The body's end, or an interim response's."""
        self.complete = self.status > 0

    def _without_keeping(self) -> None:
        if self.complete:
            self.keeps = False
