"use strict";

// Data of the app go into text nodes and SVG paths only, so that none becomes HTML.

const EVERY = 1000; // milliseconds between two updates
const PATIENCE = 5000; // milliseconds to wait for an answer
const WINDOWS = { 60: "Last minute", 120: "Last two minutes", 300: "Last five minutes" }; // of the line
const GAP = 12; // seconds without a sample that interrupt the line
const RECENT = 60; // seconds that "last minute" covers
const BOUNDS = [
  0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10,
];

const STATES = {
  ok: "all is well",
  unused: "not in use yet",
  full: "all in use",
  waiting: "checkouts wait",
  timeouts: "recent timeouts",
  failing: "connects fail",
  paused: "paused",
};
const REASONS = {
  dead: "closed by the server",
  expired: "older than MAX_LIFETIME, or used MAX_USAGE times",
  idle: "unused for MAX_IDLE",
  invalidated: "by a reset, a pause or a disconnect",
  reset_failed: "the session could not be cleaned",
  surplus: "more than this worker may keep",
  closed: "the pool was closed",
};
const SURE = {
  reset: [
    "Reset",
    "All workers replace their connections: idle ones at once, busy ones when they are returned. No request is interrupted.",
  ],
  pause: [
    "Pause",
    "In all workers new checkouts wait until the pools are resumed, each no longer than its timeout. Connections in use may finish.",
  ],
  resume: ["Resume", "The waiting checkouts of all workers are served."],
};

const $ = (id) => document.getElementById(id);

function say(element, text) {
  // Unchanged text stays, so that it can be selected and screen readers do not repeat it.
  if (element && element.textContent !== String(text)) element.textContent = text;
}

// Words for numbers

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`.replace(" 0 s", "");
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d`;
}

function percentile(seconds) {
  const longest = BOUNDS[BOUNDS.length - 1];
  return seconds >= longest ? `≥ ${longest} s` : duration(seconds);
}

function count(number) {
  return number < 1e6 ? number.toLocaleString("en") : `${(number / 1e6).toFixed(1)} M`;
}

function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

// Histograms: counts for BOUNDS, one more for what is longer, and the sum in seconds

function sum(lists) {
  return lists.reduce((total, list) => total.map((n, i) => n + list[i]), Array(16).fill(0));
}

function quantile(counts, part) {
  const rank = part * counts.reduce((a, b) => a + b, 0);
  let seen = 0;
  for (let i = 0; i < BOUNDS.length; i++) {
    if (counts[i] && seen + counts[i] >= rank) {
      const lower = i ? BOUNDS[i - 1] : 0;
      return lower + ((BOUNDS[i] - lower) * (rank - seen)) / counts[i];
    }
    seen += counts[i];
  }
  return BOUNDS[BOUNDS.length - 1];
}

function summary(histogram) {
  const counts = histogram.slice(0, -1);
  const number = counts.reduce((a, b) => a + b, 0);
  if (!number) return { count: 0, mean: null, p50: null, p95: null, p99: null };
  return {
    count: number,
    mean: histogram[histogram.length - 1] / number,
    p50: quantile(counts, 0.5),
    p95: quantile(counts, 0.95),
    p99: quantile(counts, 0.99),
  };
}

// Tables, whose rows and cells stay where they are while their text changes

function fill(body, rows) {
  const heads = body.parentElement.tHead.rows[0].cells;
  rows.forEach((texts, i) => {
    const row = body.rows[i] || addRow(body, heads);
    texts.forEach((text, j) => say(row.cells[j], text));
  });
  while (body.rows.length > rows.length) body.deleteRow(-1);
}

function addRow(body, heads) {
  const row = body.insertRow();
  for (const head of heads) {
    const cell = document.createElement("head" in head.dataset ? "th" : "td");
    if (cell.tagName === "TH") cell.scope = "row";
    cell.className = head.className;
    row.append(cell);
  }
  return row;
}

// One pool

class Pool {
  constructor(section) {
    this.section = section;
    this.bind = section.dataset.bind;
    this.fields = {};
    for (const field of section.querySelectorAll("[data-field]")) {
      this.fields[field.dataset.field] = field;
    }
    this.samples = []; // [moment, in use, waiting]
    this.past = []; // earlier counters: {time, known}
    for (const button of section.querySelectorAll("[data-action]")) {
      button.addEventListener("click", () => ask(button.dataset.action, this.bind));
    }
  }

  part(kind, name) {
    return this.section.querySelector(`[data-${kind}="${name}"]`);
  }

  set(field, text) {
    say(this.fields[field], text);
  }

