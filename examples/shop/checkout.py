"""Takes orders: reserves goods in the inventory (HTTP), writes the sale into the ledger (TCP)."""

import itertools
import json
import os
import socket
import threading
import urllib.error
import urllib.request

from web import Refused, host, serve

INVENTORY = os.environ.get("INVENTORY_URL", f"http://{host('inventory')}:8080")
LEDGER = (os.environ.get("LEDGER_NAME") or host("ledger"), int(os.environ.get("LEDGER_BOOKS", "9000")))
NUMBERS = itertools.count(1)


class Ledger:
    """One connection to the ledger, opened when needed and again when it broke."""

    def __init__(self):
        self.lock = threading.Lock()
        self.file = None

    def write(self, line):
        """Sends a line and returns the answer. A line is sent twice only if its number makes that harmless."""
        with self.lock:
            for last in (False, True):
                try:
                    if self.file is None:
                        self.file = socket.create_connection(LEDGER, timeout=5).makefile("rw")
                    self.file.write(line + "\n")
                    self.file.flush()
                    answer = self.file.readline()
                    if answer:
                        return answer.strip()
                    raise ConnectionError("the ledger closed the connection")
                except OSError:
                    self.file = None
                    if last:
                        raise


LEDGER_LINE = Ledger()


def inventory(path, body=None):
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(INVENTORY + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise Refused(error.code, error.read(4096).decode(errors="replace").strip()) from error


def order(body):
    item, count = str(body["item"]), int(body["count"])
    reserved = inventory("/reserve", {"item": item, "count": count})
    number = f"{os.getpid()}-{next(NUMBERS)}"
    answer = LEDGER_LINE.write(f"SALE {number} {reserved['cents']} {item}")
    if not answer.startswith("OK"):
        raise Refused(502, f"the ledger says: {answer}")
    return {"order": number, "item": item, "count": count, "cents": reserved["cents"], "ledger": answer}


serve("checkout", 18081, {
    ("GET", "/goods"): lambda _: inventory("/stock"),
    ("POST", "/orders"): order,
})
