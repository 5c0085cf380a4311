"""Who waits, who has a slot, who is read next: random lives of a queue against what must always hold."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.scheduler import Scheduler


@dataclass
class Row:
    name: int
    slot: int
    num_unread: int


class QueueLife(RuleBasedStateMachine):
    """Requests come, get slots, are read in chunks and leave, in any order."""

    def __init__(self):
        super().__init__()
        self.scheduler = Scheduler(3, 8)
        self.come: list[int] = []
        self.rows: list[Row] = []
        self.unread: dict[int, int] = {}
        self.num_admitted = 0

    @rule(num_tokens=st.integers(1, 20))
    def come_in(self, num_tokens):
        name = len(self.come)
        self.come.append(name)
        self.unread[name] = num_tokens
        self.scheduler.enqueue(name)

    @rule()
    def admit(self):
        free, waiting = 3 - len(self.rows), list(self.scheduler.waiting)
        admitted = self.scheduler.admit()
        # First come, first served, and no slot stays empty while somebody waits.
        assert [name for _, name in admitted] == waiting[:free]
        taken = {row.slot for row in self.rows}
        lowest = [slot for slot in range(3) if slot not in taken][: len(admitted)]
        assert [slot for slot, _ in admitted] == lowest
        self.rows += [Row(name, slot, self.unread[name]) for slot, name in admitted]
        self.num_admitted += len(admitted)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def lower(self, data):
        row = data.draw(st.sampled_from(self.rows))
        free = set(range(3)) - {other.slot for other in self.rows}
        row.slot, before = self.scheduler.lowered(row.slot), row.slot
        assert row.slot == min({before} | free)

    @rule()
    def read(self):
        reading = [row for row in self.rows if row.num_unread]
        chunks = self.scheduler.plan_prefill(reading)
        # In order of admission, each as far as the budget goes.
        assert [chunk.row for chunk in chunks] == reading[: len(chunks)]
        assert all(1 <= chunk.num_tokens <= chunk.row.num_unread for chunk in chunks)
        assert sum(chunk.num_tokens for chunk in chunks) == min(8, sum(row.num_unread for row in reading))
        assert all(chunk.num_tokens == chunk.row.num_unread for chunk in chunks[:-1])
        for chunk in chunks:
            chunk.row.num_unread -= chunk.num_tokens

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def leave(self, data):
        row = data.draw(st.sampled_from(self.rows))
        self.rows.remove(row)
        self.scheduler.release(row.slot)

    @precondition(lambda self: self.scheduler.waiting)
    @rule(data=st.data())
    def give_up(self, data):
        name = data.draw(st.sampled_from(list(self.scheduler.waiting)))
        self.scheduler.waiting.remove(name)

    @invariant()
    def nobody_is_lost(self):
        assert len({row.slot for row in self.rows}) == len(self.rows) <= 3
        assert not {row.name for row in self.rows} & set(self.scheduler.waiting)
        assert list(self.scheduler.waiting) == sorted(self.scheduler.waiting)


QueueLife.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestQueueLife = QueueLife.TestCase


def test_a_long_prompt_does_not_keep_the_next_from_its_turn_for_ever():
    scheduler = Scheduler(2, 4)
    long, short = Row(0, 0, 10), Row(1, 1, 3)
    planned = []
    while long.num_unread or short.num_unread:
        chunks = scheduler.plan_prefill([row for row in (long, short) if row.num_unread])
        planned.append([(chunk.row.name, chunk.num_tokens) for chunk in chunks])
        for chunk in chunks:
            chunk.row.num_unread -= chunk.num_tokens
    assert planned == [[(0, 4)], [(0, 4)], [(0, 2), (1, 2)], [(1, 1)]]


@pytest.mark.parametrize("num_waiting", [0, 1, 5])
def test_admission_takes_what_fits(num_waiting):
    scheduler = Scheduler(2, 4)
    for name in range(num_waiting):
        scheduler.enqueue(name)
    assert scheduler.admit() == [(slot, slot) for slot in range(min(2, num_waiting))]
    assert scheduler.admit() == []
    assert list(scheduler.waiting) == list(range(2, num_waiting))
