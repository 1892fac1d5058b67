"""The API counts how the predictions turned out, on either database."""

from __future__ import annotations

from pathlib import Path

from server.storage.database import Database
from tests.support.alerting import Detectors, prediction, settled
from tests.support.server import running_server


async def test_predictions_are_counted_by_their_outcome(database: Database, database_url: str, tmp_path: Path) -> None:
    detectors = Detectors(database)
    await detectors.hold(settled(prediction("a"), "hit", 712))
    await detectors.hold(settled(prediction("b"), "early", 653))
    await detectors.hold(settled(prediction("c"), "false", 760))
    await detectors.hold(prediction("d"))
    await detectors.hold(prediction("e", state="resolved"))
    await detectors.hold(settled(prediction("f", level="watch"), "hit", 700))
    with running_server(tmp_path, database_url=database_url) as server, server.api() as api:
        assert api.get("/alerts/precision").json() == {
            "settled": 3,
            "hit": 1,
            "early": 1,
            "late": 0,
            "false": 1,
            "open": 1,
            "unsettled": 1,
            "precision": 2 / 3,
            "lead_steps": {"count": 2, "median": 79.5, "p10": 55.9, "p90": 103.1},
        }
        nothing = api.get("/alerts/precision", params={"project": "empty"}).json()
        assert (nothing["settled"], nothing["precision"], nothing["lead_steps"]["median"]) == (0, None, None)
        assert api.get("/alerts/p-d").json()["state"] == "open"
        assert api.get("/alerts/nobody").status_code == 404
