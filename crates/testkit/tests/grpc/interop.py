"""The interop cases of gRPC, of its own list, on both sides. Arguments: `serve PORT` or `call TARGET`.

Messages are those of grpc.testing, coded here: `messages.proto` needs no compiler for so few fields.
"""
import collections
import queue
import sys
import threading
import time
from concurrent import futures

import grpc

SERVICE = "/grpc.testing.TestService/"
LONG = 60
INITIAL, TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"


# Messages: a field is a number, or bytes, in a list by its number.

def varint(number):
    out = b""
    while number > 0x7f:
        out += bytes([number & 0x7f | 0x80])
        number >>= 7
    return out + bytes([number])


def message(*fields):
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def fields(data):
    out, at = {}, 0

    def take():
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 0x7f) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(data):
        key = take()
        if key & 7 == 0:
            value = take()
        else:
            length = take()
            value, at = data[at:at + length], at + length
        out.setdefault(key >> 3, []).append(value)
    return out


def payload(size):
    return message((2, bytes(size)))


def size_of(data):
    """Of the body of a payload."""
    return len(fields(data).get(2, [b""])[0])


# The server.

# By `x-call`: whether the call is over.
over = collections.defaultdict(threading.Event)


def note_end(context):
    name = dict(context.invocation_metadata()).get("x-call")
    if name:
        context.add_callback(over[name].set)


def echo_metadata(context):
    known = dict(context.invocation_metadata())
    if INITIAL in known:
        context.send_initial_metadata(((INITIAL, known[INITIAL]),))
    if TRAILING in known:
        context.set_trailing_metadata(((TRAILING, known[TRAILING]),))


def echo_status(request, context):
    for status in request.get(7, []):
        said = fields(status)
        code = next(code for code in grpc.StatusCode if code.value[0] == said[1][0])
        context.abort(code, said[2][0].decode())


def unary_call(data, context):
    echo_metadata(context)
    request = fields(data)
    echo_status(request, context)
    return message((1, payload(request.get(2, [0])[0])))


def streaming_input_call(requests, context):
    note_end(context)
    return message((1, sum(size_of(fields(data).get(1, [b""])[0]) for data in requests)))


def streaming_output_call(data, context):
    for parameters in fields(data).get(2, []):
        parameters = fields(parameters)
        time.sleep(parameters.get(2, [0])[0] / 1e6)
        yield message((1, payload(parameters.get(1, [0])[0])))


def full_duplex_call(requests, context):
    echo_metadata(context)
    note_end(context)
    for data in requests:
        echo_status(fields(data), context)
        yield from streaming_output_call(data, context)


def was_cancelled(data, context):
    """Not of the list: that the end of a call which nobody else would end has come to the server."""
    return b"yes" if over[data.decode()].wait(LONG) else b"no"


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            SERVICE + "EmptyCall": grpc.unary_unary_rpc_method_handler(lambda data, context: b""),
            SERVICE + "UnaryCall": grpc.unary_unary_rpc_method_handler(unary_call),
            SERVICE + "StreamingInputCall": grpc.stream_unary_rpc_method_handler(streaming_input_call),
            SERVICE + "StreamingOutputCall": grpc.unary_stream_rpc_method_handler(streaming_output_call),
            SERVICE + "FullDuplexCall": grpc.stream_stream_rpc_method_handler(full_duplex_call),
            "/outrider.testing/WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
        }.get(details.method)


