"""Two slots of a detector on a device, and the small file that says which of them counts.

<store>/detectors/<name>/state.json   which slot serves, which is on trial, what was refused; replaced as a whole
<store>/detectors/<name>/a, b         manifest.json, step.onnx, release.json: a bundle and the release that asked for it

A slot that the state does not name is nobody's and is emptied. A bundle is written into such a slot, made durable and
only then named, so that whatever happens in between leaves what was. A start of a bundle on trial is counted before it
is loaded: one that takes the process down with it is not tried for ever.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detectors.archive import RELEASE
from detectors.bundle import GRAPH, MANIFEST, Bundle, fsync_folder, make_folder, read_bundle, replaced, write_durably
from detectors.errors import CorruptBundleError
from detectors.failpoints import failpoint
from server.edge.reports import ReleaseState
from server.releases import Release, Signed, UntrustedError

STATE = "state.json"
STARTS_WITH_A_WAY_BACK = 2
"""Starts of a bundle on trial where another one has proven itself: once may have been the power ..."""
STARTS_WITHOUT = 3
"""... and where there is none to go back to."""
SlotName = Literal["a", "b"]
SLOTS: tuple[SlotName, SlotName] = ("a", "b")
logger = logging.getLogger("prunewatch.edge.slots")


class Slot(BaseModel):
    """What lies in a slot."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    bundle: str
    counter: int
    proven: bool = False


class GivenUp(BaseModel):
    """A release that is not tried again."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    bundle: str
    counter: int
    state: ReleaseState
    reason: str


class State(BaseModel):
    """What `state.json` says."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    schema_version: int = 1
    active: SlotName | None = None
    """What serves, and serves again where a trial ends badly."""
    trial: SlotName | None = None
    """What serves and has to prove itself."""
    starts: int = Field(default=0, ge=0)
    """Of what is on trial, those that did not end in order."""
    counter: int = Field(default=0, ge=0)
    """Of the newest release that was taken or given up."""
    slots: dict[SlotName, Slot] = {}
    given_up: GivenUp | None = None
    stopped: bool = False
    """The hub does not want it here any more."""


