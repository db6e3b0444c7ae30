"""The page on the admin address: what it tells, to whom, and that it never stands in the way."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, eventually, hub_settings, publish
from graphs import ewma_bundle
from prometheus_client import CollectorRegistry
from quick_trainer import HANG, REJECT

from detectors.errors import PrunewatchError
from prunewatch.client import Client
from server.admin import MOST_CONNECTIONS, Admin
from server.app import Hub
from server.edge import Edge
from server.http_messages import Request, Response, parse_request
from server.page.edge import REMEMBERED
from server.page.live import FEATURES
from server.page.site import MOST_ASKED, STATIC, PageSite

DOCUMENT = (Path(__file__).parent.parent / "docs" / "page.md").read_text()
EVIL = "<img src=x onerror=alert(1)>"


async def ask(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer, over a socket."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    named = {"Host": f"127.0.0.1:{port}", **{key.replace("_", "-"): value for key, value in headers.items()}}
    lines = "".join(f"{key}: {value}\r\n" for key, value in named.items())
    writer.write(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
    told = await reader.read()
    writer.close()
    head, _, body = told.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in rest), body


async def see(hub: Hub | Edge, path: str) -> dict[str, Any]:
    """The JSON at a path."""
    status, _, body = await ask(hub.listener.admin_port, path)
    assert status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


async def score(client: Client, name: str, values: np.ndarray, series: str = "north", start: int = 0) -> None:
    """Sends points a second apart."""
    stamps = NOW + (start + np.arange(len(values))) * 10**9
    await client.score(name, series=[series], stamps=stamps, values=values)


@pytest.fixture
async def pump(hub: Hub) -> Hub:
    """The hub with a detector that serves; scores are mean distances from a slow mean, the threshold is 3."""
    await publish(hub, ewma_bundle("pump"))
    return hub


# what is served


async def test_every_answer_of_the_page_forbids_what_it_does_not_need(pump: Hub) -> None:
    """HTML, script and JSON come with one policy: nothing inline, nothing from elsewhere, no frame, no sniffing."""
    for path in ("/", "/page/page.js", "/page/page.css", "/api/overview", "/api/detectors/nobody"):
        _, headers, _ = await ask(pump.listener.admin_port, path)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


class _Markup(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.files: list[str] = []
        self._script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what a policy would stop, and what is asked for."""
        given = dict(attrs)
        self._script = tag == "script"
        self.wrong += [f"{tag} {name}" for name in given if name == "style" or name.startswith("on")]
        self.wrong += [tag] if tag in {"style", "iframe", "form"} else []
        link = given.get("href") if tag == "link" else given.get("src")
        self.files += [link] if link else []

    def handle_data(self, data: str) -> None:
        """Text of a script would be inline."""
        self.wrong += [f"script {data[:20]}"] if self._script and data.strip() else []


def test_the_files_have_nothing_inline_and_ask_for_nothing_elsewhere() -> None:
    """No inline script or style, no markup made from text, no other host; every file that is named exists."""
    markup = _Markup()
    markup.feed((STATIC / "index.html").read_text())

    assert markup.wrong == []
    assert {Path(it).name for it in markup.files} <= {path.name for path in STATIC.iterdir()}
    for path in STATIC.iterdir():
        text = path.read_text()
        assert not re.search(r"innerHTML\s*=|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), (
            path
        )
        addresses = set(re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"//\s.*", "", text)))
        assert addresses <= {"http://www.w3.org"}, path


async def test_an_answer_that_has_not_changed_is_not_sent_again(pump: Hub) -> None:
    """The tag of an answer gives 304 without a body; what changed has another tag."""
    port = pump.listener.admin_port
    _, headers, body = await ask(port, "/api/detectors/pump")
    status, again, nothing = await ask(port, "/api/detectors/pump", If_None_Match=headers["ETag"])
    await asyncio.sleep(1.05)
    idle, _, _ = await ask(port, "/api/detectors/pump", If_None_Match=headers["ETag"])
    await pump.roster.freeze("pump", frozen=True)
    await asyncio.sleep(1.05)
    changed, _, newer = await ask(port, "/api/detectors/pump", If_None_Match=headers["ETag"])

    assert (status, again["ETag"], nothing) == (304, headers["ETag"], b"")
    assert (idle, changed) == (304, 200)
    assert (json.loads(body)["frozen"], json.loads(newer)["frozen"]) == (False, True)


