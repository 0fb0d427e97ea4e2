"""Account: the meter's joules are divided exactly, equally, and never twice."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.serve.account import NANO, Account, Bill

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "fail", "look", "presume"]),
        st.floats(0, 2, allow_nan=False),
        st.floats(-3, 200, allow_nan=False),
        st.integers(0, 1000),
    ),
    max_size=60,
)


def played(events: list[tuple[str, float, float, int]]) -> tuple[Account, list[Bill], float]:
    """An account after some events and a last look, what was paid, and the most that the meter has shown."""
    account, now_s, meter_j = Account(0.0), 0.0, 0.0
    open_, bills, most_j = [], [], 0.0
    for what, wait_s, joules, pick in events:
        now_s += wait_s
        if what == "begin":
            open_.append(account.begin(now_s))
        elif what in {"end", "fail"} and open_:
            account.end(open_.pop(pick % len(open_)), now_s, failed=what == "fail")
        elif what == "look":
            meter_j = max(0.0, meter_j + joules)
            bills += account.look(now_s, meter_j)
            most_j = max(most_j, meter_j)
        elif what == "presume":
            bills += account.presume(now_s)
    for ticket in open_:
        account.end(ticket, now_s)
    bills += account.look(now_s + 0.1, meter_j + 1000)
    return account, bills, max(most_j, meter_j + 1000)


def run(
    requests: list[tuple[float, float]], looks: list[tuple[float, float]], idle_w: float | None = None
) -> list[int]:
    """What each (begin, end) pays, after some (time, joules) looks; before them, 1 s without requests."""
    account = Account(-1.0)
    before_j = 0.0
    if idle_w is not None:
        account.look(0.0, idle_w)
        before_j = idle_w
    events = [(begin, 1, i) for i, (begin, _) in enumerate(requests)]
    events += [(end, 2, i) for i, (_, end) in enumerate(requests)] + [(at, 3, i) for i, (at, _) in enumerate(looks)]
    tickets, paid = {}, {}
    for at_s, what, i in sorted(events):
        if what == 1:
            tickets[i] = account.begin(at_s)
        elif what == 2:
            account.end(tickets[i], at_s)
        else:
            for bill in account.look(at_s, before_j + looks[i][1]):
                paid[bill.ticket] = bill.energy_nj
    return [paid[tickets[i]] for i in range(len(requests))]


@given(EVENTS)
def test_every_nanojoule_is_someones(events):
    """Whatever happens, bills are not negative, and requests + failed + idle are the meter's total, exactly."""
    account, bills, most_j = played(events)
    sums = account.sums
    assert sums.open_nj == 0
    assert min([bill.energy_nj for bill in bills], default=0) >= 0
    assert sum(bill.energy_nj for bill in bills if not bill.ticket.failed) == sums.requests_nj
    assert sum(bill.energy_nj for bill in bills if bill.ticket.failed) == sums.failed_nj
    presumed = any(event[0] == "presume" for event in events)
    assert sums.total_nj >= round(most_j * NANO) if presumed else sums.total_nj == round(most_j * NANO)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=20), st.floats(0, 500))
def test_a_rising_meter_is_divided_to_the_nanojoule(steps_j, last_j):
    """After every look, the sums are what the meter shows."""
    account, shown_j = Account(0.0), 0.0
    for i, step_j in enumerate([*steps_j, last_j]):
        ticket = account.begin(i)
        shown_j += step_j
        account.look(i + 0.5, shown_j)
        assert account.sums.total_nj == round(shown_j * NANO)
        account.end(ticket, i + 0.7, failed=i % 2 == 0)


SPANS = st.lists(
    st.tuples(st.integers(0, 900), st.integers(1, 100)).map(lambda s: (s[0] / 1000, (s[0] + s[1]) / 1000)),
    min_size=1,
    max_size=12,
)


@given(SPANS, st.randoms())
def test_order_does_not_matter(spans, random):
    """Requests that begin and end at the same times pay the same, in whatever order they are told, to the nanojoule."""
    shuffled = list(enumerate(spans))
    random.shuffle(shuffled)
    one = run(spans, [(1.0, 77.0)], idle_w=5.0)
    other = run([span for _, span in shuffled], [(1.0, 77.0)], idle_w=5.0)
    for (i, _), nj in zip(shuffled, other, strict=True):
        assert abs(one[i] - nj) <= 2 + len(spans)