class Slots:
    """The slots of one detector. Blocks: call it from a thread, from one at a time.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = State()

    def recover(self) -> None:
        """Reads the state and removes what no state names."""
        self.state = self._read_state()
        for name, slot in list(self.state.slots.items()):
            if not (self.folder / name).is_dir():
                logger.error("slot %s with bundle %s is gone", name, slot.bundle[:12])
                self.lose(name)
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir() and path.name not in self.state.slots:
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.endswith(".partial"):
                path.unlink(missing_ok=True)

    @property
    def serving(self) -> SlotName | None:
        """The slot that is to score now."""
        return self.state.trial or self.state.active

    @property
    def starts_left(self) -> int:
        """How often what is on trial may still be started."""
        bound = STARTS_WITHOUT if self.state.active is None else STARTS_WITH_A_WAY_BACK
        return max(bound - self.state.starts, 0)

    def holding(self, bundle_hash: str) -> SlotName | None:
        """The slot with a bundle, that serves or could again."""
        return next((name for name, slot in self.state.slots.items() if slot.bundle == bundle_hash), None)

    def read(self, name: SlotName) -> tuple[Release, Bundle]:
        """What lies in a slot; the bytes that are verified are those that come back.

        Raises:
            CorruptBundleError: it is damaged.
        """
        bundle = read_bundle(self.folder / name, self.state.slots[name].bundle)
        try:
            signed = Signed.from_json((self.folder / name / RELEASE).read_bytes())
            return Release.model_validate_json(signed.payload), bundle  # verified before it was written
        except (OSError, UntrustedError, ValidationError) as error:
            raise CorruptBundleError("is damaged.", field=str(self.folder / name / RELEASE)) from error

    def put(self, signed: Signed, release: Release, manifest: Path, graph: Path) -> SlotName:
        """Puts a bundle into a free slot, on trial; its files move there.

        Args:
            signed: The release.
            release: What it says, verified.
            manifest: Verified.
            graph: Verified.

        Raises:
            OSError: it can not be written; what served is named as before.
        """
        state = self.state
        name: SlotName = "b" if (state.active or state.trial) == "a" else "a"
        if name in state.slots:
            others = {it: slot for it, slot in state.slots.items() if it != name}
            trial = None if state.trial == name else state.trial
            self._write(state.model_copy(update={"slots": others, "trial": trial, "starts": 0}))
        make_folder(self.folder)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        failpoint("slot.freed")
        staging = self.folder / f"{name}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        write_durably(staging / RELEASE, signed.to_json())
        graph.replace(staging / GRAPH)
        manifest.replace(staging / MANIFEST)
        fsync_folder(staging)
        failpoint("slot.before_rename")
        staging.rename(self.folder / name)
        fsync_folder(self.folder)
        failpoint("slot.written")
        proven = {it: slot for it, slot in self.state.slots.items() if it == self.state.active}
        slots = {**proven, name: Slot(bundle=release.bundle, counter=release.counter)}
        update = {"slots": slots, "trial": name, "starts": 0, "counter": release.counter}
        self._write(self.state.model_copy(update={**update, "given_up": None, "stopped": False}))
        failpoint("slot.chosen")
        return name

    def renew(self, name: SlotName, signed: Signed, release: Release) -> None:
        """Notes that a newer release asks for what lies in a slot; what has proven itself needs no trial."""
        with replaced(self.folder / name / RELEASE) as partial:
            write_durably(partial, signed.to_json())
        failpoint("slot.renewed")
        slot = self.state.slots[name].model_copy(update={"counter": release.counter})
        slots = {**self.state.slots, name: slot}
        if slot.proven:
            trial = self.state.trial
            kept = {it: other for it, other in slots.items() if it == name or it != trial}
            update = {"slots": kept, "active": name, "trial": None, "starts": 0}
        else:
            update = {"slots": slots, "trial": name}
        update |= {"counter": release.counter, "given_up": None, "stopped": False}
        self._write(self.state.model_copy(update=update))

    def count_start(self) -> None:
        """Before what is on trial is loaded."""
        self._write(self.state.model_copy(update={"starts": self.state.starts + 1}))
        failpoint("slot.started")

    def end_in_order(self) -> None:
        """The process ends because it was told to: the start does not count."""
        if self.state.trial is not None and self.state.starts:
            self._write(self.state.model_copy(update={"starts": self.state.starts - 1}))

    def prove(self) -> None:
        """What is on trial serves from now on."""
        name = self.state.trial
        assert name is not None
        slots = {**self.state.slots, name: self.state.slots[name].model_copy(update={"proven": True})}
        self._write(self.state.model_copy(update={"active": name, "trial": None, "starts": 0, "slots": slots}))
        failpoint("slot.proven")

    def give_up(self, state: ReleaseState, reason: str) -> GivenUp:
        """Ends a trial badly: what served before is what serves."""
        name = self.state.trial
        assert name is not None
        slot = self.state.slots[name]
        given_up = GivenUp(bundle=slot.bundle, counter=slot.counter, state=state, reason=reason[:500])
        slots = {it: other for it, other in self.state.slots.items() if it != name}
        update = {"trial": None, "starts": 0, "slots": slots, "given_up": given_up}
        self._write(self.state.model_copy(update=update))
        failpoint("slot.given_up")
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return given_up

    def refuse(self, release: Release, reason: str) -> None:
        """Notes that a release can never serve here, so that it is not fetched again."""
        given_up = GivenUp(
            bundle=release.bundle, counter=release.counter, state=ReleaseState.REFUSED, reason=reason[:500]
        )
        make_folder(self.folder)
        self._write(self.state.model_copy(update={"counter": release.counter, "given_up": given_up}))

    def lose(self, name: SlotName) -> None:
        """A slot is damaged: what lies in the other one serves, if that has proven itself."""
        other = next((it for it, slot in self.state.slots.items() if it != name and slot.proven), None)
        slots = {it: slot for it, slot in self.state.slots.items() if it != name}
        update = {
            "slots": slots,
            "active": other if self.state.active == name else self.state.active,
            "trial": None if self.state.trial == name else self.state.trial,
        }
        self._write(self.state.model_copy(update=update))
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def stop(self) -> None:
        """Nothing is to run here any more; only the counter is remembered."""
        self._write(State(counter=self.state.counter, stopped=True))
        for name in SLOTS:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _read_state(self) -> State:
        try:
            return State.model_validate_json((self.folder / STATE).read_bytes())
        except FileNotFoundError:
            return State()
        except (ValidationError, OSError):
            logger.exception("%s can not be read; what the slots hold is on trial again", self.folder / STATE)
            return self._state_of_slots()

    def _state_of_slots(self) -> State:
        """What can be known without the file: the older of the two served before the other came."""
        found: list[tuple[int, SlotName, str]] = []
        for name in SLOTS:
            try:
                signed = Signed.from_json((self.folder / name / RELEASE).read_bytes())
                release = Release.model_validate_json(signed.payload)
                read_bundle(self.folder / name, release.bundle)
            except (OSError, UntrustedError, ValidationError, CorruptBundleError):
                continue
            found.append((release.counter, name, release.bundle))
        found.sort()
        slots = {name: Slot(bundle=bundle, counter=counter) for counter, name, bundle in found}
        if len(found) > 1:
            first = found[0][1]
            slots[first] = slots[first].model_copy(update={"proven": True})
        return State(
            active=found[0][1] if len(found) > 1 else None,
            trial=found[-1][1] if found else None,
            counter=found[-1][0] if found else 0,
            slots=slots,
        )

    def _write(self, state: State) -> None:
        with replaced(self.folder / STATE) as partial:
            write_durably(partial, state.model_dump_json().encode())
        self.state = state
