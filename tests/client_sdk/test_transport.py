"""TLS with the system's trust store, and proxies, over real sockets."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from client_sdk.config import Endpoint
from client_sdk.protocol import Hello, Welcome, encode
from client_sdk.transport import READ_BYTES, Connection, ExactSocket
from tests.support.connect_proxy import ConnectProxy
from tests.support.ingest_server import IngestServer

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

LOGS = """
import client_sdk, sys
client_sdk.init(project="p", directory=sys.argv[1], url=sys.argv[2])
client_sdk.log({"loss": 1.5}, step=3)
delivered = client_sdk.flush(float(sys.argv[3]))
print(delivered, client_sdk.status().last_error)
client_sdk.EXIT_TIMEOUT = 0.1
"""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Certificate authority that is in no trust store."""
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[IngestServer]:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "spikewatch.example").configure_cert(tls)
    with IngestServer(tls=tls) as started:
        yield started


def log(directory: Path, url: str, *, patience: float = 20.0, **environ: str) -> str:
    """Run a training process with these environment variables and return what it prints."""
    clean = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
    done = subprocess.run(
        [sys.executable, "-c", LOGS, str(directory), url, str(patience)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env={**clean, "SPIKEWATCH_HOME": os.devnull, **environ},
    )
    return done.stdout


def test_authority_in_the_trust_store_is_accepted(tmp_path: Path, authority: trustme.CA, server: IngestServer) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    output = log(tmp_path / "spool", server.url, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    assert output.startswith("True")
    assert server.steps() == [3]


def test_unknown_authority_is_refused_and_named(tmp_path: Path, server: IngestServer) -> None:
    output = log(tmp_path / "spool", server.url, patience=1.0)
    assert output.startswith("False")
    assert "certificate" in output
    assert "SSL_CERT_FILE" in output
    assert "spikewatch up" not in output, "the server is running, so the advice would be wrong"
    assert server.steps() == []


def test_proxy_of_the_environment_is_used(tmp_path: Path, authority: trustme.CA, server: IngestServer) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with ConnectProxy() as proxy:
        output = log(
            tmp_path / "spool",
            f"https://spikewatch.example:{server.port}",
            SSL_CERT_FILE=str(tmp_path / "ca.pem"),
            https_proxy=proxy.url,
        )
        assert output.startswith("True")
        assert server.steps() == [3]
        assert proxy.targets == [f"CONNECT spikewatch.example:{server.port}"]


def test_proxy_that_does_not_answer_is_named_by_its_variable(tmp_path: Path, nobody: str) -> None:
    output = log(
        tmp_path / "spool",
        "https://spikewatch.example",
        patience=1.0,
        https_proxy=nobody.replace("http://", "http://me:secret@"),
    )
    assert output.startswith("False")
    assert "through a proxy (https_proxy)" in output
    assert "secret" not in output


def test_host_in_no_proxy_bypasses_the_proxy(tmp_path: Path, authority: trustme.CA, server: IngestServer) -> None:
    with ConnectProxy() as proxy:
        output = log(
            tmp_path / "spool",
            f"https://spikewatch.example:{server.port}",
            patience=1.0,
            https_proxy=proxy.url,
            no_proxy="spikewatch.example",
        )
        assert output.startswith("False"), "only the proxy can resolve the name"
        assert proxy.targets == []


def test_server_on_this_machine_bypasses_the_proxy(tmp_path: Path) -> None:
    with IngestServer() as server, ConnectProxy() as proxy:
        output = log(tmp_path / "spool", server.url, http_proxy=proxy.url, https_proxy=proxy.url)
        assert output.startswith("True")
        assert server.steps() == [3]
        assert proxy.targets == []


def test_small_message_is_read_without_memory_for_a_large_one() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        exact = ExactSocket(ours)
        theirs.sendall(b"acknowledged")
        tracemalloc.start()
        try:
            assert exact.recv(READ_BYTES) == b"acknowledged"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2_000
        theirs.sendall(bytes(READ_BYTES))
        assert exact.recv(100) == bytes(100), "no more than was asked for"


def test_every_connection_reads_from_an_exact_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    plain = ExactSocket.recv

    def recv(self: ExactSocket, size: int) -> bytes:
        read.append(plain(self, size))
        return read[-1]

    monkeypatch.setattr(ExactSocket, "recv", recv)
    with IngestServer() as server:
        connection = Connection(Endpoint(url=server.url))
        connection.send(encode(Hello(version=1, run_id="r", writer="w", project="p")))
        assert connection.receive(20) == Welcome(run_id="r", last_seq=0)
        connection.close()
    assert encode(Welcome(run_id="r", last_seq=0)) in b"".join(read)
