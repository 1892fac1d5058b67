"""Names and known facts of the three trainings; imports no torch, so that the runner stays light."""

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
"""Case to the module that trains it and the number of its steps."""
