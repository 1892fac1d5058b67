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
    old = settled(prediction("g", evidence={"warned_at_step": 690}), "hit", 712)
    await detectors.hold(old)  # as a version stored it that counted the lead from the first signs
    with running_server(tmp_path, database_url=database_url) as server, server.api() as api:
        assert api.get("/alerts/precision").json() == {
            "settled": 4,
            "hit": 2,
            "early": 1,
            "late": 0,
            "false": 1,
            "open": 1,
            "unsettled": 1,
            "precision": 3 / 4,
            "lead_steps": {"count": 3, "median": 50.0, "p10": 27.6, "p90": 97.2},
        }
        [first] = api.get("/alerts", params={"run": "g"}).json()
        assert first["outcome"] == {"result": "hit", "step": 712, "lead": 22, "first_seen_lead": 109}
        nothing = api.get("/alerts/precision", params={"project": "empty"}).json()
        assert (nothing["settled"], nothing["precision"], nothing["lead_steps"]["median"]) == (0, None, None)
        assert api.get("/alerts/p-d").json()["state"] == "open"
        assert api.get("/alerts/nobody").status_code == 404
