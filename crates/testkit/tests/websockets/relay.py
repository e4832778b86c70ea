"""WebSockets of HTTP/1.1 as streams of HTTP/2 (RFC 8441) and back, by `h2`, so that every client and server can be tried over it.

    relay.py in PORT HOST:PORT            takes HTTP/1.1, asks HTTP/2: in front of a client
    relay.py out PORT TARGET [silent]     takes HTTP/2, asks HTTP/1.1: in front of a server. `silent`: does not announce that it takes
                                          WebSockets, and passes on what comes in HTTP/1.1 as it is
"""
import asyncio
import base64
import hashlib
import os
import sys

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

PREFACE = b"PRI * HTTP/2.0"
END, RESET = object(), object()
# The loop itself forgets tasks that wait.
tasks = set()


def begin(work):
    task = asyncio.ensure_future(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def answer(key):
    return base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()


async def read_head(reader):
    """The first line, and the fields with their names in lower case."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1")
    first, *lines = head.split("\r\n")[:-2]
    return first, [(line.split(":", 1)[0].lower(), line.split(":", 1)[1].strip()) for line in lines]


class Link:
    """A connection of HTTP/2."""

    def __init__(self, reader, writer, client, announce=True):
        self.reader, self.writer, self.over = reader, writer, False
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding="latin1"))
        if announce and not client:
            first = {**self.h2.local_settings, h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1}
            self.h2.local_settings = h2.settings.Settings(client=False, initial_values=first)
        self.h2.initiate_connection()
        self.flush()
        # By stream: what came, and whether there is a head.
        self.inbound, self.heads = {}, {}
        self.room = asyncio.Event()

    def flush(self):
        self.writer.write(self.h2.data_to_send())

    async def run(self, first=b"", request=None):
        data = first
        try:
            while True:
                for event in self.h2.receive_data(data) if data else []:
                    self.handle(event, request)
                self.flush()
                data = await self.reader.read(1 << 16)
                if not data:
                    break
        except (ConnectionError, h2.exceptions.ProtocolError) as error:
            print("the connection of HTTP/2:", repr(error), file=sys.stderr)
        self.over = True
        for stream in list(self.inbound):
            self.put(stream, RESET)
        self.writer.close()

    def handle(self, event, request):
        stream = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.RequestReceived):
            self.inbound[stream] = asyncio.Queue()
            begin(request(self, stream, event.headers))
        elif isinstance(event, h2.events.ResponseReceived):
            self.heads[stream].set_result(dict(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            self.put(stream, (event.data, event.flow_controlled_length))
        elif isinstance(event, h2.events.StreamEnded):
            self.put(stream, END)
        elif isinstance(event, h2.events.StreamReset):
            self.put(stream, RESET)
        elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            self.room.set()
            self.room = asyncio.Event()

    def put(self, stream, what):
        if stream in self.inbound:
            self.inbound[stream].put_nowait(what)
        head = self.heads.get(stream)
        if what is RESET and head and not head.done():
            head.set_result({":status": "502"})

    async def send(self, stream, data, end=False):
        while data or end:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if data and room <= 0:
                await self.room.wait()
                continue
            piece, data = data[:room], data[room:]
            self.h2.send_data(stream, piece, end_stream=end and not data)
            self.flush()
            end = end and bool(data)

    def reset(self, stream):
        try:
            self.h2.reset_stream(stream, 8)
            self.flush()
        except h2.exceptions.ProtocolError:
            pass

    async def carry(self, stream, reader, writer):
        """Ties a stream and a connection together: END_STREAM is FIN, RST_STREAM is RST."""
        async def out():
            try:
                while data := await reader.read(1 << 16):
                    await self.send(stream, data)
                await self.send(stream, b"", True)
            except ConnectionError:
                self.reset(stream)
            except h2.exceptions.ProtocolError:
                pass

        outward = asyncio.ensure_future(out())
        while True:
            what = await self.inbound[stream].get()
            try:
                if what is END:
                    writer.write_eof()
                    break
                if what is RESET:
                    outward.cancel()
                    writer.transport.abort()
                    break
                data, size = what
                writer.write(data)
                await writer.drain()
                self.h2.acknowledge_received_data(size, stream)
                self.flush()
            except ConnectionError:
                self.reset(stream)
                break
            except (OSError, h2.exceptions.ProtocolError):
                break
        await asyncio.gather(outward, return_exceptions=True)
        del self.inbound[stream]
        writer.close()


async def inward(port, target):
    """HTTP/1.1 to HTTP/2, all of it on one connection."""
    host, number = target.rsplit(":", 1)
    link, lock = None, asyncio.Lock()

    async def connected():
        nonlocal link
        async with lock:
            if link is None or link.over:
                link = Link(*await asyncio.open_connection(host, int(number)), client=True)
                begin(link.run())
            return link

    async def take(reader, writer):
        try:
            first, fields = await read_head(reader)
            link = await connected()
        except (OSError, asyncio.IncompleteReadError):
            return writer.close()
        known = dict(fields)
        own = ("host", "connection", "upgrade", "sec-websocket-key")
        stream = link.h2.get_next_available_stream_id()
        link.inbound[stream], link.heads[stream] = asyncio.Queue(), asyncio.get_running_loop().create_future()
        link.h2.send_headers(stream, [
            (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":authority", target),
            (":path", first.split(" ")[1]), *((name, value) for name, value in fields if name not in own)])
        link.flush()
        head = await link.heads[stream]
        del link.heads[stream]
        if head[":status"] != "200":
            writer.write(f"HTTP/1.1 {head[':status']} No\r\nContent-Length: 0\r\n\r\n".encode())
            link.reset(stream)
            return writer.close()
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items() if not name.startswith(":"))
        writer.write(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     f"Sec-WebSocket-Accept: {answer(known['sec-websocket-key'])}\r\n{lines}\r\n".encode())
        await link.carry(stream, reader, writer)

    await (await asyncio.start_server(take, "127.0.0.1", port)).serve_forever()


async def outward(port, target, announce):
    """HTTP/2 to HTTP/1.1."""
    async def request(link, stream, headers):
        known = dict(headers)
        if ":protocol" not in known:
            link.h2.send_headers(stream, [(":status", "200")], end_stream=True)
            return link.flush()
        assert announce, "nobody was told that this is taken here"
        key = base64.b64encode(os.urandom(16)).decode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers if not name.startswith(":"))
        reader, writer = await asyncio.open_connection("127.0.0.1", target)
        writer.write(f"GET {known[':path']} HTTP/1.1\r\nHost: {known[':authority']}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     f"Sec-WebSocket-Key: {key}\r\n{lines}\r\n".encode())
        first, fields = await read_head(reader)
        assert first.startswith("HTTP/1.1 101 ") and dict(fields)["sec-websocket-accept"] == answer(key), first
        own = ("connection", "upgrade", "sec-websocket-accept")
        told = [(name, value) for name, value in fields if name not in own]
        try:
            link.h2.send_headers(stream, [(":status", "200"), *told])
            link.flush()
        except h2.exceptions.ProtocolError:
            return writer.close()
        await link.carry(stream, reader, writer)

    async def copy(reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except (ConnectionError, OSError):
            writer.transport.abort()

    async def take(reader, writer):
        first = await reader.read(1 << 16)
        if PREFACE.startswith(first[:len(PREFACE)]):
            return await Link(reader, writer, False, announce).run(first, request)
        there = await asyncio.open_connection("127.0.0.1", target)
        there[1].write(first)
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))
        writer.close()
        there[1].close()

    await (await asyncio.start_server(take, "127.0.0.1", port)).serve_forever()


if sys.argv[1] == "in":
    asyncio.run(inward(int(sys.argv[2]), sys.argv[3]))
else:
    asyncio.run(outward(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] != ["silent"]))
