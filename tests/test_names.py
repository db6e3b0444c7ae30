"""Names are ids, never paths: whatever stands in a field that names something, nothing outside the store is touched."""

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from conftest import NOW, publish
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from graphs import ewma_bundle
from test_robustness import EXPECTED, call, good_request, methods

from detectors.errors import PrunewatchError
from prunewatch.client import Client, ServiceError
from server.app import Hub
from server.cli import main
from server.names import detector_id, device_class_id, device_id, member_id, operation_name, rollout_id
from server.store import Store

CANARY = "canary"
HARMFUL = [
    "..",
    "../canary/secret",
    "detectors/../../canary/secret",
    "../../../../../../../../etc/passwd",
    "detectors/..%2f..%2fcanary",
    "detectors/%2e%2e/%2e%2e/canary",
    "detectors/pump/../../../canary",
    "detectors/pump\0/../../canary",
    "pump\0.db",
    "\0",
    "/etc/passwd",
    "~/canary",
    "${HOME}/canary",
    "file:///etc/passwd",
    "\\\\..\\canary",
    "detectors/．．/canary",
    "detectors/\u202eyranac",
    "detectors/pu\u043cp",
    "detectors/pump\n",
    "devices/../canary",
    "deviceClasses/../canary",
    "rollouts/../1",
    "operations/../../canary",
    "detectors/" + "x" * 300,
    "x" * 300,
    "." * 300,
    "con",
    "-rf",
    "*",
    "'; drop table detectors; --",
]
CONTENT = {"token", "problem", "hint", "message", "reason", "note", "comment"}
"""Fields of words that name nothing."""

# what touches files


class Touched:
    """Every path that this process opens, lists, makes, moves or removes while `watching`."""

    EVENTS = frozenset(
        {"open", "sqlite3.connect", "shutil.rmtree", "shutil.move", "shutil.copyfile", "os.link", "os.symlink"}
        | {
            f"os.{it}"
            for it in ("listdir", "scandir", "mkdir", "rename", "remove", "rmdir", "truncate", "chmod", "utime")
        }
    )

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.is_on = False
        self._inside = threading.local()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if self.is_on and event in self.EVENTS:
            self.paths.update(
                os.fsdecode(it) for it in arguments[:2] if isinstance(it, str | bytes | os.PathLike) and it
            )

    @contextmanager
    def watching(self) -> Iterator[set[str]]:
        """The paths, while the block runs and after it."""
        self.paths, self.is_on = set(), True
        try:
            yield self.paths
        finally:
            self.is_on = False


TOUCHED = Touched()
LIBRARIES = {os.path.realpath(it) for it in (sys.prefix, sys.base_prefix, Path(__file__).parent.parent)}
LIBRARIES |= {os.path.realpath(it) for it in sysconfig.get_paths().values()} | {"/proc", "/sys", "/dev", "/usr"}
MODES = {"r", "w", "a", "rb", "wb", "ab", "x", "r+", "rb+", "w+b", "a+b"}
"""The second argument of `open`."""


def escapes(paths: set[str], root: Path) -> list[str]:
    """Those outside a folder and outside what Python itself reads."""
    allowed = [os.path.realpath(root), *LIBRARIES]
    found = []
    for path in paths - MODES - {":memory:"}:
        real = os.path.realpath(path.removeprefix("file:").partition("?")[0])
        if not any(real == it or real.startswith(it + os.sep) for it in allowed):
            found.append(path)
    return found


# every field that names something


