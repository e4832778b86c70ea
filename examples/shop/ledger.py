"""Keeps the books. A line in, a line out, over TCP:

    SALE NUMBER CENTS TEXT   →  OK TOTAL      (the same NUMBER again changes nothing)
    TOTAL                    →  OK TOTAL
    anything else            →  ERR sentence
"""

import collections
import signal
import socketserver
import threading

LOCK = threading.Lock()
SALES = collections.OrderedDict()  # the latest sales by number, to recognise repetitions
TOTAL = 0


def book(line):
    global TOTAL
    words = line.split(maxsplit=3)
    if words[:1] == ["TOTAL"]:
        return f"OK {TOTAL}"
    if len(words) < 3 or words[0] != "SALE" or not words[2].isdigit():
        return "ERR write SALE NUMBER CENTS TEXT, or TOTAL"
    with LOCK:
        if words[1] not in SALES:
            SALES[words[1]] = int(words[2])
            TOTAL += int(words[2])
            if len(SALES) > 10000:
                SALES.popitem(last=False)
        return f"OK {TOTAL}"


class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        try:
            while line := self.rfile.readline(4096):
                self.wfile.write((book(line.decode(errors="replace")) + "\n").encode())
        except ConnectionError:
            pass  # the other side has gone; every sale it was told OK is in the books


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("127.0.0.1", 19000), Lines) as server:
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("ledger listens on 127.0.0.1:19000")
    server.serve_forever()
print(f"ledger ends with {TOTAL} ¢ in the books")
