"""The page: its files, and what a person sees and does in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from serve.browser import NAMES, Browser, Tab, chromium, find_chromium
from serve.stand_in import StandIn, model_folder

import rerank.serve
from rerank.serve.settings import ServedModel

PAGE = Path(rerank.serve.__file__).parent / "page"
in_browser = [pytest.mark.slow, pytest.mark.needs("starlette", "uvicorn", "prometheus_client", "websockets")]
THREE = "first =1\nsecond =3\nthird =2"
SCHEMES = ["light", "dark"]
WIDTHS = [1280, 768, 360]


# -- the files ------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def tags() -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed((PAGE / "index.html").read_text("utf-8"))
    return parser.found


def scripts() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted(PAGE.glob("*.js"))}


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(tags):
    for path in PAGE.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.\w|@import|\burl\(", text), path.name
    for tag, attributes in tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
        assert tag != "style" and (tag != "script" or attributes.get("src"))
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("/page/", "#", "/docs"))


def test_texts_are_never_read_as_html():
    for name, text in scripts().items():
        bad = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|Function\(|srcdoc"
        assert not re.search(bad, text), name


def test_the_key_is_never_stored():
    for name, text in scripts().items():
        assert not re.search(r"localStorage|sessionStorage|indexedDB|cookie", text), name


def test_every_file_and_element_that_is_named_is_there(tags):
    files = {path.name for path in PAGE.iterdir()}
    names = {attributes["id"] for _, attributes in tags if "id" in attributes}
    for text in scripts().values():
        assert set(re.findall(r'from "\./([\w.]+)"', text)) <= files
        assert set(re.findall(r'\$\("([\w-]+)"\)', text)) <= names
    for _, attributes in tags:
        for name in ("for", "aria-describedby", "aria-labelledby"):
            assert attributes.get(name) is None or attributes[name] in names
        for name in ("src", "href"):
            value = attributes.get(name) or ""
            assert not value.startswith("/page/") or value.removeprefix("/page/") in files


@pytest.mark.needs("starlette", "prometheus_client", "httpx2")
def test_info_says_what_each_model_can_be_asked_for(tmp_path):
    from serve.stand_in import serving

    async def main() -> Any:
        models = ServedModel(model_folder(tmp_path / "ce"), "one"), ServedModel("bm25")
        async with serving(*models) as server:
            return (await server.client.get("/info")).json()["models"]

    names = ("name", "can_rerank", "can_search", "can_embed")
    found = [tuple(each[name] for name in names) for each in asyncio.run(main())]
    assert found == [("one", True, False, False), ("bm25", False, True, False)]


# -- a browser and servers ------------------------------------------------------------


class Contrary(StandIn):
    """The model `other` likes least what the rest like best."""

    async def start(self) -> Any:
        worker = await super().start()
        plain: Callable[[dict[str, Any]], dict[str, Any]] = worker._ask

        def ask(message: dict[str, Any]) -> dict[str, Any]:
            found = plain(message)
            if message["target"] == "other":
                found["answers"] = [[-score for score in row] for row in found["answers"]]
            return found

        worker._ask = ask  # type: ignore[method-assign]
        return worker


@dataclass
class Running:
    url: str
    service: Any
    worker: StandIn
    loop: asyncio.AbstractEventLoop

    def do(self, what: Callable[[], object]) -> None:
        """Calls it where the server runs."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (what(), done.set()))
        assert done.wait(10)