@given(SPANS, st.integers(1, 999))
def test_split_windows_add_up(spans, cut):
    """With constant power and somebody always there, one more look on the way changes nothing but nanojoules."""
    spans = [(0.0, 1.0), *spans]
    whole = run(spans, [(1.001, 50.05)], idle_w=50.0)
    split = run(spans, [(cut / 1000, 50 * cut / 1000), (1.001, 50.05)], idle_w=50.0)
    assert all(abs(one - other) <= 4 + len(spans) for one, other in zip(whole, split, strict=True))


def test_those_in_flight_share_equally_at_every_moment():
    """Alone a request pays all, with another one half, and an idle machine's power is in it."""
    assert run([(0.0, 1.0), (0.5, 1.0)], [(1.0, 100.0)], idle_w=20.0) == [75 * NANO, 25 * NANO]


def test_the_idle_part_of_an_interval_goes_by_the_idle_power():
    """Half an interval without requests costs idle power times that; the request pays the rest."""
    assert run([(0.5, 1.0)], [(1.0, 60.0)], idle_w=10.0) == [55 * NANO]


def test_without_a_known_idle_power_time_decides():
    """Before any interval without requests, joules are divided by time."""
    account = Account(0.0)
    ticket = account.begin(0.75)
    account.end(ticket, 1.0)
    assert [bill.energy_nj for bill in account.look(1.0, 40.0)] == [10 * NANO]
    assert account.idle_w is None


def test_idle_never_takes_more_than_there_is():
    """Where less came than an idle machine takes, idle gets it all, and the request nothing."""
    assert run([(0.9, 1.0)], [(1.0, 2.0)], idle_w=10.0) == [0]


def test_a_counter_that_goes_back_is_carried_over():
    """Nobody pays until it has caught up, and nobody is paid."""
    account = Account(0.0)
    account.begin(0.0)
    account.look(1.0, 10.0)
    account.look(2.0, 9.0)
    assert account.sums.open_nj == 10 * NANO
    account.look(3.0, 12.0)
    assert account.sums.open_nj == 12 * NANO


def test_a_request_over_many_looks_pays_for_each():
    """Its bill is the sum over the intervals, whatever the power in them, and its own time that over its life."""
    account = Account(0.0)
    long, other = account.begin(0.0), account.begin(0.0)
    account.look(1.0, 10.0)
    account.look(2.0, 40.0)
    account.end(other, 2.0, failed=True)
    account.end(long, 3.0)
    failed, bill = account.look(3.0, 45.0)
    assert (failed.energy_nj, bill.energy_nj) == (20 * NANO, 25 * NANO)
    assert (bill.own_s, bill.time_s) == pytest.approx((2.0, 3.0))
    assert account.sums.failed_nj == 20 * NANO


def test_so_far_goes_on_with_the_latest_power():
    """Between looks a request has cost what it had, and the power that was last there."""
    account = Account(0.0)
    ticket = account.begin(0.0)
    account.look(1.0, 30.0)
    assert account.so_far(ticket, 1.5).energy_nj == pytest.approx(45 * NANO)
    assert account.power_w == 30.0


def test_presumed_joules_are_marked_and_made_up_for():
    """Without readings the known power goes on; when the meter is back, its word counts, and both are marked."""
    account = Account(0.0)
    account.end(account.begin(0.0), 1.0)
    assert [bill.presumed for bill in account.look(1.0, 20.0)] == [False]
    ticket = account.begin(1.0)
    account.presume(2.0)
    assert account.sums.total_nj == 40 * NANO
    account.end(ticket, 3.0)
    (bill,) = account.look(3.0, 50.0)
    assert (bill.presumed, bill.energy_nj) == (True, 30 * NANO)
    account.end(account.begin(3.0), 4.0)
    assert [bill.presumed for bill in account.look(4.0, 70.0)] == [False]


def one_by_one(account: Account, begin_s: float, meter_j: list[float | None]) -> list[Bill]:
    """The bills of requests of 0.1 s, one after the other, the meter read at the end of each; None: it cannot be."""
    bills = []
    for i, shown_j in enumerate(meter_j):
        account.end(account.begin(begin_s + i / 10), begin_s + (i + 1) / 10)
        bills += (
            account.presume(begin_s + (i + 1) / 10)
            if shown_j is None
            else account.look(begin_s + (i + 1) / 10, shown_j)
        )
    return bills


