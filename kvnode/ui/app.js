// The web page: members on top, keys on the left, one key on the right. Plain browser code, no build,
// no foreign host. Everything that comes from the store is set as text, never as markup.

const PAGE_KEYS = 500;
const MEMBERS_EVERY_MS = 5000;

const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const state = {
  prefix: "", // of the listed level: empty or ending with a slash
  names: [],
  shown: PAGE_KEYS,
  key: null, // the opened key; "" while a new one is being made
  entry: null, // as last read; null for a new key
  binary: null, // the value's bytes when they are no text
};

// --- talking to the node ---------------------------------------------------------------------

const keyPath = (key) => "/v1/kv/" + key.split("/").map(encodeURIComponent).join("/");

async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, { method, body, cache: "no-store" });
  } catch {
    throw new Error("This node cannot be reached.");
  }
  const node = answer.headers.get("X-Kvnode-Node");
  if (node) $("node").textContent = `answered by ${node}`;
  if (!answer.ok && answer.status !== 404) {
    throw new Error((await answer.text()).trim() || `The node answered ${answer.status}.`);
  }
  return answer;
}

const decodeBase64 = (text) => Uint8Array.from(atob(text ?? ""), (c) => c.charCodeAt(0));

// A text area turns every line end into "\n". A value is edited as text only if its bytes can be made
// again from that: with one kind of line end, and without control characters or a byte order mark.
function asText(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    if (/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufeff]/.test(text)) return null;
    if (!text.includes("\r")) return { text, lineEnd: "\n" };
    return /\r(?!\n)|(?<!\r)\n/.test(text) ? null : { text: text.replaceAll("\r\n", "\n"), lineEnd: "\r\n" };
  } catch {
    return null;
  }
}

// Flags use 64 bits and would lose digits as a JavaScript number: they are read from the text.
const exactFlags = (json) => /"Flags":(\d+)/.exec(json)?.[1] ?? "0";

// --- members -----------------------------------------------------------------------------------

const ROLES = { pre_candidate: "candidate" };

function memberCard(pod) {
  const role = pod.reachable ? ROLES[pod.role] ?? pod.role : "unreachable";
  const card = make("article", { className: `card ${role}` });
  card.append(
    make("header", {},
      make("strong", { textContent: pod.name || "unknown" }),
      make("span", { className: "spacer" }),
      make("span", { className: `tag ${role}`, textContent: role })),
    make("div", { className: "address", textContent: pod.address, title: pod.node_id }));
  if (!pod.reachable) {
    card.append(make("div", { className: "quiet", textContent: pod.error || "no answer" }));
    return card;
  }
  const numbers = make("div", { className: "numbers" });
  for (const label of ["term", "applied", "lag", "keys"]) numbers.append(make("span", { textContent: label }));
  for (const value of [pod.term, pod.applied_index, pod.lag, pod.keys]) {
    numbers.append(make("b", { textContent: value.toLocaleString() }));
  }
  card.append(numbers);
  return card;
}

function sayHealth(pods) {
  const reachable = pods.filter((pod) => pod.reachable);
  const leader = reachable.find((pod) => pod.role === "leader");
  const pill = $("health");
  const digests = new Set(reachable.map((pod) => pod.digest).filter(Boolean));
  if (!leader) [pill.className, pill.textContent] = ["pill bad", "no leader"];
  else if (digests.size > 1) [pill.className, pill.textContent] = ["pill bad", "data differs"];
  else if (reachable.length < pods.length) {
    [pill.className, pill.textContent] = ["pill warn", `${reachable.length} of ${pods.length} reachable`];
  } else [pill.className, pill.textContent] = ["pill good", "healthy"];
  const compared = reachable.find((pod) => pod.digest);
  $("verdict").textContent = digests.size > 1
    ? "The members hold different data at one index. Look at the logs before anything else."
    : compared ? `Data equal on all reachable members at index ${compared.digest_index.toLocaleString()}.` : "";
}

