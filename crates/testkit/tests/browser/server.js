// A server of HTTP/2 without TLS that takes WebSockets as streams, for page.html. Argument: its port. What the page found is
// posted to /done, and had from /result; /hold is answered then, so that the page is loaded when it has tried everything.
'use strict';
const fs = require('node:fs');
const http2 = require('node:http2');
const path = require('node:path');

const BIG = 4_000_000;
const page = fs.readFileSync(path.join(__dirname, 'page.html'));
let result = '';
const held = [];
let cancelled = 0;

function frame(first, payload) {
  const size = payload.length;
  if (size < 126) return Buffer.concat([Buffer.from([first, size]), payload]);
  const head = Buffer.alloc(size < 65536 ? 4 : 10);
  head[0] = first;
  head[1] = size < 65536 ? 126 : 127;
  if (size < 65536) head.writeUInt16BE(size, 2);
  else head.writeBigUInt64BE(BigInt(size), 2);
  return Buffer.concat([head, payload]);
}

/** Calls `told` with the first byte and the payload of each frame of a client. */
function frames(stream, told) {
  let held = Buffer.alloc(0);
  stream.on('data', (data) => {
    held = Buffer.concat([held, data]);
    for (;;) {
      if (held.length < 2) return;
      const short = held[1] & 127;
      const more = short === 126 ? 2 : short === 127 ? 8 : 0;
      const start = 2 + more + 4;
      if (held.length < start) return;
      const size = more === 0 ? short : more === 2 ? held.readUInt16BE(2) : Number(held.readBigUInt64BE(2));
      if (held.length < start + size) return;
      const mask = held.subarray(start - 4, start);
      const payload = Buffer.from(held.subarray(start, start + size));
      for (let at = 0; at < size; at++) payload[at] ^= mask[at & 3];
      const first = held[0];
      held = held.subarray(start + size);
      told(first, payload);
    }
  });
}

function socket(stream, asked) {
  stream.respond({ ':status': 200, 'sec-websocket-protocol': 'two' });
  if (asked === '/closes') stream.write(frame(0x88, Buffer.from([4002 >> 8, 4002 & 255, 0x62, 0x79, 0x65])));
  let closed = asked === '/closes';
  frames(stream, (first, payload) => {
    switch (first & 15) {
      case 8:
        if (!closed) stream.write(frame(0x88, payload));
        closed = true;
        stream.end();
        break;
      case 9:
        stream.write(frame(0x8a, payload));
        break;
      default:
        stream.write(frame(first, payload));
    }
  });
}

// Megabytes that may wait in one connection; beyond 10, unless more is said, Node resets whatever is new.
const server = http2.createServer({ maxSessionMemory: 1000, settings: { enableConnectProtocol: true } });
server.on('stream', (stream, headers) => {
  const asked = headers[':path'];
  stream.on('error', () => {});
  if (headers[':method'] === 'CONNECT') {
    if (headers[':protocol'] !== 'websocket') return stream.respond({ ':status': 501 }, { endStream: true });
    return socket(stream, asked);
  }
  const say = (body, fields = {}) => {
    stream.respond({ ':status': 200, 'cache-control': 'no-store', ...fields });
    stream.end(body);
  };
  if (asked === '/') return say(page, { 'content-type': 'text/html' });
  if (asked === '/big') return say(Buffer.alloc(BIG, 'abcdefg'));
  if (asked === '/cookies') return say([].concat(headers.cookie ?? []).join('; '));
  if (asked === '/moved') return stream.respond({ ':status': 302, location: '/n/moved' }, { endStream: true });
  if (asked === '/nothing') return stream.respond({ ':status': 204 }, { endStream: true });
  if (asked === '/cancelled') return say(String(cancelled));
  if (asked === '/result') return say(result);
  if (asked === '/hold') return held.push(() => say(''));
  if (asked === '/endless') {
    stream.respond({ ':status': 200 });
    const pump = () => { while (!stream.destroyed && stream.write(Buffer.alloc(16384)));  };
    stream.on('drain', pump);
    stream.on('close', () => { cancelled += 1; });
    return pump();
  }
  if (asked === '/events') {
    stream.respond({ ':status': 200, 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    let number = 0;
    const next = setInterval(() => stream.write(`data: ${number++}\n\n`), 20);
    stream.on('close', () => clearInterval(next));
    return undefined;
  }
  if (asked === '/echo' || asked === '/done') {
    const pieces = [];
    stream.on('data', (piece) => pieces.push(piece));
    stream.on('end', () => {
      const all = Buffer.concat(pieces);
      if (asked === '/echo') return say(all);
      result = all.toString();
      held.forEach((answer) => answer());
      return say('');
    });
    return undefined;
  }
  return say(asked);
});
server.listen(Number(process.argv[2]), '127.0.0.1');
