"""Buckets, places, lines and the breaker, on a clock that moves at once."""

import asyncio
import random

import pytest

from tests.generate.clock import run_at_once
from utils.config.providers import ModelSpec, ProviderSpec
from utils.generate import breaker
from utils.generate.bucket import Bucket
from utils.generate.errors import Draining
from utils.generate.limits import Gate, Places, Ticket
from utils.generate.retry import Failure
from utils.pipeline.errors import StageError

BUSY = Failure("http_429", "slow down", retry=True, status=429)
OVERLOADED = Failure("http_503", "busy", retry=True, status=503)
BROKEN = Failure("timeout", "no reply", retry=True)
REFUSED = Failure("http_400", "no", retry=False, status=400)


def quiet(*_: object, **__: object) -> None:
    """A log that nobody reads."""


def now() -> float:
    """Microseconds are enough, and the clock's ticks are left out."""
    return round(asyncio.get_running_loop().time(), 5)


def provider(**limits: object) -> ProviderSpec:
    return ProviderSpec(**{"base_url": "http://127.0.0.1:1/v1", "max_in_flight": 64} | limits)


def model(**limits: object) -> ModelSpec:
    return ModelSpec(**{"provider": "p", "model": "m"} | limits)


def most_above(times: list[float], per_second: float) -> float:
    """The largest number of events in a span beyond what the rate allows in it, both ends counted."""
    most = 0.0
    for first in range(len(times)):
        for last in range(first, len(times)):
            most = max(most, last - first + 1 - per_second * (times[last] - times[first]))
    return most


async def send(gate: Gate, spec: ModelSpec, seconds: float, sent: list[float], tokens: int = 10) -> None:
    """One call that succeeds after so many seconds."""
    ticket = await gate.enter(spec, tokens)
    sent.append(now())
    await asyncio.sleep(seconds)
    gate.leave(ticket)
    gate.succeeded(ticket, tokens)


# buckets


def test_a_full_bucket_gives_its_burst_at_once_and_then_its_rate():
    async def work() -> list[float]:
        bucket = Bucket(per_minute=600, burst_percent=15)
        return [(await bucket.take(1)).at for _ in range(200)]

    times = run_at_once(work())
    assert (times[89], times[90], times[199]) == pytest.approx((0, 0.1, 11), abs=1e-3)
    assert most_above(times, 10) <= 90 + 1e-3


def test_the_smallest_burst_is_one():
    async def work() -> list[float]:
        bucket = Bucket(per_minute=6, burst_percent=1)
        return [(await bucket.take(1)).at for _ in range(3)]

    assert run_at_once(work()) == pytest.approx([0, 10, 20], abs=1e-3)


def test_an_amount_above_the_burst_takes_its_time():
    async def work() -> float:
        bucket = Bucket(per_minute=600, burst_percent=10)
        return (await bucket.take(260)).at

    assert run_at_once(work()) == pytest.approx(20)


@pytest.mark.parametrize("used, ends", [(100, 10), (60, 6), (50, 5), (0, 5), (200, 20)])
def test_the_next_call_pays_for_what_the_last_one_used(used, ends):
    """100 at once and 10 a second: 100 are reserved, 100 more are wanted; at most 50 are credited."""

    async def work() -> float:
        bucket = Bucket(per_minute=600, burst_percent=100 / 6)
        first = await bucket.take(100)
        first.settle(used)
        return (await bucket.take(100)).at

    assert run_at_once(work()) == pytest.approx(ends, abs=0.01)


def test_no_more_is_credited_than_a_full_bucket_holds():
    """However wrong estimates are, tokens used stay below the rate and one burst (here in random calls)."""

    async def work() -> list[tuple[float, float]]:
        bucket, rng, used = Bucket(per_minute=6000, burst_percent=15), random.Random(1), []
        for _ in range(400):
            await asyncio.sleep(rng.choice([0, 0, 0.05, 3]))
            grant = await bucket.take(rng.randrange(1, 600))
            spent = rng.randrange(1, int(grant.amount) + 1)
            used.append((now(), spent))
            grant.settle(spent)
        return used

    used = run_at_once(work())
    above, level, before = 0.0, 0.0, 0.0
    for at, spent in used:
        level = max(0.0, level - 100 * (at - before)) + spent
        above, before = max(above, level), at
    assert 600 < above <= 900 + 1e-3