async function loadMembers() {
  try {
    const [pods, { Servers: servers }] = await Promise.all([
      ask("GET", "/pods?format=json").then((answer) => answer.json()),
      ask("GET", "/v1/operator/raft/configuration?stale").then((answer) => answer.json()),
    ]);
    const learners = new Set(servers.filter((server) => !server.Voter).map((server) => server.ID));
    for (const pod of pods) if (learners.has(pod.node_id)) pod.role = "learner";
    $("members").replaceChildren(...pods.map(memberCard));
    sayHealth(pods);
  } catch (error) {
    $("health").className = "pill bad";
    $("health").textContent = error.message;
  }
}

// --- keys --------------------------------------------------------------------------------------

const hashOf = (key) => "#/" + key.split("/").map(encodeURIComponent).join("/");

function drawCrumbs() {
  const crumbs = [make("a", { href: "#/", textContent: "all" })];
  let path = "";
  for (const part of state.prefix.split("/").slice(0, -1)) {
    path += part + "/";
    crumbs.push("/", make("a", { href: hashOf(path), textContent: part }));
  }
  $("crumbs").replaceChildren(...crumbs);
}

function drawKeys() {
  const wanted = $("filter").value.toLowerCase();
  const matching = state.names.filter((name) => name.slice(state.prefix.length).toLowerCase().includes(wanted));
  const visible = matching.slice(0, state.shown);
  $("keys").replaceChildren(...visible.map((name) => {
    const folder = name.endsWith("/") && name !== state.prefix;
    const link = make("a", {
      href: hashOf(name),
      className: folder ? "folder" : "",
      textContent: name.slice(state.prefix.length) || "(the prefix itself)",
    });
    if (name === state.prefix) link.href = hashOf(name) + "?key";
    if (name === state.key) link.setAttribute("aria-current", "true");
    return make("li", {}, link);
  }));
  $("more").hidden = matching.length <= visible.length;
  $("more").textContent = `Show more (${(matching.length - visible.length).toLocaleString()} hidden)`;
  $("keys-note").textContent = matching.length ? "" : state.names.length ? "Nothing here matches." : "No keys here yet.";
}

async function loadKeys() {
  const query = "?keys&separator=" + encodeURIComponent("/");
  try {
    const answer = await ask("GET", keyPath(state.prefix) + query);
    state.names = answer.status === 404 ? [] : await answer.json();
    drawCrumbs();
    drawKeys();
  } catch (error) {
    toast(error.message, true);
  }
}

// --- one key -----------------------------------------------------------------------------------

const isDirty = () => !$("form").hidden && !state.binary
  && ($("value").value !== state.text || $("flags").value !== state.flags);

function markDirty() {
  const dirty = isDirty();
  $("dirty").hidden = !dirty || state.key === "";
  $("reset").disabled = !dirty;
  $("save").disabled = state.key !== "" && !dirty;
}

function fact(name, value) {
  return make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }));
}

function drawEntry() {
  const creating = state.key === "";
  $("empty").hidden = state.key !== null;
  $("form").hidden = state.key === null;
  if (state.key === null) return;
  $("form-title").textContent = creating ? "New key" : state.key;
  $("key-field").hidden = !creating;
  $("key").disabled = !creating; // else the browser asks for it, unseen, and nothing is saved
  $("facts").hidden = creating;
  for (const id of ["delete", "copy"]) $(id).hidden = creating;
  $("value").readOnly = $("save").hidden = $("reset").hidden = Boolean(state.binary);
  $("flags").disabled = Boolean(state.binary);
  $("format").hidden = Boolean(state.binary);
  $("value-label").textContent = state.binary ? "Value (binary, shown in hexadecimal)" : "Value";
  $("value").value = state.text;
  $("flags").value = state.flags;
  if (!creating) {
    const { entry } = state;
    $("facts").replaceChildren(
      fact("modified", entry.ModifyIndex),
      fact("created", entry.CreateIndex),
      fact("size", `${state.size.toLocaleString()} bytes`),
      ...(entry.LockIndex ? [fact("lock", entry.LockIndex)] : []),
      ...(entry.Session ? [fact("session", entry.Session)] : []));
  }
  $("past").hidden = creating;
  loadPast();
  markDirty();
  drawKeys();
}

// --- what a key was ----------------------------------------------------------------------------

