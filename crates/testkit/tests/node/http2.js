// Both ends of HTTP/2 as Node has them. Arguments: `serve PORT` or `call URL`. A call ends with how many cases failed.
'use strict';
const assert = require('node:assert');
const crypto = require('node:crypto');
const events = require('node:events');
const http2 = require('node:http2');

const LONG = 60_000;
const { NGHTTP2_CANCEL, NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_NO_ERROR } = http2.constants;
const LARGE = Buffer.alloc(3 << 20);
for (let at = 0; at < LARGE.length; at += 1) LARGE[at] = (at * at) % 251;
const digest = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');

// The server.

const aborted = new Map();
const noted = (name) => {
  if (!aborted.has(name)) aborted.set(name, new events.EventEmitter());
  return aborted.get(name);
};

const answers = {
  '/hello': (stream, headers) => { stream.respond({ 'x-name': headers['x-name'] }); stream.end(`hello ${headers['x-name']}`); },
  '/echo': (stream) => { stream.respond(); stream.pipe(stream); },
  '/large': (stream) => { stream.respond({ 'content-length': LARGE.length }); stream.end(LARGE); },
  '/trailers': (stream) => {
    const hash = crypto.createHash('sha256');
    let said = {};
    stream.on('data', (piece) => hash.update(piece)).on('trailers', (trailers) => { said = trailers; });
    stream.on('end', () => {
      stream.respond({}, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers({ 'x-digest': hash.digest('hex'), 'x-said': said['x-said'] || 'nothing' }));
      stream.end('body');
    });
  },
  '/hints': (stream) => {
    stream.additionalHeaders({ ':status': 103, link: '</style.css>; rel=preload' });
    stream.additionalHeaders({ ':status': 103, link: '</script.js>; rel=preload' });
    stream.respond({ 'x-last': 'yes' });
    stream.end('ok');
  },
  '/silent': (stream, headers) => {
    stream.on('aborted', () => {});
    stream.on('close', () => { noted(headers['x-name']).code = stream.rstCode; noted(headers['x-name']).emit('over'); });
    stream.on('error', () => {});
    stream.respond();
    stream.write('begun');
  },
  '/over': (stream, headers) => {
    const call = noted(headers['x-name']);
    const tell = () => { stream.respond(); stream.end(String(call.code)); };
    if (call.code === undefined) call.once('over', tell); else tell();
  },
  '/reset': (stream) => { stream.on('error', () => {}); stream.close(NGHTTP2_ENHANCE_YOUR_CALM); },
  '/early': (stream) => { stream.respond(); stream.end('early'); stream.resume(); },
  '/fields': (stream, headers) => {
    stream.respond({ 'x-large': headers['x-large'], 'set-cookie': ['a=1; Path=/', 'b=2'], 'x-cookie': headers.cookie });
    stream.end();
  },
  '/goaway': (stream) => { stream.respond(); stream.end('bye'); stream.session.close(); },
  '/nothing': (stream) => { stream.respond({ ':status': 204 }, { endStream: true }); },
};

function serve(port) {
  const server = http2.createServer({ settings: { maxConcurrentStreams: 20 } });
  server.on('stream', (stream, headers) => {
    stream.on('error', () => {});
    if (headers.expect === '100-continue') stream.additionalHeaders({ ':status': 100 });
    const answer = answers[headers[':path']] || ((unknown) => { unknown.respond({ ':status': 404 }); unknown.end(); });
    answer(stream, headers);
  });
  server.on('sessionError', () => {});
  server.listen(Number(port), '127.0.0.1');
}

// The cases.

async function whole(request) {
  const [headers] = await events.once(request, 'response');
  const got = { headers, trailers: undefined, body: Buffer.alloc(0) };
  request.on('trailers', (trailers) => { got.trailers = trailers; });
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  got.body = Buffer.concat(pieces);
  return got;
}

