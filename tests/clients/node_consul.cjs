// npm's `consul` against a node: its kv, session, transaction, watch, status, event and agent calls.
// Usage: NODE_PATH=<modules> node node_consul.cjs HOST PORT
// The package ships without its tests; these are calls equal to its acceptance tests. Prints a line per test.
"use strict";

const assert = require("node:assert/strict");
const Consul = require("consul");

const [host, port] = process.argv.slice(2);
const consul = new Consul({ host, port: Number(port) });
const tests = [];
const test = (name, body) => tests.push([name, body]);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(condition) {
  for (let round = 0; round < 400; round++) {
    if (await condition()) return;
    await sleep(25);
  }
  throw new Error("it did not happen in time");
}

// -- kv

test("kv: set, get, keys, del", async () => {
  assert.equal(await consul.kv.get("npm/none"), undefined);
  assert.equal(await consul.kv.set("npm/a", "hello"), true);
  const pair = await consul.kv.get("npm/a");
  assert.equal(pair.Value, "hello");
  assert.equal(pair.LockIndex, 0);
  assert.equal(await consul.kv.set({ key: "npm/b", value: Buffer.from([0xff, 0]), flags: 7 }), true);
  assert.equal((await consul.kv.get("npm/b")).Flags, 7);
  assert.deepEqual(await consul.kv.get({ key: "npm/b", raw: true }), Buffer.from([0xff, 0]));
  assert.deepEqual(await consul.kv.keys("npm/"), ["npm/a", "npm/b"]);
  assert.deepEqual(await consul.kv.keys({ key: "np", separator: "/" }), ["npm/"]);
  const all = await consul.kv.get({ key: "npm/", recurse: true });
  assert.deepEqual(all.map((one) => one.Key), ["npm/a", "npm/b"]);
  await consul.kv.del("npm/a");
  assert.deepEqual(await consul.kv.keys("npm/"), ["npm/b"]);
  await consul.kv.del({ key: "npm/", recurse: true });
  await assert.rejects(consul.kv.keys("npm/"), (error) => error.isNotFound || error.statusCode === 404);
});

test("kv: an empty value is null", async () => {
  await consul.kv.set("npm/empty", "");
  assert.equal((await consul.kv.get("npm/empty")).Value, null);
});

test("kv: cas", async () => {
  assert.equal(await consul.kv.set({ key: "npm/cas", value: "1", cas: "0" }), true);
  assert.ok(!(await consul.kv.set({ key: "npm/cas", value: "2", cas: "0" }))); // false arrives as undefined
  const { ModifyIndex } = await consul.kv.get("npm/cas");
  assert.equal(await consul.kv.set({ key: "npm/cas", value: "2", cas: String(ModifyIndex) }), true);
  assert.ok(!(await consul.kv.del({ key: "npm/cas", cas: "1" }))); // false arrives as undefined
});

// -- sessions and locks

test("session: create, info, node, list, renew, destroy", async () => {
  const { ID } = await consul.session.create({ name: "npm", ttl: "20s", lockdelay: "0s", behavior: "delete" });
  const info = await consul.session.get(ID);
  const found = Array.isArray(info) ? info[0] : info;
  assert.equal(found.ID, ID);
  assert.equal(found.TTL, "20s");
  assert.equal(found.Behavior, "delete");
  assert.ok((await consul.session.list()).some((one) => one.ID === ID));
  assert.ok((await consul.session.node(found.Node)).some((one) => one.ID === ID));
  assert.equal((await consul.session.renew(ID))[0].ID, ID);
  await consul.session.destroy(ID);
  assert.ok(!(await consul.session.list()).some((one) => one.ID === ID));
  await assert.rejects(consul.session.renew(ID), (error) => error.statusCode === 404);
});

test("locks: acquire and release", async () => {
  const first = (await consul.session.create({ lockdelay: "0s" })).ID;
  const second = (await consul.session.create({ lockdelay: "0s" })).ID;
  assert.equal(await consul.kv.set({ key: "npm/lock", value: "1", acquire: first }), true);
  assert.ok(!(await consul.kv.set({ key: "npm/lock", value: "2", acquire: second }))); // false arrives as undefined
  const pair = await consul.kv.get("npm/lock");
  assert.equal(pair.Session, first);
  assert.equal(pair.LockIndex, 1);
  assert.ok(!(await consul.kv.set({ key: "npm/lock", value: "", release: second }))); // false arrives as undefined
  assert.equal(await consul.kv.set({ key: "npm/lock", value: "", release: first }), true);
  assert.equal(await consul.kv.set({ key: "npm/lock", value: "2", acquire: second }), true);
  await consul.session.destroy(first);
  await consul.session.destroy(second);
  assert.equal((await consul.kv.get("npm/lock")).Session, undefined);
});