async function loadPast() {
  const { key } = state;
  if (!key || !$("past").open) return;
  try {
    const answer = await ask("GET", `${keyPath(key)}?history&limit=50`);
    const json = answer.status === 404 ? "[]" : await answer.text();
    if (key !== state.key) return; // another one was opened meanwhile
    const flags = [...json.matchAll(/"Flags":(\d+)/g)].map((match) => match[1]);
    $("revisions").replaceChildren(...JSON.parse(json).map((revision) =>
      revisionRow(revision, revision.Entry ? flags.shift() : null)));
    $("past-note").textContent = answer.headers.get("X-Kvnode-More")
      ? "There are older ones."
      : `Changes are kept from index ${answer.headers.get("X-Kvnode-Oldest-Index")} on.`;
  } catch (error) {
    $("past-note").textContent = error.message;
  }
}

function revisionRow({ Index: index, By: by, Entry: entry }, flags) {
  const bytes = entry ? decodeBase64(entry.Value) : null;
  const text = bytes ? asText(bytes) : null;
  const use = make("button", { type: "button", textContent: "Use", disabled: text === null });
  use.title = "Put this value into the editor; it is not saved yet";
  use.addEventListener("click", () => {
    if (state.binary) return;
    state.lineEnd = text.lineEnd;
    $("value").value = text.text;
    $("flags").value = flags;
    markDirty();
    $("value").focus();
  });
  const shown = entry ? text?.text.slice(0, 200) ?? `${bytes.length.toLocaleString()} bytes, binary` : "deleted";
  return make("li", {}, make("b", { textContent: index }), make("span", { textContent: by ?? "before" }),
    make("code", { textContent: shown }), use);
}