async def test_large_answers_are_compressed_for_who_can_read_it(pump: Hub) -> None:
    """The same bytes after unpacking; who does not say so gets them as they are."""
    port = pump.listener.admin_port
    _, headers, packed = await ask(port, "/page/page.css", Accept_Encoding="gzip, br")
    _, plain_headers, plain = await ask(port, "/page/page.css")

    assert headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain_headers
    assert gzip.decompress(packed) == plain == (STATIC / "page.css").read_bytes()
    assert len(packed) < len(plain) / 2


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8002", 200), ("localhost", 200), ("[::1]:8002", 200), ("evil.example:8002", 421), ("a:b:c", 421)],
)
async def test_on_loopback_only_addresses_are_names_of_it(pump: Hub, host: str, status: int) -> None:
    """A page of somebody else's, whose name leads here (DNS rebinding), reads nothing; metrics answer by any name."""
    port = pump.listener.admin_port

    assert (await ask(port, "/api/overview", Host=host))[0] == status
    assert (await ask(port, "/metrics", Host=host))[0] == 200


async def test_where_others_may_reach_it_any_name_is_answered(tmp_path: Path) -> None:
    """`insecure: true` on an address of the network has been said out loud."""
    hub = Hub(hub_settings(tmp_path, admin="0.0.0.0:0", insecure=True), trainer=QUICK_TRAINER)
    await hub.start()
    answers = [(await ask(hub.listener.admin_port, path, Host="hub.example"))[0] for path in ("/", "/api/overview")]
    await hub.stop()

    assert answers == [200, 200]


async def test_the_page_can_be_left_out(tmp_path: Path) -> None:
    """`page: false` leaves metrics and health alone."""
    hub = Hub(hub_settings(tmp_path, page=False), trainer=QUICK_TRAINER)
    await hub.start()
    answers = [
        (await ask(hub.listener.admin_port, it))[0] for it in ("/", "/api/overview", "/page/page.js", "/metrics")
    ]
    await hub.stop()

    assert answers == [404, 404, 404, 200]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/detectors/nobody", 404),
        ("/api/detectors/..%2f..%2fcatalog.db", 404),
        ("/api/detectors/pump/frontier?device_class=..%2f..", 404),
        ("/api/detectors/pump/report?cycle=99", 404),
        ("/api/detectors/pump/report?cycle=-1", 400),
        ("/api/detectors/pump/report?cycle=%C2%B2", 400),
        ("/page/../site.py", 404),
        ("/page/%2e%2e/site.py", 404),
        ("/api", 404),
        ("/api/", 404),
        ("/api/detectors", 404),
    ],
)
async def test_what_is_not_there_is_said_without_a_trace_of_the_inside(pump: Hub, path: str, status: int) -> None:
    """Names are names, never paths; an error is JSON or a line, and names no file or class."""
    found, _, body = await ask(pump.listener.admin_port, path)

    assert found == status
    assert b"Error" not in body
    assert str(pump.store.root).encode() not in body


# what is told


async def test_the_overview_tells_what_is_hosted_and_what_was_found(hub: Hub, client: Client) -> None:
    """State, version, rate, sizes beside the budget, the newest scores, and anomalies with their features."""
    await publish(hub, ewma_bundle("pump", features=["flow", EVIL]))
    values = np.zeros((20, 2), np.float32)
    values[15] = (20, 0)
    await score(client, "pump", values)
    await client.create("kiln", {"features": ["a"]})
    told = await see(hub, "/api/overview")

    kiln, card = told["detectors"]
    (served,) = card["served"]
    assert (kiln["name"], kiln["state"], kiln["served"]) == ("kiln", "learning", [])
    assert (card["name"], card["state"], card["version"], card["series"]) == ("pump", "ready", 1, 1)
    assert (card["points"], card["anomaly_count"], card["points_per_second"]) == (20, 1, 2.0)
    assert (card["live"]["scores"], card["live"]["anomalies"]) == ([10.0], [1])
    assert (served["bundle"]["parameters"], served["bundle"]["p99_seconds"]) == (3, 2e-4)
    (anomaly,) = told["anomalies"]
    assert (anomaly["series"], anomaly["score"], anomaly["stamp"]) == ("north", 10.0, str(NOW + 15 * 10**9))
    assert anomaly["features"] == [["flow", 1.0], [EVIL, 0.0]]
    assert told["process"]["role"] == "hub"
    assert [it["name"] for it in told["device_classes"]] == ["hub"]


