"""The private interfaces of uvicorn that the server relies on."""

from __future__ import annotations

import uvicorn

from server.serving.uvicorn_private import CHECKED_VERSIONS


def test_the_private_interfaces_were_checked_with_the_installed_version() -> None:
    minor = ".".join(uvicorn.__version__.split(".")[:2])
    assert minor in CHECKED_VERSIONS, (
        f"uvicorn {minor} has not been checked. Compare uvicorn/server.py (startup, shutdown, servers, "
        "capture_signals, handle_exit) and uvicorn/protocols/http/httptools_impl.py (connections, cycle, parser "
        "callbacks, handle_websocket_upgrade) with server/serving/uvicorn_private.py, run tests/server/test_limits.py "
        "and "
        "`python -m benchmarks.serving`, and add the version to CHECKED_VERSIONS."
    )
