"""A server of HTTP/2 by `h2`, which says afterwards what arrived of each case. Arguments: port.

WebSockets (RFC 8441) say what they hear, and end when the other side does; `x-do` may be `refuse` (403), `bye` (ends at
the first byte) and `reset`.

Header `x-do` says how it answers: at the end of the request with `ok` (nothing said), `hang` and `stall` (never; and
takes no body), `big` (100,000 bytes), `trailers` and `large` ones.
"""
import asyncio
import json
import sys

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

# By case: how far its last request came, and its fields.
seen, errors = {}, []


class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config=config)
        # What the connection begins with, not a change of it.
        first = {**self.h2.local_settings, h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=first)
        self.requests, self.waiting, self.untaken = {}, {}, {}
        # Of WebSockets: what is to be said.
        self.sockets, self.ending = {}, set()
        self.h2.initiate_connection()
        transport.write(self.h2.data_to_send())

    def connection_lost(self, error):
        for case, _ in self.requests.values():
            if seen[case]["state"] == "open":
                seen[case]["state"] = "cut"

    def data_received(self, data):
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            errors.append(f"{type(error).__name__}: {error}")
            events = []
        for event in events:
            try:
                self.handle(event)
            except (h2.exceptions.StreamClosedError, h2.exceptions.StreamIDTooLowError):
                # A later event of the same bytes is its reset, and it may be forgotten since.
                pass
        self.transport.write(self.h2.data_to_send())

    def handle(self, event):
        stream = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.RequestReceived):
            fields = [(n.decode("latin1"), v.decode("latin1")) for n, v in event.headers]
            known = dict(fields)
            case = known.get("x-case", known[":path"])
            seen[case] = {"state": "open", "fields": fields, "body": 0}
            self.requests[stream] = case, known
            if ":protocol" in known:
                refused = known.get("x-do") == "refuse"
                self.h2.send_headers(stream, [(":status", "403" if refused else "200")], end_stream=refused)
                if not refused:
                    self.sockets[stream] = b""
        elif isinstance(event, h2.events.DataReceived):
            case, known = self.requests[stream]
            seen[case]["body"] += len(event.data)
            if stream in self.sockets:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
                if known.get("x-do") == "reset":
                    del self.sockets[stream]
                    self.h2.reset_stream(stream, 11)
                    return
                self.sockets[stream] += event.data
                if known.get("x-do") == "bye":
                    self.ending.add(stream)
                self.echo(stream)
            elif known.get("x-do") == "stall":
                self.untaken[stream] = self.untaken.get(stream, 0) + event.flow_controlled_length
            else:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, h2.events.TrailersReceived):
            seen[self.requests[stream][0]]["trailers"] = [[n.decode(), v.decode()] for n, v in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            case, known = self.requests[stream]
            seen[case]["state"] = "whole"
            if ":protocol" in known:
                self.ending.add(stream)
                self.echo(stream)
                return
            self.answer(stream, known)
        elif isinstance(event, h2.events.StreamReset):
            self.waiting.pop(stream, None)
            self.sockets.pop(stream, None)
            # Or the window of the connection would be lost to all others.
            if untaken := self.untaken.pop(stream, 0):
                self.h2.acknowledge_received_data(untaken, stream)
            case, _ = self.requests.get(stream, (None, None))
            if case and seen[case]["state"] == "open":
                seen[case]["state"] = "cut"
        elif isinstance(event, h2.events.WindowUpdated):
            for stream in list(self.waiting):
                self.go_on(stream)
            for stream in list(self.sockets):
                self.echo(stream)

    def echo(self, stream):
        while data := self.sockets.get(stream):
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room <= 0:
                return
            self.h2.send_data(stream, data[:room])
            self.sockets[stream] = data[room:]
        if stream in self.sockets and stream in self.ending:
            self.h2.end_stream(stream)
            del self.sockets[stream]

    def answer(self, stream, known):
        how = known.get("x-do")
        if how in ("hang", "stall"):
            return
        body = b"ok"
        if known[":path"] == "/seen":
            body = json.dumps({"seen": seen, "errors": errors}).encode()
        elif how == "big":
            body = b"x" * 100_000
        trailers = {"trailers": [("x-sum", "1")], "large": [("x-sum", "1" * 1000)]}.get(how)
        self.h2.send_headers(stream, [(":status", "200"), ("x-made-up", "v" * 20)], end_stream=known[":method"] == "HEAD")
        if known[":method"] != "HEAD":
            self.waiting[stream] = body, trailers
            self.go_on(stream)

    def go_on(self, stream):
        body, trailers = self.waiting[stream]
        while body:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room <= 0:
                self.waiting[stream] = body, trailers
                return
            piece, body = body[:room], body[room:]
            self.h2.send_data(stream, piece, end_stream=not body and not trailers)
        del self.waiting[stream]
        if trailers:
            self.h2.send_headers(stream, trailers, end_stream=True)


async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
