"""Datasets that run at the same time do not hold each other up, and none of them queues without end."""

import asyncio

from tests.generate.helpers import Engine, Session, config, small_document
from utils.generate.journal import Scan
from utils.generate.starter import Starter
from utils.generate.teacher.process import offline_teacher


def test_a_slow_provider_holds_up_only_the_dataset_that_asks_it(tmp_path):
    """Ten texts a second on one side; on the other 200 chats, which are done before most of the texts."""
    session, document = Session(tmp_path), small_document(stories=50, chat=200)
    with offline_teacher(0, latency_ms=10) as url:
        limits = {"rate_limit_per_minute": 600, "burst_percent": 1}
        document["providers"] = {
            "fast": {"base_url": url, "max_in_flight": 4},
            "slow": {"base_url": url, "max_in_flight": 4} | limits,
        }
        main = document["models"]["main"]
        document["models"] = {"main": main | {"provider": "fast"}, "slow": main | {"provider": "slow"}}
        document["datasets"]["stories"]["main_model"] = "slow"
        session.run(document)
    answers = [e.fields[1] for e in Scan(session.journal) if e.kind == "reply" and e.fields[2] == "chosen"]
    last_chat = len(answers) - 1 - answers[::-1].index("main")
    assert answers[:last_chat].count("slow") < 25


def test_room_counts_the_calls_of_the_providers_that_a_dataset_asks():
    document = small_document(stories=4, chat=4, pairs=4)
    document["providers"] = {
        name: {"kind": "offline-teacher", "max_in_flight": number} for name, number in (("p", 5), ("q", 7))
    }
    document["models"]["main"]["provider"], document["models"]["rejected"]["provider"] = "p", "q"
    document["models"]["judge"] = {"provider": "q", "model": "teacher-judge"}
    document["judge"] = {"criteria": [{"name": "correct", "description": "Is it right?"}]}
    document["datasets"]["chat"]["judge"] = {"min_chosen": 1}
    from utils.config.generate import GenerateConfig

    wanted = GenerateConfig.model_validate(document)
    assert [wanted.in_flight_of(name) for name in ("stories", "chat", "pairs")] == [5, 12, 12]


def test_lists_wait_while_enough_rows_do():
    """Four may run; while four or more rows wait, lists are begun only until two tasks run."""
    order: list[str] = []

    async def main() -> None:
        starter = Starter(4, lambda error: None)

        def job(name: str):
            async def work() -> None:
                order.append(name)
                await asyncio.sleep(0.002)

            return work

        rows = [starter.row(job("row")) for _ in range(20)]
        lists = [starter.list(job("list"), weight=4) for _ in range(5)]
        running = asyncio.create_task(starter.run())
        await asyncio.gather(*rows, *lists)
        running.cancel()
        await starter.leave()

    asyncio.run(main())
    assert order[:4] == ["list", "list", "row", "row"] and len(order) == 25


def test_a_file_of_prompts_is_read_as_rows_are_made(tmp_path):
    """Of 3,000 given prompts those of a few blocks wait at any time, never all."""
    (tmp_path / "prompts.txt").write_text("".join(f"What is {n}?\n" for n in range(3000)))
    most: list[int] = []
    seen = Starter.row

    def noting(self: Starter, job) -> asyncio.Future:
        most.append(len(self._rows))
        return seen(self, job)

    Starter.row = noting
    try:
        wanted = config(
            rows=1500,
            num_subtopics=0,
            dataset={"templates": {"chosen": "chosen"}},
            templates={"chosen": {"user": "chosen|1||{{ prompt }}|{{ index }}|"}},
            prompts_file=str(tmp_path / "prompts.txt"),
        )
        Engine(tmp_path / "made").fill(wanted, seconds=0.0)
    finally:
        Starter.row = seen
    assert max(most) < 64 + 200 + 1
