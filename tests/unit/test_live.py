"""The live overview: what looking costs, whoever looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from cluster.dashboard import live
from cluster.dashboard.live import Live


class Looks:
    """Counts them."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, bases: set[str]) -> dict[str, str]:
        self.count += 1
        return {base: f"look {self.count} of {base}\nand more" for base in bases}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "INTERVAL", 0.05)


async def next_of(events: AsyncIterator[str]) -> str:
    return await asyncio.wait_for(anext(events), 5)


async def test_fifty_viewers_cost_what_one_does_and_none_cost_nothing() -> None:
    looks = Looks()
    pushed = Live(looks)
    viewers = [pushed.watch("/jobs") for _ in range(50)]
    for viewer in viewers:
        assert (await next_of(viewer)).startswith("retry:")
    for _ in range(3):
        shown = set(await asyncio.gather(*(next_of(viewer) for viewer in viewers)))
        assert all(text.startswith("data: look ") and text.endswith(" of /jobs\ndata: and more\n\n") for text in shown)
    assert looks.count <= 6
    for viewer in viewers:
        await viewer.aclose()  # type: ignore[attr-defined]
    assert pushed.viewers == 0
    assert pushed._task is not None
    await asyncio.wait_for(pushed._task, 5)
    before = looks.count
    await asyncio.sleep(0)
    assert looks.count == before


async def test_a_viewer_that_does_not_keep_up_is_sent_away() -> None:
    pushed = Live(Looks())
    async with aclosing(pushed.watch("")) as slow:  # type: ignore[type-var]
        assert await next_of(slow)
        assert pushed._task is not None
        await asyncio.wait_for(pushed._task, 5)  # ends when the last viewer was dropped
        with pytest.raises(StopAsyncIteration):
            await next_of(slow)


async def test_a_viewer_comes_back_after_all_had_gone() -> None:
    pushed = Live(Looks())
    for _ in range(2):
        async with aclosing(pushed.watch("/a")) as viewer:  # type: ignore[type-var]
            await next_of(viewer)
            assert "of /a" in await next_of(viewer)
    await pushed.stop()
