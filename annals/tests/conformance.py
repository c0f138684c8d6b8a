"""Runs scim2-tester, which others wrote, against a server: `conformance.py TOKEN URL...`, one URL for each
node; each request goes to the next of them. Prints what is no success and a line of counts."""

import itertools
import sys

from httpx2 import Client, HTTPTransport
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_tester import Status, check_server

token, *urls = sys.argv[1:]


class EachInTurn(HTTPTransport):
    """What one node has written, the next one must know."""

    ports = itertools.cycle([int(url.split(":")[2].split("/")[0]) for url in urls])

    def handle_request(self, request):
        request.url = request.url.copy_with(port=next(self.ports))
        return super().handle_request(request)


headers = {"Authorization": f"Bearer {token}"}
http = Client(base_url=urls[0], headers=headers, trust_env=False, timeout=30, transport=EachInTurn())
counts: dict[str, int] = {}
for result in check_server(SyncSCIMClient(http)):
    counts[result.status.name] = counts.get(result.status.name, 0) + 1
    if result.status in (Status.ERROR, Status.CRITICAL, Status.DEVIATION, Status.SKIPPED):
        print(f"{result.status.name} {result.resource_type or '-'} {result.title}: {result.reason}")
print("counts", " ".join(f"{name}={count}" for name, count in sorted(counts.items())))
