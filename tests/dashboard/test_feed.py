"""The live feed: one connection, many mailboxes, nothing unbounded."""

from __future__ import annotations

import asyncio

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_socket

from client_sdk.answers import Alert, LiveFrame, RunSummary
from dashboard.config import DashboardConfig
from dashboard.stream.feed import MAX_ALERTS_KEPT, LiveFeed, Mailbox, News
from tests.dashboard.fixture_api import TOKEN, FixtureApi, example_runs, serve


def advance(run_id: str, committed_at: float) -> LiveFrame:
    return LiveFrame(type="advance", run_id=run_id, committed_at=committed_at)


def test_a_mailbox_keeps_the_latest_and_not_a_queue() -> None:
    mailbox = Mailbox()
    for step in range(10_000):
        mailbox.put(LiveFrame(type="run", run=RunSummary(id="a", last_step=step)))
        mailbox.put(advance("a", 100.0 + step))
    news = mailbox.take()
    assert list(news.runs) == ["a"]
    assert news.runs["a"].last_step == 9_999
    assert news.committed_at == 100.0, "the oldest commit that is not shown yet tells how far behind the page is"
    assert not mailbox.take()
    assert not mailbox.arrived.is_set()


def test_a_flood_of_alerts_becomes_a_resync() -> None:
    mailbox = Mailbox()
    for number in range(MAX_ALERTS_KEPT + 1):
        alert = Alert(
            id=str(number), run_id="a", kind="spike", level="watch", state="open", step=1, title="", message=""
        )
        mailbox.put(LiveFrame(type="alert", alert=alert))
    news = mailbox.take()
    assert news.resync
    assert len(news.alerts) <= MAX_ALERTS_KEPT


def test_a_mailbox_hears_only_of_the_run_it_watches() -> None:
    mailbox = Mailbox()
    mailbox.watch("b")
    mailbox.put(advance("a", 1.0))
    mailbox.put(LiveFrame(type="event", run_id="a"))
    assert not mailbox.arrived.is_set()
    mailbox.put(advance("b", 2.0))
    assert mailbox.take().advanced


async def test_all_mailboxes_share_one_connection_that_ends_with_the_last(api: FixtureApi, url: str) -> None:
    feed = LiveFeed(DashboardConfig(api_url=url, token=TOKEN))
    with feed.subscribe() as first, feed.subscribe() as second:
        await asyncio.wait_for(asyncio.gather(first.arrived.wait(), second.arrived.wait()), 10)
        assert first.take().resync, "a new connection may have missed something"
        second.take()
        assert feed.offline_since is None
        await asyncio.to_thread(api.call, lambda: api.advance("tanh-net", 2))
        await asyncio.wait_for(asyncio.gather(first.arrived.wait(), second.arrived.wait()), 10)
        assert len(api.listeners) == 1
    assert await asyncio.to_thread(api.gone.wait, 10)


async def test_the_feed_goes_on_by_its_cursor_and_says_when_the_view_is_degraded() -> None:
    asked: list[str] = []
    sockets: list[ServerConnection] = []
    may_degrade, may_restore = asyncio.Event(), asyncio.Event()

    async def answer(socket: ServerConnection) -> None:
        assert socket.request is not None
        asked.append(socket.request.path.partition("?")[2])
        sockets.append(socket)
        resumed = "true" if len(asked) == 2 else "false"
        await socket.send(f'{{"type":"subscribed","runs":null,"resumed":{resumed},"cursor":"g-1-0"}}')
        await socket.send('{"type":"advance","run_id":"a","committed_at":1.0,"cursor":"g-1-1"}')
        if len(asked) == 2:
            await may_degrade.wait()
            await socket.send('{"type":"degraded","cursor":"g-1-2"}')
            await may_restore.wait()
            await socket.send('{"type":"restored","cursor":"g-1-3"}')
        await socket.wait_closed()

    async with serve_socket(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        feed = LiveFeed(DashboardConfig(api_url=f"http://127.0.0.1:{port}", token=TOKEN))
        with feed.subscribe() as mailbox:
            news = await until_advanced(mailbox)
            assert news.resync
            await sockets[0].close()
            news = await until_advanced(mailbox)
            assert not news.resync, "the server had everything since the cursor"
            may_degrade.set()
            await asyncio.wait_for(mailbox.arrived.wait(), 20)
            assert feed.is_degraded
            assert mailbox.take().resync, "what the other servers do is no longer heard of"
            may_restore.set()
            await asyncio.wait_for(mailbox.arrived.wait(), 20)
            assert not feed.is_degraded
            mailbox.take()
            await sockets[1].close()
            assert (await until_advanced(mailbox)).resync
            assert asked == ["", "cursor=g-1-1", "cursor=g-1-3"]


async def until_advanced(mailbox: Mailbox) -> News:
    """Everything up to and with the next advance."""
    resync = False
    while True:
        await asyncio.wait_for(mailbox.arrived.wait(), 20)
        news = mailbox.take()
        resync = resync or news.resync
        if news.advanced:
            news.resync = resync
            return news


async def test_the_feed_reconnects_and_says_since_when_it_was_away() -> None:
    api = FixtureApi(example_runs()[:1])
    lost = asyncio.Event()
    times: list[float] = []

    def clock() -> float:
        """Asked once when the feed is made, and then whenever the connection is lost."""
        times.append(1000.0 + len(times))
        if len(times) > 1:
            lost.set()
        return times[-1]

    with serve(api) as url:
        port = int(url.rsplit(":", 1)[1])
        feed = LiveFeed(DashboardConfig(api_url=url, token=TOKEN), clock=clock)
        subscription = feed.subscribe()
        mailbox = subscription.__enter__()
        await asyncio.wait_for(mailbox.arrived.wait(), 10)
        mailbox.take()
    await asyncio.wait_for(lost.wait(), 10)
    assert feed.offline_since == 1001.0
    with serve(api, port):
        await asyncio.wait_for(mailbox.arrived.wait(), 20)
        assert mailbox.take().resync
        assert feed.offline_since is None
        subscription.__exit__(None, None, None)
