"""The demo page in a real browser, served by `street-fast demo` in a process of its own.

Everything is waited for, nothing slept for. Every page fails its test if it logs an error or breaks its CSP.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, WebSocketRoute, expect
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

expect.set_options(timeout=10_000)

Visit = Callable[..., Awaitable[Page]]

EXPECTED_WHEN_THE_SERVER_IS_GONE = ("WebSocket connection to", "ERR_CONNECTION", "ERR_INTERNET_DISCONNECTED")


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser: Browser, demo) -> AsyncIterator[Visit]:
    """`await visit("Ada")`: a page in a browser profile of its own, in the chat under that name.

    Takes `context` for a tab of a profile that is there already, `room` for the address' fragment, a `tunnel` for its
    WebSockets, whether its `clock` is in our hands, and whatever `Browser.new_context` takes. Without a name the page
    is left at its door.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(
            part in message.text for part in EXPECTED_WHEN_THE_SERVER_IS_GONE
        ):
            complaints.append(message.text)

    async def visit(
        name: str | None = None,
        *,
        room: str = "",
        context: BrowserContext | None = None,
        tunnel: Tunnel | None = None,
        clock: bool = False,
        **options: object,
    ) -> Page:
        if context is None:
            context = await browser.new_context(**options)
            contexts.append(context)
        page = await context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if tunnel is not None:
            await page.route_web_socket("**/realtime?*", tunnel.carry)
        if clock:
            await page.clock.install()
        await page.goto(f"{demo.url}#{room}")
        if name is not None:
            await page.get_by_label("Your name", exact=True).fill(name)
            await page.get_by_label("Your name", exact=True).press("Enter")
            await expect(member(page, name).first).to_be_attached()
        return page

    yield visit
    for context in contexts:
        await context.close()
    assert complaints == []


def member(page: Page, name: str):
    return page.locator("#members .member", has_text=name)


def log(page: Page):
    return page.get_by_role("log")


def toasts(page: Page):
    return page.get_by_role("list", name="Notifications")


def link_state(page: Page, phase: str):
    return page.locator(f".link-state[data-phase={phase}]")


KINDS = "elements => elements.map(element => element.classList[0])"


async def say(page: Page, text: str) -> None:
    await page.locator("#message").fill(text)
    await page.locator("#message").press("Enter")


async def test_two_people_meet_and_talk(visit):
    ada = await visit("Ada")
    await expect(log(ada)).to_contain_text("Quiet in here")

    ben = await visit("Ben")
    await expect(member(ada, "Ben")).to_be_visible()
    await expect(member(ben, "Ada")).to_be_visible()
    await expect(log(ada)).to_contain_text("Ben joined")

    await say(ada, "Hello Ben")
    await expect(ben.locator(".message:not(.own) .bubble")).to_have_text("Hello Ben")
    await expect(ada.locator(".message.own:not(.pending) .bubble")).to_have_text("Hello Ben")
    theirs = await ben.locator(".bubble").bounding_box()
    mine = await ada.locator(".bubble").bounding_box()
    assert theirs["x"] < mine["x"], "own messages stand apart, on the right"

    await say(ben, "Hello Ada")
    await expect(ada.locator(".message .bubble")).to_have_text(["Hello Ben", "Hello Ada"])
    await expect(ben.locator(".message .bubble")).to_have_text(["Hello Ben", "Hello Ada"])

    await ben.close()
    await expect(member(ada, "Ben")).to_have_count(0)
    await expect(log(ada)).to_contain_text("Ben left")


async def test_typing_shows_until_the_message_comes(visit):
    ada, ben = await visit("Ada"), await visit("Ben")
    await ben.locator("#message").press_sequentially("Hel")
    await expect(ada.locator("#typing")).to_have_text("Ben is typing")
    await expect(ben.locator("#typing")).to_have_text("")
    await say(ben, "Hello")
    await expect(ada.locator("#typing")).to_have_text("")

    await ben.locator("#message").press_sequentially("Wai")
    await expect(ada.locator("#typing")).to_have_text("Ben is typing")
    await ben.close()
    await expect(ada.locator("#typing")).to_have_text("")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
