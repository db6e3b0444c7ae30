"""A recording layer under the file system: what a power loss may leave of a folder at any moment.

It notes every call that changes names (create, mkdir, rename, link, unlink, rmdir) and every fsync below a root, and
what each file held at that time. `Recording.image` then makes the folder as it may be after the power went at one of
these calls:

- a file has the bytes of its last fsync, or more or less of what was written since, or zeros in their place;
- a change of names that its folder was not fsynced after happened or not, each by itself.

Files of SQLite are not looked into: they are as they are, since it fsyncs each commit itself.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRUSTED = ("catalog.db", "lock")
"""How the names of files begin that are as they are."""


@dataclass(frozen=True)
class Call:
    """One call, and how things stood just before it.

    Attributes:
        kind: `create`, `mkdir`, `rename`, `link`, `remove`, `fsync` or `end`.
        path: Relative to the root; of a rename, where to.
        source: Of a rename or link.
        files: Bytes of every file by its inode ...
        names: ... and the inode of every path; folders have some too.
        folders: Those that are folders.
        note: What the test said last (`Recording.note`).
    """

    kind: str
    path: str
    source: str
    files: dict[int, bytes]
    names: dict[str, int]
    folders: frozenset[str]
    note: Any


@dataclass
class Recording:
    """All calls below a root, in order."""

    root: Path
    calls: list[Call] = field(default_factory=list)
    note: Any = None
    """What has been promised so far; kept with each call."""

    def add(self, kind: str, path: Path, source: Path | None = None) -> None:
        """Notes a call that is about to be made."""
        relative, origin = (self._relative(it) if it else None for it in (path, source))
        if relative is None or Path(relative).name.startswith(TRUSTED):
            return
        files, names, folders = {}, {}, set()
        for found in [self.root, *self.root.rglob("*")]:
            try:
                facts = found.lstat()
            except FileNotFoundError:
                continue
            name = str(found.relative_to(self.root))
            names[name] = facts.st_ino
            if found.is_dir():
                folders.add(name)
            else:
                files[facts.st_ino] = found.read_bytes()
        self.calls.append(Call(kind, relative, origin or "", files, names, frozenset(folders), self.note))

    def _relative(self, path: Path) -> str | None:
        path = Path(os.path.abspath(path))  # noqa: PTH100 -- without following links
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else None

    def image(self, at: int, target: Path, rng: random.Random | None) -> None:
        """Makes the folder as the power loss before call `at` may leave it.

        Args:
            at: Into `calls`.
            target: A new folder.
            rng: Chooses; None: nothing that was not fsynced is left.
        """
        now = self.calls[at]
        for name, content in self._left(at, rng).items():
            path = target / name
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        for name, inode in now.names.items():
            if Path(name).name.startswith(TRUSTED) and name not in now.folders:
                (target / name).write_bytes(now.files[inode])

    def _left(self, at: int, rng: random.Random | None) -> dict[str, bytes | None]:
        """Bytes by path, None for a folder."""
        start = self.calls[0]
        names, pending = dict(start.names), []
        durable = dict(start.files)
        for step in range(at):
            call, after = self.calls[step], self.calls[step + 1]
            if call.kind == "fsync":
                inode = call.names[call.path]
                if call.path in call.folders:
                    for change in [it for it in pending if it.touches(call.path)]:
                        change.apply(names)
                    pending = [it for it in pending if not it.touches(call.path)]
                else:
                    durable[inode] = call.files[inode]
            elif _happened(call, after):
                inode = (call if call.kind == "remove" else after).names[call.path]
                if call.kind in {"create", "mkdir"}:
                    durable.pop(inode, None)  # the number may be that of one that is gone
                pending.append(_Change(call.kind, call.path, call.source, inode))
        for change in pending:
            if rng is not None and rng.random() < 0.5:
                change.apply(names)
        return self._contents(at, names, durable, rng)

    def _contents(
        self, at: int, names: dict[str, int], durable: dict[int, bytes], rng: random.Random | None
    ) -> dict[str, bytes | None]:
        now, left = self.calls[at], {}
        folders = {name for call in self.calls[: at + 1] for name in call.folders}
        for name, inode in names.items():
            parents = {str(it) for it in Path(name).parents}
            if not all(it in names for it in parents):
                continue  # in a folder that is not there
            if name in folders:
                left[name] = None
            elif not Path(name).name.startswith(TRUSTED):
                left[name] = _torn(durable.get(inode, b""), now.files.get(inode), rng)
        return left


@dataclass(frozen=True)
class _Change:
    """Of names."""

    kind: str
    path: str
    source: str
    inode: int

    def touches(self, folder: str) -> bool:
        """Whether an fsync of the folder makes it durable."""
        return str(Path(self.path).parent) == folder

    def apply(self, names: dict[str, int]) -> None:
        """Lets it have happened."""
        if self.kind == "remove":
            names.pop(self.path, None)
            return
        if self.kind == "rename":
            for name in [it for it in names if it == self.source or it.startswith(f"{self.source}/")]:
                names[self.path + name[len(self.source) :]] = names.pop(name)
        names[self.path] = self.inode


def _happened(call: Call, after: Call) -> bool:
    """Whether a change of names was made, and not refused."""
    if call.kind == "rename":
        return call.source in call.names and call.source not in after.names
    return (call.path in call.names) != (call.path in after.names)


def _torn(durable: bytes, written: bytes | None, rng: random.Random | None) -> bytes:
    """What is left of a file."""
    if rng is None or written is None or written == durable:
        return durable
    cut = rng.randrange(len(written) + 1)
    return rng.choice([durable, written, written[:cut], written[:cut] + bytes(len(written) - cut)])


# Listening

_active: list[Recording] = []
_fsync = os.fsync


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook; Python calls it before it makes the call."""
    kind = "link" if event == LINK else KINDS.get(event)
    if not _active or kind is None:
        return
    recording = _active[-1]
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or not flags & os.O_CREAT or _exists(path):
            return
        with _silent():
            recording.add(kind, Path(os.fsdecode(path)))
    elif event in {"os.rename", LINK}:
        source, target, source_folder, target_folder = arguments
        with _silent():
            recording.add(kind, _resolved(target, target_folder), _resolved(source, source_folder))
    else:
        path, folder = arguments[0], arguments[-1]
        with _silent():
            recording.add(kind, _resolved(path, folder))