def test_nobody_gets_nothing_for_sure_while_the_meter_catches_up():
    """Behind a guess that was too high, and after readings go back, 0 J are in doubt by what is usual, and no power."""
    account = Account(0.0)
    one_by_one(account, 0.0, [10.0 * i for i in range(1, 11)])
    one_by_one(account, 1.0, [None] * 10)  # 100 W are presumed, and 20 W were drawn
    bills = one_by_one(account, 2.0, [120.0 + 10 * i for i in range(1, 13)])
    late = [bill for bill in bills if bill.energy_nj == 0]
    assert len(late) == 8
    assert all(bill.presumed and bill.doubt_nj == pytest.approx(10 * NANO) for bill in late)
    assert [bill.presumed for bill in bills] == [True] * 8 + [False] * 4  # the eighth catches up
    assert account.power_w == pytest.approx(100.0)
    bills = one_by_one(account, 3.2, [240.0 - 50 + 10 * i for i in range(1, 9)])
    assert [bill.presumed for bill in bills] == [True] * 5 + [False] * 3
    assert account.power_w == pytest.approx(100.0)


def test_zeros_of_a_meter_that_is_behind_are_no_idle_power():
    """After a guess that was too high, the idle power is what is drawn, not the nothing that was paid."""
    account = Account(0.0)
    account.look(1.0, 10.0)
    for i in range(2, 60):
        account.presume(float(i))
    for i in range(60, 700):
        account.look(float(i), 10.0 + 2 * (i - 59))
        assert account.idle_w >= 2.0
    assert account.idle_w == pytest.approx(2.0)


def test_a_rounded_meter_does_not_go_back():
    """Sums of floats differ by some nanojoules, which is no reason to doubt a bill."""
    account = Account(0.0)
    account.look(1.0, 10.0)
    (bill,) = one_by_one(account, 1.0, [10.0 - 1e-8])
    assert not bill.presumed


def test_a_counter_slower_than_the_looks_tells_its_mean():
    """Of a counter that moves ten times a second, looks that see it stand still do not count by themselves."""
    account, powers = Account(0.0), []
    for i in range(1, 101):
        at_s = 0.07 * i
        ticket = account.begin(at_s - 0.07)
        powers.append(account.so_far(ticket, at_s).energy_nj / NANO / 0.07)
        account.end(ticket, at_s)
        account.look(at_s, 10.0 * int(at_s / 0.1 + 1e-9))  # 100 W
    assert all(80 <= power <= 120 for power in powers[10:])
    before_nj = account.sums.total_nj
    account.end(account.begin(7.0), 8.0)
    account.presume(8.0)
    assert (account.sums.total_nj - before_nj) / NANO == pytest.approx(100, rel=0.3)


def test_a_first_look_that_sees_nothing_tells_no_power():
    """A counter that has not moved yet is not one of a machine that draws nothing."""
    account = Account(0.0)
    account.look(0.02, 0.0)
    assert (account.idle_w, account.power_w) == (None, None)
    account.look(1.02, 10.2)
    assert account.idle_w == pytest.approx(10.0)


def test_joules_that_come_late_are_no_idle_power():
    """What a lagging meter shows behind a request is drawn by the request."""
    account = Account(0.0)
    account.look(1.0, 10.0)
    for i in range(3):
        begin_s, begin_j = 1.0 + 1.5 * i, 10.0 + 55 * i
        account.end(account.begin(begin_s), begin_s + 0.5)
        account.look(begin_s + 0.5, begin_j + 5)
        account.look(begin_s + 1.5, begin_j + 55)
    assert account.idle_w == pytest.approx(10.0)


def test_a_request_ends_once():
    """A second end is an error: it would pay twice."""
    account = Account(0.0)
    ticket = account.begin(0.0)
    account.end(ticket, 1.0)
    with pytest.raises(UsageError, match="ended twice"):
        account.end(ticket, 2.0)


def test_a_look_does_not_go_over_all_in_flight():
    """It costs as much with ten thousand in flight as with ten, within the noise of a shared machine."""

    def cost_s(requests: int) -> float:
        account = Account(0.0)
        for _ in range(requests):
            account.begin(0.0)
        account.look(1.0, 1.0)
        costs_s = []
        for i in range(50):
            begin_s = time.perf_counter()
            account.look(2.0 + i, 2.0 + i)
            costs_s.append(time.perf_counter() - begin_s)
        return min(costs_s)

    assert cost_s(10_000) < 20 * cost_s(10)