def named(kind: Descriptor, depth: int = 3) -> Iterator[tuple[FieldDescriptor, ...]]:
    """The way to each field of text in a message, also in those inside it."""
    for field in kind.fields:
        if field.type == FieldDescriptor.TYPE_STRING and field.name not in CONTENT:
            yield (field,)
        elif field.message_type is not None and depth and not field.message_type.GetOptions().map_entry:
            yield from ((field, *rest) for rest in named(field.message_type, depth - 1))


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether there may be several."""
    return bool(field.is_repeated)


def put(message: Message, way: tuple[FieldDescriptor, ...], value: str) -> None:
    """Sets the field at the end of a way."""
    *above, last = way
    for field in above:
        inside = getattr(message, field.name)
        message = (inside[0] if inside else inside.add()) if is_repeated(field) else inside
    if is_repeated(last):
        given = getattr(message, last.name)
        given[:] = [value, *given[1:]]
    else:
        setattr(message, last.name, value)


def requests() -> list[tuple[str, object, bytes]]:
    """Path, method and message of calls that name something harmful: each field four times, all names in turn."""
    made, turn = [], 0
    for path, method in methods():
        kind = GetMessageClass(method.input_type)
        for way in named(method.input_type):
            for _ in range(4):
                message = good_request(kind)
                put(message, way, HARMFUL[turn % len(HARMFUL)])
                turn += 1
                made.append((path, method, message.SerializeToString()))
    return made


@pytest.mark.promise("S4")
async def test_no_field_of_any_call_is_a_path(hub: Hub, tmp_path: Path) -> None:
    """Every text field of every request, by descriptor: a proper status, and no path outside the store is touched."""
    canary = tmp_path / CANARY
    canary.mkdir()
    (canary / "secret").write_text("kept")
    await publish(hub, ewma_bundle("pump"))
    made = requests()
    assert len(made) >= 500
    room = asyncio.Semaphore(50)

    async def ask(channel: grpc.aio.Channel, path: str, method: object, raw: bytes) -> tuple[str, object, str]:
        async with room:
            return (path, *await call(channel, path, method, raw))

    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        with TOUCHED.watching() as paths:
            ends = await asyncio.gather(*(ask(channel, *it) for it in made))
            await hub.host.flush()
            await hub.host.shelve()

    assert any(path.startswith(str(hub.store.root)) for path in paths)
    assert escapes(paths, hub.store.root) == []
    for path, code, words in ends:
        assert code in EXPECTED | {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.ABORTED}, (path, code, words)
        assert str(tmp_path) not in words
    assert (names_in(tmp_path), names_in(canary)) == ([CANARY, "store"], ["secret"])
    assert (canary / "secret").read_text() == "kept"


def names_in(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(it.name for it in folder.iterdir())


@pytest.mark.promise("S4")
@pytest.mark.parametrize("read", [detector_id, device_id, device_class_id, rollout_id, operation_name])
def test_what_reads_names_refuses_all_of_them(read) -> None:
    """Before anything looks for them; also with the right prefix."""
    prefix = {detector_id: "detectors/", device_id: "devices/", device_class_id: "deviceClasses/"}.get(read, "")
    for name in HARMFUL:
        for given in (name, prefix + name):
            if given != prefix + "con":
                with pytest.raises(PrunewatchError):
                    read(given)
        with pytest.raises(PrunewatchError):
            member_id(f"detectors/{name}/feedback/1" if name != "con" else "x", "feedback")


@pytest.mark.promise("S4")
async def test_names_of_series_are_no_names_of_files(hub: Hub, client: Client, tmp_path: Path) -> None:
    """A series may be called anything that text can hold; on disk it is a value, and it comes back as it was."""
    await publish(hub, ewma_bundle("pump"))
    names = [name for name in HARMFUL if len(name) <= 256]
    values = np.ones((len(names), 2), np.float32)

    with TOUCHED.watching() as paths:
        answers = []
        for name, value in zip(names, values, strict=True):
            answers.append(await _scored(client, name, value))
        await hub.host.flush()
        await hub.host.shelve()

    assert sum(answers) > 20  # some hold what no name of a series may
    assert escapes(paths, hub.store.root) == []
    assert names_in(tmp_path) == ["store"]
    assert {it.partition(".")[0] for it in names_in(hub.store.root / "series")} == {"pump"}


async def _scored(client: Client, name: str, value: np.ndarray) -> bool:
    try:
        await client.score("pump", values=value[None], stamps=[NOW], series=name)
    except ServiceError as error:
        if error.code != "INVALID_ARGUMENT":
            raise
        return False
    return True


COMMANDS = [
    "show",
    "delete",
    "pin",
    "unpin",
    "freeze",
    "unfreeze",
    "rollback",
    "report",
    "frontier",
    "cycles",
    "anomalies",
]


@pytest.mark.promise("S4")
@pytest.mark.parametrize("command", COMMANDS)
def test_no_argument_of_a_command_is_a_path_by_mistake(command: str, tmp_path: Path, capsys, monkeypatch) -> None:
    """A detector is named, not found: commands on a store say so and leave everything else alone."""
    root = tmp_path / "store"
    with Store.open(root) as store:
        store.catalog.create_detector("pump", {})
    (tmp_path / CANARY).mkdir()
    (tmp_path / CANARY / "secret").write_text("kept")
    monkeypatch.chdir(tmp_path)

    for name in HARMFUL[COMMANDS.index(command) % 6 :: 6]:
        sure = ["--yes"] if command == "delete" else []
        with TOUCHED.watching() as paths, pytest.raises(SystemExit) as ended:
            main([command, *sure, "--store", str(root), "--", name])
        assert ended.value.code, name
        assert [it for it in escapes(paths, root) if CANARY in it or "passwd" in it] == []
    assert "Traceback" not in "".join(capsys.readouterr())
    assert names_in(tmp_path) == [CANARY, "store"]
    assert (tmp_path / CANARY / "secret").read_text() == "kept"


@pytest.mark.promise("S4")
def test_a_link_in_the_store_is_not_followed_out_of_it(tmp_path: Path) -> None:
    """Where links are in the place of a detector's files, deleting it removes the links, not what they name."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.parquet").write_text("kept")
    with Store.open(tmp_path / "store") as store:
        store.catalog.create_detector("pump", {})
        for part in ("history", "golden", "drift", "series"):
            folder = store.root / part
            folder.mkdir(exist_ok=True)
            (folder / "pump").symlink_to(outside)

        store.delete_detector("pump")

        assert not [it for it in store.root.rglob("pump*") if it.is_symlink()]
    assert [(it.name, it.read_text()) for it in outside.iterdir()] == [("kept.parquet", "kept")]