def test_what_was_taken_early_counts_when_the_call_goes_out():
    """Two calls hold 1 each, wait a minute, then go: together with new ones they stay below the burst."""

    async def work() -> list[float]:
        bucket, sent = Bucket(per_minute=60, burst_percent=100 * 4 / 60), []
        early = [await bucket.take(1) for _ in range(2)]
        await asyncio.sleep(60)
        for grant in early:
            grant.start()
            sent.append(now())
        for _ in range(4):
            await bucket.take(1)
            sent.append(now())
        return sent

    assert most_above(run_at_once(work()), 1) <= 4 + 1e-3


# places


def test_places_shrink_and_grow_back_to_what_the_config_says():
    places = Places(100)
    places.shrink()
    assert places.limit == 70
    for _ in range(50):
        places.shrink()
    assert places.limit == 1
    for _ in range(1 + 2 + 3 + 4 * 96):
        assert places.limit < 100
        places.grow()
    assert places.limit == 100
    for _ in range(50):
        places.grow()
    assert places.limit == 100


# the gate


def test_calls_in_flight_stay_below_the_limits_of_provider_and_model():
    async def work() -> tuple[int, int, int]:
        specs, running, most = (model(max_in_flight=2), model()), [0, 0], [0, 0, 0]

        async def call(which: int) -> None:
            ticket = await gate.enter(specs[which], 1)
            running[which] += 1
            for place, count in ((0, running[0]), (1, running[1]), (2, gate.in_flight)):
                most[place] = max(most[place], count)
            await asyncio.sleep(1)
            running[which] -= 1
            gate.leave(ticket)

        async with Gate("p", provider(max_in_flight=5), quiet) as gate:
            await asyncio.gather(*(call(number % 2) for number in range(40)))
            assert (gate.in_flight, gate.waiting) == (0, 0)
        return tuple(most)

    slow, fast, together = run_at_once(work())
    assert (slow, together) == (2, 5) and fast >= 3


def test_two_models_share_the_requests_of_their_provider():
    async def work() -> tuple[list[float], list[float]]:
        one, two, first, second = model(), model(), [], []
        async with Gate("p", provider(rate_limit_per_minute=600), quiet) as gate:
            calls = [send(gate, one, 0.5, first) for _ in range(300)]
            calls += [send(gate, two, 0.5, second) for _ in range(300)]
            await asyncio.gather(*calls)
        return first, second

    first, second = run_at_once(work())
    together = sorted(first + second)
    assert most_above(together, 10) <= 90 + 1e-3
    assert together[-1] == pytest.approx((600 - 90) / 10, abs=0.5), "the rate is used up"
    half = [time for time in first if time <= together[300]]
    assert 140 <= len(half) <= 160, "neither waits for the other"


def test_limits_of_a_model_hold_within_those_of_its_provider():
    async def work() -> tuple[list[float], list[float]]:
        slow, fast, first, second = model(rate_limit_per_minute=60), model(), [], []
        async with Gate("p", provider(rate_limit_per_minute=600, max_in_flight=3), quiet) as gate:
            calls = [send(gate, slow, 0.1, first) for _ in range(30)]
            calls += [send(gate, fast, 0.1, second) for _ in range(300)]
            await asyncio.gather(*calls)
        return first, second

    slow, fast = run_at_once(work())
    assert most_above(slow, 1) <= 9 + 1e-3 and slow[-1] == pytest.approx(21, abs=1)
    assert most_above(sorted(slow + fast), 10) <= 90 + 1e-3
    assert fast[-1] < 30, "calls to the slow model hold no place while they wait"


