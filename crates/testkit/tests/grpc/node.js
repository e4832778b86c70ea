// gRPC of Node (`@grpc/grpc-js`) at both ends, with messages that are plain bytes: what server.py has, and calls to it.
// Arguments: `serve PORT` or `call TARGET`. A call ends with how many cases failed.
'use strict';
const assert = require('node:assert');
const grpc = require('@grpc/grpc-js');

const LONG = 60_000;
const limits = {
  'grpc.max_receive_message_length': -1, 'grpc.max_metadata_size': 1 << 17, 'grpc-node.max_session_memory': 1000,
  'grpc.enable_retries': 0,
};
const same = (bytes) => bytes;

// The server.

let cancels = 0;
const waiting = [];

const handlers = {
  Unary: (call, done) => done(null, Buffer.concat([Buffer.from('echo '), call.request])),
  Metadata: (call, done) => {
    const [large, cert] = ['x-large', 'x-forwarded-client-cert'].map((name) => call.metadata.get(name)[0] || '');
    const initial = new grpc.Metadata();
    initial.set('x-initial', large);
    call.sendMetadata(initial);
    const trailing = new grpc.Metadata();
    trailing.set('x-trailing-bin', Buffer.from([0, 0xff]));
    done(null, Buffer.from(cert), trailing);
  },
  Fails: (call, done) => done({ code: grpc.status.FAILED_PRECONDITION, details: 'not 100 % ready \u00fc' }),
  Slow: (call, done) => { const timer = setTimeout(() => done(null, Buffer.from('late')), 30_000); call.on('cancelled', () => clearTimeout(timer)); },
  Remaining: (call, done) => done(null, Buffer.from(String((Number(call.getDeadline()) - Date.now()) / 1000))),
  WasCancelled: (call, done) => {
    const tell = () => { cancels -= 1; done(null, Buffer.from('yes')); };
    if (cancels > 0) tell(); else waiting.push(tell);
  },
  ServerStream: (call) => {
    const count = Number(call.request.toString());
    const write = (n) => {
      while (n < count) {
        const more = call.write(Buffer.from(String(n)));
        n += 1;
        if (!more) return call.once('drain', () => write(n));
      }
      return call.end();
    };
    write(0);
  },
  Endless: (call) => {
    let n = 0;
    const timer = setInterval(() => { call.write(Buffer.from(String(n))); n += 1; }, 10);
    call.on('cancelled', () => {
      clearInterval(timer);
      cancels += 1;
      const tell = waiting.shift();
      if (tell) tell();
    });
  },
  ClientStream: (call, done) => {
    let sum = 0;
    call.on('data', (message) => { sum += message.length; });
    call.on('end', () => done(null, Buffer.from(String(sum))));
  },
  Chat: (call) => {
    call.on('data', (message) => call.write(Buffer.concat([Buffer.from('re: '), message])));
    call.on('end', () => call.end());
  },
};

function serve(port) {
  const kinds = { ServerStream: [false, true], Endless: [false, true], ClientStream: [true, false], Chat: [true, true] };
  const service = {};
  for (const name of Object.keys(handlers)) {
    const [requestStream, responseStream] = kinds[name] || [false, false];
    service[name] = {
      path: `/test.All/${name}`, requestStream, responseStream, requestSerialize: same, requestDeserialize: same,
      responseSerialize: same, responseDeserialize: same,
    };
  }
  const server = new grpc.Server(limits);
  server.addService(service, handlers);
  server.bindAsync(`127.0.0.1:${port}`, grpc.ServerCredentials.createInsecure(), (error) => { if (error) throw error; });
}

// The cases.

let client;

function unary(name, message, metadata = new grpc.Metadata(), wait = LONG) {
  const got = {};
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + wait };
    const call = client.makeUnaryRequest(`/test.All/${name}`, same, same, Buffer.from(message), metadata, options, (error, answer) => {
      if (error) reject(error); else { got.answer = answer; if (got.status) resolve(got); }
    });
    call.on('metadata', (initial) => { got.initial = initial; });
    call.on('status', (status) => { got.status = status; if (got.answer) resolve(got); });
  });
}

