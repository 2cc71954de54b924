"""The fair queue beside a model that knows only who waits, since when, and whose turn was longest ago."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.limits.queue import FairQueue, QueueFull

USERS = "abcd"
LIMIT, PER_USER = 8, 4


class Model(RuleBasedStateMachine):
    """Entries are numbers; turns are told by when a user began to wait or was last served."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(LIMIT, PER_USER)
        self.waiting: dict[str, list[int]] = {}
        self.since: dict[str, int] = {}
        self.clock = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def next_user(self) -> str:
        return min(self.waiting, key=lambda user: self.since[user])

    def drop(self, user: str, entry: int) -> None:
        self.waiting[user].remove(entry)
        if not self.waiting[user]:
            del self.waiting[user]

    @rule(user=st.sampled_from(USERS))
    def put(self, user: str) -> None:
        entry = self.tick()
        own = len(self.waiting.get(user, ()))
        size = sum(map(len, self.waiting.values()))
        most = max(map(len, self.waiting.values()), default=0)
        if own >= PER_USER or (size >= LIMIT and own + 1 >= most):
            assert not self.queue.room_for(user)
            with pytest.raises(QueueFull):
                self.queue.put(user, entry)
            return
        out = self.queue.put(user, entry)
        if size >= LIMIT:
            losers = {entries[-1]: one for one, entries in self.waiting.items() if len(entries) == most}
            assert out in losers
            self.drop(losers[out], out)
        else:
            assert out is None
        if user not in self.waiting:
            self.waiting[user] = []
            self.since[user] = entry
        self.waiting[user].append(entry)

    @rule()
    def pop(self) -> None:
        if not self.waiting:
            with pytest.raises(IndexError):
                self.queue.pop()
            return
        user = self.next_user()
        entry = self.queue.pop()
        assert entry == self.waiting[user][0]
        self.drop(user, entry)
        self.since[user] = self.tick()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(sorted(self.waiting)))
        entry = data.draw(st.sampled_from(self.waiting[user]))
        assert self.queue.remove(user, entry)
        assert not self.queue.remove(user, entry)
        self.drop(user, entry)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def position(self, data: st.DataObject) -> None:
        """As many turns as it takes in a queue that is served to the end."""
        user = data.draw(st.sampled_from(sorted(self.waiting)))
        entry = data.draw(st.sampled_from(self.waiting[user]))
        waiting = {one: list(entries) for one, entries in self.waiting.items()}
        order = sorted(waiting, key=lambda one: self.since[one])
        turns = 0
        while True:
            first, *others = order
            served = waiting[first].pop(0)
            turns += 1
            if served == entry:
                break
            order = [*others, first] if waiting[first] else others
        assert self.queue.position(user, entry) == turns

    @invariant()
    def counts(self) -> None:
        assert len(self.queue) == sum(map(len, self.waiting.values())) <= LIMIT


TestFairQueue = Model.TestCase


def test_a_user_with_fifty_and_one_with_a_single_entry_take_turns() -> None:
    queue: FairQueue[str] = FairQueue(100, 100)
    for number in range(50):
        queue.put("many", f"many {number}")
    queue.put("one", "one 0")
    assert queue.position("one", "one 0") == 2
    assert [queue.pop() for _ in range(3)] == ["many 0", "one 0", "many 1"]


def test_the_newest_of_whoever_has_most_gives_way_when_the_whole_is_full() -> None:
    queue: FairQueue[str] = FairQueue(4, 4)
    for entry in ("a1", "a2", "a3", "b1"):
        assert queue.put(entry[0], entry) is None
    assert queue.put("c", "c1") == "a3"
    for newcomer in ("a4", "b2", "c2"):  # each would be the newest of a user with most
        with pytest.raises(QueueFull):
            queue.put(newcomer[0], newcomer)
    assert queue.put("d", "d1") == "a2"
