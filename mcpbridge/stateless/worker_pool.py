"""
What the two pools of workers have in common: how a request gets a worker, and
how a backend process becomes one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import RELISTEN_SECONDS
from mcpbridge.errors import BridgeError, ServerBusy, TooManySessions, without_frames
from mcpbridge.mcp.server_card import KnownServer
from mcpbridge.processes.era import OtherEra
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.stateless.request_queue import RequestQueue
from mcpbridge.stateless.worker import BackendWorker

W = TypeVar("W", bound=BackendWorker)


class WorkerPool(ABC):
    """
    The workers of one server.

    `pool` starts their processes, and in `queue` the requests wait for which
    there is none.  `failed_unclaimed` is called with why a process could not
    be had, where nobody waits for it any more.  `known` is told what the
    server says of itself.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        pool: ProcessPool,
        queue: RequestQueue,
        failed_unclaimed: Callable[[BridgeError], None],
        known: KnownServer,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pool = pool
        self._queue = queue
        self._failed_unclaimed = failed_unclaimed
        self._known = known

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of workers."""

    def _has_process(self) -> bool:
        """Return whether a process serves requests of this pool, or is about to."""
        return len(self) > 0

    async def _acquire(
        self,
        take_free: Callable[[], W | None],
        start: Callable[[], Awaitable[W | None]],
        wait: Callable[[], Awaitable[None]],
    ) -> W:
        """
        Return a worker for a request for which none is free: a new one, or
        else whichever comes first after a wait.

        `start` makes one; it returns None where it is worth looking again,
        and then `take_free` takes one that there is.  Where the limits allow
        none, `wait` waits in the queue, which makes sense only if a process is
        there whose end could make room.  Raises `ServerBusy`, and what
        `start` and `wait` raise.
        """
        while True:
            try:
                worker = await start()
            except TooManySessions as error:
                if not (self._has_process() or self._pool.has_pending_change()):
                    raise ServerBusy.because(error) from None
                # Its traceback leads through a Deferred back to it: a cycle that would keep
                # the request until the garbage collector comes.
                without_frames(error)
                await wait()
            else:
                if worker is not None:
                    return worker
            worker = take_free()
            if worker is not None:
                return worker

    async def _introduce(self, worker: BackendWorker, patience: float) -> None:
        """
        Open a worker; if that fails, for whatever reason, end its process.

        Raises what `BackendWorker.open` raises.
        """
        life = worker.session.life
        try:
            await worker.open(patience)
        except OtherEra as error:
            life.end(f"it is not needed: {error}")
            raise
        except BridgeError as error:
            life.end(f"it cannot be used: {error}")
            raise
        except BaseException:
            life.end("it could not be asked")
            raise

    def _reopening_delay(self) -> float:
        """Return in how many seconds to listen again after a process has ended."""
        return max(RELISTEN_SECONDS, self._pool.backoff.wait(self._clock.seconds()))
