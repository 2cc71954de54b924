"""One socket, many streams: turns, bounds, and nothing read before the socket takes it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import anyio
import pytest
from sockets import Client

from app.transports.websocket import MAX_ANSWERS, ClientGone, CloseCode, Socket, accept, refuse

Until = Callable[[Callable[[], bool]], Awaitable[None]]


class Numbers:
    """A source that always has something to say, until its end."""

    def __init__(self, name: str, count: int, batch: int = 1) -> None:
        self.ended = False
        self.reads = 0
        self._name = name
        self._left = iter(range(count))
        self._count = count
        self._batch = batch
        self._told = 0

    async def wait(self) -> None:
        await asyncio.sleep(0)

    async def read(self) -> Sequence[bytes]:
        self.reads += 1
        told = [f"{self._name}{self._told + n}".encode() for n in range(min(self._batch, self._count - self._told))]
        self._told += len(told)
        self.ended = self._told == self._count
        return told


async def turns(count: int = 100) -> None:
    """Let everything happen that can happen without the test."""
    for _ in range(count):
        await asyncio.sleep(0)


async def connected(client: Client) -> Socket:
    await accept(client.websocket)
    return Socket(client.websocket)


async def test_streams_take_turns_however_much_one_has_to_say() -> None:
    client = Client()
    socket = await connected(client)
    async with anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(socket.pump, Numbers(name, 30))
    for start in range(0, 90, 3):
        assert {text[0] for text in client.texts[start : start + 3]} == {"a", "b", "c"}
    assert [text for text in client.texts if text[0] == "a"] == [f"a{n}" for n in range(30)]


async def test_a_source_is_not_read_before_the_socket_takes_what_was_read_last(until: Until) -> None:
    client = Client(room=3)
    socket = await connected(client)
    one, two = Numbers("a", 50, batch=2), Numbers("b", 50, batch=2)
    async with anyio.create_task_group() as group:
        group.start_soon(socket.pump, one)
        group.start_soon(socket.pump, two)
        await until(lambda: len(client.texts) == 3)
        await turns()  # had they read on, it would be by now
        assert (one.reads, two.reads) == (1, 1)
        client.take(3)
        await until(lambda: len(client.texts) == 6)
        assert one.reads + two.reads == 4
        group.cancel_scope.cancel()


async def test_a_stream_that_is_stopped_in_mid_turn_gives_its_turn_away(until: Until) -> None:
    client = Client(room=1)
    socket = await connected(client)
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as left:
            group.start_soon(socket.pump, Numbers("a", 1))
            await until(lambda: client.texts == ["a0"])
            async with anyio.create_task_group() as stream:
                stream.start_soon(socket.pump, Numbers("b", 9, batch=9))
                await until(lambda: socket._turn.locked())
                left.cancel()
        client.take(5)
        await socket.send(b"next")
    assert client.texts == ["a0", "next"]


async def test_answers_have_a_bound_at_which_the_client_is_not_read(until: Until) -> None:
    client = Client(room=0)
    socket = await connected(client)
    async with anyio.create_task_group() as group:
        group.start_soon(socket.write_answers)
        answers = [asyncio.ensure_future(socket.answer(b"no")) for _ in range(2 * MAX_ANSWERS)]
        await turns()
        assert sum(answer.done() for answer in answers) == MAX_ANSWERS + 1  # one is under way
        client.take(2 * MAX_ANSWERS)
        await asyncio.gather(*answers)
        await until(lambda: len(client.texts) == 2 * MAX_ANSWERS)
        group.cancel_scope.cancel()


async def test_a_client_that_leaves_is_heard_by_the_reader_and_the_writer() -> None:
    client = Client()
    socket = await connected(client)
    client.leave()
    with pytest.raises(ClientGone):
        await socket.receive()
    with pytest.raises(ClientGone):
        await socket.send(b"hello")
    await socket.close(CloseCode.RESTART, "too late")
    assert client.closed is None


async def test_a_close_does_not_wait_for_a_client_that_takes_nothing() -> None:
    client = Client(room=0)
    socket = await connected(client)
    with anyio.fail_after(5):
        await socket.close(CloseCode.RESTART, "restarting")
    assert client.closed is None


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["millrace", "bearer.key"], "millrace"), (["other"], None), ([], None)]
)
async def test_our_subprotocol_is_chosen_where_it_is_offered(offered: list[str], chosen: str | None) -> None:
    client = Client(subprotocols=offered)
    await accept(client.websocket)
    assert client.accepted is not None
    assert client.accepted["subprotocol"] == chosen


async def test_a_reason_that_a_close_frame_has_no_room_for_is_cut_between_letters() -> None:
    client = Client()
    await refuse(client.websocket, CloseCode.FORBIDDEN, "ü" * 100)
    assert client.closed == (4403, "ü" * 61)


async def test_who_is_refused_is_taken_first_so_that_the_code_is_heard() -> None:
    client = Client(subprotocols=["millrace"])
    await refuse(client.websocket, CloseCode.FORBIDDEN, "not you")
    assert client.accepted is not None
    assert client.accepted["subprotocol"] == "millrace"
    assert client.closed == (4403, "not you")
