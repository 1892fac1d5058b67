"""One campaign: a training, one server or two, a database, perhaps a Redis, and the faults that strike them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from campaigns.chaos.clock import JumpingClock
from campaigns.chaos.proxy import ChaosProxy, Harm, Order
from campaigns.chaos.schedule import Fault, Kind
from campaigns.chaos.services import Supervised
from campaigns.chaos.training import UNLIMITED, Training
from client_sdk.spool.spool import DISK_RETRY
from tests.support.postgres import Postgres
from tests.support.redis import Redis

STRIKE_TIMEOUT = 60.0  # seconds in which a frame must come that an order can harm
ROLLBACK = 300  # steps that a restarted training goes back at most
DISK_FULL_STEPS = 100
DISK_MARGIN = 1.0  # seconds
DISK_LEFT = 60_000  # bytes that a file may still have when the disk is nearly full
HANG = 4.0  # seconds, about
JUMPS = (-86_400.0, -3_600.0, -1.5, 0.7, 3_600.0, 1_000_000.0)  # seconds

HARMS: dict[Kind, Harm] = {
    "cut in mid-frame": "cut",
    "answers cut off": "mute",
    "delayed frame": "delay",
    "duplicated frames": "duplicate",
}


@dataclass(frozen=True, kw_only=True)
class Strike:
    """A fault that happened."""

    fault: Fault
    position: int
    """Entries of the ledger at that moment."""


class Campaign:
    def __init__(
        self,
        *,
        training: Training,
        servers: Sequence[Supervised],
        postgres: Postgres | None,
        redis: Redis | None,
        proxy: ChaosProxy,
        clock: JumpingClock,
        tell: Callable[[str], None],
    ) -> None:
        self.strikes: list[Strike] = []
        self.missed: list[Fault] = []
        """Faults for which no frame came in time."""
        self._training = training
        self._servers = servers
        self._postgres = postgres
        self._redis = redis
        self._proxy = proxy
        self._clock = clock
        self._tell = tell
        self._returns: list[threading.Thread] = []
        """Of services that are away."""
        self._disk_is_used_at = 0.0  # monotonic; until then a trainer keeps in memory what its disk did not take

    def run(self, faults: Sequence[Fault], steps: int, chance: random.Random) -> None:
        """Strike while at least ``steps`` steps are logged, evenly; then let the training finish."""
        training = self._training
        training.start(0)
        gap = steps / (len(faults) + 1)
        begin = time.monotonic()
        for number, fault in enumerate(faults, 1):
            # A fault may last for many steps; the next one waits for steps of its own all the same.
            here = len(training.entries)
            training.wait_for_entries(max(round(number * gap), here + round(gap * chance.uniform(0.2, 0.6))))
            position = len(training.entries)
            self._tell(f"{time.monotonic() - begin:6.1f} s, {position:6d} steps, fault {number:3d}: {fault.kind}")
            if self._strike(fault):
                self.strikes.append(Strike(fault=fault, position=position))
            else:
                self.missed.append(fault)
        training.wait_for_entries(steps)
        self._await_services()
        self._clock.set_right()
        training.finish()

    def _strike(self, fault: Fault) -> bool:
        """True when it happened."""
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
                return self._harm(HARMS[fault.kind], fault.amount)
        return True

    def _kill_trainer(self, amount: float) -> None:
        """Half of the restarts go on where the training was, half go back to a checkpoint."""
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
        """With it go its streams and leases: it keeps nothing on a disk."""
        self._await_returns()
        redis.kill()
        self._after(2 * amount, redis.start_again)

    def _hang(self, server: Supervised, amount: float) -> None:
        """The server stops in the middle of whatever it does, and goes on when the training has moved to the other."""
        self._await_returns()
        server.pause()
        self._proxy.cut_all()
        self._after(HANG * (0.2 + amount), server.go_on)

    def _one_of(self, servers: Sequence[Supervised], amount: float) -> Supervised:
        return servers[int(amount * 1_000) % len(servers)]

    def _after(self, seconds: float, come_back: Callable[[], None]) -> None:
        def wait() -> None:
            time.sleep(seconds)
            come_back()

        thread = threading.Thread(target=wait, name="return")
        self._returns.append(thread)
        thread.start()

    def _await_returns(self) -> None:
        while self._returns:
            self._returns.pop().join()

    def _await_services(self) -> None:
        self._await_returns()
        for server in self._servers:
            server.wait_up()

    def _fill_disk(self, amount: float) -> None:
        """What is logged meanwhile is in memory alone, as the SDK warns: no trainer is killed before the server has it
        and the disk is in use again."""
        training = self._training
        training.limit_files(int(amount * DISK_LEFT))
        training.wait_for_entries(len(training.entries) + DISK_FULL_STEPS)
        training.limit_files(UNLIMITED)
        self._disk_is_used_at = time.monotonic() + DISK_RETRY + DISK_MARGIN
        self._await_services()
        training.wait_for_acknowledgement()

    def _harm(self, harm: Harm, amount: float) -> bool:
        order = Order(harm=harm, seconds=amount * 2)
        self._proxy.order(order)
        if order.done.wait(STRIKE_TIMEOUT):
            return True
        self._proxy.withdraw(order)
        return False
