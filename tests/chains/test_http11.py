"""The bytes of HTTP/1.1: however they are cut, the same reply; and no request that says two things."""

import httpx2
import pytest

from chains.http11 import CUT, MAX_HEAD, NO_RESPONSE, Framing, Reply, head

ANSWER = (
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 Very OK\r\nX-Empty:\r\nX-Spaces:  a b \r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1 \r\n!\r\n0\r\nTrailer: t\r\n\r\n"
)


def read(data: bytes, step: int, method: str = "GET") -> tuple[Reply, bytes]:
    reply, body = Reply(method), b""
    for start in range(0, len(data), step):
        body += reply.feed(data[start : start + step])
    return reply, body


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50, 1000])
def test_a_reply_is_the_same_however_it_is_cut(step: int) -> None:
    reply, body = read(ANSWER, step)
    assert (reply.status, reply.reason, reply.version, body) == (200, b"Very OK", b"HTTP/1.1", b"hello!")
    assert reply.headers == [(b"X-Empty", b""), (b"X-Spaces", b"a b"), (b"Transfer-Encoding", b"chunked")]
    assert reply.complete
    assert reply.keeps
    assert reply.error is None


@pytest.mark.parametrize("surplus", [b"x", b"H", b"HTTP/1.1 404 No\r\nX: y\r\nContent-Length: 2\r\n\r\nno"])
@pytest.mark.parametrize("step", [1, 1000])
def test_bytes_that_nobody_asked_for_cost_the_connection_and_not_the_reply(surplus: bytes, step: int) -> None:
    reply, body = read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + surplus, step)
    assert (body, reply.complete, reply.keeps, reply.error) == (b"ok", True, False, None)
    assert (reply.status, reply.reason, reply.headers) == (200, b"OK", [(b"Content-Length", b"2")])


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", b"200 OK"), ("GET", b"204 No Content"), ("GET", b"304 Not Modified")]
)
def test_a_response_without_a_body_ends_with_its_head_whatever_length_it_names(method: str, status: bytes) -> None:
    reply, body = read(b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\n", 1000, method)
    assert (body, reply.complete, reply.keeps) == (b"", True, True)
    reply.feed(b"hello")
    assert not reply.keeps


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD // 20),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * MAX_HEAD + b"\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 4096, 1 << 20])
def test_what_is_no_http_or_has_no_end_is_an_error(garbage: bytes, step: int) -> None:
    reply = Reply("GET")
    for start in range(0, len(garbage), step):
        reply.feed(garbage[start : start + step])
        if reply.error:
            break
    assert isinstance(reply.error, httpx2.RemoteProtocolError)
    assert not reply.keeps


def test_the_body_before_an_error_is_given() -> None:
    reply = Reply("GET")
    assert reply.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n") == b"ok"
    assert reply.error is not None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", NO_RESPONSE),
        (b"HTTP/1.1 20", NO_RESPONSE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", CUT),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", CUT),
        (b"HTTP/1.1 200 OK\r\n\r\nok", None),
    ],
)
def test_a_closed_connection_is_an_end_only_where_the_head_says_so(data: bytes, message: str | None) -> None:
    reply = Reply("GET")
    reply.feed(data)
    error = reply.cut()
    assert (error and str(error)) == message


def request(**more: object) -> httpx2.Request:
    return httpx2.Request("POST", "http://host/a%20path?q=1", **more)  # type: ignore[arg-type]


def test_a_head_is_written_as_it_was_given() -> None:
    asked = request(headers={"X-Key": "value one"}, content=b"ok")
    lines = head(asked).split(b"\r\n")
    assert lines[0] == b"POST /a%20path?q=1 HTTP/1.1"
    assert b"X-Key: value one" in lines
    assert lines[-2:] == [b"", b""]


@pytest.mark.parametrize(
    "asked",
    [
        request(headers=[(b"X", b"a\r\nY: b")]),
        request(headers=[(b"X", b"a\nb")]),
        request(headers=[(b"X\r\nY", b"b")]),
        request(headers=[(b"X", b"a\x00b")]),
        request(headers=[(b"", b"a")]),
        httpx2.Request("GET / HTTP/1.1\r\nX:", "http://host/"),
        request(extensions={"target": b"/ HTTP/1.1\r\nX: y"}),
    ],
)
def test_no_part_of_a_head_can_end_its_line(asked: httpx2.Request) -> None:
    with pytest.raises(httpx2.LocalProtocolError):
        head(asked)


def test_a_body_is_framed_as_the_headers_say() -> None:
    chunked = Framing(request(headers={"Transfer-Encoding": "chunked"}))
    assert chunked.piece(b"a" * 17) + chunked.end() == b"11\r\n" + b"a" * 17 + b"\r\n0\r\n\r\n"
    sized = Framing(request(content=b"four"))
    assert sized.piece(b"fo") + sized.piece(b"ur") + sized.end() == b"four"


def test_a_body_of_another_length_than_announced_is_not_sent() -> None:
    with pytest.raises(httpx2.LocalProtocolError, match="Too much"):
        Framing(request(content=b"four")).piece(b"five5")
    with pytest.raises(httpx2.LocalProtocolError, match="Too little"):
        Framing(request(content=b"four")).end()
    with pytest.raises(httpx2.LocalProtocolError, match="no number"):
        Framing(request(headers={"Content-Length": "-1"}))