def test_a_model_with_a_place_to_itself_does_not_block_the_others():
    """One place in all, and a model that may be asked every ten seconds: the other one has the rest."""

    async def work() -> tuple[list[float], list[float]]:
        slow, fast, first, second = model(rate_limit_per_minute=6), model(), [], []
        async with Gate("p", provider(max_in_flight=1), quiet) as gate:
            calls = [send(gate, slow, 0.1, first) for _ in range(4)]
            await asyncio.gather(*calls, *(send(gate, fast, 0.1, second) for _ in range(200)))
        return first, second

    slow, fast = run_at_once(work())
    assert fast[-1] < 20.5 + 0.1 * 4 and slow[-1] == pytest.approx(30, abs=0.3)


def test_a_call_that_waits_for_the_provider_counts_for_its_model_when_it_goes_out():
    """One in ten seconds; the second waits until 15 for the only place, so the third is due at 25."""

    async def work() -> list[float]:
        slow, other, sent = model(rate_limit_per_minute=6), model(), []
        async with Gate("p", provider(max_in_flight=1), quiet) as gate:
            await send(gate, slow, 1, sent)
            waiting = asyncio.create_task(send(gate, other, 14, []))
            await asyncio.gather(waiting, send(gate, slow, 0, sent), send(gate, slow, 0, sent))
        return sent

    assert run_at_once(work()) == pytest.approx([0, 15, 25])


def test_tokens_are_reserved_by_estimate_and_settled_by_usage():
    """6,000 tokens a minute, 1,000 reserved and 100 used a call: in the end the used ones set the pace."""

    async def work() -> float:
        async def call() -> None:
            ticket = await gate.enter(spec, 1000)
            gate.leave(ticket)
            gate.succeeded(ticket, 100)

        spec = model()
        async with Gate("p", provider(tokens_per_minute=6000, burst_percent=50), quiet) as gate:
            for _ in range(120):
                await call()
            return now()

    assert run_at_once(work()) == pytest.approx((120 * 100 - 3000) / 100, rel=0.15)


def test_tokens_of_a_throttled_attempt_are_given_back():
    async def work() -> float:
        async with Gate("p", provider(tokens_per_minute=600, burst_percent=100), quiet) as gate:
            for _ in range(50):
                ticket = await gate.enter(model(), 300)
                gate.leave(ticket)
                gate.failed(ticket, BUSY)
            return now()

    assert run_at_once(work()) < 1


def test_a_line_is_served_in_order_and_a_retry_goes_to_the_front():
    async def work() -> list[str]:
        order, spec = [], model()

        async def call(name: str, again: bool = False) -> None:
            ticket = await gate.enter(spec, 1, again)
            order.append(name)
            await asyncio.sleep(1)
            gate.leave(ticket)

        async with Gate("p", provider(max_in_flight=1), quiet) as gate:
            tasks = [asyncio.create_task(call(name)) for name in "abcd"]
            await asyncio.sleep(0.5)
            tasks.append(asyncio.create_task(call("retry", again=True)))
            await asyncio.gather(*tasks)
        return order

    assert run_at_once(work()) == ["a", "b", "retry", "c", "d"]


def test_calls_cancelled_anywhere_leave_no_trace():
    """Hundreds of calls, cancelled at random moments: no place and no request is lost."""

    async def work() -> None:
        rng, specs = random.Random(7), (model(max_in_flight=2), model())
        limits = provider(max_in_flight=3, rate_limit_per_minute=600, tokens_per_minute=60_000)
        async with Gate("p", limits, quiet) as gate:

            async def call(spec: ModelSpec) -> None:
                ticket = await gate.enter(spec, rng.randrange(200))
                try:
                    await asyncio.sleep(rng.random())
                finally:
                    gate.leave(ticket)

            tasks = []
            for _ in range(400):
                tasks.append(asyncio.create_task(call(rng.choice(specs))))
                await asyncio.sleep(rng.choice([0, 0, 0.1]))
                rng.choice(tasks).cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (gate.in_flight, gate.waiting) == (0, 0)
            sent: list[float] = []
            await asyncio.sleep(100)
            await asyncio.gather(*(send(gate, specs[0], 0, sent) for _ in range(20)))
            assert len(sent) == 20

    run_at_once(work())


