"""Says everything through the proxies and to the server itself, which must come to the same, byte by byte.

Arguments: the echo server through the proxies and directly, and the same of the server that breaks rules; `hasty` if a proxy
between us ends both halves of a stream once one of them has ended, whatever the other still has: then the answer to a close
may be missing, and nothing else.
"""
import asyncio
import json
import sys

import websockets
from cases import CLOSE, chop, close, of_clients, of_servers
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

LONG = 60
(through, direct), (raw_through, raw_direct) = sys.argv[1:3], sys.argv[3:5]
hasty = "hasty" in sys.argv[5:]
failures = []
count = 0


class Wire:
    """A client's bytes."""

    async def open(self, address, lines=""):
        host, port = address.rsplit(":", 1)
        self.reader, self.writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
        self.writer.write(
            f"GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{lines}\r\n".encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ") and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head, head
        self.frames, self.over = [], False
        return self

    async def frame(self):
        """Reads one; the whole of it."""
        try:
            head = await self.reader.readexactly(2)
            more = {126: 2, 127: 8}.get(head[1], 0)
            length = await self.reader.readexactly(more)
            size = int.from_bytes(length, "big") if more else head[1]
            self.frames.append(head + length + await self.reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            assert not getattr(error, "partial", b""), "an end within a frame"
            self.over = True

    async def run(self, steps):
        for step in steps:
            if isinstance(step, int):
                while len(self.frames) < step and not self.over:
                    await self.frame()
            else:
                try:
                    self.writer.write(step)
                    await self.writer.drain()
                except ConnectionError:
                    break
        while not self.over and not any(f[0] & 15 == CLOSE for f in self.frames):
            await self.frame()
        # Who began to close has said so already; a second time is of no consequence.
        try:
            self.writer.write(close())
        except ConnectionError:
            pass
        while not self.over:
            await self.frame()
        self.writer.close()
        # Answers to control frames and to messages come each in their order.
        data = [f for f in self.frames if f[0] & 15 < 8]
        control = [f for f in self.frames if f[0] & 15 >= 8]
        return data, control


async def client_case(name, steps, code):
    here = await (await Wire().open(through)).run(steps)
    there = await (await Wire().open(direct)).run(steps)
    if hasty and here[1] == there[1][:-1]:
        here[1].append(there[1][-1])
    assert here == there, f"through the proxies {here}, directly {there}"
    last = here[1][-1]
    told = int.from_bytes(last[2:4], "big") if len(last) >= 4 else 1000
    assert last[0] & 15 == CLOSE and told == code, f"closed with {last}"


async def outcome(address, number):
    """What a client of others makes of what it is told."""
    got = []
    async with websockets.connect(f"ws://{address}/{number}", max_size=None, compression=None, ping_interval=None) as socket:
        try:
            while True:
                got.append(await socket.recv())
        except websockets.ConnectionClosed as closed:
            said = closed.rcvd or closed.sent
            return got, said.code if said else socket.close_code, closed.rcvd, closed.sent


async def server_case(name, number, code):
    here, there = await asyncio.gather(outcome(raw_through, number), outcome(raw_direct, number))
    assert here == there and here[1] == code, f"through the proxies {here}, directly {there}"


async def echoes(address, messages, **how):
    """Each of them comes back; the extensions that were agreed on."""
    async with websockets.connect(f"ws://{address}/", max_size=None, ping_interval=None, **how) as socket:
        for message in messages:
            await socket.send(message)
            back = await socket.recv()
            whole = message if isinstance(message, (str, bytes)) else (b"" if isinstance(message[0], bytes) else "").join(message)
            assert back == whole, f"{len(back)} bytes of {len(whole)} came back"
        await (await socket.ping())
        agreed = [(extension.name, repr(extension)) for extension in socket.extensions]
    assert socket.close_code == 1000, socket.close_code
    return agreed


def bulk():
    """Group 9, up to 16 MiB, and group 10."""
    for size in (1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 23, 1 << 24):
        yield f"9.1, {size}", ["*" * size], {"compression": None}
        yield f"9.2, {size}", [bytes(range(256)) * (size // 256)], {"compression": None}
    for piece in (1 << 10, 1 << 14, 1 << 18):
        yield f"9.3, pieces of {piece}", [chop("*" * (1 << 20), piece)], {"compression": None}
        yield f"9.4, pieces of {piece}", [chop(b"\xfe" * (1 << 20), piece)], {"compression": None}
    yield "9.7", ["*" * 16] * 500, {"compression": None}
    yield "9.8", [b"*" * 4096] * 200, {"compression": None}
    yield "10.1", [chop("*" * 65536, 1300)], {"compression": None}


def compressed():
    """Groups 12 and 13: deflate, with everything that can be agreed on."""
    texts = [json.dumps({"n": n, "text": "some words that are said again and again " * (n % 7)}) for n in range(60)]
    noise = [bytes((n * n * 31 + n * m) % 251 for n in range(1024)) for m in range(10)]
    long = ["*" * 131072, bytes(range(256)) * 512]
    for number, how in enumerate([
        {}, {"server_no_context_takeover": True}, {"client_no_context_takeover": True},
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        {"server_max_window_bits": 9}, {"client_max_window_bits": 9}, {"server_max_window_bits": 15, "client_max_window_bits": 15},
        {"server_max_window_bits": 9, "client_max_window_bits": 9, "server_no_context_takeover": True, "client_no_context_takeover": True},
    ], 1):
        yield f"13.{number}", texts + noise + long, {"compression": None, "extensions": [ClientPerMessageDeflateFactory(**how)]}


async def reach(address):
    """Waits until the proxies know the way."""
    until = asyncio.get_running_loop().time() + LONG
    while True:
        try:
            async with websockets.connect(f"ws://{address}/0", open_timeout=5):
                return
        except (OSError, asyncio.TimeoutError, websockets.WebSocketException):
            if asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(0.05)


async def main():
    global count
    for address in sys.argv[1:5]:
        await reach(address)

    async def judge(name, work):
        global count
        count += 1
        try:
            await asyncio.wait_for(work, LONG)
        except Exception as error:  # noqa: BLE001
            failures.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")

    async def several(works):
        # A few at a time, so that they are under way together.
        at = iter(list(works))

        async def some():
            for name, work in at:
                await judge(name, work)
        await asyncio.gather(*(some() for _ in range(8)))

    await several((f"client {name}", client_case(name, steps, code)) for name, steps, code in of_clients())
    await several((f"server {name}", server_case(name, number, code)) for number, (name, _, code) in enumerate(of_servers()))
    for name, messages, how in bulk():
        await judge(name, echoes(through, messages, **how))
    for name, messages, how in compressed():
        async def both(messages=messages, how=how):
            here, there = await echoes(through, messages, **how), await echoes(direct, messages, **how)
            assert here == there and [name for name, _ in here] == ["permessage-deflate"], f"{here}, {there}"
        await judge(name, both())


asyncio.run(main())
for line in failures:
    print(line)
print(f"{count} cases, {len(failures)} failures")
sys.exit(1 if failures else 0)
