"""The language of the case files, and one connection that speaks it: frames by `hyperframe`, fields by `hpack`.

A case is `section | name | what is sent | what has to come`. What is sent is split by `;`:

    TYPE STREAM FLAGS [PART…]     a frame; TYPE may be a number, STREAM may be `N` (the next odd one) or `S` (of the request), `*K` after TYPE repeats
    await EVENT STREAM [COUNT]    until END, HEADERS, RST, DATA of COUNT bytes, or PING has come
    raw:HEX                       these bytes
    nopreface, nosettings, pieces none of it, or byte by byte
    plain, bare                   no frames are expected; no field enters the table

FLAGS are ES ACK EH PAD PRI joined by `+`, `-` for none, or hexadecimal. The parts make the payload, in their order:

    "text"  x:HEX  zeros:N fill:N  u8:N u16:N u32:N u64:N    bytes; a text may have %XX
    get post status connect socket plain             a block of fields, changed by what follows:
      -name name=value +name=value !name=value ^name=value    out, another value, at the end, after the pseudo-header
                                                     fields, at the begin
    cut:N                                            only the first N bytes of the payload so far; the rest is `rest`
    ID=VALUE                                         a setting
    pad:N                                            the length before everything and N zeros behind; `padlen:N` the length alone
    length:N                                         what the header says instead of the truth
"""
import re
import select
import socket
import struct
import time
from urllib.parse import unquote_to_bytes

import hpack
import hyperframe.frame as hf

LONG = 60
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TYPES = dict(DATA=0, HEADERS=1, PRIORITY=2, RST_STREAM=3, SETTINGS=4, PUSH_PROMISE=5, PING=6, GOAWAY=7,
             WINDOW_UPDATE=8, CONTINUATION=9)
FLAGS = dict(ES=1, ACK=1, EH=4, PAD=8, PRI=32)
CODES = ("NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR "
         "REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY HTTP_1_1_REQUIRED").split()


def code(number):
    return CODES[number] if number < len(CODES) else hex(number)


def cases(file):
    """Every case, with its place."""
    seen = set()
    with open(file) as text:
        whole = re.sub(r"\n[ \t]+", " ", text.read())
    for line in whole.splitlines():
        if not line or line.startswith("#"):
            continue
        section, name, sent, expected = [part.strip() for part in line.split(" | ")]
        name = section + " " + name
        assert name not in seen, "twice: " + name
        seen.add(name)
        ways = [[part.strip() for part in way.split(",")] for way in expected.split(" or ")]
        yield name, [step.strip() for step in sent.split(";")], ways