def test_a_call_cancelled_as_it_is_let_through_gives_its_place_back():
    async def work() -> None:
        async with Gate("p", provider(max_in_flight=1), quiet) as gate:
            spec = model()
            first = await gate.enter(spec, 1)
            waiting = asyncio.create_task(gate.enter(spec, 1))
            await asyncio.sleep(1)
            gate.leave(first)
            for _ in range(10):
                await asyncio.sleep(0)
                if gate.in_flight:
                    break
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert gate.in_flight == 0
            gate.leave(await gate.enter(spec, 1))

    run_at_once(work())


def test_closing_the_gate_sends_those_who_wait_away():
    async def work() -> None:
        async with Gate("p", provider(rate_limit_per_minute=6), quiet) as gate:
            spec = model()
            calls = [asyncio.create_task(gate.enter(spec, 1)) for _ in range(5)]
            await asyncio.sleep(1)
            assert (gate.waiting, gate.in_flight) == (4, 1)
            gate.close()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(ends[0], Ticket) and [type(end) for end in ends[1:]] == [Draining] * 4
            assert now() == 1
            with pytest.raises(Draining):
                await gate.enter(spec, 1)

    run_at_once(work())


def test_a_broken_gate_is_heard_by_those_who_wait(monkeypatch):
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    async def work() -> None:
        async with Gate("p", provider(), quiet) as gate:
            monkeypatch.setattr(Places, "take", broken)
            with pytest.raises(RuntimeError, match="the gate broke: ZeroDivisionError"):
                await gate.enter(model(), 1)

    run_at_once(work())


# slowing down


async def outcome(gate: Gate, spec: ModelSpec, what: Failure | None) -> None:
    ticket = await gate.enter(spec, 1)
    gate.leave(ticket)
    gate.failed(ticket, what) if what else gate.succeeded(ticket, 1)


@pytest.mark.parametrize("failure, limit", [(BUSY, 44), (OVERLOADED, 44), (BROKEN, 64), (REFUSED, 64)])
def test_a_busy_provider_gets_fewer_calls_at_a_time(failure, limit):
    async def work() -> int:
        async with Gate("p", provider(max_in_flight=64), quiet) as gate:
            await outcome(gate, model(), failure)
            return gate.limit

    assert run_at_once(work()) == limit


def test_a_round_trip_of_refusals_cuts_once():
    async def work() -> list[int]:
        limits, spec = [], model()
        async with Gate("p", provider(max_in_flight=100), quiet) as gate:
            for _ in range(3):
                tickets = [await gate.enter(spec, 1) for _ in range(gate.limit)]
                for ticket in tickets:
                    gate.leave(ticket)
                    gate.failed(ticket, BUSY)
                limits.append(gate.limit)
        return limits

    assert run_at_once(work()) == [70, 49, 34]


def test_after_a_storm_the_rate_recovers():
    """A server that takes 20 calls at a time says 429 to all for five seconds, then serves again."""

    async def work() -> list[float]:
        replies: list[float] = []
        spec = model()

        async def worker(gate: Gate) -> None:
            while now() < 60:
                ticket = await gate.enter(spec, 1)
                await asyncio.sleep(0.5)
                gate.leave(ticket)
                if 10 <= now() < 15:
                    gate.failed(ticket, BUSY)
                    await asyncio.sleep(1)
                else:
                    gate.succeeded(ticket, 1)
                    replies.append(now())

        async with Gate("p", provider(max_in_flight=200), quiet) as gate:
            await asyncio.gather(*(worker(gate) for _ in range(400)))
            assert gate.limit == 200
        return replies

    replies = run_at_once(work())
    before = sum(1 for time in replies if 5 <= time < 10) / 5
    after = sum(1 for time in replies if 35 <= time < 60) / 25
    assert before == pytest.approx(400, rel=0.05) and after >= 0.9 * before


# the breaker


