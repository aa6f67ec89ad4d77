"""examples/react_chat in a real browser: built as it says itself, two people, and a server that is restarted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import expect

from street_fast._core import COMPILED

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "clients/js"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not COMPILED, reason="the page is the same over both builds"),
    pytest.mark.skipif(not (CLIENT / "node_modules").exists(), reason="clients/js is not installed (npm ci)"),
]

expect.set_options(timeout=10_000)

EXECUTE = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"


def copy(source: Path, target: Path, modules: dict[str, Path]) -> None:
    """What is in the repository of `source`, and `modules` in place of what npm would install."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (target / "node_modules").mkdir()
    for name, module in modules.items():
        (target / "node_modules" / name).symlink_to(module)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of the example with the built page, of the same packages that the client is tested with."""
    folder = tmp_path_factory.mktemp("react_chat")
    installed = {path.name: path for path in (CLIENT / "node_modules").iterdir()}
    client, example = folder / "client", folder / "example"
    copy(CLIENT, client, installed)
    copy(ROOT / "examples/react_chat", example, installed | {"street-fast": client})
    for where in (client, example):
        command = ["npm", "run", "--silent", "build"]
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return example


@pytest_asyncio.fixture(loop_scope="module")
async def chat(built, start):
    """The running server, and the page that passes on to it."""
    server = await start("examples/react_chat/app.py")
    vite = ["node", str(built / "node_modules/vite/bin/vite.js"), "preview", str(built)]
    options = ["--host", "127.0.0.1", "--port", "{port}", "--strictPort"]
    page = await start("-c", EXECUTE, "env", f"REALTIME={server.url}", *vite, *options)
    return server, page


async def test_two_people_chat(chat, browser):
    server, page = chat
    people = []
    for name in ("ada", "ben"):
        person = await browser.new_page()
        await person.goto(page.url)
        await person.get_by_label("your name").fill(name)
        people.append(person)
    ada, ben = people
    await expect(ada.get_by_text("open, 2 here")).to_be_visible()

    await ada.get_by_label("your message").press_sequentially("hello")
    await expect(ben.get_by_text("somebody is typing")).to_be_visible()
    await ada.get_by_role("button", name="Send").click()
    await expect(ben.get_by_role("listitem")).to_have_text(["ada hello"])
    await expect(ben.get_by_text("somebody is typing")).not_to_be_visible()

    await ben.reload()  # what was said before comes from the history
    await expect(ben.get_by_role("listitem")).to_have_text(["ada hello"])

    await server.stop()
    await expect(ben.get_by_text("reconnecting")).to_be_visible()
    await ben.get_by_label("your message").fill("are you back?")
    await ben.get_by_role("button", name="Send").click()  # waits for a connection
    await server.start()
    await expect(ada.get_by_text("are you back?")).to_be_visible(timeout=40_000)  # as long as a reconnect may take
    for person in people:
        await expect(person.get_by_role("alert")).to_be_empty()
        await person.close()