const cases = {
  async 'a hundred requests at once'(session) {
    const names = Array.from({ length: 100 }, (_, n) => `n${n}`);
    const all = await Promise.all(names.map((name) => whole(session.request({ ':path': '/hello', 'x-name': name }))));
    assert.deepStrictEqual(all.map((got) => got.body.toString()), names.map((name) => `hello ${name}`));
  },
  async 'a large body there and back'(session) {
    const request = session.request({ ':method': 'POST', ':path': '/echo' });
    request.end(LARGE);
    assert.strictEqual(digest((await whole(request)).body), digest(LARGE));
  },
  async 'trailers both ways'(session) {
    const request = session.request({ ':method': 'POST', ':path': '/trailers' }, { waitForTrailers: true });
    request.on('wantTrailers', () => request.sendTrailers({ 'x-said': 'last' }));
    request.end('some bytes');
    const got = await whole(request);
    assert.strictEqual(got.trailers['x-said'], 'last');
    assert.strictEqual(got.trailers['x-digest'], digest('some bytes'));
  },
  async 'interim responses'(session) {
    const request = session.request({ ':path': '/hints' });
    const hints = [];
    request.on('headers', (headers) => hints.push([headers[':status'], headers.link]));
    const got = await whole(request);
    assert.strictEqual(got.headers['x-last'], 'yes');
    assert.deepStrictEqual(hints, [[103, '</style.css>; rel=preload'], [103, '</script.js>; rel=preload']]);
  },
  async 'continue before a body'(session) {
    const request = session.request({ ':method': 'POST', ':path': '/echo', expect: '100-continue' });
    const response = whole(request);
    await events.once(request, 'continue');
    request.end('after');
    assert.strictEqual((await response).body.toString(), 'after');
  },
  async 'a cancel comes to the server'(session) {
    const request = session.request({ ':path': '/silent', 'x-name': 'cancel' });
    request.on('error', () => {});
    await events.once(request, 'data');
    request.close(NGHTTP2_CANCEL);
    const told = await whole(session.request({ ':path': '/over', 'x-name': 'cancel' }));
    assert.strictEqual(told.body.toString(), String(NGHTTP2_CANCEL));
  },
  async 'a reset comes with its code'(session) {
    const request = session.request({ ':path': '/reset' });
    request.on('error', () => {});
    await new Promise((resolve) => request.once('close', resolve));
    assert.strictEqual(request.rstCode, NGHTTP2_ENHANCE_YOUR_CALM);
  },
  async 'a response before the end of its request'(session) {
    const request = session.request({ ':method': 'POST', ':path': '/early' });
    request.write('begun');
    assert.strictEqual((await whole(request)).body.toString(), 'early');
    request.end('the rest');
    await new Promise((resolve) => (request.closed ? resolve() : request.once('close', resolve)));
    assert.ok([NGHTTP2_NO_ERROR, NGHTTP2_CANCEL].includes(request.rstCode), String(request.rstCode));
  },
  async 'large fields, and several of a name'(session) {
    const large = 'v'.repeat(30_000);
    const got = await whole(session.request({ ':path': '/fields', 'x-large': large, cookie: ['c=3', 'd=4'] }));
    assert.strictEqual(got.headers['x-large'], large);
    assert.deepStrictEqual(got.headers['set-cookie'], ['a=1; Path=/', 'b=2']);
    assert.strictEqual(got.headers['x-cookie'], 'c=3; d=4');
  },
  async 'no body, and the length of one'(session) {
    assert.strictEqual((await whole(session.request({ ':path': '/nothing' }))).headers[':status'], 204);
    const head = await whole(session.request({ ':method': 'HEAD', ':path': '/large' }));
    assert.strictEqual(head.headers['content-length'], String(LARGE.length));
    assert.strictEqual(head.body.length, 0);
  },
  async 'who reads slowly holds up nobody'(session) {
    const slow = session.request({ ':path': '/large' });
    await events.once(slow, 'response');
    slow.pause();
    for (let n = 0; n < 20; n += 1) {
      const got = await whole(session.request({ ':path': '/hello', 'x-name': `b${n}` }));
      assert.strictEqual(got.body.toString(), `hello b${n}`);
    }
    const pieces = [];
    for await (const piece of slow) pieces.push(piece);
    assert.strictEqual(digest(Buffer.concat(pieces)), digest(LARGE));
  },
  async 'settings change under way, and PING is answered'(session) {
    await new Promise((resolve, reject) => session.ping(Buffer.from('12345678'), (error, _, back) => {
      if (error || back.toString() !== '12345678') reject(error || new Error(back.toString())); else resolve();
    }));
    const large = whole(session.request({ ':path': '/large' }));
    await new Promise((resolve) => session.settings({ initialWindowSize: 1 << 20, headerTableSize: 0, maxFrameSize: 1 << 15 }, resolve));
    assert.strictEqual(digest((await large).body), digest(LARGE));
    assert.strictEqual((await whole(session.request({ ':path': '/hello', 'x-name': 's' }))).headers['x-name'], 's');
  },
  async 'a server that says goodbye again and again'(session) {
    for (let n = 0; n < 10; n += 1) {
      const all = [session.request({ ':path': '/goaway' })];
      for (let more = 0; more < 5; more += 1) all.push(session.request({ ':path': '/hello', 'x-name': `g${more}` }));
      for (const [at, got] of (await Promise.all(all.map(whole))).entries()) {
        assert.strictEqual(got.body.toString(), at === 0 ? 'bye' : `hello g${at - 1}`);
      }
    }
  },
};

async function call(url) {
  const until = Date.now() + LONG;
  // Until the proxies know the way.
  for (;;) {
    const session = http2.connect(url);
    session.on('error', () => {});
    try {
      const got = await whole(session.request({ ':path': '/hello', 'x-name': 'first' }));
      if (got.headers[':status'] === 200) { session.close(); break; }
    } catch { /* Another time. */ }
    session.close();
    if (Date.now() > until) throw new Error('no answer');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const session = http2.connect(url);
  let failures = 0;
  for (const [name, work] of Object.entries(cases)) {
    let timer;
    const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('not over in time')), LONG); });
    try {
      await Promise.race([work(session), late]);
    } catch (error) {
      failures += 1;
      console.log(`${name}: ${error.stack}`);
    }
    clearTimeout(timer);
  }
  console.log(`${Object.keys(cases).length} cases, ${failures} failures`);
  session.destroy();
  process.exitCode = failures ? 1 : 0;
}

({ serve, call })[process.argv[2]](process.argv[3]);
