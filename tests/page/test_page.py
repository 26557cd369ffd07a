from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import ANSWER, SAID, sound  # type: ignore[attr-defined]

from moss_audio.inference.spans import Span
from moss_audio.tasks import sounds
from moss_audio.tasks.sounds import Named

STATIC = Path(__file__).parents[2] / "moss_audio" / "server" / "static"


def load(page, clip):
    page.set_input_files("#file", clip)
    page.wait_for_selector("#stage[aria-valuemax='3.0']")


def transcribe(page):
    page.click("#transcribe")
    page.wait_for_selector("#exports:not([hidden])")


def ask(page, question):
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector("#send[aria-label=Send]")


def saved(page, button) -> bytes:
    with page.expect_download() as waiting:
        page.click(button)
    return Path(waiting.value.path()).read_bytes()


def colours(page, canvas) -> int:
    """How many colours a canvas shows."""
    return page.evaluate(
        """id => { const c = document.getElementById(id);
        const data = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer);
        return new Set(data).size; }""",
        canvas,
    )


def test_a_recording_is_drawn_and_named(page, clip):
    load(page, clip)
    assert page.text_content("#name") == "walk.wav" and page.text_content("#duration") == "0:03"
    assert colours(page, "wave") > 1 and colours(page, "spectrogram") > 50
    assert page.text_content("#model") == "mini"


def test_a_dropped_file_opens(page, clip):
    data = page.evaluate_handle(
        """bytes => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "dropped.wav")); return data; }""",
        list(clip.read_bytes()),
    )
    page.dispatch_event("#welcome", "dragover", {"dataTransfer": data})
    assert page.evaluate("document.body.classList.contains('dropping')")
    page.dispatch_event("#welcome", "drop", {"dataTransfer": data})
    page.wait_for_selector("#name:text('dropped.wav')")


def test_a_transcript_has_words_that_seek_and_follow(page, clip):
    load(page, clip)
    transcribe(page)
    assert " ".join(page.text_content("#transcript").split()).endswith("The boats came home.")
    words = page.query_selector_all("#transcript .word")
    assert [word.text_content() for word in words] == SAID.split()
    words[3].click()
    page.wait_for_selector("#transcript .word.now:text('the')")
    assert 0 < float(page.get_attribute("#stage", "aria-valuenow")) < 3
    page.click("#transcript .time >> nth=1")
    page.wait_for_selector("#transcript .word.now:text('The')")


def test_a_transcript_is_saved_as_srt_vtt_json_and_the_picture_as_png(page, clip):
    load(page, clip)
    transcribe(page)
    srt = saved(page, "[data-export=srt]").decode()
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\nWe walked along the river\.\n\n2\n", srt)
    vtt = saved(page, "[data-export=vtt]").decode()
    assert vtt.startswith("WEBVTT\n\n00:00:0") and vtt.count(" --> ") == 2
    document = json.loads(saved(page, "[data-export=json]"))
    assert document["text"] == SAID and document["segments"][0]["words"][1]["word"] == "walked"
    assert saved(page, "#export-png").startswith(b"\x89PNG")


