"""Case groups of the WebSocket test suite of Autobahn, as bytes: what a client or a server says, and how that has to end.

A step is bytes to send, or how many frames must have come before the next. The numbers are those of that suite's groups.
"""
import struct

TEXT, BINARY, MORE, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
MASK = b"\x37\xfa\x21\x3d"


def frame(kind, payload=b"", fin=True, reserved=0, masked=True):
    head = bytes([fin << 7 | reserved << 4 | kind])
    size, bit = len(payload), masked << 7
    if size < 126:
        head += bytes([bit | size])
    elif size < 1 << 16:
        head += struct.pack(">BH", bit | 126, size)
    else:
        head += struct.pack(">BQ", bit | 127, size)
    if not masked:
        return head + payload
    key = int.from_bytes((MASK * (size // 4 + 1))[:size], "big")
    return head + MASK + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def chop(data, size):
    return [data[at:at + size] for at in range(0, len(data), size)]


def close(code=1000, reason=b""):
    return frame(CLOSE, struct.pack(">H", code) + reason)


VALID_UTF8 = [
    "Hello-µ@ßöäüàá-UTF-8!!".encode(), "κόσμε".encode(), b"\x00", b"\x7f", b"\xc2\x80", b"\xdf\xbf", b"\xe0\xa0\x80",
    b"\xef\xbf\xbf", b"\xf0\x90\x80\x80", b"\xf4\x8f\xbf\xbf", b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd",
    "\ufffe\uffff".encode(),
]
INVALID_UTF8 = [
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", b"\x80", b"\xbf", b"\x80\xbf\x80\xbf", b"\xc0\x20",
    b"\xe0\x20", b"\xf0\x20", b"\xf8\x20", b"\xfc\x20", b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xfe", b"\xff",
    b"\xfe\xfe\xff\xff", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xc1\xbf", b"\xf4\x90\x80\x80",
    b"\xf7\xbf\xbf\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\x80\xed\xb0\x80", b"\xf8\x88\x80\x80\x80",
]
GOOD_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
BAD_CODES = [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535]


def of_clients():
    """Name, steps, the code that the server closes with. Masked frames, as clients send them."""
    for group, kind in ((1, TEXT), (2, BINARY)):
        for number, size in enumerate([0, 125, 126, 127, 128, 65535, 65536], 1):
            yield f"1.{group}.{number}", [frame(kind, b"*" * size), 1, close()], 1000
        yield f"1.{group}.8", [*chop(frame(kind, b"*" * 65536), 997), 1, close()], 1000
    yield "2.1", [frame(PING), 1, close()], 1000
    yield "2.2", [frame(PING, b"Hello, world!"), 1, close()], 1000
    yield "2.3", [frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"), 1, close()], 1000
    yield "2.4", [frame(PING, b"\xfe" * 125), 1, close()], 1000
    yield "2.5", [frame(PING, b"\xfe" * 126)], 1002
    yield "2.6", [*chop(frame(PING, b"\xfe" * 125), 1), 1, close()], 1000
    yield "2.7", [frame(PONG), close()], 1000
    yield "2.8", [frame(PONG, b"unsolicited"), close()], 1000
    yield "2.9", [frame(PONG, b"unsolicited") + frame(PING, b"ping"), 1, close()], 1000
    pings = b"".join(frame(PING, b"payload-%d" % n) for n in range(10))
    yield "2.10", [pings, 10, close()], 1000
    yield "2.11", [*chop(pings, 1), 10, close()], 1000
    for reserved in range(1, 8):
        yield f"3.{reserved}", [frame(TEXT, b"Hello"), 1, frame(TEXT, b"Hello", reserved=reserved)], 1002
    yield "3.8", [frame(CLOSE, struct.pack(">H", 1000), reserved=7)], 1002
    yield "3.9", [frame(PING, b"x", reserved=4)], 1002
    for number, kind in enumerate([3, 4, 5, 6, 7, 11, 12, 13, 14, 15], 1):
        yield f"4.{number}.1", [frame(kind)], 1002
        yield f"4.{number}.2", [frame(TEXT, b"Hello"), 1, *chop(frame(kind, b"reserved opcode"), 3)], 1002
    yield "5.1", [frame(PING, b"fragment1", fin=False), frame(MORE, b"fragment2")], 1002
    yield "5.2", [frame(PONG, b"fragment1", fin=False), frame(MORE, b"fragment2")], 1002
    two = [frame(TEXT, b"fragment1", fin=False), frame(MORE, b"fragment2")]
    yield "5.3", [*two, 1, close()], 1000
    yield "5.5", [*chop(b"".join(two), 1), 1, close()], 1000
    yield "5.6", [two[0] + frame(PING, b"between") + two[1], 2, close()], 1000
    yield "5.8", [*chop(two[0] + frame(PING, b"between") + two[1], 1), 2, close()], 1000
    yield "5.9", [frame(MORE, b"non-continuation"), frame(TEXT, b"Hello")], 1002
    yield "5.11", [*chop(frame(MORE, b"non-continuation"), 1)], 1002
    yield "5.12", [frame(MORE, b"non-continuation", fin=False), frame(TEXT, b"Hello")], 1002
    yield "5.15", [*two, 1, frame(MORE, b"fragment3", fin=False)], 1002
    yield "5.18", [frame(TEXT, b"fragment1", fin=False), frame(TEXT, b"fragment2")], 1002
    five = [frame(TEXT, b"a", fin=False), frame(MORE, b"b", fin=False), frame(PING, b"1"), frame(MORE, b"c", fin=False),
            frame(PING, b"2"), frame(MORE, b"d")]
    yield "5.19", [*five[:3], 1, *five[3:], 3, close()], 1000
    yield "5.20", [b"".join(five), 3, close()], 1000
    for number, text in enumerate(VALID_UTF8, 1):
        yield f"6.2.{number}", [frame(TEXT, text), 1, close()], 1000
        pieces = [frame(TEXT if at == 0 else MORE, piece, fin=at == len(text) - 1) for at, piece in enumerate(chop(text, 1))]
        yield f"6.2.{number}, a byte a frame", [*pieces, 1, close()], 1000
    for number, text in enumerate(INVALID_UTF8, 1):
        yield f"6.3.{number}", [frame(TEXT, text)], 1007
        yield f"6.3.{number}, split", [frame(TEXT, text[:1], fin=False), *chop(frame(MORE, text[1:]), 1)], 1007
    yield "7.1.1", [frame(TEXT, b"Hello"), 1, close()], 1000
    yield "7.1.2", [close() + close()], 1000
    yield "7.1.3", [close() + frame(PING, b"late")], 1000
    yield "7.1.4", [close() + frame(TEXT, b"late")], 1000
    yield "7.1.5", [frame(TEXT, b"fragment1", fin=False), close() + frame(MORE, b"fragment2")], 1000
    yield "7.3.1", [frame(CLOSE)], 1000
    yield "7.3.2", [frame(CLOSE, b"a")], 1002
    yield "7.3.4", [close(1000, b"Hello World!")], 1000
    yield "7.3.5", [close(1000, b"*" * 123)], 1000
    yield "7.3.6", [close(1000, b"*" * 124)], 1002
    yield "7.5.1", [close(1000, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80")], 1007
    for number, code in enumerate(GOOD_CODES, 1):
        yield f"7.7.{number}", [close(code)], code
        yield f"7.7.{number}, a byte at a time", [*chop(close(code, b"why"), 1)], code
    for number, code in enumerate(BAD_CODES, 1):
        yield f"7.9.{number}", [close(code)], 1002
    yield "7.13, no mask", [frame(TEXT, b"Hello", masked=False)], 1002


def of_servers():
    """Name, bytes right behind the 101, the code that the client ends with. Without masks, as servers send them."""
    def say(*frames):
        return b"".join(frame(*arguments, masked=False) for arguments in frames)

    bye = (CLOSE, struct.pack(">H", 1000))
    for number, size in enumerate([0, 125, 126, 127, 128, 65535, 65536], 1):
        yield f"1.1.{number}", say((TEXT, b"*" * size), bye), 1000
        yield f"1.2.{number}", say((BINARY, b"*" * size), bye), 1000
    yield "2.1", say((PING, b""), (PONG, b"x"), (TEXT, b"a"), bye), 1000
    yield "2.5", say((PING, b"\xfe" * 126)), 1002
    for reserved in range(1, 8):
        yield f"3.{reserved}", say((TEXT, b"a")) + say((TEXT, b"b", True, reserved)), 1002
    for kind in (3, 7, 11, 15):
        yield f"4.{kind}", say((TEXT, b"a"), (kind, b"b")), 1002
    yield "5.1", say((PING, b"a", False), (MORE, b"b")), 1002
    yield "5.3", say((TEXT, b"a", False), (PING, b"p"), (MORE, b"b"), bye), 1000
    yield "5.9", say((MORE, b"a")), 1002
    yield "5.18", say((TEXT, b"a", False), (TEXT, b"b")), 1002
    for number, text in enumerate(INVALID_UTF8, 1):
        yield f"6.3.{number}", say((TEXT, text)), 1007
    yield "7.1.1, and no close", say((TEXT, b"a")), 1006
    yield "7.1.6", say((CLOSE, b""),), 1005
    yield "7.3.2", say((CLOSE, b"a")), 1002
    for number, code in enumerate(GOOD_CODES, 1):
        yield f"7.7.{number}", say((CLOSE, struct.pack(">H", code) + b"why")), code
    for number, code in enumerate(BAD_CODES, 1):
        yield f"7.9.{number}", say((CLOSE, struct.pack(">H", code))), 1002
    yield "7.13, a mask", frame(TEXT, b"Hello"), 1002
