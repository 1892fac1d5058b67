"""Exits with code 0 if the process of this container answers.

Imports little, because it runs in every container every ten seconds.
"""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("SPIKEWATCH_PORT", "8787")), timeout=4)
connection.request("GET", "/healthz")
sys.exit(connection.getresponse().status != http.client.OK)
