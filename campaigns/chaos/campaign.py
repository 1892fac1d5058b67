"""The chaos campaign: a training, its servers, database and Redis, and the faults that are injected into them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from campaigns.chaos.clock import JumpingClock
from campaigns.chaos.proxy import ChaosProxy, FrameFault, FrameOrder
from campaigns.chaos.schedule import Fault, Kind
from campaigns.chaos.services import Supervised
from campaigns.chaos.training import UNLIMITED, Training
from client_sdk.spool.spool import DISK_RETRY
from tests.support.postgres import Postgres
from tests.support.redis import Redis

FRAME_TIMEOUT = 60.0  # seconds within which a frame must arrive that a fault can damage
ROLLBACK = 300  # maximum number of steps that a restarted training goes back
DISK_FULL_STEPS = 100  # steps logged while the disk is full
DISK_MARGIN = 1.0  # seconds
DISK_LEFT = 60_000  # maximum size in bytes of a file when the disk is nearly full
HANG = 4.0  # seconds, about
JUMPS = (-86_400.0, -3_600.0, -1.5, 0.7, 3_600.0, 1_000_000.0)  # seconds

FRAME_FAULTS: dict[Kind, FrameFault] = {
    "cut in mid-frame": "cut",
    "answers cut off": "mute",
    "delayed frame": "delay",
    "duplicated frames": "duplicate",
}
"""Faults that the proxy injects."""


@dataclass(frozen=True, kw_only=True)
class InjectedFault:
    """A fault that was injected."""

    fault: Fault
    """The fault of the schedule."""
    position: int
    """Number of entries in the ledger at that moment."""


class Campaign:
    """The injection of a schedule of faults into a training and its services."""

    def __init__(
        self,
        *,
        training: Training,
        servers: Sequence[Supervised],
        postgres: Postgres | None,
        redis: Redis | None,
        proxy: ChaosProxy,
        clock: JumpingClock,
        log: Callable[[str], None],
    ) -> None:
        """Prepare to inject faults; ``log`` receives a line for each of them."""
        self.injected: list[InjectedFault] = []
        """Faults that were injected, in their order."""
        self.missed: list[Fault] = []
        """Faults that were not injected because no frame arrived in time."""
        self._training = training
        self._servers = servers
        self._postgres = postgres
        self._redis = redis
        self._proxy = proxy
        self._clock = clock
        self._log = log
        self._returns: list[threading.Timer] = []  # timers that bring a service back
        self._disk_is_used_at = 0.0  # monotonic time until which a trainer keeps in memory what its disk refused

    def run(self, faults: Sequence[Fault], steps: int, chance: random.Random) -> None:
        """Inject the faults evenly while at least ``steps`` steps are logged, then let the training finish."""
        training = self._training
        training.start(0)
        gap = steps / (len(faults) + 1)
        begin = time.monotonic()
        for number, fault in enumerate(faults, 1):
            # A fault may last for many steps, but the next one still waits for some steps of its own.
            here = len(training.entries)
            training.wait_for_entries(max(round(number * gap), here + round(gap * chance.uniform(0.2, 0.6))))
            position = len(training.entries)
            self._log(f"{time.monotonic() - begin:6.1f} s, {position:6d} steps, fault {number:3d}: {fault.kind}")
            if self._inject(fault):
                self.injected.append(InjectedFault(fault=fault, position=position))
            else:
                self.missed.append(fault)
        training.wait_for_entries(steps)
        self._await_services()
        self._clock.set_right()
        training.finish()

    def _inject(self, fault: Fault) -> bool:
        """Inject ``fault`` and return whether it happened."""
        match fault.kind:
            case "kill -9 trainer":
                self._kill_trainer(fault.amount)
            case "kill -9 server":
                self._one_of(self._servers, fault.amount).kill(fault.amount)
            case "kill -9 postgres":
                assert self._postgres is not None
                self._postgres_is_killed(self._postgres, fault.amount)
            case "kill -9 redis":
                assert self._redis is not None
                self._redis_is_killed(self._redis, fault.amount)
            case "server hangs":
                self._hang(self._one_of(self._servers, fault.amount), fault.amount)
            case "disk full":
                self._fill_disk(fault.amount)
            case "clock jump":
                self._clock.jump(JUMPS[int(fault.amount * len(JUMPS))])
            case _:
                return self._damage_frame(FRAME_FAULTS[fault.kind], fault.amount)
        return True

    def _kill_trainer(self, amount: float) -> None:
        """Kill and restart the trainer: half of the restarts continue where it was, half go back to a checkpoint."""
        training = self._training
        if (wait := self._disk_is_used_at - time.monotonic()) > 0:
            time.sleep(wait)
            training.wait_for_entries(len(training.entries) + 1)
        training.kill()
        back = 0 if amount < 0.5 else int(amount * ROLLBACK)
        training.start(max(0, training.next_step - back))
        training.wait_for_entries(len(training.entries) + 1)

    def _postgres_is_killed(self, postgres: Postgres, amount: float) -> None:
        self._await_returns()
        postgres.kill()
        self._after(amount, postgres.start_again)

    def _redis_is_killed(self, redis: Redis, amount: float) -> None:
        """Kill Redis, which keeps nothing on disk and so loses its streams and leases."""
        self._await_returns()
        redis.kill()
        self._after(2 * amount, redis.start_again)

    def _hang(self, server: Supervised, amount: float) -> None:
        """Stop a server in the middle of its work, and continue it when the training has moved to the other one."""
        self._await_returns()
        server.pause()
        self._proxy.cut_all()
        self._after(HANG * (0.2 + amount), server.resume)

    def _one_of(self, servers: Sequence[Supervised], amount: float) -> Supervised:
        return servers[int(amount * 1_000) % len(servers)]

    def _after(self, seconds: float, restore: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, restore)
        self._returns.append(timer)
        timer.start()

    def _await_returns(self) -> None:
        while self._returns:
            self._returns.pop().join()

    def _await_services(self) -> None:
        self._await_returns()
        for server in self._servers:
            server.wait_up()

    def _fill_disk(self, amount: float) -> None:
        """Fill the disk of the trainer for some steps.

        Records that are logged meanwhile are only in memory, as the SDK warns. So no trainer is killed before the
        server has them and the disk is in use again.
        """
        training = self._training
        training.limit_files(int(amount * DISK_LEFT))
        training.wait_for_entries(len(training.entries) + DISK_FULL_STEPS)
        training.limit_files(UNLIMITED)
        self._disk_is_used_at = time.monotonic() + DISK_RETRY + DISK_MARGIN
        self._await_services()
        training.wait_for_acknowledgement()

    def _damage_frame(self, fault: FrameFault, amount: float) -> bool:
        order = FrameOrder(fault=fault, seconds=amount * 2)
        self._proxy.order(order)
        if order.done.wait(FRAME_TIMEOUT):
            return True
        self._proxy.withdraw(order)
        return False