  show(pool, now) {
    const recent = this.since(pool.workers, now);
    this.showState(pool);
    this.showTiles(pool, recent);
    this.showLine(pool, now);
    this.showHolders(pool);
    this.showTimes(pool, recent);
    this.showClosed(pool, recent);
    this.showWorkers(pool);
    this.showTrouble(pool);
  }

  // Changes of the counters within the last minute
  since(workers, now) {
    const known = Object.fromEntries(workers.map((worker) => [worker.id, worker]));
    if (this.past.length && now < this.past[this.past.length - 1].time) this.past = [];
    this.past.push({ time: now, known });
    while (now - this.past[0].time > RECENT) this.past.shift();
    const then = this.past[0];
    const changes = workers.map((worker) => {
      const before = then.known[worker.id];
      return before && before.checkouts <= worker.checkouts ? minus(worker, before) : worker;
    });
    return { seconds: now - then.time, changes };
  }

  showState(pool) {
    for (const pill of document.querySelectorAll("[data-state-of]")) {
      if (pill.dataset.stateOf !== this.bind) continue;
      say(pill, STATES[pool.state] || pool.state);
      pill.className = `state ${pool.state}`;
    }
    const pause = this.section.querySelector("[data-action=pause], [data-action=resume]");
    if (!pause) return;
    pause.dataset.action = pool.paused ? "resume" : "pause";
    say(pause, pool.paused ? "Resume…" : "Pause…");
  }

  showTiles(pool, recent) {
    const total = pool.totals;
    const timeouts = recent.changes.reduce((n, worker) => n + worker.timeouts, 0);
    const checkouts = recent.changes.reduce((n, worker) => n + worker.checkouts, 0);
    this.set("in_use", count(total.in_use));
    this.set("in_use_note", total.connecting ? `${total.connecting} being opened` : `of ${pool.capacity}`);
    this.set("idle", count(total.idle));
    this.set("idle_note", `${total.size} open`);
    this.set("waiting", count(total.waiting));
    this.set("waiting_note", total.waiting ? `for up to ${duration(pool.waited)}` : "none");
    this.set("max", count(pool.capacity));
    this.set("max_note", `${pool.max_size} × ${plural(total.workers, "worker")}`);
    this.set("host", count(total.size));
    this.set("host_note", `of ${pool.max_host_connections} allowed`);
    const rate = recent.seconds >= 1 ? checkouts / recent.seconds : null;
    this.set("rate", rate === null ? "–" : rate < 10 ? rate.toFixed(1) : count(Math.round(rate)));
    this.set("rate_note", "per second");
    this.set("timeouts", count(timeouts));
    this.set("timeouts_note", "in the last minute");
    this.mark("waiting", "bad", total.waiting > 0);
    this.mark("timeouts", "bad", timeouts > 0);
    this.mark("in_use", "near", pool.capacity > 0 && total.in_use >= pool.capacity);
  }

  mark(tile, kind, isSo) {
    this.part("tile", tile).classList.toggle(kind, isSo);
  }

  showLine(pool, now) {
    if (pool.line) this.samples = pool.line;
    const last = this.samples[this.samples.length - 1];
    if (!last || now > last[0]) {
      this.samples.push([now, pool.totals.in_use, pool.totals.waiting]);
    }
    const span = now - this.samples[0][0];
    const width = Number(Object.keys(WINDOWS).find((seconds) => span <= seconds) || 300);
    this.samples = this.samples.filter(([moment]) => now - moment <= 300);
    this.set("window", WINDOWS[width]);
    this.set("from", duration(width) + " ago");
    const highest = Math.max(...this.samples.flatMap(([, used, waiting]) => [used, waiting]));
    const top = nice(Math.max(highest, pool.capacity, 2));
    const x = (moment) => (300 - (300 * (now - moment)) / width).toFixed(1);
    const y = (value) => (99 - (97 * value) / top).toFixed(1);
    const draw = (name, path) => this.part("path", name).setAttribute("d", path);
    const runs = unbroken(this.samples);
    const line = (column) =>
      runs.map((run) => "M" + run.map((s) => `${x(s[0])} ${y(s[column])}`).join("L")).join("");
    draw("in_use", line(1));
    draw("waiting", line(2));
    draw("area", runs.map((run) => {
      const points = run.map((s) => `L${x(s[0])} ${y(s[1])}`).join("");
      return `M${x(run[0][0])} ${y(0)}${points}L${x(run[run.length - 1][0])} ${y(0)}Z`;
    }).join(""));
    draw("limit", pool.capacity ? `M0 ${y(pool.capacity)}H300` : "");
    this.set("scale", top);
    this.set("half", top % 2 ? "" : top / 2);
  }

