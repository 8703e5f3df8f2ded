"use strict";
// Shows what /data says and asks again for what has changed. Whatever comes from the ledger is set as text, never as markup.
(() => {
  const address = new URL(location.href);
  const opened = address.searchParams.get("open");
  if (opened) {
    sessionStorage.setItem("key", opened);
    history.replaceState(null, "", "/" + address.hash);
  }
  const key = sessionStorage.getItem("key") || "";

  const by = (id) => document.getElementById(id);
  const STATES = ["running", "completed", "pruned", "failed"];
  const ROW = 33, SPARE = 8, PRINTED = 300;
  const AXES = [["images", "images"], ["hours", "hours"], ["gpu_hours", "GPU hours"], ["money", "money"]];
  const WORDS = {
    __proto__: null, number: "trial", value: "best", last: "last", images_per_s: "images/s", device_use: "device use", gpu_hours: "GPU h",
  };
  const WIDTHS = { __proto__: null, number: 76, state: 118, value: 84, last: 84, images: 104, reason: 150, machine: 150, started: 158 };

  let head = null, version = null, names = [], place = {}, over = "images", lines = [], chosen = 0, read = null, printing = false;
  const rows = new Map(), texts = new Map(), hidden = new Set();
  let sorting = { name: "value", up: null };

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function drawing(tag, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // ---- numbers as people read them

  const whole = (value) => Math.round(value).toLocaleString("en-US");
  function short(value) {
    const size = Math.abs(value);
    if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
    return String(+value.toPrecision(3));
  }
  function duration(seconds) {
    if (seconds === null || seconds === undefined) return "unknown";
    if (seconds < 90) return `${Math.round(seconds)} s`;
    const minutes = Math.round(seconds / 60);
    return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }
  const moment = (time) => (time ? new Date(time * 1000).toLocaleString() : "");
  const hours = (value) => (value >= 100 ? whole(value) : value.toFixed(value < 1 ? 2 : 1));
  const ago = (seconds) => (seconds > 2 * 86400 ? `${whole(seconds / 86400)} days` : duration(seconds));
  const money = (gpuHours) => `$${(gpuHours * head.price).toFixed(2)}`;
  const bytes = (count) => (count >= 1e9 ? `${(count / 1e9).toFixed(2)} GB` : `${whole(count / 1e6)} MB`);
  function shown(name, value) {
    if (value === null || value === undefined) return "";
    if (name === "value" || name === "last") return value.toFixed(4);
    if (name === "images") return whole(value);
    if (name === "images_per_s") return whole(value);
    if (name === "memory") return bytes(value);
    if (name === "device_use") return `${Math.round(100 * value)} %`;
    if (name === "started" || name === "ended") return moment(value);
    if (name === "gpu_hours") return value ? hours(value) : "";
    if (typeof value === "number" && !Number.isInteger(value)) return String(+value.toPrecision(3));
    return String(value);
  }

  // ---- charts

  function ticks(low, high, most) {
    const span = high - low || Math.abs(high) || 1, rough = span / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((each) => each * power >= rough);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(+at.toPrecision(12));
    return found;
  }

  // Lines: {points, name, title, trial}. Points without a value leave a gap.
  function chart(holder, { series, uprights = [], level = null, label, high = 0 }) {
    const width = Math.max(holder.clientWidth, 240), height = holder.clientHeight || 320;
    const values = series.flatMap((one) => one.points.map((point) => point[1])).filter((value) => value !== null);
    if (!values.length) {
      holder.replaceChildren(element("p", "Nothing has been reported yet.", "soft"));
      return;
    }
    // A loop, because a spread of so many arguments may be too much.
    let [low, top] = [Infinity, -Infinity], right = high;
    for (const value of values) { low = Math.min(low, value); top = Math.max(top, value); }
    for (const one of series) for (const point of one.points) right = Math.max(right, point[0]);
    const margin = (top - low || Math.abs(top) || 1) * 0.06;
    [low, top] = [low - margin, top + margin];
    const box = { left: 52, right: width - 10, top: 10, bottom: height - 38 };
    const x = (at) => box.left + (box.right - box.left) * (at / (right || 1));
    const y = (at) => box.bottom - (box.bottom - box.top) * ((at - low) / (top - low));
    const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}` });
    for (const at of ticks(low, top, 5)) {
      svg.append(drawing("line", { class: "axis", x1: box.left, x2: box.right, y1: y(at), y2: y(at) }));
      svg.append(drawing("text", { class: "faint", x: box.left - 6, y: y(at) + 4, "text-anchor": "end" }, String(at)));
    }
    for (const at of ticks(0, right, width < 420 ? 3 : 6)) {
      svg.append(drawing("text", { class: "faint", x: x(at), y: box.bottom + 16, "text-anchor": "middle" }, short(at)));
    }
    svg.append(drawing("text", { class: "faint", x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, label));
    for (const at of uprights) {
      if (at <= right) svg.append(drawing("line", { class: "upright", x1: x(at), x2: x(at), y1: box.top, y2: box.bottom }));
    }
    if (level !== null && level >= low && level <= top) {
      svg.append(drawing("line", { class: "level", x1: box.left, x2: box.right, y1: y(level), y2: y(level) }));
    }
    for (const one of series) {
      const found = one.points.filter((point) => point[1] !== null);
      if (!found.length) continue;
      const placed = found.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`);
      const line = found.length > 1
        ? drawing("polyline", { class: `line ${one.name}`, points: placed.join(" ") })
        : drawing("circle", { class: one.name, cx: x(found[0][0]), cy: y(found[0][1]), r: 3 });
      line.append(drawing("title", {}, one.title));
      if (one.trial !== undefined) {
        line.classList.add("pick");
        line.addEventListener("click", () => open(one.trial));
      }
      svg.append(line);
    }
    holder.replaceChildren(svg);
  }

  function drawBest() {
    const known = AXES.filter(([name]) => (name === "money" ? head.price && head.gpu_hours : name !== "gpu_hours" || head.gpu_hours));
    if (!known.some(([name]) => name === over)) over = "images";
    by("axis").replaceChildren(...known.map(([name, words]) => {
      const button = element("button", words);
      button.type = "button";
      button.setAttribute("role", "radio");
      button.setAttribute("aria-checked", String(name === over));
      button.tabIndex = name === over ? 0 : -1;
      button.addEventListener("click", () => { over = name; drawBest(); by("axis").querySelector("[aria-checked=true]").focus(); });
      return button;
    }));
    const at = (step) => (over === "money" ? step.gpu_hours * head.price : step[over]);
    const points = [];
    for (const step of head.steps) {
      if (points.length) points.push([at(step), points[points.length - 1][1]]);
      points.push([at(step), step.value]);
    }
    const last = head.steps[head.steps.length - 1];
    by("best-note").textContent = last
      ? `${head.metric} ${last.value.toFixed(4)} by trial ${last.trial}: the best report of any trial that has not failed, chosen among many and so optimistic.`
      : "";
    chart(by("best"), {
      series: [{ points, name: "own", title: "best so far" }], label: over === "money" ? "$ spent" : AXES.find(([name]) => name === over)[1],
    });
  }

  function drawCurves() {
    const series = head.curves.map((one) => ({
      points: one.points,
      name: `${one.state} ${one.trial === head.best ? "thick" : one.state === "running" ? "" : "dim"}`,
      title: `trial ${one.trial}, ${one.state}`,
      trial: one.trial,
    }));
    chart(by("curves"), { series, uprights: head.rungs, level: head.chance, label: "images seen", high: head.state === "running" ? head.budget : 0 });
  }

  // ---- the table of trials: only the rows that can be seen are there

  const value = (row, name) => row[place[name]];

  function columns() {
    const varied = names.slice(head.own_columns).filter((name) => {
      let first, some = false;
      for (const row of rows.values()) {
        if (!some) { first = value(row, name); some = true; } else if (value(row, name) !== first) return true;
      }
      return false;
    });
    const measured = ["images_per_s", "memory", "device_use", "gpu_hours"].filter((name) => {
      for (const row of rows.values()) if (value(row, name)) return true;
      return false;
    });
    return ["number", "state", "value", "last", "images", ...varied, ...measured, "attempts", "lost", "machine", "reason"];
  }

  function wordsOf(row) {
    if (!texts.has(row[0])) texts.set(row[0], row.map((own) => (own === null ? "" : String(own))).join(" ").toLowerCase());
    return texts.get(row[0]);
  }

  const TERM = /^([^<>=!]+)(<=|>=|!=|=|<|>)(.*)$/;
  function test(text) {
    const tests = text.trim().split(/\s+/).filter(Boolean).map((term) => {
      const found = TERM.exec(term);
      const name = found && names.find((one) => one === found[1] || WORDS[one] === found[1]);
      if (!name) return (row) => wordsOf(row).includes(term.toLowerCase());
      const [, , sign, asked] = found, number = asked === "" ? NaN : Number(asked);
      return (row) => {
        const own = value(row, name);
        if (sign === "=") return String(own) === asked || own === number;
        if (sign === "!=") return !(String(own) === asked || own === number);
        if (typeof own !== "number" || Number.isNaN(number)) return false;
        return sign === "<" ? own < number : sign === "<=" ? own <= number : sign === ">" ? own > number : own >= number;
      };
    });
    return (row) => !hidden.has(value(row, "state")) && tests.every((one) => one(row));
  }

  function arrange() {
    const keeps = test(by("filter").value), at = place[sorting.name];
    const ranked = sorting.name === "value" && sorting.up === null, state = place.state;
    const sign = sorting.up === null ? (sorting.name === "value" && head.mode === "max" ? -1 : 1) : sorting.up ? 1 : -1;
    const rank = (row) => (ranked && row[state] !== "completed" ? 1 : 0);
    lines = [...rows.values()].filter(keeps).sort((one, other) => {
      const a = one[at], b = other[at];
      if (rank(one) !== rank(other)) return rank(one) - rank(other);
      if (a === b) return one[0] - other[0];
      if (a === null || a === undefined) return 1;
      if (b === null || b === undefined) return -1;
      if (typeof a === typeof b) return sign * (a < b ? -1 : 1);
      return sign * (typeof a === "number" ? -1 : 1);
    });
    chosen = Math.max(0, Math.min(chosen, lines.length - 1));
    by("shown").textContent = `${whole(lines.length)} of ${whole(rows.size)} trials`;
  }

  function drawHeads(visible) {
    if (by("heads").dataset.names === JSON.stringify([visible, sorting])) return;
    by("heads").dataset.names = JSON.stringify([visible, sorting]);
    by("widths").replaceChildren(...visible.map((name) => {
      const column = element("col");
      column.style.width = `${WIDTHS[name] || 112}px`;
      return column;
    }));
    by("heads").replaceChildren(...visible.map((name) => {
      const cell = element("th"), words = WORDS[name] || name, button = element("button", words);
      cell.scope = "col";
      button.type = "button";
      button.title = words;
      if (sorting.name === name) {
        const falling = sorting.up === null ? name === "value" && head.mode === "max" : !sorting.up;
        cell.setAttribute("aria-sort", falling ? "descending" : "ascending");
        button.textContent = `${words} ${falling ? "↓" : "↑"}`;
      }
      button.addEventListener("click", () => {
        sorting = { name, up: sorting.name === name ? sorting.up === false || sorting.up === null : name !== "value" };
        arrange();
        drawRows();
        [...by("heads").querySelectorAll("button")][visible.indexOf(name)].focus();
      });
      cell.append(button);
      return cell;
    }));
  }

  let visible = [];
  function drawRows() {
    const grid = by("grid");
    drawHeads(visible);
    let first = Math.max(0, Math.floor(grid.scrollTop / ROW) - SPARE);
    let last = Math.min(lines.length, first + Math.ceil((grid.clientHeight || 520) / ROW) + 2 * SPARE);
    if (printing) [first, last] = [0, Math.min(lines.length, PRINTED)];
    const space = (count) => {
      const row = element("tr", null, "space"), cell = element("td");
      row.setAttribute("aria-hidden", "true");
      cell.colSpan = visible.length;
      cell.style.height = `${printing ? 0 : count * ROW}px`;
      row.append(cell);
      return row;
    };
    const made = [];
    for (let at = first; at < last; at += 1) {
      const row = element("tr", null, [at === chosen ? "chosen" : "", value(lines[at], "number") === head.best ? "best" : ""].join(" "));
      row.setAttribute("aria-rowindex", String(at + 2));
      row.setAttribute("aria-selected", String(at === chosen));
      for (const name of visible) {
        const own = value(lines[at], name), text = shown(name, own);
        const cell = element("td", text, name === "state" ? `state ${own}` : typeof own === "number" && name !== "number" ? "number" : "");
        if (text.length > 12) cell.title = text;
        row.append(cell);
      }
      row.addEventListener("click", () => { chosen = at; drawRows(); open(value(lines[at], "number")); });
      made.push(row);
    }
    grid.querySelector("table").setAttribute("aria-rowcount", String(lines.length + 1));
    by("rows").replaceChildren(space(first), ...made, space(lines.length - last));
  }

  function move(to) {
    chosen = Math.max(0, Math.min(to, lines.length - 1));
    const grid = by("grid"), above = chosen * ROW, room = grid.clientHeight - 2 * ROW;
    if (above < grid.scrollTop) grid.scrollTop = above;
    if (above > grid.scrollTop + room) grid.scrollTop = above - room;
    drawRows();
  }

  // ---- the rest of the page

  function table(holder, titles, found, empty) {
    if (!found.length) {
      holder.replaceChildren(element("caption", empty, "soft"));
      return;
    }
    const top = element("thead"), line = element("tr"), body = element("tbody");
    line.append(...titles.map((title) => element("th", title)));
    top.append(line);
    body.append(...found.map((cells) => {
      const row = element("tr");
      row.append(...cells.map((cell) => element("td", cell, typeof cell === "number" ? "number" : "")));
      return row;
    }));
    holder.replaceChildren(top, body);
  }

  function facts(holder, found) {
    holder.replaceChildren(...found.filter(([, text]) => text !== "").map(([title, text]) => {
      const pair = element("div");
      pair.append(element("dt", title), element("dd", text));
      return pair;
    }));
  }

  function drawAbout() {
    const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
    for (const row of rows.values()) counts[value(row, "state")] += 1;
    const ended = rows.size - counts.running;
    document.title = `${head.name} · ${head.state} · ${ended}/${head.wanted}`;
    by("name").textContent = head.name;
    const state = element("span", head.state, `state ${head.state}`);
    by("standing").replaceChildren(state, element("span",
      `, ${whole(ended)} of ${whole(head.wanted)} trials ended: ${counts.completed} completed, ${counts.pruned} pruned, ${counts.failed} failed; ${counts.running} ${head.state === "running" ? "running" : "not ended"}`));
    const cost = head.gpu_hours ? `${hours(head.gpu_hours)} GPU hours${head.price ? `, ${money(head.gpu_hours)}` : ""}` : "";
    const more = head.left_gpu_hours === null ? "" : `${hours(head.left_gpu_hours)} GPU hours${head.price ? `, ${money(head.left_gpu_hours)}` : ""}`;
    const pace = head.hours > 0.05 ? `${short(ended / head.hours)} an hour` : "";
    facts(by("facts"), [
      ["Images so far", whole(head.images)],
      ["Images per second", head.images_per_s === null ? "" : whole(head.images_per_s)],
      ["Trials", pace],
      ["Time so far", duration(head.hours * 3600)],
      ["Time left, about", head.state === "running" ? duration(head.left_s) : ""],
      ["Spent", cost],
      ["Still to spend, about", more],
      ["Judged", head.judged],
    ]);
    const problems = [head.leak, head.problem, ...head.damaged].filter(Boolean);
    if (head.faults) problems.push(head.faults);
    by("warnings").replaceChildren(...problems.map((text) => element("li", text)));
    for (const button of by("states").children) button.textContent = `${button.dataset.state} ${counts[button.dataset.state]}`;
    table(by("machine-table"), ["machine", "busy", "slots", "trials", "images/s", "lost attempts", "why slots are empty"],
      head.machines.map((one) => [one.name, one.busy, one.slots, one.trials, one.images_per_s === null ? "" : whole(one.images_per_s), one.lost, one.why]),
      "No machine has reported yet.");
    table(by("failure-table"), ["what", "where", "how often", "of whom"],
      head.failures.map((one) => [one.kind, one.machine, one.count, one.of_trials ? "trials" : "machines"]), "Nothing has failed.");
  }

  function freshness() {
    if (!head) return;
    const since = Math.max(0, Date.now() / 1000 - head.last_written);
    by("freshness").textContent = `The ledger was last written ${ago(since)} ago. Read by ich-ray watch; nothing on this page leaves the machine.`;
  }

  function draw() {
    visible = columns();
    arrange();
    drawAbout();
    drawBest();
    drawCurves();
    drawRows();
    freshness();
  }

  // ---- one trial

  async function open(number) {
    const again = by("detail").open && read === number, down = by("detail").scrollTop;
    read = number;
    const answer = await ask(`/trial?number=${number}`);
    if (!answer.ok) return;
    const told = await answer.json(), body = by("detail-body"), used = told.usage;
    if (read !== number || (again && !by("detail").open)) return; // another one meanwhile, or closed
    by("detail-title").textContent = `Trial ${told.number}: ${told.state}${told.reason ? `, ${told.reason}` : ""}`;
    const parts = [];
    if (told.detail) parts.push(element("h3", told.state === "failed" ? "Error" : "Note"), element("pre", told.detail));
    if (told.log.length) parts.push(element("h3", "Last lines of its processes"), element("pre", told.log.join("\n")));
    if (told.lost_log.length) parts.push(element("h3", "Last lines of the attempt that was lost"), element("pre", told.lost_log.join("\n")));
    const about = element("dl"), parameters = element("dl"), curve = element("div", null, "chart");
    facts(about, [
      ["Machine", told.machine], ["Computed on", told.setup], ["Attempts", String(told.attempts)],
      ["Started", moment(told.started)], ["Ended", moment(told.ended)], ["GPU hours", told.gpu_hours ? hours(told.gpu_hours) : ""],
      ["At chance", told.at_chance ? "yes" : ""],
      ["Images per second of training", used.images_per_s === undefined ? "" : whole(used.images_per_s)],
      ["Device in use while training", used.device_use === undefined ? "" : shown("device_use", used.device_use)],
      ["Memory at most", used.peak_memory_bytes === undefined ? "" : bytes(used.peak_memory_bytes)],
      ["Waited for data", used.data_wait_s === undefined ? "" : duration(used.data_wait_s)],
      ["In validation", used.validation_s === undefined ? "" : duration(used.validation_s)],
      ["In saving", used.saving_s === undefined ? "" : duration(used.saving_s)],
    ]);
    facts(parameters, Object.entries(told.parameters).map(([name, own]) => [name, shown(name === "value" ? "" : name, own) || String(own)]));
    parts.push(curve, element("h3", "Parameters"), parameters, element("h3", "Run"), about);
    if (told.lost.length) {
      const lost = element("table");
      table(lost, ["lost at", "where", "cause", "images", "detail"], told.lost.map((one) => [moment(one.time), one.place, one.cause, one.images, one.detail]), "");
      parts.push(element("h3", "Attempts lost to machines"), lost);
    }
    if (told.reports.length) {
      const wrapper = element("div", null, "scroll"), list = element("table"), metrics = Object.keys(told.reports[0].metrics);
      table(list, ["images", ...metrics, "images/s", "device use"], told.reports.map((one) => [
        whole(one.images), ...metrics.map((name) => shown("value", one.metrics[name])),
        one.usage.images_per_s ? whole(one.usage.images_per_s) : "", shown("device_use", one.usage.device_use),
      ]).reverse(), "");
      wrapper.append(list);
      parts.push(element("h3", "Reports, the newest first"), wrapper);
    }
    body.replaceChildren(...parts);
    if (!by("detail").open) by("detail").showModal();
    by("detail").scrollTop = again ? down : 0;
    chart(curve, {
      series: [{ points: told.reports.map((one) => [one.images, one.value]), name: `${told.state} thick`, title: `trial ${told.number}` }],
      uprights: head.rungs, level: head.chance, label: "images seen",
    });
  }

  // ---- parameters

  async function compute() {
    by("computed").textContent = "computing";
    by("compute").disabled = true;
    try {
      const answer = await ask("/parameters");
      if (!answer.ok) throw new Error(String(answer.status));
      const found = await answer.json();
      by("computed").textContent = found.problem || `compared at ${whole(found.images)} images, ${whole(found.trials)} trials; above 1 is more than luck explains`;
      const most = Math.max(1, ...found.importances.map(([, ratio]) => ratio));
      by("importance").replaceChildren(...found.importances.map(([name, ratio]) => {
        const pair = element("div"), told = element("dd"), bar = element("span", null, ratio > 1 ? "bar" : "bar luck");
        bar.style.width = `${Math.round(140 * ratio / most)}px`;
        told.append(bar, `${ratio.toFixed(2)} ×`);
        pair.append(element("dt", name), told);
        return pair;
      }));
      drawParallel(found);
    } catch {
      by("computed").textContent = "this could not be computed; see the terminal of ich-ray watch, or try again";
    }
    by("compute").disabled = false;
  }

  function drawParallel(found) {
    const holder = by("parallel");
    if (!found.axes.length || !found.lines.length) {
      holder.replaceChildren();
      return;
    }
    holder.replaceChildren(drawing("svg", {}));
    const width = holder.clientWidth, height = holder.clientHeight || 420, top = 34, bottom = height - 14;
    const span = found.high - found.low || 1, axes = [...found.axes, {
      title: found.metric, ticks: [0, 0.25, 0.5, 0.75, 1].map((at) => [at, (found.low + at * span).toFixed(3)]),
    }];
    const x = (at) => 20 + (width - 110) * at / (axes.length - 1), y = (at) => bottom - (bottom - top) * at;
    const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}` });
    for (const one of found.lines) {
      const places = [...one.places, (one.value - found.low) / span];
      const line = drawing("polyline", {
        class: `line pick ${one.state} ${one.trial === head.best ? "thick" : "dim"}`,
        points: places.map((at, index) => `${x(index).toFixed(1)},${y(at).toFixed(1)}`).join(" "),
      });
      line.append(drawing("title", {}, `trial ${one.trial}: ${one.value.toFixed(4)}`));
      line.addEventListener("click", () => open(one.trial));
      svg.append(line);
    }
    axes.forEach((axis, index) => {
      svg.append(drawing("line", { class: "axis", x1: x(index), x2: x(index), y1: top, y2: bottom }));
      svg.append(drawing("text", { x: x(index), y: index % 2 ? 12 : 26, "text-anchor": index ? "middle" : "start" }, axis.title));
      for (const [at, text] of axis.ticks) svg.append(drawing("text", { class: "faint", x: x(index) + 4, y: y(at) + 4 }, text));
    });
    holder.replaceChildren(svg);
  }

  // ---- asking

  const ask = (where) => fetch(where, { headers: { "X-Watch-Key": key }, cache: "no-store" });
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));

  function take(told) {
    if (told.whole) { rows.clear(); texts.clear(); }
    const { trials, ...rest } = told;
    head = rest;
    version = told.version;
    if (names.join("\n") !== told.columns.join("\n")) {
      names = told.columns;
      place = Object.fromEntries(names.map((name, index) => [name, index]).reverse());
    }
    for (const row of trials) {
      rows.set(row[0], row);
      texts.delete(row[0]);
    }
    draw();
    const changed = told.whole || trials.some(([number]) => number === read);
    if (by("detail").open && changed && getSelection().isCollapsed) open(read); // what is being copied stays
  }

  function complain(text) {
    by("warnings").replaceChildren(element("li", text));
    document.title = `? · ${head ? head.name : "watch"}`;
  }

  async function follow() {
    for (;;) {
      try {
        const answer = await ask(version === null ? "/data" : `/data?since=${version}`);
        if (answer.status === 401) {
          by("standing").textContent = "not shown";
          complain("This tab has no key, or one of a watch that has ended: open the whole address that ich-ray watch printed.");
          return;
        }
        if (answer.status === 200) {
          const told = await answer.json();
          performance.mark("received");
          take(told);
          performance.measure("drawn", "received");
          document.documentElement.dataset.version = String(version);
        } else if (answer.status !== 204) {
          throw new Error(String(answer.status));
        }
      } catch (error) {
        if (!(error instanceof TypeError)) console.error(error);
        complain("The watch does not answer: it has ended, or its tunnel is closed. What is here may be old; asking again.");
        await pause(3000);
        if (head) version = null;
      }
    }
  }

  by("states").append(...STATES.map((state) => {
    const button = element("button", state, `state ${state}`);
    button.type = "button";
    button.dataset.state = state;
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (hidden.has(state)) hidden.delete(state); else hidden.add(state);
      button.setAttribute("aria-pressed", String(!hidden.has(state)));
      arrange();
      drawRows();
    });
    return button;
  }));
  by("axis").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...by("axis").children];
    if (!step || !buttons.length) return;
    event.preventDefault();
    const at = buttons.findIndex((button) => button.getAttribute("aria-checked") === "true");
    buttons[(at + step + buttons.length) % buttons.length].click();
  });
  by("filter").addEventListener("input", () => { if (head) { chosen = 0; by("grid").scrollTop = 0; arrange(); drawRows(); } });
  by("grid").addEventListener("scroll", () => requestAnimationFrame(() => { if (head) drawRows(); }), { passive: true });
  by("grid").addEventListener("keydown", (event) => {
    if (!head || event.target !== by("grid")) return;
    const page = Math.max(1, Math.floor(by("grid").clientHeight / ROW) - 2);
    const to = {
      ArrowDown: chosen + 1, ArrowUp: chosen - 1, PageDown: chosen + page, PageUp: chosen - page, Home: 0, End: lines.length - 1,
    }[event.key];
    if (to !== undefined) { event.preventDefault(); move(to); }
    if (event.key === "Enter" && lines[chosen]) { event.preventDefault(); open(value(lines[chosen], "number")); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || /^(INPUT|TEXTAREA)$/.test(event.target.tagName) || by("detail").open) return;
    event.preventDefault();
    by("filter").focus();
  });
  by("compute").addEventListener("click", compute);
  addEventListener("resize", () => { if (head) { drawBest(); drawCurves(); drawRows(); } });
  addEventListener("beforeprint", () => { printing = true; document.documentElement.classList.add("printing"); if (head) draw(); });
  addEventListener("afterprint", () => { printing = false; document.documentElement.classList.remove("printing"); if (head) draw(); });
  setInterval(freshness, 5000);
  follow();
})();
