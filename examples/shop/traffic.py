"""Steady customers: twenty requests a second through one kept connection, one in four buys.

A client only. Its first instruction may be a call, because its proxy is ready before it starts.
"""

import collections
import http.client
import json
import os
import signal
import time

from web import host

HOST, PORT = os.environ.get("FRONTEND_NAME") or host("frontend"), int(os.environ.get("FRONTEND_HTTP", "8080"))
RATE = float(os.environ.get("TRAFFIC_RATE", "20"))
GOODS = ["cup", "saucer", "cup", "teapot"]

running = True


def stop(*_):
    global running
    running = False


def once(connection, number):
    """One request; returns its status, or for an answer of a proxy its reason."""
    if number % 4 == 0:
        order = json.dumps({"item": GOODS[number // 4 % len(GOODS)], "count": 1})
        connection.request("POST", "/buy", order, {"Content-Type": "application/json"})
    else:
        connection.request("GET", "/goods")
    response = connection.getresponse()
    response.read()
    return response.getheader("x-outrider-reason") or response.status


def main():
    signal.signal(signal.SIGTERM, stop)
    connection = http.client.HTTPConnection(HOST, PORT, timeout=20)
    seen, total, report = collections.Counter(), 0, time.monotonic() + 10
    due = time.monotonic()
    while running:
        try:
            seen[once(connection, total)] += 1
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            seen[type(error).__name__] += 1
        total += 1
        if time.monotonic() >= report:
            print(f"{total} requests; the last 10 s: " + ", ".join(f"{what} × {n}" for what, n in seen.items()))
            seen.clear()
            report += 10
        due = max(due + 1 / RATE, time.monotonic() - 1)
        time.sleep(max(0.0, due - time.monotonic()))
    print(f"traffic ends after {total} requests")


main()
