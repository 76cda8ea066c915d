"""A Ray cluster, where one machine is not enough.

`cluster="ray"` is the one of RAY_ADDRESS, or else a local one; `cluster="ray:HOST:PORT"` another.
Ray is an extra, `tma[ray]`, and imported when a cluster is first asked for.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

from tma.errors import ParameterError, TmaError, first_line, wrong

WAIT = 60.0
"""Seconds that a cluster has to answer, and to find room for a worker."""
RETRIES = 3
"""How often a function is run again after the death of its node or of its process."""
INSTALL = 'pip install "tma[ray]"'


def connect(cluster: str) -> ModuleType:
    """Return the `ray` module, connected; a connection that the process has already stays.

    Args:
        cluster: "ray", the cluster of RAY_ADDRESS or else a local one, or "ray:ADDRESS", such as
            "ray:10.0.0.1:6379".

    Raises:
        ParameterError: a value of another form, Ray is not installed, or no cluster answers there.
    """
    address = check_cluster(cluster)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    try:
        import ray
    except ImportError as error:
        message = f"cluster={cluster!r} needs Ray, which is not installed; {INSTALL}."
        raise ParameterError(message) from error
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address not in (None, there):
            raise wrong("cluster", cluster, f'"ray": this process is connected to {there} already')
        return ray
    # Ray would print the errors of all workers beside the one that is raised.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Without an address Ray would join whatever cluster was last started on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_answers(cluster, address)
    dashboard = False if address == "local" else None
    try:
        ray.init(
            address,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        message = f"cluster={cluster!r} cannot be used: {first_line(error)}"
        raise ParameterError(message) from error
    return ray


def check_cluster(cluster: str) -> str | None:
    """Return the address in a value of `cluster`, None: not given; refuse other values."""
    kind, colon, address = cluster.partition(":") if isinstance(cluster, str) else ("", "", "")
    if kind != "ray" or bool(colon) != bool(address):
        raise wrong("cluster", cluster, '"ray" or "ray:ADDRESS", such as "ray:10.0.0.1:6379"')
    return address or None


def _check_answers(cluster: str, address: str) -> None:
    """Refuse an address where nothing listens: Ray would try for minutes, then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not port.isdecimal() or not host:
        raise wrong("cluster", cluster, f"an address of the form HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ParameterError(
            f"cluster={cluster!r}: nothing answers at {address} ({first_line(error)}). Start one "
            'with `ray start --head`, or give cluster="ray" for a local one.'
        ) from error


def check_room(ray: ModuleType, worker: dict[str, float], seconds: float | None = None) -> None:
    """Wait until the cluster has room for one more worker, such as {"CPU": 1, "GPU": 1}.

    Raises:
        ParameterError: it has none within `seconds`, by default `WAIT`; the message says what
            it has.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    seconds = WAIT if seconds is None else seconds
    group = placement_group([worker])  # reserves; where the cluster can grow, it grows
    try:
        if group.wait(seconds):
            return
    finally:
        remove_placement_group(group)
    free = ray.available_resources()
    kinds = sorted({*worker, "CPU", "GPU"})
    there = ", ".join(
        f"{kind} {free.get(kind, 0):g} of {total:g} free"
        for kind in kinds
        if (total := ray.cluster_resources().get(kind, 0)) or kind in worker
    )
    asked = " and ".join(f"{kind} {amount:g}" for kind, amount in worker.items())
    raise ParameterError(
        f"the cluster had no room for a worker of {asked} within {seconds:g} s; it has {there}. "
        "Free or add a node, or ask for less."
    )


def check_left(ray: ModuleType, worker: Mapping[str, float]) -> None:
    """Refuse to wait for a cluster that has lost all that a worker takes.

    Raises:
        ParameterError: no node is left that could run one.
    """
    there = ray.cluster_resources()
    lost = [kind for kind, amount in worker.items() if there.get(kind, 0) < amount]
    if lost:
        raise ParameterError(
            f"the cluster has no room left: no {' and no '.join(lost)}, of which a worker takes 1, "
            "since nodes died. Add a node (ray start --address=HOST:PORT) and call again: what is "
            "finished is read, the rest goes on."
        )


class Tasks:
    """Functions run on a cluster, each on one CPU; `gpu`: on one GPU, where the cluster has any.

    A function that was lost with its node or its process is run again, `RETRIES` times.

    Raises:
        ParameterError: as `connect` and `check_room`.
    """

    def __init__(self, cluster: str, *, gpu: bool = True) -> None:
        self._ray = connect(cluster)
        there = self._ray.cluster_resources()
        self.gpus = int(there.get("GPU", 0)) if gpu else 0
        self.slots = self.gpus or max(1, int(there.get("CPU", 0)))
        self.worker: dict[str, float] = {"CPU": 1, "GPU": 1} if self.gpus else {"CPU": 1}
        check_room(self._ray, self.worker)

    def put(self, value: Any, /) -> Any:
        """Return a reference to a value that many calls take."""
        return self._ray.put(value)

    def submit(self, function: Callable[..., Any], /, *given: Any, parts: int = 1) -> Any:
        """Return a reference to a function's result, or one to each of its parts.

        References among `given` stand for their values.
        """
        needs = {"num_cpus": 1, "num_gpus": self.worker.get("GPU", 0)}
        task = self._ray.remote(function).options(max_retries=RETRIES, num_returns=parts, **needs)
        return task.remote(*given)

    def result(self, submitted: Any, /) -> Any:
        """Return the value of a reference, or of a list of them; an error as it was raised.

        Raises:
            ParameterError: as `check_left`.
            TmaError: a function was lost more than `RETRIES` times.
        """
        while True:
            try:
                return self._ray.get(submitted, timeout=WAIT)
            except self._ray.exceptions.GetTimeoutError:
                check_left(self._ray, self.worker)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except self._ray.exceptions.RayError as error:
                raise TmaError(
                    f"a worker was killed {RETRIES + 1} times, with its node or for lack of "
                    f"memory: {first_line(error)} Give smaller files, or start nodes with fewer "
                    "CPUs (ray start --num-cpus)."
                ) from error

    def keep(self, value: Any, /) -> Kept:
        """Return what stands for a value in `map`, which each process there fetches once."""
        return Kept([self._ray.put(value)])

    def map(self, function: Callable[..., Any], *given: Any, over: Iterable[Any]) -> Iterator[Any]:
        """Yield function(…, item) of all items in their sequence; few are on their way at once.

        After an error or Ctrl-C, those on their way are stopped.
        """
        running: deque[Any] = deque()
        try:
            for item in over:
                running.append(self.submit(function, *given, item))
                if len(running) > 3 * self.slots:
                    yield self.result(running.popleft())
            while running:
                yield self.result(running.popleft())
        finally:
            for left in running:
                self._ray.cancel(left)


class Kept:
    """A value that each process of a cluster fetches once, such as a model."""

    def __init__(self, reference: list[Any]) -> None:
        self._reference = reference  # in a list, or Ray would fetch it for every call

    @property
    def value(self) -> Any:
        """The value."""
        return _fetched(*self._reference)


@lru_cache(maxsize=1)
def _fetched(reference: Any) -> Any:
    import ray

    return ray.get(reference)
