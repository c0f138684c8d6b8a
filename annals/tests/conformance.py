"""Runs scim2-tester, which others wrote, against a server; prints what failed and a line of counts."""

import sys

from httpx2 import Client
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_tester import Status, check_server

url, token = sys.argv[1:3]
http = Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=30)
counts: dict[str, int] = {}
for result in check_server(SyncSCIMClient(http)):
    counts[result.status.name] = counts.get(result.status.name, 0) + 1
    if result.status in (Status.ERROR, Status.CRITICAL, Status.DEVIATION):
        print(f"{result.status.name} {result.resource_type or '-'} {result.title}: {result.reason}")
print("counts", " ".join(f"{name}={count}" for name, count in sorted(counts.items())))
