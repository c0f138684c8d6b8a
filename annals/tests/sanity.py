"""Runs scim-sanity, which others wrote, against a server: `sanity.py PREFER TOKEN URL...`, one URL for each
node; each request goes to the next of them. PREFER is the value of the header `Prefer` in every PATCH, or
nothing. Prints what is no success and a line of counts."""

import itertools
import sys

from scim_sanity.http_client import SCIMClient
from scim_sanity.probe.runner import run_probe_api

prefer, token, *urls = sys.argv[1:]
nodes = itertools.cycle(urls)
send = SCIMClient._request


def send_to_the_next(self, method, path, payload=None, extra_headers=None):
    self.base_url = next(nodes)
    if prefer and method == "PATCH":
        extra_headers = {**(extra_headers or {}), "Prefer": prefer}
    return send(self, method, path, payload, extra_headers)


SCIMClient._request = send_to_the_next
counts: dict[str, int] = {}
for result in run_probe_api(urls[0], token=token, strict=True)["results"]:
    status = result["status"].upper()
    counts[status] = counts.get(status, 0) + 1
    if status != "PASS":
        print(f"{status} {result['phase'].split(' ')[-1]} {result['name']}: {result.get('message')}")
print("counts", " ".join(f"{name}={count}" for name, count in sorted(counts.items())))
