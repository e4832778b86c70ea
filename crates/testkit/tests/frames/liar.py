"""A server of HTTP/2 that breaks rules where it is told to. Arguments: port, file of cases.

A request with `x-case: N` gets what case N sends, and `/verdict/N` says how the other side took it. `/begin/N` makes
the next connection begin as case N says, instead of with SETTINGS. Everything else is answered well.
"""
import json
import socket
import sys
import threading

import hyperframe.frame as hf
from language import Speaker, cases, frame, settings

steps = {str(number): steps for number, (_, steps, _) in enumerate(cases(sys.argv[2]), 1)}
verdicts, begin = {}, []
lock = threading.Lock()


def judge(speaker, number, since):
    """What was said to the case, once all of it was taken."""
    speaker.ping()
    with lock:
        verdicts[number] = {
            "resets": [how for stream, how in speaker.resets() if stream == speaker.stream],
            "goaways": speaker.goaways(), "over": speaker.over, "told": speaker.told(),
            "pongs": [f.opaque_data.hex() for f in speaker.pongs()[since:]][:-1][:10], "connection": id(speaker),
        }


def answer(speaker, stream, body):
    speaker.step(f"HEADERS {stream} EH status +x-connection={id(speaker)}")
    # As much as fits in any window; this program keeps no account of them.
    assert len(body) < 16384, len(body)
    speaker.send(frame(0, 1, stream, body))


def tell(speaker, number):
    since = len(speaker.pongs())
    for step in steps[number]:
        if step not in ("head", "begin", "post", "open"):
            speaker.step(step)
    judge(speaker, number, since)


def serve(sock):
    speaker = Speaker(sock, 0, "")
    speaker.plain = True
    if not speaker.until("preface", lambda: len(speaker.bytes) >= 24):
        return
    assert speaker.bytes.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), speaker.bytes[:24]
    speaker.bytes, speaker.plain = speaker.bytes[24:], False
    speaker.take()
    with lock:
        case = begin.pop() if begin else None
    if case:
        tell(speaker, case)
    else:
        speaker.send(settings())
    at = 0
    while not speaker.over:
        while at < len(speaker.heard):
            request, at = speaker.heard[at], at + 1
            if not isinstance(request, hf.HeadersFrame) or not hasattr(request, "fields"):
                continue
            fields = {n.decode(): v.decode() for n, v in request.fields}
            path, number = fields.get(":path", "/"), fields.get("x-case")
            speaker.stream = request.stream_id
            if path.startswith("/verdict/"):
                with lock:
                    answer(speaker, request.stream_id, json.dumps(verdicts.get(path[9:])).encode())
            elif path.startswith("/begin/"):
                with lock:
                    begin.append(path[7:])
                answer(speaker, request.stream_id, b"ok")
                # Nothing of this connection is used for the next request.
                speaker.send(frame(7, 0, 0, request.stream_id.to_bytes(4, "big") + bytes(4)))
            elif number and "begin" not in steps[number]:
                tell(speaker, number)
            else:
                answer(speaker, request.stream_id, b"ok")
        speaker.turn(limit=60)
    sock.close()


listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
while True:
    accepted, _ = listener.accept()
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=(accepted,), daemon=True).start()