KINDS = {"open": "create", "os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "remove", "os.rmdir": "remove"}
LINK = "os.link"


def _exists(path: Any) -> bool:
    with _silent():
        return os.path.lexists(path)


def _resolved(path: Any, folder: int) -> Path:
    """Where a path leads that may be relative to an open folder."""
    if folder in {-1, None}:
        return Path(os.fsdecode(path))
    return Path(f"/proc/self/fd/{folder}").readlink() / os.fsdecode(path)


def _recorded_fsync(file: int) -> None:
    if _active:
        number = file if isinstance(file, int) else file.fileno()
        recording = _active[-1]
        with _silent():
            recording.add("fsync", Path(f"/proc/self/fd/{number}").readlink())
    _fsync(file)


@contextmanager
def _silent() -> Iterator[None]:
    """What the recorder itself does is not noted."""
    held = _active[:]
    _active.clear()
    try:
        yield
    finally:
        _active[:] = held


sys.addaudithook(_listen)


@contextmanager
def recorded(root: Path) -> Iterator[Recording]:
    """Notes what happens below `root`, which must be there, until the block ends."""
    recording = Recording(root)
    recording.add("fsync", root)
    _active.append(recording)
    os.fsync = _recorded_fsync
    try:
        yield recording
    finally:
        os.fsync = _fsync
        _active.clear()
    recording.add("end", root)


def remove(folder: Path) -> None:
    """Removes an image."""
    shutil.rmtree(folder)
