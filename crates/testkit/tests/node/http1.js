// Both ends of HTTP/1.1 as Node has them, `http` and `fetch`. Arguments: `serve PORT` or `call URL`. A call ends with how
// many cases failed.
'use strict';
const assert = require('node:assert');
const crypto = require('node:crypto');
const events = require('node:events');
const http = require('node:http');

const LONG = 60_000;
// After so many milliseconds the server closes a connection without a request.
const IDLE = 200;
const LARGE = Buffer.alloc(3 << 20);
for (let at = 0; at < LARGE.length; at += 1) LARGE[at] = (at * at) % 251;
const digest = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');
const passed = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// The server.

const calls = new Map();
const noted = (name) => {
  if (!calls.has(name)) calls.set(name, new events.EventEmitter());
  return calls.get(name);
};

const answers = {
  '/hello': (request, response) => { response.setHeader('x-name', request.headers['x-name']); response.end(`hello ${request.headers['x-name']}`); },
  '/echo': (request, response) => { request.pipe(response); },
  '/large': (request, response) => { response.setHeader('content-length', LARGE.length); response.end(LARGE); },
  '/trailers': (request, response) => {
    const hash = crypto.createHash('sha256');
    request.on('data', (piece) => hash.update(piece)).on('end', () => {
      response.writeHead(200, { trailer: 'x-digest, x-said' });
      response.write('body');
      response.addTrailers({ 'x-digest': hash.digest('hex'), 'x-said': request.trailers['x-said'] || 'nothing' });
      response.end();
    });
  },
  '/hints': (request, response) => {
    response.writeEarlyHints({ link: '</style.css>; rel=preload' });
    response.writeEarlyHints({ link: '</script.js>; rel=preload' });
    response.setHeader('x-last', 'yes');
    response.end('ok');
  },
  '/silent': (request, response) => {
    response.on('close', () => { const call = noted(request.headers['x-name']); call.over = true; call.emit('over'); });
    response.write('begun');
  },
  '/over': (request, response) => {
    const call = noted(request.headers['x-name']);
    const tell = () => response.end('over');
    if (call.over) tell(); else call.once('over', tell);
  },
  '/broken': (request, response) => {
    response.setHeader('content-length', 100);
    response.write('half', () => response.socket.destroy());
  },
  '/early': (request, response) => { response.end('early'); request.resume(); },
  '/fields': (request, response) => {
    response.setHeader('set-cookie', ['a=1; Path=/', 'b=2']);
    response.setHeader('X-MiXed', 'Kept');
    response.end(JSON.stringify(request.rawHeaders));
  },
  '/nothing': (request, response) => { response.writeHead(204); response.end(); },
  '/unchanged': (request, response) => { response.writeHead(304, { etag: '"1"' }); response.end(); },
  '/last': (request, response) => { response.setHeader('connection', 'close'); response.end('last'); },
};

function serve(port) {
  const server = http.createServer((request, response) => {
    const answer = answers[request.url] || ((_, unknown) => { unknown.writeHead(404); unknown.end(); });
    answer(request, response);
  });
  server.keepAliveTimeout = IDLE;
  server.listen(Number(port), '127.0.0.1');
}

// The cases.

async function whole(request) {
  const [response] = await events.once(request, 'response');
  const pieces = [];
  for await (const piece of response) pieces.push(piece);
  return { response, body: Buffer.concat(pieces) };
}

const one = new http.Agent({ keepAlive: true, maxSockets: 1 });

function ask(url, path, options = {}) {
  const { body, ...rest } = options;
  const request = http.request(url + path, { agent: one, ...rest });
  // What happens after the response has begun is told by that, too.
  request.on('error', () => {});
  request.end(body);
  return whole(request);
}

