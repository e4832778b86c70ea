"""Calls everything that server.py has. Arguments: target. Ends with 0 if all of it is as it has to be."""
import queue
import sys
import threading
import time

import grpc

limits = [("grpc.max_metadata_size", 1 << 17), ("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
channel = grpc.insecure_channel(sys.argv[1], options=limits)
LONG = 60


def unary(name, message, **how):
    return channel.unary_unary("/test.All/" + name).with_call(message, **{"timeout": LONG, **how})


def fails_with(code, work):
    try:
        work()
    except grpc.RpcError as error:
        assert error.code() == code, error
        return error
    raise AssertionError("it worked")


assert unary("Unary", b"a")[0] == b"echo a"
large = bytes(range(256)) * (4096 * 5)
assert unary("Unary", large)[0] == b"echo " + large

# Many at once on one connection.
calls = [channel.unary_unary("/test.All/Unary").future(b"%d" % n, timeout=LONG) for n in range(300)]
assert [call.result() for call in calls] == [b"echo %d" % n for n in range(300)]

answer, call = unary("Metadata", b"", metadata=(("x-large", "m" * 40000), ("x-some-bin", b"\x01\x02")))
assert b"URI=spiffe://outrider.internal/ns/shop/svc/client" in answer, answer
assert len(dict(call.initial_metadata())["x-initial"]) == 40000
assert dict(call.trailing_metadata())["x-trailing-bin"] == b"\x00\xff"

error = fails_with(grpc.StatusCode.FAILED_PRECONDITION, lambda: unary("Fails", b""))
assert error.details() == "not 100 % ready \u00fc", error.details()
fails_with(grpc.StatusCode.UNIMPLEMENTED, lambda: unary("Nothing", b""))

began = time.monotonic()
fails_with(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: unary("Slow", b"", timeout=0.5))
assert 0.4 < time.monotonic() - began < 20
# gRPC itself rounds up to what it writes shortly.
assert float(unary("Remaining", b"", timeout=50)[0]) < 55

stream = channel.unary_stream("/test.All/ServerStream")(b"2000", timeout=LONG)
assert list(stream) == [b"%d" % n for n in range(2000)]

sizes = channel.stream_unary("/test.All/ClientStream")((b"x" * 1000 for _ in range(2000)), timeout=LONG)
assert sizes == b"2000000", sizes

# Each message waits for the answer to the one before: nothing is held back.
said = queue.Queue()
chat = channel.stream_stream("/test.All/Chat")(iter(said.get, None), timeout=LONG)
for n in range(100):
    said.put(b"%d" % n)
    assert next(chat) == b"re: %d" % n
said.put(None)
assert list(chat) == []
assert chat.code() == grpc.StatusCode.OK

endless = channel.unary_stream("/test.All/Endless")(b"", timeout=LONG)
for n in range(10):
    assert next(endless) == b"%d" % n
endless.cancel()
assert unary("WasCancelled", b"")[0] == b"yes"

# Several threads, each with streams of its own.
failures = []


def work(seed):
    try:
        for n in range(20):
            assert unary("Unary", b"%d" % (seed * n))[0] == b"echo %d" % (seed * n)
            got = channel.unary_stream("/test.All/ServerStream")(b"50", timeout=LONG)
            assert len(list(got)) == 50
    except BaseException as error:  # noqa: BLE001
        failures.append(error)


threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
print("all of it")