test("an unknown session is an error", async () => {
  const id = "11111111-2222-3333-4444-555555555555";
  await assert.rejects(
    consul.kv.set({ key: "npm/lock", value: "1", acquire: id }),
    (error) => error.statusCode === 500 && /invalid session/.test(error.message),
  );
});

// -- transactions

test("transaction: all or nothing", async () => {
  const value = Buffer.from("v").toString("base64");
  const done = await consul.transaction.create([
    { KV: { Verb: "set", Key: "npm/t/a", Value: value } },
    { KV: { Verb: "get", Key: "npm/t/a" } },
  ]);
  assert.equal(done.Errors, null);
  assert.equal(done.Results[1].KV.Value, value);
  await assert.rejects(
    consul.transaction.create([
      { KV: { Verb: "set", Key: "npm/t/b", Value: value } },
      { KV: { Verb: "get", Key: "npm/t/none" } },
    ]),
    (error) => error.statusCode === 409,
  );
  assert.equal(await consul.kv.get("npm/t/b"), undefined);
});

// -- watches

test("watch: a key, from its creation to its end", async () => {
  const seen = [];
  const errors = [];
  const watch = consul.watch({ method: consul.kv.get, options: { key: "npm/watched", wait: "10s" } });
  watch.on("change", (data) => seen.push(data === undefined ? null : data.Value));
  watch.on("error", (error) => errors.push(error));
  try {
    await until(() => seen.length === 1);
    for (const value of ["one", "two"]) {
      await consul.kv.set("npm/watched", value);
      await until(() => seen.at(-1) === value);
    }
    await consul.kv.set("npm/unrelated", "x");
    await consul.kv.del("npm/watched");
    await until(() => seen.at(-1) === null);
    assert.deepEqual(seen, [null, "one", "two", null]);
    assert.deepEqual(errors, []);
    assert.equal(watch.isRunning(), true);
  } finally {
    watch.end();
  }
  assert.equal(watch.isRunning(), false);
});

test("watch: a mistake of the client ends it", async () => {
  const errors = [];
  const watch = consul.watch({ method: consul.kv.get, options: { key: "npm/x", wait: "10" }, backoffFactor: 1 });
  watch.on("error", (error) => errors.push(error));
  await until(() => errors.length > 0 && !watch.isRunning());
  assert.equal(errors[0].statusCode, 400);
});

// -- status, events, agent, catalog

test("status: leader and peers", async () => {
  const leader = await consul.status.leader();
  assert.match(leader, /^127\.0\.0\.1:\d+$/);
  const peers = await consul.status.peers();
  assert.equal(peers.length, 3);
  assert.ok(peers.includes(leader));
});

test("event: fire and list", async () => {
  const fired = await consul.event.fire("npm", "payload");
  assert.equal(fired.Name, "npm");
  const listed = await consul.event.list("npm");
  assert.equal(listed.at(-1).ID, fired.ID);
  assert.equal(listed.at(-1).Payload, "payload");
});

test("agent: self, members, reload, forceLeave", async () => {
  const self = await consul.agent.self();
  assert.equal(self.Config.Datacenter, "dc1");
  const members = await consul.agent.members();
  assert.deepEqual(members.map((one) => one.Name).sort(), ["kvnode-0", "kvnode-1", "kvnode-2"]);
  await consul.agent.reload();
  await assert.rejects(consul.agent.forceLeave("nobody"), /No node found/);
});

test("catalog and health: nodes and their service", async () => {
  assert.deepEqual(await consul.catalog.datacenters(), ["dc1"]);
  assert.equal((await consul.catalog.node.list()).length, 3);
  assert.ok("consul" in (await consul.catalog.service.list()));
  assert.equal((await consul.health.service({ service: "consul", passing: true })).length, 3);
});

(async () => {
  let failed = 0;
  for (const [name, body] of tests) {
    try {
      await body();
      console.log(`ok   ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL ${name}\n${error.stack}`);
    }
  }
  process.exit(failed ? 1 : 0);
})();