def failing(failures: list[Failure | None], count: int = 1) -> tuple[list[tuple[float, str]], object]:
    """Run calls one after another with these outcomes; what the log heard and when, and what ended it."""
    told: list[tuple[float, str]] = []

    def log(event: str, text: str, **fields: object) -> None:
        assert event == "breaker" and fields["provider"] == "lab"
        told.append((now(), text))

    async def work() -> object:
        async with Gate("lab", provider(), log) as gate:
            spec = model()
            for failure in failures:
                try:
                    await asyncio.gather(*(outcome(gate, spec, failure) for _ in range(count)))
                except StageError as error:
                    return error
            return now()

    return told, run_at_once(work())


def test_the_breaker_opens_after_twenty_failures_and_probes_after_thirty_seconds():
    told, ended = failing([BROKEN] * 20 + [None] * 5)
    assert ended == pytest.approx(30)
    assert [text for _, text in told] == [
        'provider "lab" failed 20 times in a row (timeout: no reply); next try in 30 s',
        'provider "lab" answers again; calls go on',
    ]


def test_one_reply_among_failures_keeps_the_breaker_closed():
    assert failing(([BROKEN] * 19 + [None]) * 5) == ([], 0)


@pytest.mark.parametrize("answer", [BUSY, REFUSED])
def test_a_provider_that_answers_at_all_is_not_down(answer):
    assert failing([answer] * 100) == ([], 0)


def test_only_one_call_probes_at_a_time():
    async def work() -> list[float]:
        sent: list[float] = []
        async with Gate("lab", provider(), quiet) as gate:
            spec, other = model(), model()
            for _ in range(20):
                await outcome(gate, spec, BROKEN)

            async def call(which: ModelSpec) -> None:
                ticket = await gate.enter(which, 1)
                sent.append(now())
                await asyncio.sleep(5)
                gate.leave(ticket)
                gate.failed(ticket, BROKEN) if len(sent) < 3 else gate.succeeded(ticket, 1)

            await asyncio.gather(*(call(which) for which in (spec, other) * 5))
        return sent

    sent = run_at_once(work())
    assert sent[:3] == [30, 65, 100] and set(sent[3:]) == {105}


def test_a_late_reply_closes_the_breaker():
    async def work() -> float:
        async with Gate("lab", provider(), quiet) as gate:
            spec = model()
            slow = await gate.enter(spec, 1)
            for _ in range(20):
                await outcome(gate, spec, BROKEN)
            waiting = asyncio.create_task(gate.enter(spec, 1))
            await asyncio.sleep(3)
            gate.leave(slow)
            gate.succeeded(slow, 1)
            await waiting
            return now()

    assert run_at_once(work()) == 3


def test_a_cancelled_probe_leaves_the_next_one_its_turn():
    async def work() -> float:
        async with Gate("lab", provider(), quiet) as gate:
            spec = model()
            for _ in range(20):
                await outcome(gate, spec, BROKEN)
            probe = await gate.enter(spec, 1)
            waiting = asyncio.create_task(gate.enter(spec, 1))
            await asyncio.sleep(1)
            assert probe.probe and not waiting.done()
            gate.leave(probe)
            assert (await waiting).probe
            return now()

    assert run_at_once(work()) == 31


def test_a_provider_that_stays_away_ends_the_run():
    told, ended = failing([BROKEN] * 100)
    assert isinstance(ended, StageError) and len(told) == 1 + 9
    assert told[0][0] == 0 and told[-1] == (
        270,
        'provider "lab" probe 9 of 10 failed (timeout: no reply); next in 30 s',
    )
    assert str(ended) == (
        'provider "lab" is gone: 30 attempts in a row failed, the last 10 of them 30 s apart; '
        "the last with timeout: no reply"
    )
    assert "the same command continues" in ended.fix and ended.exit_code == 4


def test_times_of_the_breaker_can_be_shortened(monkeypatch):
    monkeypatch.setattr(breaker, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(breaker, "FAILURES_TO_OPEN", 3)
    assert failing([BROKEN] * 3 + [None])[1] == pytest.approx(0.5)
