"""Names and facts of the three trainings. Imports no torch, so that the runner of the demo stays light."""

from __future__ import annotations

from typing import Final

TANH_NET: Final = "tanh-net"
CHAR_TRANSFORMER: Final = "char-transformer"
BAD_BATCH: Final = "bad-batch"

BAD_STEP: Final = 400
"""Step at which the corrupted batch arrives."""

TANH_NET_STEPS: Final = 860
CHAR_TRANSFORMER_STEPS: Final = 500
BAD_BATCH_STEPS: Final = 600

MODULES: Final = {
    TANH_NET: ("server.demo.tanh_net", TANH_NET_STEPS),
    CHAR_TRANSFORMER: ("server.demo.char_transformer", CHAR_TRANSFORMER_STEPS),
    BAD_BATCH: ("server.demo.bad_batch", BAD_BATCH_STEPS),
}
"""Module and number of steps of each training, by name."""