async def test_pages_survive_a_restart_of_the_server(visit, demo, how):
    ada, ben = await visit("Ada"), await visit("Ben")
    await say(ada, "before")
    await expect(ben.locator(".bubble")).to_have_text("before")
    await expect(member(ada, "Ben")).to_be_visible()

    await demo.stop(how)
    for page in (ada, ben):
        await expect(page.locator(".banner")).to_be_visible()
        await expect(link_state(page, "open")).to_have_count(0)
    await say(ada, "meanwhile")
    await expect(ada.locator(".message.pending .bubble")).to_have_text("meanwhile")

    await demo.start()
    for page in (ada, ben):
        await expect(link_state(page, "open")).to_be_visible()
        await expect(page.locator(".banner")).to_be_hidden()
        await expect(page.locator("#members .member")).to_have_count(2)
    await expect(ada.locator(".message.pending")).to_have_count(0)
    await say(ben, "after")
    await expect(ada.locator(".message .bubble")).to_have_text(["before", "meanwhile", "after"])
    # That Ben was away as long as everybody else is no news.
    await expect(ada.locator(".note")).to_have_text(["Ben joined"])
    # The history is in the memory of the server: what was said there meanwhile, if anything, nobody has any more.
    for page in (ada, ben):
        await expect(page.locator(".gap")).to_have_count(1)
    assert await log(ada).locator(".message, .gap").evaluate_all(KINDS) == ["message", "gap", "message", "message"]


async def test_messages_missed_while_offline_come_once_and_in_order(visit):
    ada, ben = await visit("Ada"), await visit("Ben")
    await say(ada, "one")
    await expect(ben.locator(".bubble")).to_have_text("one")

    await ben.context.set_offline(True)
    await expect(link_state(ben, "offline")).to_be_visible()
    await expect(ben.locator(".banner")).to_contain_text("You are offline")
    await say(ben, "three")
    await say(ada, "two")
    await expect(ada.locator(".message.own:not(.pending)")).to_have_count(2)

    await ben.context.set_offline(False)
    await expect(link_state(ben, "open")).to_be_visible()
    await expect(ada.locator(".message .bubble")).to_have_text(["one", "two", "three"])
    await expect(ben.locator(".message:not(.pending) .bubble")).to_have_text(["one", "two", "three"])
    await expect(ben.locator(".gap")).to_have_count(0)


async def test_rooms_are_made_found_and_counted(visit):
    ada, ben = await visit("Ada"), await visit("Ben")
    await ada.get_by_label("Name of a new room").fill("Lunch  Plans")
    await ada.get_by_label("Name of a new room").press("Enter")
    await expect(ada.get_by_role("heading", level=1)).to_have_text("lunch-plans")
    await say(ada, "Noodles?")

    await ben.get_by_role("list", name="Open to join").get_by_role("button", name="lunch-plans").click()
    await expect(ben.locator(".bubble")).to_have_text("Noodles?")
    await expect(member(ada, "Ben")).to_be_visible()

    await say(ben, "In the other room")
    general = ada.get_by_role("list", name="Your rooms").get_by_role("button", name="general")
    await ben.get_by_role("list", name="Your rooms").get_by_role("button", name="general").click()
    await say(ben, "Anybody here?")
    await expect(general.locator(".badge")).to_have_text("1 unread")
    assert (await ada.title()).startswith("(1) ")
    await general.click()
    await expect(ada.locator(".new-line")).to_be_visible()
    await expect(ada.locator(".bubble")).to_have_text("Anybody here?")
    await expect(general.locator(".badge")).to_have_count(0)

    for page in (ada, ben):
        await page.get_by_role("button", name="lunch-plans").click()
        await page.get_by_role("button", name="Leave", exact=True).click()
    await expect(ada.get_by_role("button", name="lunch-plans")).to_have_count(0)


