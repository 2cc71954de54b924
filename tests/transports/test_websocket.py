"""One socket, many streams: turns, bounds, and nothing read before the socket takes it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from sockets import Client

from app.transports.websocket import MAX_ANSWERS, ClientGone, CloseCode, HangUp, Socket, accept, refuse

Until = Callable[[Callable[[], bool]], Awaitable[None]]


class Numbers:
    """A source that always has something to say, until its end."""

    def __init__(self, name: str, count: int, batch: int = 1) -> None:
        self.reads = 0
        self._name = name
        self._count = count
        self._batch = batch
        self._told = 0

    def take(self) -> Iterator[bytes]:
        self.reads += self._told < self._count
        for _ in range(min(self._batch, self._count - self._told)):
            self._told += 1
            yield f"{self._name}{self._told - 1}".encode()


class Failing:
    """A source that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def take(self) -> Iterator[bytes]:
        raise self._error


async def turns(count: int = 100) -> None:
    """Let everything happen that can happen without the test."""
    for _ in range(count):
        await asyncio.sleep(0)


async def connected(client: Client) -> Socket:
    await accept(client.scope, client.receive, client.send)
    return Socket(client.receive, client.send)


async def hear(socket: Socket) -> None:
    """Read what the client says, to the end."""
    with socket:
        while True:
            await socket.receive()


async def test_streams_take_turns_however_much_one_has_to_say(until: Until) -> None:
    client = Client()
    socket = await connected(client)
    for name in "abc":
        socket.call(Numbers(name, 30))
    await until(lambda: not socket.writing)
    for start in range(0, 90, 3):
        assert {text[0] for text in client.texts[start : start + 3]} == {"a", "b", "c"}
    assert [text for text in client.texts if text[0] == "a"] == [f"a{n}" for n in range(30)]


async def test_a_socket_that_takes_all_there_is_does_not_hold_the_loop(until: Until) -> None:
    client = Client()
    socket = await connected(client)
    endless = Numbers("a", 10**9)
    socket.call(endless)
    await until(lambda: len(client.texts) > 100)
    await socket.stop()
    told = len(client.texts)
    await turns()
    assert len(client.texts) == told


async def test_a_source_is_not_read_before_the_socket_takes_what_was_read_last(until: Until) -> None:
    client = Client(room=3)
    socket = await connected(client)
    one, two = Numbers("a", 50, batch=2), Numbers("b", 50, batch=2)
    socket.call(one)
    socket.call(two)
    await until(lambda: len(client.texts) == 3)
    await turns()  # had they read on, it would be by now
    assert (one.reads, two.reads) == (1, 1)
    client.take(3)
    await until(lambda: len(client.texts) == 6)
    assert one.reads + two.reads == 4
    await socket.stop()


async def test_who_calls_twice_has_one_place_in_the_line(until: Until) -> None:
    client = Client(room=0)
    socket = await connected(client)
    one, two = Numbers("a", 5), Numbers("b", 5)
    for source in (one, two, two, one, two):
        socket.call(source)
    await turns()
    socket.call(one)  # whose frame is under way
    client.take(10)
    await until(lambda: not socket.writing)
    assert [text[0] for text in client.texts] == list("ab" * 5)


async def test_nothing_but_the_reading_is_there_while_nothing_is_sent(until: Until) -> None:
    client = Client()
    socket = await connected(client)
    before = asyncio.all_tasks()
    quiet: list[int] = []
    socket._quiet = lambda: quiet.append(len(client.texts))
    for round_ in range(1, 4):
        socket.call(Numbers("a", 2))
        await until(lambda: len(quiet) == round_)  # noqa: B023 - awaited in this round
        assert asyncio.all_tasks() == before
    assert quiet == [2, 4, 6]


async def test_answers_have_a_bound_at_which_the_client_is_not_read(until: Until) -> None:
    client = Client(room=0)
    socket = await connected(client)
    answers = [asyncio.ensure_future(socket.answer(b"%d" % number)) for number in range(2 * MAX_ANSWERS)]
    await turns()
    assert sum(answer.done() for answer in answers) == MAX_ANSWERS + 1  # one is under way
    client.take(2 * MAX_ANSWERS)
    await asyncio.gather(*answers)
    await until(lambda: len(client.texts) == 2 * MAX_ANSWERS)
    assert client.texts == [str(number) for number in range(2 * MAX_ANSWERS)]