class Speaker:
    """One side of a connection that says what it is told to, and takes apart what it hears."""

    def __init__(self, sock, number, authority):
        self.sock, self.number, self.authority = sock, number, authority
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.encoder.huffman = True
        self.heard, self.bytes = [], b""
        self.over = False
        self.block, self.rest = b"", b""
        self.highest = -1
        sock.setblocking(False)

    # What comes.

    def take(self):
        """Whole frames out of the bytes."""
        while len(self.bytes) >= 9:
            frame, length = hf.Frame.parse_frame_header(memoryview(self.bytes[:9]))
            if len(self.bytes) < 9 + length:
                return
            frame.parse_body(memoryview(self.bytes[9:9 + length]))
            self.bytes = self.bytes[9 + length:]
            if isinstance(frame, hf.SettingsFrame) and "ACK" in frame.flags:
                self.decoder.max_allowed_table_size = self.encoder_limit
            if isinstance(frame, (hf.HeadersFrame, hf.ContinuationFrame)):
                self.block += frame.data
                if "END_HEADERS" in frame.flags:
                    frame.fields = [(bytes(n), bytes(v)) for n, v in self.decoder.decode(self.block, raw=True)]
                    self.block = b""
            self.heard.append(frame)

    encoder_limit = 4096
    # Of the request that is answered.
    stream = 0
    # What HTTP/1.1 says is no frame.
    plain = False
    # No field enters a table.
    bare = False

    def turn(self, write=b"", limit=0.5):
        """Reads what there is, and writes; how much was written."""
        readable, writable, _ = select.select([] if self.over else [self.sock], [self.sock] if write else [], [], limit)
        if readable:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionError:
                data = b""
            self.over |= not data
            self.bytes += data
            if not self.plain:
                self.take()
        if writable:
            try:
                return self.sock.send(write[:1 << 16])
            except ConnectionError:
                # What the other end said before is still to be read.
                return len(write)
        return 0

    # In how many bytes small things are sent.
    piece = None

    def send(self, data):
        deadline = time.monotonic() + LONG
        if self.piece and len(data) < 1000:
            for at in range(0, len(data), self.piece):
                self.write(data[at:at + self.piece], deadline)
        else:
            self.write(data, deadline)

    def write(self, data, deadline):
        while data and not self.over:
            data = data[self.turn(data):]
            assert time.monotonic() < deadline, "the other side takes nothing"

    def until(self, what, test):
        """Reads on until `test`, or to the end."""
        deadline = time.monotonic() + LONG
        while not test() and not self.over:
            self.turn()
            assert time.monotonic() < deadline, f"no {what}; heard {self.told()}"
        return test()

    def of(self, kind, stream=None):
        return [f for f in self.heard if isinstance(f, kind) and stream in (None, f.stream_id)]

    def resets(self):
        return [(f.stream_id, code(f.error_code)) for f in self.of(hf.RstStreamFrame)]

    def goaways(self):
        return [code(f.error_code) for f in self.of(hf.GoAwayFrame)]

    def statuses(self, stream):
        fields = [dict(f.fields) for f in self.of(hf.HeadersFrame, stream) if hasattr(f, "fields")]
        return [int(f[b":status"]) for f in fields if b":status" in f]

    def body(self, stream):
        return b"".join(f.data for f in self.of(hf.DataFrame, stream))

    def ended(self, stream):
        return any("END_STREAM" in f.flags for f in self.of((hf.HeadersFrame, hf.DataFrame), stream))

    def told(self):
        names = [f"{type(f).__name__[:-5]} {f.stream_id} {sorted(f.flags)}" for f in self.heard]
        return "; ".join([*names[-8:], *(f"RST {n} {c}" for n, c in self.resets()[-3:]), *self.goaways(),
                          *(["the end"] if self.over else []), *([repr(self.bytes[:80])] if self.bytes else [])])

    # How many were sent by `ping`.
    pings = 0

    def ping(self):
        """Whether everything so far was taken: an answer in order, and not the end."""
        self.pings += 1
        payload = b"PING%04d" % self.pings
        self.send(frame(6, 0, 0, payload))
        return self.until("PING ACK", lambda: payload in [f.opaque_data for f in self.pongs()])

    def pongs(self):
        return [f for f in self.of(hf.PingFrame) if "ACK" in f.flags]

    # What is sent.

    def base(self, kind):
        who = [(b"x-case", str(self.number).encode())]
        request = [(b":scheme", b"http"), (b":authority", self.authority.encode()), (b":path", b"/")]
        return {
            "get": [(b":method", b"GET"), *request, *who],
            "post": [(b":method", b"POST"), *request, *who],
            "connect": [(b":method", b"CONNECT"), (b":authority", self.authority.encode()), *who],
            "socket": [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *request, (b"sec-websocket-version", b"13"), *who],
            "status": [(b":status", b"200")],
            "plain": [],
        }[kind]

    def payload(self, parts):
        """Payload, and what the header says of its length."""
        out, fields, pad, length = b"", None, None, None

        def close():
            nonlocal out, fields
            if fields is not None and self.bare:
                fields = [hpack.NeverIndexedHeaderTuple(*field) for field in fields]
            if fields is not None:
                out, fields = out + self.encoder.encode(fields), None

        for part in parts:
            if part in ("get", "post", "status", "connect", "socket", "plain"):
                close()
                fields = self.base(part)
            elif fields is not None and part[0] != '"' and part != "rest" and (found := re.fullmatch(r"([-+!^]?)(:?[^=]*?)(?:=(.*))?", part)) \
                    and not re.match(r"(x|zeros|fill|u8|u16|u32|u64|cut|pad|padlen|length):", part):
                how, name, value = found.groups()
                name, value = unquote_to_bytes(name), unquote_to_bytes(value or "")
                places = [at for at, (known, _) in enumerate(fields) if known == name]
                pseudo = sum(known.startswith(b":") for known, _ in fields)
                if how == "-":
                    fields = [field for field in fields if field[0] != name]
                elif how == "+":
                    fields.append((name, value))
                elif how in "!^" and how:
                    fields.insert(pseudo if how == "!" else 0, (name, value))
                else:
                    assert places, part
                    fields[places[0]] = (name, value)
            elif part == "rest":
                out += self.rest
            elif part.startswith('"'):
                out += unquote_to_bytes(part[1:-1])
            elif found := re.fullmatch(r"([0-9a-f]+)=(\d+)", part):
                out += struct.pack(">HL", int(found[1], 16), int(found[2]))
                if int(found[1], 16) == 1:
                    self.encoder_limit = int(found[2])
            else:
                close()
                how, value = part.split(":", 1)
                if how == "x":
                    out += bytes.fromhex(value)
                elif how in ("zeros", "fill"):
                    out += (b"\0" if how == "zeros" else b"v") * int(value)
                elif how in ("u8", "u16", "u32", "u64"):
                    out += int(value, 0).to_bytes(int(how[1:]) // 8, "big")
                elif how == "cut":
                    out, self.rest = out[:int(value)], out[int(value):]
                elif how in ("pad", "padlen"):
                    pad = bytes([int(value)]), bytes(int(value) if how == "pad" else 0)
                elif how == "length":
                    length = int(value)
                else:
                    raise ValueError(part)
        close()
        if pad:
            out = pad[0] + out + pad[1]
        return out, len(out) if length is None else length

    def step(self, text):
        words = text.split()
        if words[0] == "await":
            what, stream = words[1], int(words[2], 0)
            test = {
                "END": lambda: self.ended(stream) or stream in dict(self.resets()),
                "HEADERS": lambda: self.of(hf.HeadersFrame, stream),
                "RST": lambda: stream in dict(self.resets()),
                "DATA": lambda: len(self.body(stream)) >= int(words[3]),
                "ACK": lambda: any("ACK" in f.flags for f in self.of(hf.SettingsFrame)),
            }[what]
            self.until(text, test)
            return
        if words[0].startswith("raw:"):
            self.send(bytes.fromhex(words[0][4:]))
            return
        name, _, count = words[0].partition("*")
        kind = TYPES.get(name)
        kind = int(name, 16) if kind is None else kind
        flags = 0
        for flag in words[2].split("+"):
            flags |= 0 if flag == "-" else FLAGS[flag] if flag in FLAGS else int(flag, 16)
        data = []
        for _ in range(int(count or 1)):
            if words[1] == "N":
                stream = self.highest + 2
            elif words[1].startswith("S"):
                stream = self.stream + int(words[1][1:] or 0)
            else:
                stream = int(words[1], 0)
            if kind == 1:
                self.highest = max(self.highest, stream & 0x7fffffff | 1)
            payload, length = self.payload(words[3:])
            data.append(frame(kind, flags, stream, payload, length))
        self.send(b"".join(data))


def frame(kind, flags, stream, payload=b"", length=None):
    length = len(payload) if length is None else length
    return struct.pack(">LBL", length << 8 | kind, flags, stream) + payload


def settings(**values):
    return frame(4, 0, 0, b"")


def connect(target):
    host, port = target.rsplit(":", 1)
    sock = socket.create_connection((host, int(port)), timeout=LONG)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
