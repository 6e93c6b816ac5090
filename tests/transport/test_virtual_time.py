"""The virtual-time loop: no waiting, one order, and a clear end when nothing can go on."""

import asyncio
import itertools
import subprocess
import sys
import time
from contextvars import copy_context

import pytest

from transport.virtual_time import OWNER, VirtualTimeError, VirtualTimeLoop, run_virtual

RACE = """
import asyncio
from transport.virtual_time import run_virtual

trace = []
junk = [object() for _ in range(hash("salt") % 997)]  # addresses differ from run to run

async def worker(number):
    try:
        await asyncio.sleep(number % 3)
        trace.append(("woke", number, asyncio.get_running_loop().time()))
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        trace.append(("cancelled", number))
        raise

async def fail():
    await asyncio.sleep(5)
    raise ValueError("down")

async def main():
    tasks = [asyncio.ensure_future(worker(n)) for n in range(40)]
    done, _ = await asyncio.wait(tasks, timeout=4)
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(40)]
    for future in futures:
        future.set_result(None)
    done, _ = await asyncio.wait(futures)
    trace.extend(futures.index(future) for future in done)
    try:
        async with asyncio.TaskGroup() as group:
            for n in range(100, 140):
                group.create_task(worker(n))
            group.create_task(fail())
    except* ValueError:
        trace.append(("failed", loop.time()))

run_virtual(main())
print(trace)
"""


def test_hours_pass_in_an_instant() -> None:
    async def a_day() -> float:
        for _ in range(24):
            await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    began = time.perf_counter()
    assert run_virtual(a_day(), start=10.0) == 86_410.0
    assert time.perf_counter() - began < 1.0


def test_equal_deadlines_fire_in_the_order_they_were_set() -> None:
    async def race() -> list[int]:
        loop, fired = asyncio.get_running_loop(), list[int]()
        for number in range(500):
            loop.call_at(7.0, fired.append, number)
        await asyncio.sleep(7.0)
        return fired

    assert run_virtual(race()) == list(range(500))


def test_an_earlier_timer_overtakes_and_the_clock_never_goes_back() -> None:
    async def race() -> list[tuple[str, float]]:
        loop, seen = asyncio.get_running_loop(), list[tuple[str, float]]()
        for name, when in (("late", 9.0), ("early", 3.0), ("past", -5.0)):
            loop.call_at(when, lambda name=name: seen.append((name, loop.time())))
        await asyncio.sleep(10)
        return seen

    assert run_virtual(race()) == [("past", 0.0), ("early", 3.0), ("late", 9.0)]


def test_timeouts_queues_and_events_work() -> None:
    async def main() -> tuple[list[int], float]:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
        ready, got = asyncio.Event(), list[int]()

        async def produce() -> None:
            await ready.wait()
            for number in range(3):
                await asyncio.sleep(1)
                await queue.put(number)

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            asyncio.get_running_loop().call_later(10, ready.set)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await queue.get()
            got += [await queue.get() for _ in range(3)]
        return got, asyncio.get_running_loop().time()

    assert run_virtual(main()) == ([0, 1, 2], 13.0)


def test_deadlock_names_who_waits() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait(), name="waiting-for-godot")

    with pytest.raises(VirtualTimeError, match=r"deadlock at 0.0 s.*task-0, waiting-for-godot"):
        run_virtual(main())


def test_sleeping_forever_is_a_deadlock() -> None:
    with pytest.raises(VirtualTimeError, match="deadlock"):
        run_virtual(asyncio.sleep(float("inf")))


def test_livelock_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transport.virtual_time.STEPS_PER_INSTANT_MAX", 1000)

    async def spin() -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(VirtualTimeError, match="livelock"):
        run_virtual(spin())


def test_a_failing_callback_ends_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_later(1, lambda: 1 / 0)
        await asyncio.sleep(2)

    with pytest.raises(ZeroDivisionError):
        run_virtual(main())


def test_threads_are_refused() -> None:
    async def main() -> None:
        await asyncio.to_thread(time.monotonic)

    with pytest.raises(VirtualTimeError, match="thread"):
        run_virtual(main())


def test_left_over_tasks_are_cancelled_oldest_first_and_may_clean_up() -> None:
    cleaned: list[int] = []

    async def leftover(number: int) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)
            cleaned.append(number)

    async def main() -> list[asyncio.Task[None]]:
        tasks = [asyncio.get_running_loop().create_task(leftover(n)) for n in range(50)]
        await asyncio.sleep(0)
        return tasks

    assert all(task.cancelled() for task in run_virtual(main()))
    assert cleaned == list(range(50))


def test_cancelled_timers_do_not_pile_up() -> None:
    async def main() -> int:
        for _ in range(20_000):
            async with asyncio.timeout(3600):
                await asyncio.sleep(0.001)
        return len(asyncio.get_running_loop()._timers)  # type: ignore[attr-defined]

    assert run_virtual(main()) < 3000


def test_a_frozen_owner_stands_still_and_its_timers_pass() -> None:
    async def tick_every_second(seen: list[float]) -> None:
        for _ in range(6):
            await asyncio.sleep(1)
            seen.append(asyncio.get_running_loop().time())

    async def main() -> dict[str, list[float]]:
        loop, seen = asyncio.get_running_loop(), {"ann": list[float](), "bob": list[float]()}
        assert isinstance(loop, VirtualTimeLoop)
        async with asyncio.TaskGroup() as group:
            for name, times in seen.items():
                context = copy_context()
                context.run(OWNER.set, name)
                group.create_task(tick_every_second(times), context=context)
            loop.call_at(2.5, loop.freeze, "ann")
            loop.call_at(10.25, loop.thaw, "ann")
        return seen

    assert run_virtual(main()) == {
        "ann": [1, 2, 10.25, 11.25, 12.25, 13.25],
        "bob": [1, 2, 3, 4, 5, 6],
    }


def test_a_run_that_ends_with_somebody_frozen_still_cleans_up() -> None:
    async def main() -> asyncio.Task[None]:
        loop, context = asyncio.get_running_loop(), copy_context()
        assert isinstance(loop, VirtualTimeLoop)
        context.run(OWNER.set, "ann")
        loop.freeze("ann")
        return loop.create_task(asyncio.sleep(1), context=context)

    assert run_virtual(main()).cancelled()


def test_two_processes_with_different_hash_seeds_run_alike() -> None:
    def trace(seed: str) -> bytes:
        command = [sys.executable, "-c", RACE]
        return subprocess.run(command, env={"PYTHONHASHSEED": seed}, check=True, capture_output=True).stdout

    first = trace("1")
    assert first.count(b"cancelled") == 80
    assert first == trace("2")