@contextlib.contextmanager
def running(*models: ServedModel, **settings: Any) -> Iterator[Running]:
    """A server on a socket, in a thread of its own, whose worker is a stand-in."""
    import uvicorn

    from rerank.serve.app import create_app
    from rerank.serve.server import listen
    from rerank.serve.service import Service
    from rerank.serve.settings import Settings
    from rerank.serve.supervisor import Patience

    bound = listen("127.0.0.1", 0)
    found: list[Running] = []
    is_up, stopping = threading.Event(), asyncio.Event()

    async def main() -> None:
        worker = Contrary()
        patience = Patience(heartbeat_seconds=5.0, silence_seconds=60.0, batch_seconds=60.0)
        service = Service(Settings(models=models, **settings), start_worker=worker.start, patience=patience)
        await service.open()
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, lifespan="off", ws="none"))
        serving = asyncio.ensure_future(server.serve(sockets=[bound]))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        found.append(Running(url, service, worker, asyncio.get_running_loop()))
        is_up.set()
        await stopping.wait()
        server.should_exit = server.force_exit = True
        await serving
        await service.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert is_up.wait(30)
        yield found[0]
    finally:
        if found:
            found[0].loop.call_soon_threadsafe(stopping.set)
        thread.join(30)
        bound.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(f"needs a Chromium: none of {', '.join(NAMES)} is installed")
    with chromium(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ServedModel]:
    folder = model_folder(tmp_path_factory.mktemp("models") / "ce")
    return [ServedModel(folder, "one"), ServedModel(folder, "other")]


@pytest.fixture(scope="module")
def server(models: list[ServedModel]) -> Iterator[Running]:
    """Two models, and a pipeline that searches."""
    with running(*models, ServedModel("bm25")) as found:
        yield found


@pytest.fixture
def tab(browser: Browser, server: Running) -> Iterator[Tab]:
    with shown(browser, server) as found:
        yield found
        assert found.errors == []


@contextlib.contextmanager
def shown(browser: Browser, server: Running, width: int = 1280, **media: str) -> Iterator[Tab]:
    """The page, once it knows what is served."""
    with browser.tab(server.url, width, **media) as tab:
        tab.until("document.querySelector('#first').value")
        yield tab


def fill(tab: Tab, name: str, text: str) -> None:
    tab.run(f"(document.getElementById('{name}').focus(), document.getElementById('{name}').select())")
    tab.type(text)