def test_questions_are_answered_in_a_conversation(page, clip):
    load(page, clip)
    bodies = []
    page.on("request", lambda request: "chat" in request.url and bodies.append(request.post_data_json))
    ask(page, "What is told?")
    assert [node.text_content() for node in page.query_selector_all(".bubble.answer p")] == ANSWER.split("\n\n")
    ask(page, "And how?")
    first, second = bodies
    assert [part["type"] for part in first["messages"][0]["content"]] == ["input_audio", "text"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == ANSWER and second["messages"][2]["content"] == "And how?"


def test_events_lie_under_the_outline_and_seek(page, clip, monkeypatch):
    heard = [Named(Span(0.4, 1.2), "dog barking", 0.9), Named(Span(1.0, 2.5), "siren", 0.9)]
    monkeypatch.setattr(sounds, "name_spans", lambda listener, part: heard)
    load(page, clip)
    page.click("#find-events")
    page.wait_for_selector("#timeline button")
    dog, siren = page.query_selector_all("#timeline button")
    assert dog.get_attribute("aria-label") == "dog barking, 0:00.4 to 0:01.2"
    assert dog.query_selector(".bar").bounding_box()["width"] > 100
    assert siren.bounding_box()["y"] > dog.bounding_box()["y"]  # they overlap, so each has a lane
    siren.click()
    page.wait_for_selector("#timeline button.now .label:text('siren')")
    assert page.get_attribute("#stage", "aria-valuenow") == "1.0"
    page.click("#log .time >> nth=1")
    page.wait_for_selector("#stage[aria-valuenow='1.2']")


def test_tasks_show_typed_results(page, clip):
    load(page, clip)
    page.click("#tasks button:text('Describe')")
    page.wait_for_selector("#log h3:text('Describe')")
    assert "along a river" in page.text_content("#log")
    page.click("#tasks button:text('Choose')")
    page.fill("#option-question", "Who speaks?")
    page.fill("#option-choices", "a man\na woman")
    page.click("#options button.primary")
    page.wait_for_selector("#log h3:text('Choose')")
    assert re.search("answera (wo)?man", page.text_content("#log dl")) and "usage" not in page.text_content("#log")
    page.click("#tasks button:text('Practice')")
    page.keyboard.press("Escape")
    assert not page.is_visible("#options")


def test_every_task_of_the_page_is_one_of_the_servers():
    from moss_audio.tasks import TASKS

    listed = (STATIC / "tasks.js").read_text("utf-8").split("TASKS = {")[1].split("}")[0]
    names = re.findall(r"^\s+(\w+):", listed, re.MULTILINE)
    assert set(names) == set(TASKS) - {"transcribe", "ask"}  # those have their own panels


def test_an_answer_can_be_stopped(page, clip, backend):
    load(page, clip)
    backend.pause = 0.1
    try:
        page.fill("#question", "What is told?")
        page.click("#send")
        page.wait_for_selector(".bubble.answer p:text-matches('^A wo')")
        page.click("#send[aria-label=Stop]")
        page.wait_for_selector("#send[aria-label=Send]")
    finally:
        backend.pause = 0.0
    assert "Stopped." in page.text_content("#log") and page.is_hidden("#notice")


def test_what_a_model_writes_is_text_and_nothing_else(page, clip):
    load(page, clip)
    evil = "<img src=x onerror=alert(1)><script>document.title='owned'</script>"
    chunk = {"choices": [{"index": 0, "delta": {"content": evil}}]}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        content_type="text/event-stream", body=f"data: {json.dumps(chunk)}\r\n\r\ndata: [DONE]\r\n\r\n"))  # fmt: skip
    ask(page, "<b>bold</b>?")
    assert page.text_content(".bubble.answer") == evil and page.text_content(".bubble.question") == "<b>bold</b>?"
    assert page.query_selector("#log img, #log script, #log b") is None


def test_no_module_parses_html_or_reaches_another_host():
    for path in STATIC.glob("*.*"):
        text = path.read_text("utf-8").replace("http://www.w3.org/", "")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(", text), path
        assert not re.search(r"https?://|\sstyle=|\son\w+=\"", text), path


def test_long_recordings_show_progress(page, tmp_path, backend):
    page.set_input_files("#file", sound(tmp_path / "long.wav", 75.0))
    page.wait_for_selector("#stage[aria-valuemax='75.0']")
    backend.pause = 0.003
    try:
        page.click("#transcribe")
        page.wait_for_selector("#progress-label:text-matches('0:[1-5][0-9] of 1:15')")
        assert 0 < page.evaluate("document.getElementById('progress-bar').value") < 1
        assert page.query_selector("#transcript li") is not None
    finally:
        backend.pause = 0.0
    page.wait_for_selector("#exports:not([hidden])")
    assert page.is_hidden("#progress")


REFUSED = {
    404: "does not offer", 413: "too large", 415: "cannot read", 422: "refused", 500: "went wrong", 503: "not ready",
}  # fmt: skip


def test_refusals_are_said_in_plain_words(page, clip):
    load(page, clip)
    refused = list(REFUSED)
    error = {"error": {"message": "told by the server", "type": "x", "param": None, "code": "x"}}
    page.route("**/v1/audio/**", lambda route: route.fulfill(status=refused.pop(0), json=error))
    for words in REFUSED.values():
        page.click("#transcribe")
        page.wait_for_selector(f"#notice strong:has-text('{words}')")
        assert "told by the server" in page.text_content("#notice") and page.is_visible("#transcribe")


def test_the_servers_own_refusals_reach_the_page(new_page, serve, tmp_path):
    url = serve(max_body_bytes=1 << 20, burst=6, requests_per_minute=1)
    page = new_page(url)
    for name, content, headline, detail in (
        ("large.wav", sound(tmp_path / "large.wav", 120.0).read_bytes(), "too large", "valid: up to 1048576"),
        ("notes.txt", b"no recording", "cannot read this kind of file", "is not audio or video"),
    ):
        page.set_input_files("#file", {"name": name, "mimeType": "audio/wav", "buffer": content})
        page.click("#transcribe")
        page.wait_for_selector(f"#notice strong:has-text('{headline}')")
        assert detail in page.text_content("#notice p") and page.get_attribute("#notice", "role") == "alert"
    while page.is_hidden("#notice button:text('Try again')"):
        page.click("#transcribe")
        page.wait_for_selector("#notice p")
    assert re.search(r"fewer\. Try again in \d+ s\.$", page.text_content("#notice p"))


def test_a_busy_server_is_tried_again_when_it_said(page, clip):
    load(page, clip)
    page.route("**/v1/audio/**", lambda route: route.fulfill(
        status=429, headers={"Retry-After": "2"}, json={"error": {"message": "slow down"}}), times=1)  # fmt: skip
    page.click("#transcribe")
    page.wait_for_selector("#notice button:disabled:text('Try again (')")
    page.click("#notice button:text-is('Try again')")
    page.wait_for_selector("#exports:not([hidden])")
    assert page.is_hidden("#notice")


def test_a_server_that_is_gone_is_said(page, clip):
    load(page, clip)
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "Hello?")
    assert "cannot be reached" in page.text_content("#notice")
    assert page.input_value("#question") == "Hello?" and page.text_content("#log") == ""


