"""The event loop that finishes what it has begun, and the starter that keeps few tasks waiting."""

import asyncio
import gc
import socket

import pytest

from utils.generate.errors import Draining
from utils.generate.loop import run
from utils.generate.starter import Starter


def test_sockets_that_are_ready_together_are_taken_in_one_by_one():
    """What one reader wakes runs before the next reader does."""

    async def main() -> list[str]:
        order: list[str] = []
        pairs = [socket.socketpair() for _ in range(5)]
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def read(number: int, end: socket.socket) -> None:
            end.recv(10)
            order.append(f"read {number}")
            loop.call_soon(order.append, f"work {number}")
            if len(order) >= 9:
                done.set()

        for number, (end, other) in enumerate(pairs):
            end.setblocking(False)
            loop.add_reader(end, read, number, end)
            other.send(b"x")
        await asyncio.wait_for(done.wait(), 5)
        await asyncio.sleep(0)
        for end, other in pairs:
            loop.remove_reader(end)
            end.close()
            other.close()
        return order

    order = run(main())
    assert [word for word, _ in map(str.split, order)] == ["read", "work"] * 5


def test_a_socket_that_closes_while_it_waits_is_left_out():
    async def main() -> int:
        loop, heard, pairs = asyncio.get_running_loop(), [], [socket.socketpair() for _ in range(3)]

        def read(number: int) -> None:
            heard.append(number)
            for end, _ in pairs:
                loop.remove_reader(end)

        for number, (end, other) in enumerate(pairs):
            end.setblocking(False)
            loop.add_reader(end, read, number)
            other.send(b"x")
        await asyncio.sleep(0.05)
        for end, other in pairs:
            end.close()
            other.close()
        return len(heard)

    assert run(main()) == 1


def start(jobs, most_ahead=4, failed=lambda error: None):
    async def main() -> list:
        starter = Starter(most_ahead, failed)
        futures = jobs(starter)
        task = asyncio.create_task(starter.run())
        ends = await asyncio.gather(*futures, return_exceptions=True)
        task.cancel()
        await starter.leave()
        return ends

    return asyncio.run(main())


def test_no_more_tasks_than_slots():
    running, most = [], []

    async def job() -> int:
        running.append(1)
        most.append(len(running))
        await asyncio.sleep(0.002)
        running.pop()
        return 7

    assert start(lambda starter: [starter.row(job) for _ in range(50)]) == [7] * 50 and max(most) == 4


def test_rows_come_before_lists_while_enough_rows_wait():
    order = []

    def job(name: str):
        async def work() -> None:
            order.append(name)
            await asyncio.sleep(0.001)

        return work

    def jobs(starter: Starter) -> list:
        rows = [starter.row(job("row")) for _ in range(12)]
        return rows + [starter.list(job("list"), weight=5) for _ in range(3)]

    start(jobs)
    assert order.count("list") == 3 and order.index("list") < 3, "places that would be idle are used"
    assert order[-1] == "row" or order[-1] == "list"


@pytest.mark.parametrize(("error", "told"), [(ValueError("x"), 1), (Draining(), 0)])
def test_an_error_reaches_whoever_waits_and_the_run(error, told):
    heard = []

    async def job() -> None:
        raise error

    (end,) = start(lambda starter: [starter.row(job)], failed=heard.append)
    assert end is error and len(heard) == told


def test_an_error_that_nobody_waits_for_any_more_is_not_printed():
    """Who waited was stopped, which cancels the result; the work behind it ends with an error later."""
    complaints: list[dict] = []

    async def job() -> None:
        await asyncio.sleep(0.005)
        raise Draining

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        starter = Starter(4, lambda error: None)
        awaited = starter.row(job)
        task = asyncio.create_task(starter.run())
        await asyncio.sleep(0.001)
        awaited.cancel()
        await asyncio.sleep(0.02)
        task.cancel()
        await starter.leave()

    asyncio.run(main())
    gc.collect()
    assert complaints == []