def choose(tab: Tab, name: str, value: str) -> None:
    """An entry of a list of choices, as a person would choose it."""
    tab.run(
        f"(() => {{ const one = document.getElementById('{name}'); one.value = {json.dumps(value)};"
        "one.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )


def click(tab: Tab, selector: str) -> None:
    tab.run(f"document.querySelector({json.dumps(selector)}).click()")


def ask(tab: Tab) -> None:
    """Presses the button and waits for the answer."""
    click(tab, "#go")
    tab.until("document.querySelector('#columns').getAttribute('aria-busy') === 'false'")


def order(tab: Tab, column: int = 1) -> list[str]:
    return tab.texts(f".column:nth-of-type({column}) .words")


# -- reranking ------------------------------------------------------------


class TestReranking:
    pytestmark = in_browser

    def test_one_click_shows_something(self, tab):
        assert tab.text("#said") == "Nothing was asked yet."
        ask(tab)
        assert re.fullmatch(r"one ordered 8 documents in [\d.]+ m?s: \d moved up, \d down\.", tab.text("#said"))
        assert len(order(tab)) == 8

    def test_where_each_document_moved_is_told_in_words_and_signs(self, tab):
        fill(tab, "documents", THREE)
        assert tab.text("#count") == "3 documents, one a line"
        ask(tab)
        assert order(tab) == ["second =3", "third =2", "first =1"]
        assert tab.texts(".badge") == ["↑ 1", "↑ 1", "↓ 2"]
        spoken = tab.run("[...document.querySelectorAll('.move')].map((each) => each.textContent)")
        assert spoken == ["↑ 1up 1, was 2", "↑ 1up 1, was 3", "↓ 2down 2, was 1"]
        assert tab.run("[...document.querySelectorAll('.lines path')].map((each) => each.className.baseVal)") == [
            "up", "up", "down",
        ]  # fmt: skip

    def test_scores_latency_and_tokens_are_those_of_the_reply(self, tab):
        fill(tab, "documents", THREE)
        ask(tab)
        assert [score.split()[-1] for score in tab.texts(".score")] == ["0.9526", "0.8808", "0.7311"]
        facts = dict(zip(tab.texts("dt"), tab.texts("dd"), strict=True))
        assert {"Latency", "Model", "In queue", "Tokens"} <= facts.keys()
        assert facts["Tokens"] == str(3 * (9 + 2 + 3))  # words of the example's query, of a document, and 3

    def test_two_models_stand_side_by_side(self, tab):
        fill(tab, "documents", THREE)
        choose(tab, "second", "rerank:other")
        ask(tab)
        assert order(tab, 1) == order(tab, 2)[::-1] == ["second =3", "third =2", "first =1"]
        assert tab.text("#said") == "one and other: 3 of their first 3 are the same, Kendall's τ −1.00."
        assert tab.texts(".there") == [
            "other: place 3", "other: place 2", "other: place 1", "one: place 3", "one: place 2", "one: place 1",
        ]  # fmt: skip
        left, right = tab.run("[...document.querySelectorAll('.column')].map((each) => each.getBoundingClientRect().x)")
        assert left + 200 < right

    def test_rows_move_unless_that_is_unwanted(self, browser, server):
        for wish, moves in (("no-preference", True), ("reduce", False)):
            with shown(browser, server, prefers_reduced_motion=wish) as tab:
                ask(tab)
                assert bool(tab.run("document.getAnimations().length")) == moves

    def test_texts_are_shown_as_they_are(self, tab):
        evil = '<img src="x" onerror="alert(1)"><script>alert(2)</script> & <b>bold</b> =2'
        fill(tab, "documents", evil + "\nplain =1")
        ask(tab)
        assert order(tab)[0] == evil
        assert tab.run("document.querySelectorAll('#columns img, #columns script, #columns b').length") == 0

    def test_long_texts_are_folded(self, tab):
        fill(tab, "documents", "word " * 400 + "=1\nshort =2")
        ask(tab)
        tab.until("!document.querySelectorAll('.more')[1].hidden")
        assert tab.run("document.querySelectorAll('.more')[0].hidden")
        folded = tab.run("document.querySelectorAll('.words')[1].clientHeight")
        tab.run("document.querySelectorAll('.more')[1].click()")
        assert tab.run("document.querySelectorAll('.words')[1].clientHeight") > 2 * folded
        assert tab.run("document.querySelectorAll('.more')[1].getAttribute('aria-expanded')") == "true"

    def test_what_was_cut_is_said(self, tab):
        fill(tab, "documents", "word " * 60 + "=1\nshort =2")
        ask(tab)
        assert tab.texts(".warning") == ["1 document was truncated"]

    def test_reasoning_is_read_beside_its_documents(self, tab):
        told = [
            {"documents": [1], "text": "It says three.\n<b>So</b>"},
            {"documents": [0, 2], "text": "Both say less."},
        ]
        tab.run(
            "(() => { const plain = fetch; window.fetch = async (path, options) => {"
            "const reply = await plain(path, options); if (path !== '/v1/rerank') return reply;"
            f"const body = await reply.json(); body.meta.reasoning = {json.dumps(told)};"
            "return new Response(JSON.stringify(body), { headers: reply.headers }); }; })()"
        )
        fill(tab, "documents", THREE)
        ask(tab)
        tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert tab.texts("li:first-child .reasoning") == ["It says three.\n<b>So</b>"]
        assert tab.texts(".column > details .reasoning") == ["Documents 1, 3: Both say less."]

    def test_reasoning_is_asked_for_of_the_models_that_write(self, browser, tmp_path):
        writer = ServedModel(model_folder(tmp_path / "lm", "causal_lm"), "writer", prompt="rank1")
        plain = ServedModel(model_folder(tmp_path / "ce"), "plain")
        with running(writer, plain) as server, shown(browser, server) as tab:
            choose(tab, "second", "rerank:plain")
            fill(tab, "documents", THREE)
            ask(tab)
            assert tab.texts(".reasoning") == []
            click(tab, "#explain")
            ask(tab)
            tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            assert tab.texts(".reasoning") == ["read second =3", "read third =2", "read first =1"]
            assert '"explain": true' in tab.text("#code")
            assert tab.texts(".warning") == []
            assert tab.errors == []

    def test_a_run_can_be_stopped(self, tab, server):
        server.do(server.worker.gate.clear)
        try:
            click(tab, "#go")
            tab.until("!document.querySelector('#stop').hidden")
            assert tab.text("#said") == "Asking one …"
            click(tab, "#stop")
            tab.until("document.querySelector('#said').innerText === 'Stopped.'")
            assert tab.run("document.querySelector('#stop').hidden")
        finally:
            server.do(server.worker.gate.set)

    def test_a_thousand_documents_are_no_trouble(self, tab):
        fill(tab, "documents", "\n".join(f"document =-{n / 100}" for n in range(1000, 0, -1)))
        assert tab.text("#count") == "1000 documents, one a line"
        ask(tab)
        assert len(order(tab)) == 1000
        assert order(tab)[0] == "document =-0.01"


class TestSearching:
    pytestmark = in_browser

    def test_what_is_found_is_reranked(self, tab):
        click(tab, "input[value=search]")
        assert tab.run("document.querySelector('#paste').hidden")
        fill(tab, "query", "trees =")
        fill(tab, "k", "4")
        ask(tab)
        assert tab.text("#said").startswith("bm25 found 4 documents in ")
        assert order(tab) == ["trees = 3", "trees = 2", "trees = 1", "trees = 0"]
        assert tab.texts(".was") == ["was 4", "was 3", "was 2", "was 1"]
        assert tab.texts(".label") == ["d3", "d2", "d1", "d0"]

    def test_what_is_found_is_compared_with_its_reranking(self, tab):
        click(tab, "input[value=search]")
        fill(tab, "query", "trees =")
        choose(tab, "second", "search:bm25")
        ask(tab)
        assert tab.texts("h3") == ["one", "bm25"]
        assert order(tab, 2)[:2] == ["trees = 0", "trees = 1"]
        assert tab.texts("#which option") == ["search with bm25", "rerank with one"]

    def test_a_server_that_only_searches_offers_nothing_else(self, browser):
        with running(ServedModel("bm25")) as server, shown(browser, server) as tab:
            assert tab.run("document.querySelector('#sources').hidden && document.querySelector('#paste').hidden")
            ask(tab)
            assert len(order(tab)) == 20
            assert set(tab.texts(".badge")) == {"="}
            assert tab.texts("dt") == ["Latency", "Model", "In queue", "Tokens"]
            assert tab.errors == []


# -- input ------------------------------------------------------------


class TestInput:
    pytestmark = in_browser

    @pytest.mark.parametrize(
        ("text", "format", "expected"),
        [
            ("one\n two \r\n\n", "lines", ["one", "two"]),
            ("one\nstill one\n\ntwo\n \n\nthree", "paragraphs", ["one\nstill one", "two", "three"]),
            ('{"text": "one"}\n\n"two"', "json", [{"text": "one"}, "two"]),
            ('[\n "one",\n {"text": "two"}\n]', "json", ["one", {"text": "two"}]),
            ("{not JSON}\n{at all}", "lines", ["{not JSON}", "{at all}"]),
            ("", "lines", []),
        ],
    )
    def test_documents_are_read_as_they_look(self, tab, text, format, expected):
        found = tab.run(f"import('/page/documents.js').then((it) => it.readDocuments({json.dumps(text)}))")
        assert found == {"documents": expected, "format": format}

    def test_a_line_that_is_not_json_is_named_where_json_is_wanted(self, tab):
        choose(tab, "format", "json")
        fill(tab, "documents", '"fine"\nnot fine')
        assert tab.text("#count").startswith("Line 2 of the documents is not JSON: ")
        ask(tab)
        assert tab.text("#problem .message").startswith("Line 2 of the documents is not JSON: ")
        assert tab.run("document.activeElement.id") == "documents"

    def test_objects_are_sent_as_they_are_and_named_by_their_id(self, tab):
        fill(tab, "documents", '{"_id": "a", "text": "low =1"}\n{"_id": "b", "text": "high =2"}')
        ask(tab)
        assert tab.texts(".label") == ["b", "a"]
        assert '"_id": "a"' in tab.text("#code")

    def test_the_example_comes_back(self, tab):
        fill(tab, "documents", "x")
        click(tab, "#example")
        assert tab.text("#count") == "8 documents, one a line"

    def test_how_far_two_orders_agree(self, tab):
        found = tab.run(
            "import('/page/moves.js').then(({ tau, sharedOf }) => [tau([...'abc'], [...'abc']),"
            "tau([...'abc'], [...'cba']), tau([...'abcd'], [...'abdc']), tau([...'a'], [...'a']),"
            "sharedOf([...'abcd'], [...'badc'], 3)])"
        )
        assert found == [1, -1, pytest.approx(2 / 3), None, 2]


# -- errors ------------------------------------------------------------


class TestErrors:
    pytestmark = in_browser

    def test_what_the_server_says_is_shown_with_what_to_do(self, browser, server):
        with shown(browser, server) as tab:
            fill(tab, "query", " ")
            ask(tab)
            assert tab.text("#problem .message") == "query must not be empty"
            assert "Change the query, then run it again." in tab.text("#problem")
            assert tab.run("document.activeElement.id") == "query"
            assert tab.run("document.activeElement.getAttribute('aria-invalid')") == "true"
            fill(tab, "query", "again")
            ask(tab)
            assert tab.run("document.querySelector('#problem').hidden")
            assert not tab.run("document.querySelector('#query').hasAttribute('aria-invalid')")

    def test_a_model_that_fails_leaves_no_results_of_before(self, browser, server):
        with shown(browser, server) as tab:
            ask(tab)
            fill(tab, "documents", "SPOILED =1\nfine =2")
            ask(tab)
            assert "500" in tab.text("#problem") and "The server's log says more" in tab.text("#problem")
            assert tab.texts(".column") == []
            assert tab.text("#said") == "No answer."

    def test_a_model_that_is_gone_leaves_the_list(self, browser, models):
        with running(*models, ServedModel("bm25")) as server, shown(browser, server) as tab:
            choose(tab, "first", "rerank:other")
            server.do(lambda: server.service.catalogue.remove("other"))
            ask(tab)
            assert tab.text("#problem .message").startswith("no such model is served")
            assert tab.texts("#first option") == ["one"]
            ask(tab)
            assert len(order(tab)) == 8

    def test_a_server_that_is_gone_is_told(self, browser, models):
        with running(*models) as server, shown(browser, server) as tab:
            tab.run("window.fetch = () => Promise.reject(new TypeError('failed'))")
            ask(tab)
            assert tab.text("#problem .message") == "The server did not answer."

    def test_how_long_to_wait_is_told(self, browser, models):
        with running(*models) as server, shown(browser, server) as tab:
            server.service.is_stopping = True
            ask(tab)
            assert tab.text("#problem .message") == "the server is shutting down"
            assert "Run it again in 5 seconds." in tab.text("#problem")

    def test_a_key_is_asked_for_and_kept_out_of_everything(self, browser, models):
        key = "a-secret-key"
        with running(*models, api_keys=(key,)) as server, browser.tab(server.url) as tab:
            tab.until("!document.querySelector('#key-field').hidden")
            assert tab.text("#server") == "asks for an API key"
            assert tab.run("document.querySelector('#models').hidden")
            fill(tab, "key", "wrong")
            ask(tab)
            assert tab.text("#problem .message") == "the key is not valid"
            assert tab.run("document.activeElement.id") == "key"
            fill(tab, "key", key)
            tab.press("Tab")
            tab.until("document.querySelector('#first').value")
            ask(tab)
            assert len(order(tab)) == 8
            assert "$RERANK_API_KEY" in tab.text("#code") and key not in tab.text("#code")
            choose(tab, "language", "python")
            assert "os.environ['RERANK_API_KEY']" in tab.text("#code") and key not in tab.text("#code")
            assert tab.run("[localStorage.length, sessionStorage.length, document.cookie, location.search]") == [
                0, 0, "", "",
            ]  # fmt: skip


# -- the same request elsewhere ------------------------------------------------------------


class TestCopying:
    pytestmark = in_browser

    TEXTS = ['it\'s "quoted" $HOME `x` \\n =1', "é 漢字 😀 =3", "tab\tand % =2"]

    def copied(self, tab: Tab, language: str) -> str:
        fill(tab, "query", "what's “this”? $(x)")
        fill(tab, "documents", "\n".join(map(json.dumps, self.TEXTS)))
        ask(tab)
        choose(tab, "language", language)
        click(tab, "#copy")
        tab.until("document.querySelector('#copied').innerText === 'Copied.'")
        text = str(tab.run("navigator.clipboard.readText()"))
        assert text == tab.run("document.querySelector('#code').textContent")
        return text

    def test_python_gives_the_same_order(self, tab):
        run = [sys.executable, "-X", "utf8", "-c", self.copied(tab, "python")]
        lines = subprocess.run(run, capture_output=True, encoding="utf-8", check=True).stdout.splitlines()
        assert [line.partition(" ")[2] for line in lines] == [self.TEXTS[1], self.TEXTS[2], self.TEXTS[0]]

    def test_curl_gives_the_same_order(self, tab):
        if shutil.which("curl") is None:
            pytest.skip("needs curl, which is not installed")
        run = ["sh", "-c", self.copied(tab, "curl")]
        reply = json.loads(subprocess.run(run, capture_output=True, encoding="utf-8", check=True).stdout)
        assert [result["index"] for result in reply["results"]] == [1, 2, 0]

    def test_without_a_clipboard_the_text_is_copied_from_the_page(self, tab):
        tab.run("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
        ask(tab)
        click(tab, "#copy")
        tab.until("document.querySelector('#copied').innerText === 'Copied.'")
        tab.run("delete navigator.clipboard")
        assert tab.run("navigator.clipboard.readText()").startswith("curl -sS ")

    def test_a_search_can_be_copied(self, tab):
        click(tab, "input[value=search]")
        fill(tab, "query", "trees =")
        ask(tab)
        choose(tab, "language", "python")
        run = [sys.executable, "-c", tab.text("#code")]
        lines = subprocess.run(run, capture_output=True, encoding="utf-8", check=True).stdout.splitlines()
        assert lines[0] == "9.0 trees = 0"
        assert len(lines) == 20


# -- for everybody ------------------------------------------------------------

CONTRASTS = """
(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, n) => value * a + below[n] * (1 - a));
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    const own = channels(getComputedStyle(element).backgroundColor);
    return (own[3] ?? 1) === 1 ? own : over(own, ground(element.parentElement));
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    if (!element.checkVisibility() || element.closest("option, optgroup, svg")) continue;
    const style = getComputedStyle(element);
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || element.value;
    const name = element.id || element.className || element.tagName;
    const behind = ground(element);
    if (says) found.push(["text", name, contrast(over(channels(style.color), behind), behind)]);
    const isField = element.matches("textarea, select, button:not(.quiet), input:not([type=radio], [type=checkbox])");
    if (isField) {
      const around = ground(element.parentElement);
      found.push(["edge", name, contrast(over(channels(style.borderTopColor), around), around)]);
    }
  }
  return found;
})()
"""


class TestForEverybody:
    pytestmark = in_browser

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_all_texts_have_enough_contrast(self, browser, server, scheme):
        with shown(browser, server, prefers_color_scheme=scheme) as tab:
            choose(tab, "second", "rerank:other")
            fill(tab, "documents", "word " * 80 + "=1\nsecond =3\nthird =1")
            ask(tab)
            tab.until("document.querySelectorAll('.more:not([hidden])').length")
            tab.run("['key-field', 'stop'].forEach((name) => { document.getElementById(name).hidden = false; })")
            tab.run("document.querySelector('#key').value = 'key'")
            tab.run(
                "import('/page/results.js').then(({ make }) => { const box = document.querySelector('#problem');"
                "box.append(make('p', { class: 'message' }, 'x'), make('p', { class: 'hint' }, 'x'), 'x');"
                "box.hidden = false; })"
            )
            found = tab.run(CONTRASTS)
        kinds = {kind for kind, _, _ in found}
        names = " ".join(name for _, name, _ in found)
        assert kinds == {"text", "edge"}
        assert all(
            part in names for part in ("badge up", "badge down", "badge same", "warning", "message", "was", "go")
        )
        low = [each for each in found if each[2] < (4.5 if each[0] == "text" else 3)]
        assert low == []

    def test_the_dark_scheme_is_dark(self, browser, server):
        grounds = []
        for scheme in SCHEMES:
            with shown(browser, server, prefers_color_scheme=scheme) as tab:
                colour = tab.run("getComputedStyle(document.body).backgroundColor")
                grounds.append(sum(map(int, re.findall(r"\d+", colour))))
        assert grounds[0] > 700 and grounds[1] < 100

    @pytest.mark.parametrize("width", WIDTHS)
    def test_nothing_is_wider_than_the_window(self, browser, server, width):
        with shown(browser, server, width) as tab:
            fill(tab, "documents", "w" * 300 + " =1\nplain =2\n" + "a " * 100 + "=3")
            assert tab.run("document.documentElement.scrollWidth") <= width
            for second in ("", "rerank:other"):
                choose(tab, "second", second)
                ask(tab)
                assert tab.run("document.documentElement.scrollWidth") <= width
            wide = "[...document.querySelectorAll('body *')].filter((each) => each.checkVisibility()"
            wide += f" && !each.closest('.skip') && each.getBoundingClientRect().right > {width} + 1).length"
            assert tab.run(wide) == 0

    def test_a_phone_is_taken_to_the_results_and_has_room_for_fingers(self, browser, server):
        with shown(browser, server, 360, prefers_reduced_motion="reduce") as tab:
            ask(tab)
            assert abs(tab.run("document.querySelector('#results').getBoundingClientRect().top")) < 10
            small = "[...document.querySelectorAll('button, select, textarea, summary')].filter((each) =>"
            small += " each.checkVisibility() && each.getBoundingClientRect().height < 24).map((each) => each.id)"
            assert tab.run(small) == []

    def test_the_keyboard_is_enough(self, tab):
        def tab_to(name: str) -> list[str]:
            passed = []
            while not passed or passed[-1] != name:
                tab.press("Tab")
                passed.append(tab.run("document.activeElement.id || document.activeElement.textContent"))
                assert len(passed) < 30, passed
                style = "getComputedStyle(document.activeElement)"
                assert tab.run(f"{style}.outlineStyle !== 'none' && parseFloat({style}.outlineWidth) >= 2"), passed[-1]
                assert tab.run("document.activeElement.getBoundingClientRect().left >= 0"), passed[-1]
            return passed

        assert tab_to("query") == ["Skip to the results", "HTTP interface", "query"]
        tab.press("a", ctrl=True)
        tab.type("which is it")
        passed = tab_to("go")
        assert passed[1:] == ["documents", "format", "first", "second", "go"]
        tab.press("Enter")
        tab.until("document.querySelector('#said').innerText.startsWith('one ordered 8')")
        assert tab.run("document.activeElement.id") == "go"
        passed = tab_to("copy")
        assert passed == ["example", "language", "copy"]
        tab.press("Space")
        tab.until("document.querySelector('#copied').innerText === 'Copied.'")
        tab_to("code")

    def test_ctrl_enter_asks_from_any_field_and_enter_from_the_query(self, tab):
        fill(tab, "documents", THREE)
        tab.press("Enter", ctrl=True)
        tab.until("document.querySelectorAll('li').length === 3")
        fill(tab, "query", "again")
        tab.press("Enter")
        tab.until("document.querySelector('#code').textContent.includes('again')")
        assert tab.run("document.querySelector('#query').value") == "again"

    def test_the_skip_link_goes_to_the_results(self, tab):
        tab.press("Tab")
        tab.press("Enter")
        assert tab.run("document.activeElement.id") == "results"

    def test_everything_that_can_be_used_has_a_name(self, tab):
        choose(tab, "second", "rerank:other")
        ask(tab)
        tab.run("['key-field', 'stop', 'explain-field', 'search'].forEach((name) => "
                "{ document.getElementById(name).hidden = false; })")  # fmt: skip
        nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
        roles = {"textbox", "combobox", "button", "link", "radio", "checkbox", "spinbutton", "region", "article"}
        found = [
            (node["role"]["value"], node["name"]["value"])
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in roles
        ]
        assert {role for role, _ in found} == roles
        assert [role for role, name in found if not name.strip()] == []

    def test_what_happens_is_announced(self, tab):
        live = tab.run(
            "['said', 'problem', 'copied'].map((name) => document.getElementById(name).getAttribute('role'))"
        )
        assert live == ["status", "alert", "status"]
