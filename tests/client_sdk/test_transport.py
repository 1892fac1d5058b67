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
    """Nobody trusts it by default."""
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[IngestServer]:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "spikewatch.example").configure_cert(tls)
    with IngestServer(tls=tls) as started:
        yield started


def log(directory: Path, url: str, *, patience: float = 20.0, **environ: str) -> str:
    """What a training process with these variables has to say."""
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


def test_authority_of_the_trust_store_is_enough(tmp_path: Path, authority: trustme.CA, server: IngestServer) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    said = log(tmp_path / "spool", server.url, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    assert said.startswith("True")
    assert server.steps() == [3]


def test_unknown_authority_is_refused_and_named(tmp_path: Path, server: IngestServer) -> None:
    said = log(tmp_path / "spool", server.url, patience=1.0)
    assert said.startswith("False")
    assert "certificate" in said
    assert "SSL_CERT_FILE" in said
    assert "spikewatch up" not in said, "the server is up, and another one would not help"
    assert server.steps() == []


def test_proxy_of_the_environment_is_used(tmp_path: Path, authority: trustme.CA, server: IngestServer) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with ConnectProxy() as proxy:
        said = log(
            tmp_path / "spool",
            f"https://spikewatch.example:{server.port}",
            SSL_CERT_FILE=str(tmp_path / "ca.pem"),
            https_proxy=proxy.url,
        )
        assert said.startswith("True")
        assert server.steps() == [3]
        assert proxy.targets == [f"CONNECT spikewatch.example:{server.port}"]


def test_proxy_that_does_not_answer_is_named_by_its_variable(tmp_path: Path, nobody: str) -> None:
    said = log(
        tmp_path / "spool",
        "https://spikewatch.example",
        patience=1.0,
        https_proxy=nobody.replace("http://", "http://me:secret@"),
    )
    assert said.startswith("False")
    assert "through a proxy (https_proxy)" in said
    assert "secret" not in said


def test_proxy_is_left_alone_where_no_proxy_says_so(
    tmp_path: Path, authority: trustme.CA, server: IngestServer
) -> None:
    with ConnectProxy() as proxy:
        said = log(
            tmp_path / "spool",
            f"https://spikewatch.example:{server.port}",
            patience=1.0,
            https_proxy=proxy.url,
            no_proxy="spikewatch.example",
        )
        assert said.startswith("False"), "the name exists for the proxy alone"
        assert proxy.targets == []


def test_proxy_is_never_asked_for_this_machine(tmp_path: Path) -> None:
    with IngestServer() as server, ConnectProxy() as proxy:
        said = log(tmp_path / "spool", server.url, http_proxy=proxy.url, https_proxy=proxy.url)
        assert said.startswith("True")
        assert server.steps() == [3]
        assert proxy.targets == []


def test_a_small_message_is_read_without_memory_for_a_large_one() -> None:
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


def test_every_connection_reads_so(monkeypatch: pytest.MonkeyPatch) -> None:
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