async def test_answers_and_streams_take_turns(until: Until) -> None:
    client = Client()
    socket = await connected(client)
    socket.call(Numbers("a", 3))
    for _ in range(3):
        await socket.answer(b"no")
    await until(lambda: len(client.texts) == 6)
    assert client.texts == ["a0", "no", "a1", "no", "a2", "no"]


async def test_a_client_that_leaves_is_heard_by_the_reader_and_the_writer(until: Until) -> None:
    client = Client()
    socket = await connected(client)
    client.leave()
    with pytest.raises(ClientGone):
        await socket.receive()
    socket.call(Numbers("a", 1))
    await until(lambda: not socket.writing)
    with pytest.raises(ClientGone):
        await hear(socket)
    await socket.close(CloseCode.RESTART, "too late")
    assert client.closed is None


async def test_what_fails_in_the_writing_ends_the_reading(until: Until) -> None:
    for error in (HangUp(CloseCode.RESTART, "restarting"), ValueError("a defect")):
        socket = await connected(Client())
        hearing = asyncio.create_task(hear(socket))
        await turns(3)
        socket.call(Failing(error))
        await until(hearing.done)
        assert hearing.exception() is error
        socket.call(Numbers("a", 1))
        assert not socket.writing


async def test_what_ends_the_socket_also_ends_the_wait_for_an_answers_room(until: Until) -> None:
    async def flood(socket: Socket) -> None:
        with socket:
            while True:
                await socket.answer(b"no")

    socket = await connected(Client(room=0))
    flooding = asyncio.create_task(flood(socket))
    await turns()
    socket.end(HangUp(CloseCode.RESTART, "restarting"))
    socket.end(HangUp(CloseCode.FORBIDDEN, "the first reason counts"))
    await until(flooding.done)
    ended = flooding.exception()
    assert isinstance(ended, HangUp)
    assert ended.code == CloseCode.RESTART
    await socket.stop()


async def test_a_reason_that_is_there_before_the_reading_ends_it_too() -> None:
    socket = await connected(Client())
    socket.end(HangUp(CloseCode.RESTART, "restarting"))
    with pytest.raises(HangUp):
        await hear(socket)


async def test_a_cancel_from_elsewhere_is_none_of_ours(until: Until) -> None:
    for ours in (False, True):
        socket = await connected(Client())
        hearing = asyncio.create_task(hear(socket))
        await turns(3)
        hearing.cancel()
        if ours:
            socket.end(HangUp(CloseCode.RESTART, "restarting"))
        await until(hearing.done)
        assert hearing.cancelled()


async def test_a_close_does_not_wait_for_a_client_that_takes_nothing() -> None:
    client = Client(room=0)
    socket = await connected(client)
    async with asyncio.timeout(5):
        await socket.close(CloseCode.RESTART, "restarting")
    assert client.closed is None


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["millrace", "bearer.key"], "millrace"), (["other"], None), ([], None)]
)
async def test_our_subprotocol_is_chosen_where_it_is_offered(offered: list[str], chosen: str | None) -> None:
    client = Client(subprotocols=offered)
    await accept(client.scope, client.receive, client.send)
    assert client.accepted is not None
    assert client.accepted["subprotocol"] == chosen


async def test_a_reason_that_a_close_frame_has_no_room_for_is_cut_between_letters() -> None:
    client = Client()
    await refuse(client.scope, client.receive, client.send, CloseCode.FORBIDDEN, "ü" * 100)
    assert client.closed == (4403, "ü" * 61)


async def test_who_is_refused_is_taken_first_so_that_the_code_is_heard() -> None:
    client = Client(subprotocols=["millrace"])
    await refuse(client.scope, client.receive, client.send, CloseCode.FORBIDDEN, "not you")
    assert client.accepted is not None
    assert client.accepted["subprotocol"] == "millrace"
    assert client.closed == (4403, "not you")