async def test_what_people_type_is_never_html(visit):
    name, text = (
        "<b>Eve</b>",
        "<img src=x onerror=\"document.title='hacked'\"><script>1</script> https://example.org/?a=<b>",
    )
    eve, ada = await visit(name), await visit("Ada")
    await say(eve, text)
    for page in (eve, ada):
        await expect(page.locator(".bubble")).to_have_text(text)
        await expect(page.locator(".log :is(img, script, b), #members b")).to_have_count(0)
        assert await page.title() == "#general · street_fast chat"
    link = ada.locator(".bubble a")
    await expect(link).to_have_attribute("href", "https://example.org/?a=")
    await expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")


async def test_the_page_may_load_nothing_from_elsewhere(visit):
    page = await visit()
    response = await page.reload()
    policy = (await response.all_headers())["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


async def test_two_tabs_of_a_browser_are_one_member(visit):
    ben = await visit("Ben")
    first = await visit("Ada")
    second = await visit("Ada", context=first.context)
    await expect(first.locator("#members .member")).to_have_count(2)
    await say(first, "from the first tab")
    await expect(second.locator(".message.own .bubble")).to_have_text("from the first tab")

    await second.close()
    await say(ben, "still there?")
    await expect(first.locator(".message:not(.own) .bubble")).to_have_text("still there?")
    await expect(ben.locator("#members .member")).to_have_count(2)
    await expect(log(ben)).not_to_contain_text("Ada left")


async def test_the_same_name_elsewhere_is_somebody_else(visit):
    ada = await visit("Ada")
    other = await visit("Ada")
    await expect(member(ada, "Ada")).to_have_count(2)
    await expect(member(other, "Ada")).to_have_count(2)


async def test_a_phone_shows_all_of_it(visit):
    page = await visit("Ada", viewport={"width": 380, "height": 780}, has_touch=True, is_mobile=True, room="general")
    await say(page, "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz" * 4)
    await expect(page.locator(".message:not(.pending)")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") == 380
    assert await page.evaluate("document.querySelector('.log').scrollWidth <= 380")

    await expect(page.get_by_label("Name of a new room")).to_be_hidden()
    await page.get_by_role("button", name="Rooms").tap()
    await page.get_by_role("button", name="ideas").tap()
    await expect(page.get_by_role("heading", level=1)).to_have_text("ideas")
    await expect(page.get_by_label("Name of a new room")).to_be_hidden()

    await page.get_by_role("button", name="Members: 1").tap()
    await expect(member(page, "Ada")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(member(page, "Ada")).to_be_hidden()


async def test_the_keyboard_is_enough(visit):
    page = await visit()
    await expect(page.get_by_label("Your name", exact=True)).to_be_focused()
    await page.keyboard.type("Ada")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Message to general")).to_be_focused()
    await page.keyboard.type("one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    await page.keyboard.press("Enter")
    await expect(page.locator(".message:not(.pending) .bubble")).to_have_text("one\ntwo", use_inner_text=True)

    new_room = page.get_by_label("Name of a new room")
    while not await new_room.evaluate("field => field === document.activeElement"):
        await page.keyboard.press("Shift+Tab")
    await page.keyboard.type("quiet corner")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Message to quiet-corner")).to_be_focused()
    await page.keyboard.type("a draft")
    await page.keyboard.press("Alt+ArrowUp")
    await expect(page.get_by_label("Message to general")).to_have_value("")
    await page.keyboard.press("Alt+ArrowDown")
    await expect(page.get_by_label("Message to quiet-corner")).to_have_value("a draft")


async def test_a_name_that_nobody_can_read_is_refused(visit, demo):
    page = await visit()
    name = page.get_by_label("Your name", exact=True)
    for bad in ("   ", "a\u202eb"):
        await name.fill(bad)
        await name.press("Enter")
        await expect(page.get_by_role("alert").first).not_to_be_empty()
        await expect(page.locator("#app")).to_be_hidden()
    for query in ("", "user=%20", "user=%00", "user=a%E2%80%AEb", f"user={'x' * 33}"):
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{demo.port}/realtime?{query}")
        assert refused.value.response.status_code == 401, query


WELCOME = {
    "type": "welcome",
    "data": {
        "id": "c1",
        "member": {"id": "Ada~1"},
        "heartbeatMs": 25_000,
        "limits": {
            "messageBytes": 16_384,
            "channels": 128,
            "channelNameBytes": 255,
            "messagesPerSecond": 20,
            "messagesBurst": 40,
        },
    },
}


async def test_a_final_close_code_is_not_fought(visit):
    page = await visit()
    opened: list[WebSocketRoute] = []

    def serve(route: WebSocketRoute) -> None:
        opened.append(route)
        route.send(json.dumps(WELCOME))

    await page.route_web_socket("**/realtime?*", serve)
    await page.get_by_label("Your name", exact=True).fill("Ada")
    await page.get_by_label("Your name", exact=True).press("Enter")
    await expect(link_state(page, "open")).to_be_visible()
    await opened[0].close(code=1008, reason="not in this house")
    await expect(page.locator(".banner")).to_contain_text("not in this house")
    await expect(link_state(page, "ended")).to_be_visible()
    await say(page, "anybody?")
    await page.evaluate("dispatchEvent(new Event('online'))")
    assert len(opened) == 1

    await page.get_by_role("button", name="Connect again").click()
    await expect(link_state(page, "open")).to_be_visible()
    await opened[1].close(code=1012, reason="restart")
    await expect(link_state(page, "open")).to_be_visible()
    assert len(opened) == 3, "1012 asks to come back, and the page did so by itself"
    await expect(page.locator(".message.pending .bubble")).to_have_text("anybody?")


async def test_what_is_said_after_the_end_is_sent_when_it_goes_on(visit, demo):
    ada, ben = await visit(), await visit("Ben")
    opened: list[WebSocketRoute] = []

    def serve(route: WebSocketRoute) -> None:
        opened.append(route)
        route.connect_to_server()

    await ada.route_web_socket("**/realtime?*", serve)
    await ada.get_by_label("Your name", exact=True).fill("Ada")
    await ada.get_by_label("Your name", exact=True).press("Enter")
    await expect(link_state(ada, "open")).to_be_visible()
    await opened[0].close(code=4029, reason="slow down")
    await expect(link_state(ada, "ended")).to_be_visible()
    await say(ada, "one")
    await say(ada, "two")
    await expect(ada.locator(".message.pending")).to_have_count(2)
    await expect(ada.locator(".not-sent")).to_have_count(0)
    await ada.get_by_role("button", name="Connect again").click()
    for page in (ada, ben):
        await expect(page.locator(".message:not(.pending) .bubble")).to_have_text(["one", "two"])


async def test_what_the_server_does_not_take_says_so_and_can_be_tried_again(visit):
    ada, ben = await visit(), await visit("Ben")
    refusing = True

    def serve(route: WebSocketRoute) -> None:
        server = route.connect_to_server()

        def sent(message: str | bytes) -> None:
            event = json.loads(message)
            if refusing and event["type"] == "publish":
                route.send(json.dumps({**event, "type": "error", "data": {"code": "rate_limited", "message": "no"}}))
            else:
                server.send(message)

        route.on_message(sent)

    await ada.route_web_socket("**/realtime?*", serve)
    await ada.get_by_label("Your name", exact=True).fill("Ada")
    await ada.get_by_label("Your name", exact=True).press("Enter")
    await say(ada, "one")
    await say(ada, "two")
    await expect(ada.locator(".not-sent")).to_have_count(2)
    await expect(ada.locator(".not-sent").first).to_contain_text("Not sent. Too many messages at once.")
    refusing = False
    await ada.get_by_role("button", name="Drop it").first.click()
    await ada.get_by_role("button", name="Try again").click()
    for page in (ada, ben):
        await expect(page.locator(".message:not(.pending) .bubble")).to_have_text("two")
    await expect(ada.locator(".not-sent")).to_have_count(0)


async def test_a_private_note_reaches_one_member(visit):
    ada, ben, eve = await visit("Ada"), await visit("Ben"), await visit("Eve")
    second = await visit("Ben", context=ben.context)
    text = "<b>psst</b>"
    await member(ada, "Ben").click()
    await ada.get_by_role("textbox", name="Note to Ben").fill(text)
    await ada.keyboard.press("Enter")
    await expect(toasts(ada)).to_contain_text("Sent to Ben")
    await expect(member(ada, "Ben").get_by_role("button")).to_be_focused()
    for page in (ben, second):
        await expect(toasts(page)).to_contain_text("Ada · private")
        await expect(toasts(page)).to_contain_text(text)

    await second.get_by_role("button", name="Answer").click()
    await second.get_by_role("button", name="Just wave").click()
    await expect(toasts(ada)).to_contain_text("Ben · private")
    await ada.get_by_role("listitem").filter(has_text="Ben · private").get_by_role("button", name="Dismiss").click()
    await expect(ada.locator(".toast", has_text="Ben · private")).to_have_count(0)

    await say(eve, "a message for all")
    await expect(ada.locator(".bubble")).to_have_text("a message for all")
    await expect(eve.locator(".toast")).to_have_count(0)
    for page in (ada, ben, eve):
        await expect(log(page)).not_to_contain_text("psst")


async def test_a_private_note_to_somebody_who_is_gone_is_not_lost_silently(visit):
    ada, ben = await visit("Ada"), await visit("Ben")
    await member(ada, "Ben").click()
    await ben.close()
    await ada.get_by_role("textbox", name="Note to Ben").fill("still there?")
    await expect(member(ada, "Ben")).to_have_count(0)
    await ada.keyboard.press("Enter")
    await expect(toasts(ada)).to_contain_text("Not sent. Ben is not here.")
    await expect(toasts(ada)).to_contain_text("still there?")

    again = await visit("Ben", context=ben.context)
    await ada.get_by_role("button", name="Try again").click()
    await expect(toasts(again)).to_contain_text("still there?")


async def test_what_is_not_sent_outlives_a_reload(visit, demo):
    ada = await visit("Ada")
    await demo.stop(signal.SIGTERM)
    await expect(ada.locator(".banner")).to_be_visible()
    await say(ada, "before the reload")
    await demo.start()
    await ada.reload()
    await expect(ada.locator(".message:not(.pending) .bubble")).to_have_text("before the reload")
    await ada.reload()
    await expect(ada.locator(".message:not(.pending) .bubble")).to_have_text("before the reload")


async def test_who_leaves_a_room_with_something_unsent_is_asked(visit, demo):
    ada = await visit("Ada")
    await demo.stop(signal.SIGTERM)
    await expect(ada.locator(".banner")).to_be_visible()
    await say(ada, "unsent")
    asked: list[str] = []

    async def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        await (dialog.accept() if len(asked) > 1 else dialog.dismiss())

    ada.on("dialog", answer)
    leave = ada.get_by_role("button", name="Leave", exact=True)
    await leave.click()
    await expect(ada.locator(".message.pending")).to_have_count(1)
    await leave.click()
    await expect(ada.get_by_role("heading", level=1)).to_have_text("No room")
    assert asked == ["A message is not sent yet and will be lost."] * 2


async def test_the_status_line_says_how_far_the_server_is(visit, demo):
    page = await visit("Ada")
    await expect(link_state(page, "open")).to_have_text(re.compile(r"^Connected(< 1|\d+) ms$"))
    await demo.stop(signal.SIGTERM)
    await expect(link_state(page, "open")).to_have_count(0)
    await expect(page.locator(".latency")).to_have_count(0)


class Tunnel:
    """Carries the WebSockets of a page, with a delay. What it is to carry waits once it is on `hold`, and is dropped
    while it is `blocked`."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.blocked = False
        self.count = 0
        self._waiting: list[tuple[Callable[[str | bytes], None], str | bytes]] | None = None

    def hold(self) -> None:
        self._waiting = []

    def release(self) -> None:
        waiting, self._waiting = self._waiting, None
        for send, message in waiting or ():
            self._carry(send, message)

    def _carry(self, send: Callable[[str | bytes], None], message: str | bytes) -> None:
        if self._waiting is None:
            asyncio.get_running_loop().call_later(self.delay_s, send, message)
        else:
            self._waiting.append((send, message))

    def carry(self, route: WebSocketRoute) -> None:
        self.count += 1
        blocked_with = self.blocked
        server = route.connect_to_server()

        def through(send: Callable[[str | bytes], None]) -> Callable[[str | bytes], None]:
            def receive(message: str | bytes) -> None:
                if self.blocked == blocked_with:
                    self._carry(send, message)

            return receive

        route.on_message(through(server.send))
        server.on_message(through(route.send))


async def test_a_tab_that_slept_for_an_hour_comes_back(visit):
    ada, tunnel = await visit("Ada"), Tunnel()
    ben = await visit(tunnel=tunnel, clock=True)
    await ben.get_by_label("Your name", exact=True).fill("Ben")
    await ben.get_by_label("Your name", exact=True).press("Enter")
    await say(ada, "good night")
    await expect(ben.locator(".bubble")).to_have_text("good night")

    tunnel.blocked = True  # what is on its way to a laptop that sleeps
    for text in ("one", "two"):
        await say(ada, text)
    await expect(ada.locator(".message:not(.pending)")).to_have_count(3)
    await ben.clock.fast_forward("01:00:00")
    await expect(ben.locator(".message .bubble")).to_have_text(["good night", "one", "two"])
    await expect(link_state(ben, "open")).to_be_visible()
    await expect(ben.locator(".gap")).to_have_count(0)
    assert tunnel.count == 2
    await say(ben, "good morning")
    await expect(ada.locator(".bubble").last).to_have_text("good morning")


async def test_where_websockets_are_blocked_the_page_talks_all_the_same(visit):
    ada, ben = await visit(), await visit("Ben")
    await ada.route_web_socket("**/realtime?*", lambda route: route.close(code=1006))
    streams: list[str] = []
    ada.on("request", lambda request: "/realtime/sse" in request.url and streams.append(request.url))
    await ada.get_by_label("Your name", exact=True).fill("Ada")
    await ada.get_by_label("Your name", exact=True).press("Enter")
    await expect(link_state(ada, "open")).to_be_visible()
    assert len(streams) == 1
    await expect(member(ben, "Ada")).to_be_visible()
    await ada.locator("#message").press_sequentially("He")
    await expect(ben.locator("#typing")).to_have_text("Ada is typing")
    await say(ada, "Hello Ben")
    await expect(ada.locator(".message.own:not(.pending) .bubble")).to_have_text("Hello Ben")
    await say(ben, "Hello Ada")
    for page in (ada, ben):
        await expect(page.locator(".message .bubble")).to_have_text(["Hello Ben", "Hello Ada"])
    await expect(ada.locator(".latency")).to_contain_text("ms")


async def test_a_slow_network_changes_the_time_and_nothing_else(visit):
    tunnel = Tunnel(delay_s=0.3)
    ada = await visit("Ada", tunnel=tunnel)
    ben = await visit("Ben")
    tunnel.hold()
    for number in range(5):
        await say(ada, str(number))
    await expect(ada.locator(".message.pending")).to_have_count(5)
    tunnel.release()
    for page in (ada, ben):
        await expect(page.locator(".message:not(.pending) .bubble")).to_have_text([str(n) for n in range(5)])
    await expect(ada.locator(".latency")).to_have_text(re.compile(r"[6-9]\d\d ms|\d s$"))


async def test_signing_out_leads_to_the_door(visit):
    ada, ben = await visit("Ada"), await visit("Ben")
    await ben.get_by_role("button", name="Change your name").click()
    await expect(ben.get_by_label("Your name", exact=True)).to_have_value("Ben")
    await expect(member(ada, "Ben")).to_have_count(0)
    await ben.get_by_label("Your name", exact=True).fill("Cleo")
    await ben.get_by_label("Your name", exact=True).press("Enter")
    await expect(member(ada, "Cleo")).to_be_visible()
    assert await ben.title() == "#general · street_fast chat"


async def test_the_theme_is_kept(visit):
    page = await visit("Ada", color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(background)
    await page.get_by_role("button", name="Switch between light and dark").click()
    dark = await page.evaluate(background)
    assert dark != light
    await page.reload()
    assert await page.evaluate(background) == dark