async def test_a_detector_is_told_with_its_versions_cycles_and_what_people_said(pump: Hub, client: Client) -> None:
    """A cycle with sizes before and after, lineage from the child to its parent, adoption, notes as they were given."""
    await score(client, "pump", np.zeros((20, 2), np.float32))
    await client.wait_operation(await client.prune("pump", speedup=2))
    await client.add_label("pump", "normal", NOW, NOW + 10**9, note=EVIL)
    await client.wait_operation(await client.prune("pump", speedup=2, seed=REJECT))
    told = await see(pump, "/api/detectors/pump")

    rejected, adopted = told["cycles"]
    assert [it["version"] for it in told["versions"]] == [2, 1]
    child = next(it for it in told["bundles"] if it["hash"] == told["versions"][0]["bundles"]["hub"])
    assert child["derived_from"] in {None, told["versions"][0]["parent"]}
    assert (adopted["outcome"], adopted["parent"]["version"], adopted["child"]["version"]) == ("adopted", 1, 2)
    assert (rejected["outcome"], rejected["child"]) == ("rejected", None)
    assert rejected["best_reachable"]["hint"] == "Ask for more."
    assert [it["version"] for it in told["adoptions"]] == [2]
    assert [(it["label"], it["note"]) for it in told["labels"]] == [("normal", EVIL)]
    assert told["feature_names"] == ["f1", "f2"]


async def test_what_is_at_work_is_told_with_its_progress(pump: Hub, client: Client) -> None:
    """A cycle that runs is on both pages, with its stage; when it has ended it is among the decisions."""
    await score(client, "pump", np.zeros((20, 2), np.float32))
    operation = await client.prune("pump", speedup=2, seed=HANG)

    async def running() -> list[dict[str, Any]]:
        told = json.loads((await ask(pump.listener.admin_port, "/api/overview"))[2])
        found: list[dict[str, Any]] = [it for it in told["operations"] if it["stage"] == "train"]
        return found

    (at_work,) = await eventually(running)
    assert (at_work["done"], at_work["message"], at_work["device_class"]) == (0.5, "half way", "hub")
    assert (await see(pump, "/api/detectors/pump"))["operations"][0]["name"] == at_work["name"]
    await client.cancel_operation(operation)
    await asyncio.sleep(1.05)
    told = await see(pump, "/api/overview")
    assert told["operations"] == []
    assert told["decisions"][0]["outcome"] == "cancelled"


async def test_what_is_not_there_yet_is_no_error_and_says_what_makes_it(pump: Hub) -> None:
    """A browser would show an error of its own for a 404; a frontier that nobody has built is none."""
    frontier = await see(pump, "/api/detectors/pump/frontier")
    report = await see(pump, "/api/detectors/pump/report")

    assert frontier["absent"]["command"].startswith("prunewatch frontier pump --device-class hub --server ")
    assert "has not been pruned" in report["absent"]["problem"]


async def test_numbers_that_are_none_do_not_spoil_an_answer(hub: Hub, client: Client) -> None:
    """A graph that gives infinite scores is told with finite JSON."""
    await publish(hub, ewma_bundle("pump", gain=3e38))
    values = np.zeros((8, 2), np.float32)
    values[5:] = 1e30
    await score(client, "pump", values)
    told = await see(hub, "/api/overview")

    assert max(told["detectors"][0]["live"]["scores"]) == 1e6
    assert {it["score"] for it in told["anomalies"]} == {1e6}