async function failsWith(code, work) {
  try {
    await work;
  } catch (error) {
    assert.strictEqual(error.code, code, String(error));
    return error;
  }
  throw new Error('it worked');
}

const stream = (kind, name, ...more) => client[kind](`/test.All/${name}`, same, same, ...more, { deadline: Date.now() + LONG });
const next = (call) => new Promise((resolve, reject) => {
  call.once('error', reject);
  call.once('data', (message) => { call.off('error', reject); resolve(message); });
});

const cases = {
  async unary() {
    assert.strictEqual((await unary('Unary', 'a')).answer.toString(), 'echo a');
    const large = Buffer.alloc(5 << 20, 'abcdefg');
    assert.ok((await unary('Unary', large)).answer.subarray(5).equals(large));
    const many = await Promise.all(Array.from({ length: 300 }, (_, n) => unary('Unary', String(n))));
    assert.deepStrictEqual(many.map((got) => got.answer.toString()), many.map((_, n) => `echo ${n}`));
  },
  async metadata() {
    const sent = new grpc.Metadata();
    sent.set('x-large', 'm'.repeat(30_000));
    sent.set('x-some-bin', Buffer.from([1, 2]));
    const got = await unary('Metadata', '', sent);
    assert.ok(got.answer.toString().includes('URI=spiffe://outrider.internal/ns/shop/svc/client'), got.answer.toString());
    assert.strictEqual(got.initial.get('x-initial')[0].length, 30_000);
    assert.deepStrictEqual([...got.status.metadata.get('x-trailing-bin')[0]], [0, 0xff]);
  },
  async errors() {
    const error = await failsWith(grpc.status.FAILED_PRECONDITION, unary('Fails', ''));
    assert.strictEqual(error.details, 'not 100 % ready \u00fc');
    await failsWith(grpc.status.UNIMPLEMENTED, unary('Nothing', ''));
    await failsWith(grpc.status.DEADLINE_EXCEEDED, unary('Slow', '', undefined, 300));
  },
  async 'a stream from the server'() {
    const got = [];
    for await (const message of stream('makeServerStreamRequest', 'ServerStream', Buffer.from('2000'), new grpc.Metadata())) got.push(message.toString());
    assert.deepStrictEqual(got, got.map((_, n) => String(n)));
    assert.strictEqual(got.length, 2000);
  },
  async 'a stream to the server'() {
    const sum = await new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + LONG };
      const call = client.makeClientStreamRequest('/test.All/ClientStream', same, same, new grpc.Metadata(), options, (error, answer) => {
        if (error) reject(error); else resolve(answer.toString());
      });
      for (let n = 0; n < 2000; n += 1) call.write(Buffer.alloc(1000));
      call.end();
    });
    assert.strictEqual(sum, '2000000');
  },
  async 'messages back and forth'() {
    const chat = stream('makeBidiStreamRequest', 'Chat', new grpc.Metadata());
    for (let n = 0; n < 100; n += 1) {
      const back = next(chat);
      chat.write(Buffer.from(String(n)));
      assert.strictEqual((await back).toString(), `re: ${n}`);
    }
    const status = new Promise((resolve) => { chat.once('status', resolve); });
    chat.end();
    assert.strictEqual((await status).code, grpc.status.OK);
  },
  async 'a cancel'() {
    const endless = stream('makeServerStreamRequest', 'Endless', Buffer.from(''), new grpc.Metadata());
    await next(endless);
    endless.on('error', () => {});
    endless.cancel();
    assert.strictEqual((await unary('WasCancelled', '')).answer.toString(), 'yes');
  },
};

async function call(target) {
  client = new grpc.Client(target, grpc.credentials.createInsecure(), limits);
  const until = Date.now() + LONG;
  // Until the proxies know the way.
  for (;;) {
    try { await unary('Unary', 'first', undefined, 5_000); break; } catch (error) { if (Date.now() > until) throw error; }
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
  let failures = 0;
  for (const [name, work] of Object.entries(cases)) {
    try { await work(); } catch (error) { failures += 1; console.log(`${name}: ${error.stack}`); }
  }
  client.close();
  console.log(`${Object.keys(cases).length} cases, ${failures} failures`);
  process.exitCode = failures ? 1 : 0;
}

({ serve, call })[process.argv[2]](process.argv[3]);
