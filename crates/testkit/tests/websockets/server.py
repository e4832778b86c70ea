"""An echo server by `websockets`, and one that says on the path `/N` what case N of servers says. Arguments: both ports."""
import asyncio
import base64
import hashlib
import sys

import websockets
from cases import of_servers

says = [(data, code) for _, data, code in of_servers()]
# How long a client may take to say goodbye; to whom nothing is said about an end, nothing is answered.
LONG, SILENT = 60, 0.2


def has_close(data):
    """Whether a client's frames have a close frame among them."""
    while len(data) >= 2:
        if data[0] & 15 == 8:
            return True
        more = {126: 2, 127: 8}.get(data[1] & 127, 0)
        size = int.from_bytes(data[2:2 + more], "big") if more else data[1] & 127
        data = data[2 + more + 4 + size:]
    return False


async def echo(socket):
    try:
        async for message in socket:
            await socket.send(message)
    except websockets.ConnectionClosed:
        pass


async def raw(reader, writer):
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return writer.close()
    fields = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in head.split("\r\n")[1:] if ":" in line}
    key = fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    number = int(head.split(" ")[1][1:])
    data, code = says[number]
    writer.write(
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode() + data)
    heard = b""
    try:
        await writer.drain()
        while not has_close(heard):
            more = await asyncio.wait_for(reader.read(65536), SILENT if code == 1006 else LONG)
            heard += more
            if not more:
                break
    except (asyncio.TimeoutError, ConnectionError):
        pass
    writer.close()


async def main():
    # Without a limit of a message's size; deflate is there for who offers it.
    async with websockets.serve(echo, "127.0.0.1", int(sys.argv[1]), max_size=None, ping_interval=None, close_timeout=20):
        server = await asyncio.start_server(raw, "127.0.0.1", int(sys.argv[2]))
        await server.serve_forever()


asyncio.run(main())