def test_a_key_is_asked_for_and_kept_for_the_tab(new_page, serve, clip):
    from moss_audio.server.keys import ApiKeys
    from moss_audio.server.settings import Settings

    secret = "a-key-of-at-least-24-characters"
    page = new_page(serve(ApiKeys.read(Settings(), secret)))
    page.wait_for_selector("#key[open]")
    assert "asks for an API key" in page.text_content("#key")
    page.fill("#key-value", "wrong")
    page.press("#key-value", "Enter")
    page.wait_for_selector("#key-why:text('does not know this key')")
    page.fill("#key-value", secret)
    page.click("text=Use this key")
    page.wait_for_selector("#model:text('mini')")
    load(page, clip)
    transcribe(page)
    assert page.evaluate("sessionStorage.getItem('moss-audio-key')") == secret
    assert page.evaluate("JSON.stringify(localStorage)") == "{}"


def test_history_keeps_and_deletes(page, clip):
    load(page, clip)
    transcribe(page)
    ask(page, "What is told?")
    page.reload()
    page.click("#open-history")
    page.click("#sessions .entry")
    page.wait_for_selector("#transcript .word")
    assert page.text_content("#name") == "walk.wav" and "calm" in page.text_content("#log")
    page.click("#open-history")
    page.click("#sessions [aria-label='Delete walk.wav']")
    page.wait_for_selector("#sessions :text('Nothing yet')")


def test_the_microphone_makes_a_recording(page):
    page.click("#record")
    page.wait_for_selector("#recorded:text('0:01')")
    page.click("#record-stop")
    page.wait_for_selector("#stage:not([aria-valuemax='0'])")
    assert page.text_content("#name").startswith("Recording ") and page.text_content("#duration") != "0:00"
    assert colours(page, "wave") > 1


def test_everything_works_from_the_keyboard(page, clip):
    load(page, clip)
    focused = "document.activeElement.id"
    page.wait_for_selector("#stage:focus")
    for key, value in (("ArrowRight", "1.0"), ("End", "3.0"), ("ArrowLeft", "2.0"), ("Home", "0.0")):
        page.keyboard.press(key)
        page.wait_for_selector(f"#stage[aria-valuenow='{value}']")
    assert page.get_attribute("#stage", "aria-valuetext") == "0 seconds of 3 seconds"
    page.keyboard.press("Space")
    page.wait_for_selector("#play[aria-label=Pause]")
    page.keyboard.press("Space")
    page.wait_for_selector("#play[aria-label=Play]")
    page.focus("#transcribe")
    page.keyboard.press("Enter")
    page.wait_for_selector("#transcript:focus")
    page.focus("#find-events")
    page.keyboard.press("Enter")
    page.wait_for_selector("#timeline button")
    assert page.evaluate(focused) == "find-events"
    names = reached(page)
    assert {"play", "stage", "transcript", "question", "send", "theme", "open-history", "to-live"} <= names
    page.focus("#open-history")
    page.keyboard.press("Enter")
    page.wait_for_selector("#history[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#history:not([open])", state="hidden")
    assert page.evaluate(focused) == "open-history"