async def test_what_is_told_is_bounded_whatever_there_is(hub: Hub, client: Client) -> None:
    """Thousands of features and hundreds of anomalies leave an answer of a few kilobytes."""
    wide = 3000
    await publish(hub, ewma_bundle("wide", n_features=wide, gain=100, warm_up_points=0))
    await score(client, "wide", np.random.default_rng(0).normal(size=(200, wide)).astype(np.float32))
    _, _, body = await ask(hub.listener.admin_port, "/api/detectors/wide")
    told = json.loads(body)

    assert (told["features"], len(told["feature_names"]), len(told["anomalies"])) == (wide, FEATURES, 50)
    assert len(body) < 30_000


async def test_a_device_shows_the_one_detector_that_it_has(tmp_path: Path) -> None:
    """The newest anomalies are held in memory, no more than `REMEMBERED`; there are no cycles, and nothing breaks."""
    edge = Edge(ewma_bundle("pump", warm_up_points=0, gain=10), hub_settings(tmp_path))
    await edge.start()
    async with Client(f"127.0.0.1:{edge.listener.port}") as client:
        values = np.zeros((2 * REMEMBERED, 2), np.float32)
        values[::2] = 50
        await score(client, "pump", values)
    overview = await see(edge, "/api/overview")
    told = await see(edge, "/api/detectors/pump")
    missing, _, _ = await ask(edge.listener.admin_port, "/api/detectors/pump/frontier")
    await edge.stop()

    assert (overview["process"]["role"], overview["detectors"][0]["points"]) == ("edge", 2 * REMEMBERED)
    assert len(told["anomalies"]) == REMEMBERED
    assert told["anomalies"][0]["stamp"] == str(NOW + (2 * REMEMBERED - 1) * 10**9)
    assert (told["cycles"], told["bundles"][0]["parameters"], missing) == ([], 3, 404)


async def test_every_address_and_every_key_is_documented(pump: Hub, client: Client) -> None:
    """docs/page.md names what can be asked for, and each key of the answers, asked of the real thing."""
    await score(client, "pump", np.r_[np.zeros((19, 2)), [[20, 20]]].astype(np.float32))
    await client.wait_operation(await client.prune("pump", speedup=2))
    overview = await see(pump, "/api/overview")
    detector = await see(pump, "/api/detectors/pump")

    for address in (
        "/api/overview",
        "/api/detectors/NAME",
        "/api/detectors/NAME/frontier",
        "/api/detectors/NAME/report",
    ):
        assert f"`GET {address}`" in DOCUMENT
    told = [overview, detector, overview["process"], overview["detectors"][0], overview["detectors"][0]["served"][0]]
    told += [overview["anomalies"][0], overview["decisions"][0], detector["cycles"][0], detector["versions"][0]]
    told += [detector["bundles"][0], detector["operations"][0], detector["live"]]
    for key in {key for it in told for key in it}:
        assert f"`{key}`" in DOCUMENT, f"docs/page.md does not have `{key}`"


# never in the way


