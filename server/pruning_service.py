"""PruningService: cycles on demand, and the book of cycles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.longrunning import operations_pb2

from detectors.errors import InvalidInputError, NotFoundError
from prunewatch.v1 import pruning_pb2 as pb
from prunewatch.v1.pruning_pb2_grpc import PruningServiceServicer
from pruning.frontier_facts import MOST_POINTS, POINTS
from server.config import HUB, Budget
from server.cycle_watch import cycle_states, watch_cycles
from server.detectors_service import first_is_header, rest_is_points
from server.frontier_messages import frontier_message
from server.frontiers import StoredFrontier, read_frontier
from server.interceptors import readable
from server.jobs import parent_version
from server.maintenance import Maintenance
from server.messages import cycle_message
from server.names import detector_id
from server.operations import LIST_LIMIT, operation_message
from server.paging import page_of
from server.progress import Operations
from server.roster import Roster
from server.uploads import Receiver, Upload

LIMITS = {"p99": "p99_seconds", "p50": "p50_seconds", "speedup": "speedup", "size": "size_bytes"}
LARGEST_BATCH = 65_536
WATCHED, MOST_WATCHED = 10, 100
Context = grpc.aio.ServicerContext[Any, Any]


class PruningServicer(PruningServiceServicer):
    """Prunes detectors.

    Args:
        roster: The detectors.
        maintenance: What prunes them.
        operations: Their progress.
    """

    def __init__(self, roster: Roster, maintenance: Maintenance, operations: Operations) -> None:
        self._roster = roster
        self._maintenance = maintenance
        self._operations = operations

    async def Prune(self, request: pb.PruneRequest, context: Context) -> operations_pb2.Operation:
        """Begins a cycle on the history."""
        return await self._prune(request, None)

    async def PruneFromUpload(
        self, request_iterator: AsyncIterator[pb.PruneFromUploadRequest], context: Context
    ) -> operations_pb2.Operation:
        """Takes points, then begins a cycle on them."""
        header: pb.PruneHeader | None = None
        receiver: Receiver | None = None
        async for message in request_iterator:
            kind = readable(message).WhichOneof("part")
            if receiver is None:
                if kind != "header":
                    raise first_is_header()
                header = message.header
                self._roster.host.get(detector_id(header.request.name, "header.request.name"))
                receiver = Receiver(header.features)
            elif kind != "points":
                raise rest_is_points()
            else:
                receiver.add(message.points.stamps, message.points.packed_values)
        if receiver is None or header is None:
            raise first_is_header()
        return await self._prune(header.request, await asyncio.to_thread(receiver.finish))

    async def BuildFrontier(self, request: pb.BuildFrontierRequest, context: Context) -> operations_pb2.Operation:
        """Begins to build a frontier on the history."""
        name, device_class, batch = self._asked(request)
        if not 0 <= request.points <= MOST_POINTS:
            raise InvalidInputError(
                f"{request.points} is not between 1 and {MOST_POINTS}.", field="points", hint=f"0 means {POINTS}."
            )
        row = await self._maintenance.build_frontier(
            name,
            device_class,
            batch=batch,
            points=request.points or POINTS,
            seed=request.seed if request.HasField("seed") else None,
        )
        return operation_message(row)

    async def GetFrontier(self, request: pb.GetFrontierRequest, context: Context) -> pb.Frontier:
        """The frontier of the parent that cycles of the class start from."""
        name, device_class, batch = self._asked(request)

        def read() -> StoredFrontier | None:
            store = self._roster.store
            return read_frontier(store.root, parent_version(store, name, device_class).parent_hash, batch)

        stored = await asyncio.to_thread(read)
        if stored is None:
            raise NotFoundError(
                f"there is no frontier of what {name!r} is pruned from on {device_class!r} at {batch} points a step.",
                field="name",
                hint="Build one: BuildFrontier, or `prunewatch frontier`.",
            )
        return frontier_message(stored.shown(name, device_class))

    async def WatchCycles(
        self, request: pb.WatchCyclesRequest, context: Context
    ) -> AsyncIterator[pb.WatchCyclesResponse]:
        """The newest cycles, then each change of one."""
        name = detector_id(request.parent, "parent")
        hosted = self._roster.host.get(name)
        if not 0 <= request.newest <= MOST_WATCHED:
            raise InvalidInputError(f"{request.newest} is not between 0 and {MOST_WATCHED}.", field="newest")
        watchers = self._roster.host.watchers
        async for state in watch_cycles(
            self._roster.catalog,
            self._operations,
            name,
            request.newest or WATCHED,
            lambda: watchers.closed or hosted.deleted,
        ):
            yield pb.WatchCyclesResponse(
                cycle=cycle_message(state), stage=state.stage, done=state.done, message=state.message
            )

    async def ListCycles(self, request: pb.ListCyclesRequest, context: Context) -> pb.ListCyclesResponse:
        """A page of cycles, newest first."""
        name = detector_id(request.parent, "parent")
        self._roster.host.get(name)
        states = await asyncio.to_thread(cycle_states, self._roster.catalog, name, LIST_LIMIT)
        page, token = page_of(states, request.page_size, request.page_token, lambda state: str(state.row.id))
        return pb.ListCyclesResponse(cycles=[cycle_message(state) for state in page], next_page_token=token)

    def _asked(self, request: pb.BuildFrontierRequest | pb.GetFrontierRequest) -> tuple[str, str, int]:
        """Detector, device class and batch."""
        name = detector_id(request.name)
        self._roster.host.get(name)
        device_class = self._known_class(request.device_class)
        _check_batch(request.batch, "batch")
        return name, device_class, request.batch or self._roster.budget_of(device_class).batch

    def _known_class(self, asked: str) -> str:
        device_class = asked or HUB
        if device_class not in self._roster.device_classes:
            raise InvalidInputError(
                f"there is no device class {device_class[:80]!r}.",
                field="device_class",
                hint=f"The server knows: {', '.join(self._roster.device_classes)}.",
            )
        return device_class

    async def _prune(self, request: pb.PruneRequest, upload: Upload | None) -> operations_pb2.Operation:
        name = detector_id(request.name)
        hosted = self._roster.host.get(name)
        device_class = self._known_class(request.device_class)
        row = await self._maintenance.prune(
            name,
            device_class,
            self._budget(request, device_class),
            upload=None if upload is None else upload.in_order_of(hosted.features),
            dry_run=request.dry_run,
            fresh=request.fresh,
            seed=request.seed if request.HasField("seed") else None,
        )
        return operation_message(row)

    def _budget(self, request: pb.PruneRequest, device_class: str) -> Budget:
        """What is asked for; where nothing is, what the device class says."""
        asked, configured = request.budget, self._roster.budget_of(device_class)
        given = {field.name for field, _ in asked.ListFields()}
        limits = {key: getattr(asked, field) for key, field in LIMITS.items() if field in given}
        for key, limit in limits.items():
            if not limit > (1 if key == "speedup" else 0):
                raise InvalidInputError(
                    f"{limit} is not a budget.",
                    field=f"budget.{LIMITS[key]}",
                    hint="Give more than 1." if key == "speedup" else "Give more than zero.",
                )
        _check_batch(asked.batch, "budget.batch")
        batch = asked.batch or configured.batch
        budget = Budget(**limits, batch=batch) if limits else configured.model_copy(update={"batch": batch})
        if not budget.is_set:
            raise InvalidInputError(
                f"no budget is given, and the device class {device_class!r} has none.",
                field="budget",
                hint="Give at least one of p99_seconds, p50_seconds, speedup or size_bytes.",
            )
        return budget


def _check_batch(batch: int, field: str) -> None:
    if not 0 <= batch <= LARGEST_BATCH:
        raise InvalidInputError(f"{batch} points are no step.", field=field, hint=f"Give 1 to {LARGEST_BATCH}.")
