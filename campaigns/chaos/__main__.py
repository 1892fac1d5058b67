"""``python -m campaigns.chaos``: run a campaign of faults, print its table, and exit with 1 if a promise was broken.

The target is `spikewatch up` on SQLite, or two `spikewatch serve` on a real Postgres and Redis (``--database
postgres``). All traffic stays on the loopback interface, and every process is ended by its id.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx

from campaigns.chaos.campaign import Campaign
from campaigns.chaos.clock import JumpingClock
from campaigns.chaos.proxy import ChaosProxy
from campaigns.chaos.report import judge, table
from campaigns.chaos.schedule import KINDS, OF_SEVERAL_SERVERS, schedule
from campaigns.chaos.services import Supervised
from campaigns.chaos.training import Training
from campaigns.chaos.verify import in_api, in_database, should_be_shown, shown
from tests.support.embedded import COMMAND
from tests.support.postgres import Postgres
from tests.support.redis import Redis

TOKEN = "sw_chaos_" + "x" * 32


def main() -> int:
    """Run the campaign that the command line describes and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.chaos")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--faults", type=int, default=110)
    parser.add_argument("--rate", type=float, default=200.0, help="steps a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="directory for all files, kept (default: a temporary one)")
    parser.add_argument("--quiet", action="store_true", help="print only the table")
    options = parser.parse_args()
    directory = options.keep or Path(tempfile.mkdtemp(prefix="spikewatch-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        return _campaign(options, directory)
    finally:
        if options.keep is None:
            shutil.rmtree(directory, ignore_errors=True)


def _campaign(options: argparse.Namespace, directory: Path) -> int:
    chance = random.Random(options.seed)
    kinds = [kind for kind in KINDS if kind not in OF_SEVERAL_SERVERS or options.database == "postgres"]
    faults = schedule(options.seed, options.faults, kinds)
    ports = [_free_port() for _ in range(2 if options.database == "postgres" else 1)]
    clock = JumpingClock(directory / "clock")
    with _database(options.database, directory) as (postgres, redis, url):
        servers = [_server(postgres, redis, url, port, directory) for port in ports]
        with ChaosProxy(ports, chance) as proxy:
            environment = os.environ | {
                "SPIKEWATCH_URL": f"http://127.0.0.1:{proxy.port}",
                "SPIKEWATCH_TOKEN": TOKEN,
                "SPIKEWATCH_DIR": str(directory / "spool"),
            }
            training = Training(
                uuid.uuid4().hex, environment, options.rate, directory / "clock", directory / "trainer.log"
            )
            campaign = Campaign(
                training=training,
                servers=servers,
                postgres=postgres,
                redis=redis,
                proxy=proxy,
                clock=clock,
                log=_discard if options.quiet else _print,
            )
            try:
                for server in servers:
                    server.start()
                campaign.run(faults, options.steps, chance)
                is_delivered = training.deliver_the_rest(directory / "spool", f"http://127.0.0.1:{ports[0]}")
                with _api(ports[-1]) as api:
                    exported = in_api(api, training.run_id)
                    last = max(entry.step for entry in training.entries)
                    page = shown(api, training.run_id, last)
                    run = api.get(f"/runs/{training.run_id}").json()
            finally:
                training.end()
                for server in servers:
                    server.stop()
                clock.close()
        stored = asyncio.run(in_database(url, training.run_id))
    truth = should_be_shown(training.entries, training.starts)
    verdict = judge(
        training.entries,
        incarnations=len(training.starts),
        database=stored,
        api=exported,
        shown=page,
        should_be_shown=truth,
    )
    print(
        f"chaos on {options.database}, seed {options.seed}: {len(training.entries):,} steps in "
        f"{len(training.starts)} starts of the trainer, {sum(server.starts for server in servers)} of "
        f"{'two servers' if len(servers) == 2 else 'the server'}"
    )
    print(table(training.entries, campaign.injected, campaign.missed, verdict))
    for name, found in (
        ("lost", verdict.lost),
        ("stored twice", verdict.twice),
        ("with other bits", verdict.altered),
        ("that were never logged", verdict.invented),
        ("missing or different in the API", verdict.unexported),
        ("shown from another attempt", verdict.misshown),
    ):
        examples = "" if not found else f", for example {sorted(found)[:5]}"
        print(f"steps {name}: {len(found)}{examples}")
    print(f"dropped, as reported by the SDK: {training.dropped}; state of the run: {run['state']}")
    kept = verdict.is_kept and is_delivered and training.dropped == 0 and run["state"] == "finished"
    kept = kept and not campaign.missed
    print("every step exactly once, bit for bit" if kept else "BROKEN")
    return 0 if kept else 1


@contextlib.contextmanager
def _database(kind: str, directory: Path) -> Iterator[tuple[Postgres | None, Redis | None, str]]:
    if kind == "sqlite":
        yield None, None, f"sqlite:///{directory / 'data' / 'spikewatch.sqlite3'}"
        return
    postgres, redis = Postgres(), Redis()
    try:
        yield postgres, redis, postgres.create_database()
    finally:
        redis.stop()
        postgres.stop()


def _server(postgres: Postgres | None, redis: Redis | None, url: str, port: int, directory: Path) -> Supervised:
    environment = os.environ | {
        "SPIKEWATCH_HOME": str(directory),
        "SPIKEWATCH_PORT": str(port),
        "SPIKEWATCH_ADMIN_TOKEN": TOKEN,
    }
    log = directory / f"server-{port}.log"
    if postgres is None or redis is None:
        return Supervised([*COMMAND, "up", "--data", str(directory / "data")], environment, log)
    environment |= {"SPIKEWATCH_DATABASE_URL": url, "SPIKEWATCH_REDIS_URL": redis.url}
    subprocess.run([*COMMAND, "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL, timeout=120)
    return Supervised([*COMMAND, "serve"], environment, log)


def _api(port: int) -> httpx.Client:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", headers=headers, timeout=60, trust_env=False)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _print(text: str) -> None:
    print(text, flush=True)


def _discard(text: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