  showHolders(pool) {
    const rows = pool.holders.map((holder) => [
      duration(holder.for),
      holder.endpoint || "?",
      doing(holder.doing),
      holder.worker,
      holder.thread_id,
      duration(holder.age),
    ]);
    fill(this.part("rows", "holders"), rows);
    this.part("empty", "holders").hidden = rows.length > 0;
    const seen = pool.seen_by_server;
    const notes = pool.unlisted > 0 ? [`${pool.unlisted} more are not listed.`] : [];
    if (seen && !seen.error) {
      notes.push(`The server has ${plural(seen.connected, "connection")} of ${count(seen.max_connections)} allowed`
        + `; ${count(seen.threads)} of this account`
        + (seen.orphans ? `, ${count(seen.orphans)} of them claimed by no worker here.` : "."));
    } else if (seen) {
      notes.push("The server cannot be queried, see below.");
    }
    this.set("seen", notes.join(" ") || "\u00a0");
  }

  showTimes(pool, recent) {
    for (const name of ["wait", "use", "create"]) {
      const lately = summary(sum(recent.changes.map((worker) => worker[name])));
      for (const [span, figures] of [["all", pool[name]], ["recent", lately]]) {
        for (const label of ["p50", "p95", "p99"]) {
          this.set(`${name}_${span}_${label}`, percentile(figures[label]));
        }
        this.set(`${name}_${span}_mean`, duration(figures.mean));
        this.set(`${name}_${span}_count`, count(figures.count));
      }
    }
  }

  showClosed(pool, recent) {
    const lately = (reason) =>
      recent.changes.reduce((n, worker) => n + (worker.discarded_by_reason[reason] || 0), 0);
    const names = [...new Set([...Object.keys(REASONS), ...Object.keys(pool.discarded_by_reason)])];
    const rows = names.map((name) => [
      name, REASONS[name] || "", count(lately(name)), count(pool.discarded_by_reason[name] || 0),
    ]);
    fill(this.part("rows", "closed"), rows);
  }

  showWorkers(pool) {
    const rows = pool.workers.map((worker) => [
      worker.name, count(worker.in_use), count(worker.idle), count(worker.connecting), count(worker.waiting),
      count(worker.checkouts), count(worker.timeouts), count(worker.opened), count(worker.discarded),
      remarks(worker),
    ]);
    fill(this.part("rows", "workers"), rows);
    this.part("empty", "workers").hidden = rows.length > 0;
    this.set("workers_note", rows.length ? rows.length : "");
  }

  showTrouble(pool) {
    const failure = pool.connect_failure;
    const seen = pool.seen_by_server;
    this.set("timeouts_all", pool.last_timeout === null ? "none"
      : `${count(pool.totals.timeouts)}, the last ${duration(pool.last_timeout)} ago`);
    this.set("connect_failure", failure ? `${duration(failure.ago)} ago in worker ${failure.worker}: ${failure.error}` : "none");
    this.set("server_error", !seen ? "–" : seen.error || "answers");
    this.set("server_note", seen && seen.version ? `· ${seen.version}` : "");
  }
}

function minus(worker, before) {
  const less = (a, b) => a.map((n, i) => n - b[i]);
  const reasons = Object.entries(worker.discarded_by_reason);
  return {
    checkouts: worker.checkouts - before.checkouts,
    timeouts: worker.timeouts - before.timeouts,
    discarded_by_reason: Object.fromEntries(
      reasons.map(([name, n]) => [name, n - (before.discarded_by_reason[name] || 0)]),
    ),
    wait: less(worker.wait, before.wait),
    use: less(worker.use, before.use),
    create: less(worker.create, before.create),
  };
}

function remarks(worker) {
  return [
    worker.paused ? "paused" : "",
    worker.outdated ? `${worker.outdated} to be replaced` : "",
    worker.silent ? `last heard of ${duration(worker.silent)} ago` : "",
  ].filter(Boolean).join(", ");
}

function doing(thread) {
  if (!thread) return "–";
  // The server counts whole seconds.
  const since = thread.for < 60 ? `${thread.for} s` : duration(thread.for);
  const what = thread.command === "Sleep" ? "nothing"
    : thread.statement ? `${thread.command}: ${thread.statement}` : thread.command;
  return thread.for >= 1 ? `${what} (${since})` : what;
}

