"""Calls of every kind, with messages that are plain bytes. Arguments: port."""
import sys
import threading
import time
from concurrent import futures

import grpc

cancelled = threading.Semaphore(0)


def unary(request, context):
    return b"echo " + request


def metadata(request, context):
    got = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", got.get("x-large", "")),))
    context.set_trailing_metadata((("x-trailing-bin", b"\x00\xff"), ("x-count", str(len(got)))))
    return got.get("x-forwarded-client-cert", "").encode()


def fails(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not 100 % ready \u00fc")


def slow(request, context):
    time.sleep(30)
    return b"late"


def remaining(request, context):
    return str(context.time_remaining()).encode()


def server_stream(request, context):
    for n in range(int(request)):
        yield b"%d" % n


def endless(request, context):
    context.add_callback(cancelled.release)
    n = 0
    while context.is_active():
        yield b"%d" % n
        n += 1
        time.sleep(0.01)


def was_cancelled(request, context):
    return b"yes" if cancelled.acquire(timeout=15) else b"no"


def client_stream(requests, context):
    return b"%d" % sum(len(message) for message in requests)


def chat(requests, context):
    for message in requests:
        yield b"re: " + message


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        name = details.method.rsplit("/", 1)[1]
        kinds = {
            "Unary": (grpc.unary_unary_rpc_method_handler, unary),
            "Metadata": (grpc.unary_unary_rpc_method_handler, metadata),
            "Fails": (grpc.unary_unary_rpc_method_handler, fails),
            "Slow": (grpc.unary_unary_rpc_method_handler, slow),
            "Remaining": (grpc.unary_unary_rpc_method_handler, remaining),
            "WasCancelled": (grpc.unary_unary_rpc_method_handler, was_cancelled),
            "ServerStream": (grpc.unary_stream_rpc_method_handler, server_stream),
            "Endless": (grpc.unary_stream_rpc_method_handler, endless),
            "ClientStream": (grpc.stream_unary_rpc_method_handler, client_stream),
            "Chat": (grpc.stream_stream_rpc_method_handler, chat),
        }
        if name not in kinds:
            return None
        kind, work = kinds[name]
        return kind(work)


limits = [("grpc.max_metadata_size", 1 << 17), ("grpc.max_receive_message_length", -1)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), handlers=[Handler()], options=limits)
server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
server.wait_for_termination()