function hexDump(bytes) {
  const lines = [];
  for (let at = 0; at < Math.min(bytes.length, 4096); at += 16) {
    const row = [...bytes.slice(at, at + 16)];
    const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const shown = row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${hex.padEnd(47)}  ${shown}`);
  }
  if (bytes.length > 4096) lines.push(`… ${(bytes.length - 4096).toLocaleString()} bytes more`);
  return lines.join("\n");
}

async function openKey(key) {
  try {
    const answer = await ask("GET", keyPath(key));
    if (answer.status === 404) {
      Object.assign(state, { key: null, entry: null });
      toast(`There is no key ${key}`, true);
    } else {
      const json = await answer.text();
      const [entry] = JSON.parse(json);
      const bytes = decodeBase64(entry.Value);
      const text = asText(bytes);
      Object.assign(state, {
        key, entry, size: bytes.length, flags: exactFlags(json),
        binary: text === null ? bytes : null, text: text?.text ?? hexDump(bytes),
        lineEnd: text?.lineEnd ?? "\n",
      });
    }
    drawEntry();
  } catch (error) {
    toast(error.message, true);
  }
}

function newKey() {
  Object.assign(state, { key: "", entry: null, binary: null, text: "", lineEnd: "\n", flags: "0", size: 0 });
  drawEntry();
  $("key").value = state.prefix;
  $("key").focus();
}

async function save(event) {
  event?.preventDefault();
  const creating = state.key === "";
  const key = creating ? $("key").value : state.key;
  const value = $("value").value.replaceAll("\n", state.lineEnd);
  const cas = creating ? 0 : state.entry.ModifyIndex;
  $("save").disabled = true;
  try {
    const flags = encodeURIComponent($("flags").value.trim() || "0");
    const answer = await ask("PUT", `${keyPath(key)}?cas=${cas}&flags=${flags}`, value);
    if ((await answer.text()).includes("true")) {
      toast("Saved.");
      await openKey(key);
      if (!creating || key.startsWith(state.prefix)) await loadKeys();
      if (creating) {
        history.replaceState(null, "", hashOf(key));
        await route();
      }
    } else if (creating) {
      toast("This key exists already; nothing was changed.", true);
    } else {
      toast("Somebody else changed this key meanwhile; nothing was saved. Copy your text, then discard to see theirs.", true);
      $("reset").disabled = false;
    }
  } catch (error) {
    toast(error.message, true);
  }
  markDirty();
}

async function remove() {
  $("question").textContent = `Delete ${state.key}?`;
  $("dialog").showModal();
  const { promise, resolve } = deferred();
  $("dialog").addEventListener("close", resolve, { once: true });
  await promise;
  if ($("dialog").returnValue !== "yes") return;
  try {
    const answer = await ask("DELETE", `${keyPath(state.key)}?cas=${state.entry.ModifyIndex}`);
    if ((await answer.text()).includes("true")) {
      toast("Deleted.");
      Object.assign(state, { key: null, entry: null });
      history.replaceState(null, "", hashOf(state.prefix));
      drawEntry();
      await loadKeys();
    } else {
      toast("Somebody else changed this key meanwhile; it was not deleted.", true);
      await openKey(state.key);
    }
  } catch (error) {
    toast(error.message, true);
  }
}

function deferred() {
  let resolve;
  const promise = new Promise((settle) => { resolve = settle; });
  return { promise, resolve };
}

function formatJson() {
  try {
    // Only when no number would lose digits on the way through JavaScript.
    const parsed = JSON.parse($("value").value);
    const compact = (text) => text.replace(/\s+/g, "");
    const formatted = JSON.stringify(parsed, null, 2);
    if (compact(formatted) !== compact($("value").value)) throw new Error();
    $("value").value = formatted;
    markDirty();
  } catch {
    toast("This is not JSON that can be formatted without changing it.", true);
  }
}

// --- the frame ---------------------------------------------------------------------------------

let toastTimer;
function toast(text, bad = false) {
  const element = $("toast");
  element.textContent = text;
  element.className = bad ? "bad" : "";
  element.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { element.hidden = true; }, bad ? 8000 : 2500);
}

async function route() {
  const exact = location.hash.endsWith("?key");
  const encoded = location.hash.replace(/^#\/?/, "").replace(/\?key$/, "");
  let path = "";
  try {
    path = encoded.split("/").map(decodeURIComponent).join("/");
  } catch { /* a hash typed by hand */ }
  const prefix = path.slice(0, path.lastIndexOf("/") + 1);
  const isKey = exact || !(path === "" || path.endsWith("/"));
  if (isDirty() && !(isKey && path === state.key) && state.key !== "" ) {
    if (!confirm(`Discard the changes to ${state.key}?`)) {
      history.replaceState(null, "", hashOf(state.key));
      return;
    }
  }
  if (prefix !== state.prefix || !state.names.length) {
    state.prefix = prefix;
    state.shown = PAGE_KEYS;
    $("filter").value = "";
    await loadKeys();
  }
  if (isKey) {
    if (path !== state.key) await openKey(path);
  } else if (state.key !== null) {
    Object.assign(state, { key: null, entry: null });
    drawEntry();
  }
}

async function refresh() {
  await Promise.all([
    loadMembers(),
    loadKeys(),
    state.key && !isDirty() ? openKey(state.key) : null,
  ]);
}

function onKey(event) {
  if ((event.ctrlKey || event.metaKey) && event.key === "s" && !$("form").hidden) {
    event.preventDefault();
    if (!$("save").disabled && !state.binary) save();
    return;
  }
  if (event.target.closest("input, textarea, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = { n: newKey, r: refresh, "/": () => $("filter").focus() }[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
}

$("refresh").addEventListener("click", refresh);
$("create").addEventListener("click", newKey);
$("form").addEventListener("submit", save);
$("delete").addEventListener("click", remove);
$("format").addEventListener("click", formatJson);
$("past").addEventListener("toggle", loadPast);
$("copy").addEventListener("click", () => navigator.clipboard?.writeText($("value").value).then(() => toast("Copied.")));
$("reset").addEventListener("click", () => (state.key === "" ? newKey() : openKey(state.key)));
$("value").addEventListener("input", markDirty);
$("flags").addEventListener("input", markDirty);
$("filter").addEventListener("input", () => { state.shown = PAGE_KEYS; drawKeys(); });
$("filter").addEventListener("keydown", (event) => {
  if (event.key === "Enter") location.hash = hashOf(state.prefix + $("filter").value);
});
$("more").addEventListener("click", () => { state.shown += PAGE_KEYS; drawKeys(); });
window.addEventListener("hashchange", route);
window.addEventListener("keydown", onKey);
window.addEventListener("beforeunload", (event) => { if (isDirty()) event.preventDefault(); });

loadMembers();
route();
setInterval(() => { if (!document.hidden) loadMembers(); }, MEMBERS_EVERY_MS);