class _View:
    """Counts how often it is asked; answers when it is let."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.asked = 0
        self.let = asyncio.Event()
        self.failure = failure

    async def overview(self):
        """Waits."""
        self.asked += 1
        await self.let.wait()
        if self.failure:
            raise self.failure
        return lambda: {"asked": self.asked, "much": "x" * 5_000_000}

    async def detector(self, name):
        """At once."""
        return lambda: {"name": name}


async def answers(site: PageSite, n: int, path: str = "/api/overview") -> list[asyncio.Task[Response | None]]:
    """Requests that are being worked on."""
    tasks = [asyncio.create_task(site.answer(Request("GET", path, {}, {}))) for _ in range(n)]
    await asyncio.sleep(0)
    return tasks


async def test_many_who_look_at_the_same_time_cost_as_much_as_one() -> None:
    """One answer is made for all who wait, and given again until it is a second old; then another is made."""
    view, now = _View(), [0.0]
    site = PageSite(view, any_host=True, monotonic=lambda: now[0])
    waiting = await answers(site, MOST_ASKED)
    view.let.set()
    first = await asyncio.gather(*waiting)
    await asyncio.gather(*await answers(site, 5))
    asked_before = view.asked
    now[0] = 1.5
    await asyncio.gather(*await answers(site, 5))

    assert {it.status for it in first if it} == {HTTPStatus.OK}
    assert (asked_before, view.asked) == (1, 2)


async def test_too_many_at_once_are_told_to_come_again() -> None:
    """Those beyond the limit get 503 and a time; the page itself and those who wait are answered."""
    view = _View()
    site = PageSite(view, any_host=True)
    waiting = await answers(site, MOST_ASKED)
    refused = await site.answer(Request("GET", "/api/overview", {}, {}))
    page = await site.answer(Request("GET", "/", {}, {}))
    view.let.set()
    done = await asyncio.gather(*waiting)

    assert refused is not None
    assert (refused.status, refused.headers["Retry-After"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "2")
    assert page is not None
    assert page.status is HTTPStatus.OK
    assert {it.status for it in done if it} == {HTTPStatus.OK}


async def test_names_that_were_made_up_take_no_memory() -> None:
    """However many detectors are asked for, a bounded number of answers is kept."""
    site = PageSite(_View(), any_host=True)
    for i in range(300):
        await site.answer(Request("GET", f"/api/detectors/d{i}", {}, {}))

    assert len(site._kept) <= 64
    assert site._making == {}


async def test_who_leaves_while_an_answer_is_made_spoils_it_for_nobody() -> None:
    """The first who asked goes away; the second gets the answer that was begun for the first."""
    view = _View()
    site = PageSite(view, any_host=True)
    first, second = await answers(site, 2)
    first.cancel()
    await asyncio.sleep(0)
    view.let.set()
    answer = await second

    assert answer is not None
    assert (answer.status, view.asked) == (HTTPStatus.OK, 1)


@pytest.fixture
async def admin() -> AsyncIterator[tuple[Admin, _View]]:
    """An admin server whose page has a very large answer, and little patience."""
    view = _View()
    server = Admin(
        CollectorRegistry(),
        observe=lambda: None,
        is_ready=lambda: True,
        site=PageSite(view, any_host=True),
        write_seconds=0.2,
    )
    await server.start("127.0.0.1", 0)
    yield server, view
    await server.stop()


async def test_a_slow_reader_is_let_go_of(admin: tuple[Admin, _View]) -> None:
    """Who does not read a large answer is cut off, and the next one is served."""
    server, view = admin
    view.let.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    writer.write(b"GET /api/overview HTTP/1.1\r\n\r\n")

    async def gone() -> bool:
        return server._connections == 0

    await asyncio.sleep(0.05)
    assert server._connections == 1
    await eventually(gone)
    received = len(await reader.read())
    writer.close()
    assert received < 5_000_000
    assert (await ask(server.port, "/healthz"))[0] == 200


async def test_connections_are_bounded(admin: tuple[Admin, _View]) -> None:
    """Those beyond the limit are closed unread; when the others have gone there is room again."""
    server, _ = admin
    held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MOST_CONNECTIONS)]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    beyond = await reader.read()
    for _, it in [*held, (reader, writer)]:
        it.close()

    async def room() -> bool:
        return server._connections == 0

    assert beyond == b""
    await eventually(room)
    assert (await ask(server.port, "/healthz"))[0] == 200


async def test_what_fails_unexpectedly_is_logged_and_tells_nothing(
    admin: tuple[Admin, _View], caplog: pytest.LogCaptureFixture
) -> None:
    """A fixed line and 500; the traceback is in the log."""
    server, view = admin
    view.failure = RuntimeError("secret/path")
    view.let.set()
    status, _, body = await ask(server.port, "/api/overview")
    view.failure = PrunewatchError("known.", hint="Do that.")
    known, _, told = await ask(server.port, "/api/overview")

    assert (status, b"secret" in body) == (500, False)
    assert "secret/path" in caplog.text
    assert (known, json.loads(told)) == (500, {"error": {"problem": "known.", "hint": "Do that."}})


@pytest.mark.parametrize(
    "head",
    [
        b"GET /\r\n\r\n",
        b"GET / HTTP/2\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
)
def test_what_is_not_http_is_refused(head: bytes) -> None:
    """Too few words, another version, a header that is none, or very many of them."""
    with pytest.raises(ValueError, match=r"."):
        parse_request(head)
