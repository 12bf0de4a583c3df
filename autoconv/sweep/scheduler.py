"""The scheduler of a fleet: Dask's, reached by its futures, with what Dask would do by itself kept from it.

A task goes to one worker and no other, and is not run again: one that ends its worker would end the others too.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from autoconv.errors import FleetError

try:
    import distributed
    from distributed.comm.addressing import get_address_host_port
    from distributed.comm.core import connect
except ImportError as _error:
    _msg = f"a fleet needs Dask, which is installed by: pip install 'autoconv[fleet]' ({_error})"
    raise FleetError(_msg) from _error

Task: TypeAlias = "distributed.Future[Any]"

CONNECT_S = 5.0
"""How long a scheduler may take to be reached."""

ANSWER_S = 30.0
"""How long it may take to tell of its workers."""

RESULT_S = 2.0
"""How long a result may take to be fetched before it is asked for again."""


@dataclass(frozen=True)
class Failure:
    """What came of a task that returned nothing.

    Attributes:
        why: In one line.
        gone: Whether its worker ended.
    """

    why: str
    gone: bool = False


def checked_address(address: str, *, insecure: bool = False) -> str:
    """The address of a scheduler or worker, with its scheme, if it may be used.

    Dask runs what it is sent, by anyone who reaches it, and without encryption by anyone on the way. So a plain
    connection may only be one within this machine.

    Raises:
        FleetError: it may not be used, or is no address.
    """
    scheme, _, place = address.rpartition("://")
    full = f"{scheme or 'tcp'}://{place}"
    if scheme == "inproc":
        return full
    if scheme not in {"", "tcp", "tls"}:
        msg = f"{address}: the address of a scheduler is tls://HOST:PORT, or tcp://HOST:PORT on this machine"
        raise FleetError(msg)
    try:
        host, _port = get_address_host_port(full, strict=True)
    except ValueError as error:
        msg = f"{address}: the address of a scheduler is tls://HOST:PORT ({error})"
        raise FleetError(msg) from error
    if scheme == "tls" or insecure or _is_loopback(host):
        return full
    msg = (
        f"{address} is not encrypted, and who is on the way could run any program on the workers: use tls://{place}, "
        "or say --insecure where everyone on the network is trusted"
    )
    raise FleetError(msg)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def connected(address: str, *, insecure: bool = False) -> Iterator[Scheduler]:
    """The scheduler at an address; TLS is set up by Dask's own configuration.

    Raises:
        FleetError: it cannot be reached, or may not be used.
    """
    full = checked_address(address, insecure=insecure)
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)  # what it has to say is said by `FleetError`, in one line
    try:
        client = _client(address, full)
        try:
            yield Scheduler(client)
        finally:
            client.close(timeout=CONNECT_S)
    finally:
        log.setLevel(before)


def _client(address: str, full: str) -> distributed.Client:
    security = distributed.Security()
    try:
        with ThreadPoolExecutor(1) as pool:  # the caller's thread may have a loop of its own
            pool.submit(asyncio.run, _greet(full, security)).result()
        return distributed.Client(full, timeout=CONNECT_S, set_as_default=False, security=security, name="autoconv")
    except (TypeError, FileNotFoundError) as error:
        msg = f"{address} needs certificates: name their files in Dask's configuration, under distributed.comm.tls"
        raise FleetError(msg) from error
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error) or f"nothing answers within {CONNECT_S:g} s"
        msg = f"no scheduler can be reached at {address}: {' '.join(why.split())}"
        raise FleetError(msg) from error


async def _greet(full: str, security: distributed.Security) -> None:
    """Find out whether there is a scheduler: a client would wait forever for what takes connections and is silent."""
    async with asyncio.timeout(CONNECT_S):
        comm = await connect(full, timeout=2 * CONNECT_S, **security.get_connection_args("client"))
        await comm.close()


class Scheduler:
    """A scheduler that is connected to. One thread uses it.

    Every method raises `FleetError` once the scheduler is lost.
    """

    def __init__(self, client: distributed.Client) -> None:
        self._client = client
        self._wake = threading.Event()

    def workers(self) -> dict[str, Mapping[str, Any]]:
        """What is told of each worker that there is now, by its address: `status` and `resources`, among others."""
        self._check()
        scheduler = self._client.scheduler
        if scheduler is None:  # lost since
            raise self._lost()
        try:
            # Not `scheduler_info`, which may tell of the first few alone, and of those there were if none answers.
            found = self._client.sync(scheduler.identity, n_workers=-1, callback_timeout=ANSWER_S)
        except OSError as error:
            raise self._lost() from error
        return dict(found["workers"])

    def submit(self, task: Callable[..., Any], address: str, *arguments: Any, takes: Mapping[str, int]) -> Task:
        """Have a function called once, by this worker and no other, when so much of its resources is free.

        Where that worker is gone the task waits forever; `workers` tells, and `drop` ends that.
        """
        self._check()
        future = self._client.submit(
            task,
            *arguments,
            workers=[address],
            allow_other_workers=False,
            resources=takes,
            retries=0,
            pure=False,
        )
        future.add_done_callback(lambda _: self._wake.set())
        return future

    def answer(self, task: Task) -> object | Failure | None:
        """What a task returned, or what became of it; None where it is not done yet."""
        if not task.done():
            return None
        if task.status == "error":
            error = task.exception()
            return Failure(_line(error), gone=isinstance(error, distributed.KilledWorker))
        try:
            found: object = task.result(timeout=RESULT_S)
        except distributed.CancelledError as error:
            self._check()
            return Failure(f"it was cancelled: {_line(error)}")
        except OSError:
            self._check()
            return None  # its worker may have ended before the result was fetched
        return found

    def drop(self, task: Task) -> None:
        """Ask no more for a task; it is begun nowhere any more."""
        task.release()

    def wait(self, limit_s: float) -> None:
        """Wait until a task is done, or so long."""
        self._wake.wait(limit_s)
        self._wake.clear()

    def finish(self, tasks: Iterable[Task], limit_s: float) -> bool:
        """Wait until all of these tasks are done, or so long; whether they are."""
        asked, end = list(tasks), time.monotonic() + limit_s
        while not all(task.done() for task in asked) and (left := end - time.monotonic()) > 0:
            self.wait(left)
        return all(task.done() for task in asked)

    def _check(self) -> None:
        # Once the connection is lost every task is, even if it comes back.
        if self._client.status != "running":
            raise self._lost()

    def _lost(self) -> FleetError:
        return FleetError("the scheduler is lost; what was timed is kept, and the same command goes on from there")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