def serve(port):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), handlers=[Handler()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


# The cases.

def fails_with(code, work):
    try:
        work()
    except grpc.RpcError as error:
        assert error.code() == code, error
        return error
    raise AssertionError("it worked")


class Cases:
    def __init__(self, target):
        self.target = target
        self.channel = self.connected()

    def connected(self):
        """A channel with a connection of its own."""
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(self.target, options=options)

    def unary(self, name, data=b"", **how):
        name = name if name.startswith("/") else SERVICE + name
        return self.channel.unary_unary(name).with_call(data, **{"timeout": LONG, **how})

    def duplex(self, requests, **how):
        return self.channel.stream_stream(SERVICE + "FullDuplexCall")(requests, **{"timeout": LONG, **how})

    def empty_unary(self):
        assert self.unary("EmptyCall")[0] == b""

    def large_unary(self, **how):
        answer, _ = self.unary("UnaryCall", message((2, 314159), (3, payload(271828))), **how)
        assert size_of(fields(answer)[1][0]) == 314159

    def compressed_unary(self):
        self.large_unary(compression=grpc.Compression.Gzip)

    def client_streaming(self):
        requests = (message((1, payload(size))) for size in (27182, 8, 1828, 45904))
        answer = self.channel.stream_unary(SERVICE + "StreamingInputCall")(requests, timeout=LONG)
        assert fields(answer) == {1: [74922]}, answer

    def server_streaming(self):
        sizes = [31415, 9, 2653, 58979]
        request = message(*((2, message((1, size))) for size in sizes))
        answers = self.channel.unary_stream(SERVICE + "StreamingOutputCall")(request, timeout=LONG)
        assert [size_of(fields(answer)[1][0]) for answer in answers] == sizes

    def ping_pong(self):
        said = queue.Queue()
        answers = self.duplex(iter(said.get, None))
        for asked, wanted in zip((27182, 8, 1828, 45904), (31415, 9, 2653, 58979)):
            said.put(message((2, message((1, wanted))), (3, payload(asked))))
            assert size_of(fields(next(answers))[1][0]) == wanted
        said.put(None)
        assert list(answers) == [] and answers.code() == grpc.StatusCode.OK

    def empty_stream(self):
        answers = self.duplex(iter(()))
        assert list(answers) == [] and answers.code() == grpc.StatusCode.OK

    def custom_metadata(self):
        sent = ((INITIAL, "test_initial_metadata_value"), (TRAILING, b"\xab\xab\xab"))
        _, call = self.unary("UnaryCall", message((2, 314159), (3, payload(271828))), metadata=sent)
        assert dict(call.initial_metadata())[INITIAL] == "test_initial_metadata_value"
        assert dict(call.trailing_metadata())[TRAILING] == b"\xab\xab\xab"
        answers = self.duplex(iter([message((2, message((1, 314159))), (3, payload(271828)))]), metadata=sent)
        assert len(list(answers)) == 1
        assert dict(answers.initial_metadata())[INITIAL] == "test_initial_metadata_value"
        assert dict(answers.trailing_metadata())[TRAILING] == b"\xab\xab\xab"

    def status(self, text):
        request = message((7, message((1, 2), (2, text.encode()))))
        error = fails_with(grpc.StatusCode.UNKNOWN, lambda: self.unary("UnaryCall", request))
        assert error.details() == text, error.details()
        error = fails_with(grpc.StatusCode.UNKNOWN, lambda: list(self.duplex(iter([request]))))
        assert error.details() == text, error.details()

    def status_code_and_message(self):
        self.status("test status message")

    def special_status_message(self):
        self.status(SPECIAL)

    def unimplemented_method(self):
        fails_with(grpc.StatusCode.UNIMPLEMENTED, lambda: self.unary("UnimplementedCall"))

    def unimplemented_service(self):
        name = "/grpc.testing.UnimplementedService/UnimplementedCall"
        fails_with(grpc.StatusCode.UNIMPLEMENTED, lambda: self.unary(name))

    def seen_by_the_server(self, name):
        assert self.unary("/outrider.testing/WasCancelled", name.encode())[0] == b"yes"

    def cancel_after_begin(self):
        # A call that is cancelled as it begins may be reset before its head was sent, which ends the connection, as
        # RFC 9113, 6.4 has it: the library's own mistake (grpc/grpc#19655). So it has one for itself.
        with self.connected() as channel:
            grpc.channel_ready_future(channel).result(timeout=LONG)
            silent = threading.Event()
            requests = (message() for _ in iter(silent.wait, True))
            call = channel.stream_unary(SERVICE + "StreamingInputCall").future(requests, timeout=LONG)
            call.cancel()
            silent.set()
            assert call.code() == grpc.StatusCode.CANCELLED

    def cancel_after_first_response(self):
        said = queue.Queue()
        answers = self.duplex(iter(said.get, None), metadata=(("x-call", "cancelled"),))
        said.put(message((2, message((1, 31415))), (3, payload(27182))))
        assert size_of(fields(next(answers))[1][0]) == 31415
        answers.cancel()
        fails_with(grpc.StatusCode.CANCELLED, lambda: next(answers))
        self.seen_by_the_server("cancelled")
        said.put(None)

    def timeout_on_sleeping_server(self):
        said = queue.Queue()
        answers = self.duplex(iter(said.get, None), timeout=0.05, metadata=(("x-call", "late"),))
        said.put(message((2, message((1, 8), (2, 1_000_000))), (3, payload(27182))))
        fails_with(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: list(answers))
        self.seen_by_the_server("late")
        said.put(None)


CASES = ("empty_unary large_unary compressed_unary client_streaming server_streaming ping_pong empty_stream custom_metadata "
         "status_code_and_message special_status_message unimplemented_method unimplemented_service cancel_after_begin "
         "cancel_after_first_response timeout_on_sleeping_server").split()


def call(target):
    cases = Cases(target)
    grpc.channel_ready_future(cases.channel).result(timeout=LONG)
    until = time.monotonic() + LONG
    while True:
        # Until the proxies know the way.
        try:
            cases.empty_unary()
            break
        except grpc.RpcError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    failures = 0
    for name in CASES:
        try:
            getattr(cases, name)()
        except BaseException as error:  # noqa: BLE001
            failures += 1
            print(f"{name}: {type(error).__name__}: {error}")
    print(f"{len(CASES)} cases, {failures} failures")
    sys.exit(1 if failures else 0)


{"serve": serve, "call": call}[sys.argv[1]](sys.argv[2])