const cases = {
  async 'many requests on one connection'(url) {
    const ports = new Set();
    for (let n = 0; n < 50; n += 1) {
      const request = http.request(`${url}/hello`, { agent: one, headers: { 'x-name': `n${n}` } });
      request.end();
      assert.strictEqual((await whole(request)).body.toString(), `hello n${n}`);
      ports.add(request.socket.localPort);
    }
    assert.strictEqual(ports.size, 1);
  },
  async 'a hundred at once by fetch'(url) {
    const names = Array.from({ length: 100 }, (_, n) => `f${n}`);
    const all = await Promise.all(names.map(async (name) => (await fetch(`${url}/hello`, { headers: { 'x-name': name } })).text()));
    assert.deepStrictEqual(all, names.map((name) => `hello ${name}`));
  },
  async 'a large body there and back by chunks'(url) {
    const got = await ask(url, '/echo', { method: 'POST', headers: { 'transfer-encoding': 'chunked' }, body: LARGE });
    assert.strictEqual(digest(got.body), digest(LARGE));
  },
  async 'a body of unknown length by fetch'(url) {
    let at = 0;
    const body = new ReadableStream({
      pull(sink) {
        if (at === LARGE.length) { sink.close(); return; }
        sink.enqueue(new Uint8Array(LARGE.subarray(at, at + 65_536)));
        at = Math.min(at + 65_536, LARGE.length);
      },
    });
    const got = await fetch(`${url}/echo`, { method: 'POST', body, duplex: 'half' });
    assert.strictEqual(digest(Buffer.from(await got.arrayBuffer())), digest(LARGE));
  },
  async 'trailers both ways'(url) {
    const request = http.request(`${url}/trailers`, { agent: one, method: 'POST', headers: { trailer: 'x-said', te: 'trailers' } });
    request.write('some ');
    request.addTrailers({ 'x-said': 'last' });
    request.end('bytes');
    const got = await whole(request);
    assert.strictEqual(got.response.trailers['x-said'], 'last');
    assert.strictEqual(got.response.trailers['x-digest'], digest('some bytes'));
  },
  async 'interim responses'(url) {
    const request = http.request(`${url}/hints`, { agent: one });
    const hints = [];
    request.on('information', ({ statusCode, headers }) => hints.push([statusCode, headers.link]));
    request.end();
    const got = await whole(request);
    assert.strictEqual(got.response.headers['x-last'], 'yes');
    assert.deepStrictEqual(hints, [[103, '</style.css>; rel=preload'], [103, '</script.js>; rel=preload']]);
  },
  async 'continue before a body'(url) {
    const request = http.request(`${url}/echo`, { agent: one, method: 'POST', headers: { expect: '100-continue', 'content-length': 5 } });
    request.flushHeaders();
    await events.once(request, 'continue');
    request.end('after');
    assert.strictEqual((await whole(request)).body.toString(), 'after');
  },
  async 'a cancel comes to the server'(url) {
    const headers = { 'x-name': 'cancel' };
    const request = http.request(`${url}/silent`, { agent: one, headers });
    request.on('error', () => {});
    request.end();
    const [response] = await events.once(request, 'response');
    response.on('error', () => {});
    await events.once(response, 'data');
    // An end alone is half of a connection, and may be all that a caller has to say.
    request.socket.resetAndDestroy();
    assert.strictEqual((await ask(url, '/over', { headers })).body.toString(), 'over');
  },
  async 'a response that breaks off is none'(url) {
    await assert.rejects(ask(url, '/broken'), { code: 'ECONNRESET' });
    await assert.rejects((await fetch(`${url}/broken`)).text(), TypeError);
  },
  async 'a response before the end of its request'(url) {
    const request = http.request(`${url}/early`, { agent: one, method: 'POST' });
    request.on('error', () => {});
    request.write('begun');
    assert.strictEqual((await whole(request)).body.toString(), 'early');
    request.end('the rest');
    assert.strictEqual((await ask(url, '/hello', { headers: { 'x-name': 'next' } })).body.toString(), 'hello next');
  },
  async 'fields as they were written'(url) {
    const large = 'v'.repeat(8_000);
    const got = await ask(url, '/fields', { headers: { 'X-FiRST': '1', 'x-large': large, 'X-List': ['a', 'b'], Cookie: 'c=3; d=4' } });
    const raw = JSON.parse(got.body);
    const of = (name) => raw.filter((_, at) => at % 2 === 1 && raw[at - 1] === name);
    assert.deepStrictEqual([of('X-FiRST'), of('X-List'), of('Cookie')], [['1'], ['a', 'b'], ['c=3; d=4']]);
    assert.deepStrictEqual(of('x-large'), [large]);
    assert.deepStrictEqual(got.response.headers['set-cookie'], ['a=1; Path=/', 'b=2']);
    assert.ok(got.response.rawHeaders.includes('X-MiXed'), got.response.rawHeaders.join());
  },
  async 'no body, and the length of one'(url) {
    assert.strictEqual((await ask(url, '/nothing')).response.statusCode, 204);
    const unchanged = await ask(url, '/unchanged');
    assert.deepStrictEqual([unchanged.response.statusCode, unchanged.response.headers.etag], [304, '"1"']);
    const head = await ask(url, '/large', { method: 'HEAD' });
    assert.strictEqual(head.response.headers['content-length'], String(LARGE.length));
    assert.strictEqual(head.body.length, 0);
  },
  async 'who reads slowly holds up nobody'(url) {
    const slow = http.request(`${url}/large`);
    slow.end();
    const [response] = await events.once(slow, 'response');
    response.pause();
    for (let n = 0; n < 20; n += 1) {
      assert.strictEqual((await ask(url, '/hello', { headers: { 'x-name': `b${n}` } })).body.toString(), `hello b${n}`);
    }
    const pieces = [];
    for await (const piece of response) pieces.push(piece);
    assert.strictEqual(digest(Buffer.concat(pieces)), digest(LARGE));
  },
  async 'a server that closes after each answer'(url) {
    for (let n = 0; n < 20; n += 1) {
      assert.strictEqual((await ask(url, '/last', { method: n % 2 ? 'POST' : 'GET', body: n % 2 ? 'x' : undefined })).body.toString(), 'last');
    }
  },
  async 'a server that closes what is idle'(url) {
    for (let n = 0; n < 20; n += 1) {
      await passed(IDLE - 10 + n);
      assert.strictEqual((await ask(url, '/hello', { headers: { 'x-name': `i${n}` } })).body.toString(), `hello i${n}`);
    }
  },
};

async function call(url) {
  const until = Date.now() + LONG;
  // Until the proxies know the way.
  for (;;) {
    const first = await fetch(`${url}/hello`, { headers: { 'x-name': 'first' } }).catch(() => undefined);
    if (first?.status === 200) break;
    if (Date.now() > until) throw new Error('no answer');
    await passed(50);
  }
  let failures = 0;
  for (const [name, work] of Object.entries(cases)) {
    let timer;
    const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('not over in time')), LONG); });
    try {
      await Promise.race([work(url), late]);
    } catch (error) {
      failures += 1;
      console.log(`${name}: ${error.stack}`);
    }
    clearTimeout(timer);
  }
  console.log(`${Object.keys(cases).length} cases, ${failures} failures`);
  process.exit(failures ? 1 : 0);
}

({ serve, call })[process.argv[2]](process.argv[3]);
