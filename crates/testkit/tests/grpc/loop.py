"""Calls until a file is there. Arguments: the target, the file that says how many worked so far, and the one that ends it.

Prints how many worked; a failure ends it with 1.
"""
import os
import sys
import threading

import grpc

stop = threading.Event()
counts, failures = [0] * 5, []
# As everybody has it: what meets GOAWAY before it left this process is sent on the next connection.
channel = grpc.insecure_channel(sys.argv[1])


def calls(at):
    call = channel.unary_unary("/test.All/Unary")
    while not stop.is_set() and not failures:
        try:
            assert call(b"x" * 100, timeout=60) == b"echo " + b"x" * 100
            counts[at] += 1
        except BaseException as error:  # noqa: BLE001
            failures.append(error)


def streams(at):
    stream = channel.stream_stream("/test.All/Chat")
    while not stop.is_set() and not failures:
        try:
            got = list(stream(iter([b"a", b"b", b"c"]), timeout=60))
            assert got == [b"re: a", b"re: b", b"re: c"], got
            counts[at] += 1
        except BaseException as error:  # noqa: BLE001
            failures.append(error)


threads = [threading.Thread(target=calls, args=(n,)) for n in range(4)] + [threading.Thread(target=streams, args=(4,))]
for thread in threads:
    thread.start()
while not failures:
    with open(sys.argv[2] + "~", "w") as file:
        file.write(str(sum(counts)))
    os.replace(sys.argv[2] + "~", sys.argv[2])
    try:
        open(sys.argv[3]).close()
        break
    except FileNotFoundError:
        stop.wait(0.05)
stop.set()
for thread in threads:
    thread.join()
print(sum(counts), "worked")
if failures:
    print(failures[0], file=sys.stderr)
    sys.exit(1)
