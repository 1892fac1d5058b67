"""The picture of a run, drawn from stored records."""

from __future__ import annotations

import io

from PIL import Image

from client_sdk.protocol import Record
from server.notifications.picture import HEIGHT, WIDTH, PictureRenderer
from server.storage.database import Database
from server.storage.loss_choices import LossChoiceStore
from tests.server.storage.conftest import Stores


async def test_the_picture_shows_the_loss_under_the_name_that_the_run_has(database: Database) -> None:
    stores = Stores.over(database)
    writer = await stores.register()
    records = [
        Record(step=step, time=0.0, scalars={"train/loss": 2.0 + step % 3, "val/loss": 9.0}) for step in range(50)
    ]
    await stores.commit(writer, 0, records)
    renderer = PictureRenderer(stores.series, stores.runs)
    assert await renderer.render("run", 49, None) is None, "there is no loss yet"
    pictures = []
    for name in ("train/loss", "val/loss"):
        await LossChoiceStore(database).show("run", name, since=None, loss=None, sparkline=None)
        picture = await renderer.render("run", 49, None)
        assert picture is not None
        assert Image.open(io.BytesIO(picture)).size == (WIDTH, HEIGHT)
        pictures.append(picture)
    assert pictures[0] != pictures[1]