function nice(number) {
  const step = 10 ** Math.floor(Math.log10(number));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((n) => n * step).find((n) => n >= number);
}

function unbroken(samples) {
  const runs = [];
  samples.forEach((sample, i) => {
    if (!i || sample[0] - samples[i - 1][0] > GAP) runs.push([]);
    runs[runs.length - 1].push(sample);
  });
  return runs;
}

// Updates

const page = document.body;
const pools = [...document.querySelectorAll(".pool")].map((section) => new Pool(section));
let timer = 0;
let refreshing = false;
let lost = null; // since when the app cannot be reached
let held = false;
let ended = false;
let first = true;

function live(text, kind) {
  say($("live"), text);
  $("live").className = kind;
  page.classList.toggle("stale", kind === "lost" || kind === "ended");
}

async function refresh() {
  if (refreshing || ended || held || document.hidden) return;
  refreshing = true;
  const began = performance.now();
  try {
    await update();
  } catch (error) {
    fail(error);
  }
  refreshing = false;
  clearTimeout(timer);
  timer = setTimeout(refresh, Math.max(EVERY - (performance.now() - began), 200));
}

async function update() {
  const response = await fetch(page.dataset.status + (first ? "?line=1" : ""), {
    cache: "no-store",
    redirect: "error",
    signal: AbortSignal.timeout(PATIENCE),
  });
  if (response.status === 401 || response.status === 403) {
    ended = true;
    live("Access has ended: reload", "ended");
    return;
  }
  if (!response.ok) throw new Error(`the answer is ${response.status}`);
  const report = await response.json();
  first = false;
  lost = null;
  say(document.querySelector("[data-page=host]"), `on ${report.host}`);
  show(report);
  live("Live", "on");
  say($("clock"), new Date(report.time * 1000).toLocaleTimeString("en-GB"));
}

function show(report) {
  const lines = report.problems;
  const box = $("problems");
  if (box.dataset.shown !== JSON.stringify(lines)) {
    box.dataset.shown = JSON.stringify(lines);
    box.replaceChildren(...lines.map((line) => {
      const paragraph = document.createElement("p");
      paragraph.className = "notice";
      paragraph.textContent = line;
      return paragraph;
    }));
  }
  for (const pool of pools) {
    if (report.pools[pool.bind]) pool.show(report.pools[pool.bind], report.time);
  }
}

function fail(error) {
  lost = lost || new Date().toLocaleTimeString("en-GB");
  const reason = error instanceof Error && error.message.startsWith("the answer is") ? `, ${error.message}` : "";
  live(`The app cannot be reached since ${lost}${reason}`, "lost");
}

function begin() {
  clearTimeout(timer);
  if (ended) return;
  if (held) live("On hold", "held");
  else if (document.hidden) live("Waiting for this tab to be shown", "held");
  else refresh();
}

// Control

let requested = null;

function ask(action, bind) {
  requested = { action, bind };
  const [word, text] = SURE[action];
  say($("sure-title"), `${word} ${bind}?`);
  say($("sure-text"), text);
  say($("sure-error"), "");
  say($("sure-yes"), word);
  $("sure").showModal();
}

async function send(url, body) {
  return fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": page.dataset.csrf },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(PATIENCE),
  });
}

async function control() {
  $("sure-yes").disabled = true;
  try {
    const response = await send(page.dataset.control, requested);
    if (response.ok) $("sure").close();
    else say($("sure-error"), (await response.json()).error);
    begin();
  } catch {
    say($("sure-error"), "The app cannot be reached.");
  }
  $("sure-yes").disabled = false;
}

async function signIn(event) {
  event.preventDefault();
  const form = event.target;
  try {
    const response = await fetch(form.action, {
      method: "POST",
      body: new URLSearchParams(new FormData(form)),
    });
    if (response.ok) location.assign(response.url);
    else say($("refused"), response.status === 401 ? "This is not the token." : "You may not sign in from here.");
  } catch {
    say($("refused"), "The app cannot be reached.");
  }
}

if ($("login")) $("login").addEventListener("submit", signIn);
if (pools.length) {
  $("hold").addEventListener("click", () => {
    held = !held;
    $("hold").setAttribute("aria-pressed", held);
    begin();
  });
  document.addEventListener("visibilitychange", begin);
  if ($("sure")) {
    $("sure-no").addEventListener("click", () => $("sure").close());
    $("sure-yes").addEventListener("click", control);
  }
  if ($("logout")) {
    $("logout").addEventListener("click", async () => {
      await send($("logout").dataset.url, {});
      location.reload();
    });
  }
  begin();
}