def reached(page) -> set[str]:
    """What Tab reaches."""
    names = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.id"))
    return names


def test_the_theme_is_the_systems_until_one_is_chosen(new_page, address):
    page = new_page(address, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.click("#theme")
    assert page.evaluate(background) != dark
    page.reload()
    assert page.evaluate(background) != dark and page.get_attribute("#theme", "aria-pressed") == "false"


def test_nothing_is_wider_than_the_window(page, clip):
    def check(state):
        for width in (360, 768, 1280, 1920):
            page.set_viewport_size({"width": width, "height": 740})
            root = "document.documentElement"
            assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), (state, width)
            outside = page.evaluate("""() => [...document.querySelectorAll(".card button, .card select")].filter(e => {
                const [own, card] = [e.getBoundingClientRect(), e.closest(".card").getBoundingClientRect()];
                return own.width && (own.right > card.right - 14 || own.left < card.left + 2); }).map(e => e.id)""")
            assert not outside, (state, width)

    check("empty")
    load(page, clip)
    transcribe(page)
    ask(page, "What is told? " + "averylongword" * 20)
    check("full")
    page.click("#to-live")
    check("live")


def test_fingers_find_what_they_touch(new_page, address, clip):
    """On a phone every control is 32 pixels or more each way, and nothing lies beside the screen."""
    page = new_page(address, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)

    def check(state):
        small = page.evaluate("""() => [...document.querySelectorAll("button, select, input, textarea, [role=slider]")]
            .map(e => [e.id || e.textContent, e.getBoundingClientRect()])
            .filter(([, box]) => box.width && (box.width < 32 || box.height < 32 || box.right > 360))
            .map(([name]) => name)""")
        assert not small, state

    check("empty")
    load(page, clip)
    transcribe(page)
    ask(page, "What is told?")
    check("full")
    for opened in ("#open-history", "#open-key"):
        page.click(opened)
        page.wait_for_selector("dialog[open]")
        check(opened)
        page.evaluate("document.querySelector('dialog[open]').close()")
    page.click("#to-live")
    check("live")


def test_the_clock_of_a_live_session_is_not_read_aloud(page):
    page.evaluate("""() => { const state = document.getElementById("live-state"); window.said = [];
        new MutationObserver(() => said.push(state.textContent)).observe(state, {childList: true}); }""")
    page.click("#to-live")
    page.click("#live-start")
    page.wait_for_selector("#live-clock:text('0:02')")
    assert page.evaluate("said") == ["Connecting…", "Listening."]
    assert {page.get_attribute(f"#live-{part}", "role") for part in ("clock", "state")} == {"timer", "status"}


def test_live_captions_and_sounds_come_as_they_are_heard(page):
    page.click("#to-live")
    page.click("#live-start")
    page.wait_for_selector("#captions p")
    page.wait_for_selector("#sounds p")
    assert page.text_content("#captions p") == SAID and "along a river" in page.text_content("#sounds p span")
    assert {page.get_attribute(log, "aria-live") for log in ("#captions", "#sounds")} == {"polite"}
    page.click("#live-start")
    page.wait_for_selector("#live-state:text('Not listening.')")
    assert SAID in saved(page, "#live-save").decode() and page.is_hidden("#notice")


def test_a_live_session_that_is_cut_off_is_said(page):
    page.route_web_socket("**/v1/realtime", lambda socket: socket.close(code=1008, reason="a session lasts 3 s"))
    page.click("#to-live")
    page.click("#live-start")
    page.wait_for_selector("#notice:has-text('a session lasts 3 s')")
    assert page.text_content("#live-start-label") == "Start listening"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(new_page, address, clip, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # The page's own policy forbids scripts from outside, axe's too.
    page = new_page(address, color_scheme=scheme, bypass_csp=True)

    def check(state):
        found = axe.run(page).response["violations"]
        nodes = [(rule["id"], node["target"], node["failureSummary"]) for rule in found for node in rule["nodes"]]
        assert not nodes, (state, nodes)

    check("empty")
    load(page, clip)
    transcribe(page)
    ask(page, "What is told?")
    page.wait_for_timeout(100)
    check("full")
    page.click("#open-history")
    check("history")
    page.keyboard.press("Escape")
    page.click("#open-key")
    check("key")
    page.keyboard.press("Escape")
    page.click("#to-live")
    check("live")
    page.click("#to-recording")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "Hello?")
    check("refused")
