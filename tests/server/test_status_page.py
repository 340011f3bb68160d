"""The status page in a real browser: load, a chat, and a policy that holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from served import serving

from kvant.server.keys import KeyFile
from kvant.server.page import page, policy

PROGRAM = browser.find()
wants_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")


@pytest.fixture
def window(tmp_path: Path) -> Iterator[browser.Browser]:
    assert PROGRAM is not None
    found = browser.Browser(PROGRAM, tmp_path / "profile")
    yield found
    found.close()


@wants_browser
def test_load_and_chat(window: browser.Browser, tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--model", "demo", "--kv-tokens", "8192") as server:
        window.open(server.url)
        window.until("document.getElementById('models').rows.length == 1")
        assert window.value("document.querySelector('#models td').textContent") == "demo"
        assert window.value("document.getElementById('running').textContent") == "0"
        window.until("document.getElementById('model').value == 'demo'")
        window.value(
            "document.getElementById('text').value = 'Once <b>upon</b> a time';"
            "document.getElementById('ask').requestSubmit()"
        )
        window.until("document.body.dataset.answered == '2'")
        said = window.value("document.querySelector('#talk .user').innerHTML")
        assert said == "Once &lt;b&gt;upon&lt;/b&gt; a time"
        assert window.value("document.querySelector('#talk .model').textContent.length") > 0
        window.until("parseFloat(document.getElementById('rate').textContent) >= 0")
        assert window.problems() == []
        # What somebody slips into the page does not run, and reaches no other server.
        window.value(
            "var s = document.createElement('script'); s.textContent = 'window.evil = 1';"
            "document.body.append(s)"
        )
        assert window.value("window.evil === undefined")
        refused = "fetch('http://127.0.0.2:9/').then(() => 'reached', () => 'refused')"
        assert window.value(refused) == "refused"
        assert any("Content Security Policy" in p for p in window.problems())


@wants_browser
def test_with_a_key(window: browser.Browser, tmp_path: Path) -> None:
    home = tmp_path / "home"
    _, secret = KeyFile(home).create("ann", "user")
    with serving(home, "--model", "demo", "--api-key-required") as server:
        window.open(server.url)
        window.until("document.getElementById('state').textContent == 'wants a key'")
        window.value(
            f"document.getElementById('key').value = {json.dumps(secret)};"
            "document.getElementById('key').dispatchEvent(new Event('change'))"
        )
        window.until("document.getElementById('models').rows.length == 1")


def test_policy_has_a_hash_for_each_part() -> None:
    response = page()
    text = bytes(response.body).decode()
    assert policy(text).count("sha256-") == 2
    assert text.count("<script>") == text.count("<style>") == 1
    assert " style=" not in text
    assert " onclick=" not in text
    assert policy(text.replace("look();", "evil();")) != policy(text)
