/** The answer: predictions with their certainty, and what each input contributed. */

import { el, fixed, share } from "./lib.js";

const TOP = 8; // classes that are listed; the rest is summed
const COLOURS = 6; // of types of entities
const CERTAINTY = [[0.995, "almost certain"], [0.9, "very likely"], [0.7, "likely"], [0.5, "more likely than not"], [0, "uncertain"]];
const PRECISION = [[0.9, "hardly better than the average"], [0.6, "rough"], [0.25, "fairly precise"], [0, "precise"]];

const word = (scale, value) => scale.find(([least]) => value >= least)[1];
const sure = (p) => `${word(CERTAINTY, p)}, ${share(p)}`;
const isMap = (x) => x !== null && typeof x === "object" && !Array.isArray(x);
const headline = (big, small) => el("p", { class: "headline" }, el("b", {}, big), " ", el("span", {}, small));

/** A piece of a bar; sides in per cent. */
function piece(kind, sides) {
  const node = el("i", { class: kind });
  for (const [side, value] of Object.entries(sides)) node.style[side] = `${value}%`;
  return node;
}

function row(name, kind, pieces, value) {
  const track = el("span", { class: `track ${kind}` }, pieces);
  return el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "drawn" }, track), el("td", { class: "num" }, value));
}

/** Probabilities as bars, the largest first; a thin line stands where each was before. */
function bars(now, before, chosen) {
  const sorted = Object.entries(now).sort((a, b) => b[1] - a[1]);
  const listed = sorted.length > TOP + 1 ? sorted.slice(0, TOP) : sorted;
  const rows = listed.map(([name, p]) => [name, p, before?.[name]]);
  const rest = sorted.slice(listed.length);
  const sum = (map) => rest.reduce((all, [name]) => all + (map[name] ?? 0), 0);
  if (rest.length) rows.push([`${rest.length} others together`, sum(now), before && sum(before)]);
  const drawn = rows.map(([name, p, was]) => {
    const old = was === undefined ? null : piece("was", { left: 100 * Math.min(was, 1) });
    return row(name, "", [piece(chosen.includes(name) ? "bar own" : "bar", { width: 100 * Math.min(p, 1) }), old], share(p));
  });
  return el("table", { class: "bars" }, el("caption", { class: "quiet" }, "probabilities"), el("tbody", {}, drawn));
}

/** A class, or several labels. */
function chosen(answer, before, fitted) {
  const single = "class" in answer;
  const names = (single ? [answer.class] : answer.labels).map(String);
  const p = answer.probabilities;
  const others = (answer.set ?? []).map(String).filter((name) => !names.includes(name));
  const held = fitted?.coverage ? ` Lists like this one hold the truth in ${Math.round(100 * fitted.coverage)} % of cases.` : "";
  const chips = names.map((name) => el("li", {}, el("b", {}, name), ` ${sure(p[name])}`));
  const none = "no label reaches its threshold";
  const head = single ? headline(names[0], sure(answer.probability)) : names.length ? el("ul", { class: "chips" }, chips) : headline("none", none);
  return {
    head,
    said: names.map((name) => `${name}, ${sure(p[name])}`).join("; ") || none,
    short: names.map((name) => `${name} ${share(p[name])}`).join(", ") || "none",
    body: [bars(p, before?.probabilities, names), others.length ? el("p", { class: "aside" }, `It may also be ${others.join(", ")}.${held}`) : null],
  };
}

/** One number with its interval, on an axis that holds the training rows' usual range. */
function measured(name, { value, low, high, std }, before, fitted, k) {
  const [mean, scale, known] = [fitted?.mean?.[k] ?? value, fitted?.scale?.[k] ?? 0, low !== undefined];
  const ends = [value, low ?? value, high ?? value, before ?? value, mean - 3 * scale, mean + 3 * scale];
  const [from, to] = [Math.min(...ends), Math.max(...ends)];
  const at = (x) => (100 * (x - from)) / (to - from || 1);
  const text = (x) => fixed(x, known ? high - low : scale || value);
  const level = fitted?.interval ? `${Math.round(100 * fitted.interval)} % ` : "";
  const interval = known ? `${level}between ${text(low)} and ${text(high)}` : "";
  const precise = std !== undefined && scale ? `, ${word(PRECISION, std / scale)}` : "";
  const label = name ? `${name} ` : "";
  const head = headline(text(value), interval + precise);
  if (name) head.prepend(el("small", {}, label));
  const span = known ? piece("span", { left: at(low), width: at(high) - at(low) }) : null;
  const was = before === undefined ? null : piece("was", { left: at(before) });
  const drawn = el("div", { "aria-hidden": "true" },
    el("span", { class: "track axis" }, span, was, piece("marker", { left: at(value) })),
    el("span", { class: "ends" }, [from, to].map((end) => el("span", {}, text(end)))));
  return { head, drawn, short: label + text(value), said: `${label}${text(value)}, ${interval}${precise}` };
}

/** Entities as marks in the text that they were found in, and as bars of their probability. */
function tagged({ entities }, before, fitted, text) {
  const colours = Object.fromEntries((fitted?.types ?? []).map((type, i) => [type, `mark t${i % COLOURS}`]));
  const mark = ({ type }, shown) => el("mark", { class: colours[type] ?? "mark" }, shown, el("small", {}, type));
  const letters = [...text]; // offsets count characters, not units of UTF-16
  const stands = entities.every((e) => letters.slice(e.start, e.end).join("") === e.text);
  const parts = [];
  let done = 0;
  for (const entity of stands ? entities : []) {
    parts.push(letters.slice(done, entity.start).join(""), mark(entity, entity.text));
    done = entity.end;
  }
  const shown = stands ? [...parts, letters.slice(done).join("")] : entities.map((e) => [mark(e, e.text), " "]);
  const gate = (e) => (e.gate === undefined ? "" : `, other inputs ${share(e.gate)}`);
  const rows = entities.map((e) => row(`${e.text} (${e.type}${gate(e)})`, "", piece("bar own", { width: 100 * e.probability }), share(e.probability)));
  const none = "no entity in it";
  return {
    head: [entities.length ? null : headline("none", none), el("p", { class: "marked" }, shown)],
    said: entities.map((e) => `${e.text}, ${e.type}, ${sure(e.probability)}`).join("; ") || none,
    short: entities.map((e) => `${e.text} ${e.type}`).join(", ") || "none",
    body: rows.length ? [el("table", { class: "bars" }, el("caption", { class: "quiet" }, "entities"), el("tbody", {}, rows))] : [],
  };
}

/** How alike what is matched is, on an axis from opposite to the same. */
function matched({ similarity, pairs }, before) {
  if (similarity === null) {
    const none = "two of what is matched must be there";
    return { head: headline("–", none), said: none, short: "none", body: [] };
  }
  const at = (cosine) => 50 + 50 * Math.max(-1, Math.min(cosine, 1));
  const was = typeof before?.similarity === "number" ? piece("was", { left: at(before.similarity) }) : null;
  const drawn = el("div", { "aria-hidden": "true" },
    el("span", { class: "track axis" }, was, piece("marker", { left: at(similarity) })),
    el("span", { class: "ends" }, ["−1", "1"].map((end) => el("span", {}, end))));
  const rows = Object.entries(pairs).map(([name, x]) => row(name, "", piece(x < 0 ? "bar minus" : "bar own", { width: 100 * Math.min(Math.abs(x), 1) }), fixed(x, 1)));
  const several = rows.length > 1 ? [el("table", { class: "bars" }, el("caption", { class: "quiet" }, "cosine of each pair"), el("tbody", {}, rows))] : [];
  const text = fixed(similarity, 1);
  return { head: [headline(text, "cosine similarity"), drawn], said: `similarity ${text}`, short: text, body: several };
}

/** What one task says; what the prediction holds tells of which kind it is. */
function tell(answer, before, fitted, text) {
  if (answer.probabilities) return chosen(answer, before, fitted);
  if (answer.entities) return tagged(answer, before, fitted, text);
  if ("similarity" in answer) return matched(answer, before);
  if (!("value" in answer)) {
    const json = JSON.stringify(answer, null, 2);
    return { head: el("pre", {}, json), said: json, short: json.slice(0, 60), body: [] };
  }
  const names = isMap(answer.value) ? Object.keys(answer.value) : [""];
  const of = (said, name) => Object.fromEntries(Object.entries(said ?? {}).map(([key, x]) => [key, name && isMap(x) ? x[name] : x]));
  const parts = names.map((name, k) => measured(name, of(answer, name), of(before, name).value, fitted, k));
  const joined = (key, mark) => parts.map((part) => part[key]).join(mark);
  return { head: parts.map((p) => [p.head, p.drawn]), said: joined("said", "; "), short: joined("short", ", "), body: [] };
}

/** Diverging bars: what each input added to the answer or took from it. */
function contributions(title, { inputs, base, value, unit, sampled }, reasons) {
  const widest = Math.max(...Object.values(inputs).map(Math.abs), 1e-9);
  const text = (x) => fixed(x, widest);
  const rows = Object.entries(reasons).map(([name, reason]) => {
    const worth = inputs[name];
    if (worth === undefined) return el("tr", { class: "none" }, el("th", { scope: "row" }, name), el("td", {}, reason), el("td"));
    const width = (50 * Math.abs(worth)) / widest;
    const bar = piece(worth < 0 ? "bar minus" : "bar own", { left: worth < 0 ? 50 - width : 50, width });
    return row(name, "both", bar, (worth < 0 ? "" : "+") + text(worth));
  });
  const sides = (unit.startsWith("logit") ? ["against", "for"] : ["lowers", "raises"]).map((side) => el("span", {}, side));
  const head = [el("span", { class: "quiet" }, "input"), el("span", { class: "ends" }, sides), el("span", { class: "quiet" }, "amount")];
  const note = sampled ? " Means over random orders of the inputs." : "";
  return [
    el("table", { class: "bars worth" }, el("caption", {}, title), el("thead", {}, el("tr", {}, head.map((cell) => el("th", { scope: "col" }, cell)))), el("tbody", {}, rows)),
    el("p", { class: "aside" }, `${text(base)} without any input, ${text(value)} with these. Unit: ${unit}.${note}`),
  ];
}

/** Why an input has no bar. */
function reason(input, broken, form) {
  if (!form.used(input)) return "switched off";
  if (broken.some((cell) => cell.input === input)) return "could not be read";
  return form.given(input) ? "nothing usable in it" : "not given";
}

/** Sentences on what could not be read and what was mended. */
function notes(broken, repairs) {
  const lines = broken.map((cell) => `${cell.column} could not be read and counts as absent: ${cell.reason}`);
  for (const [input, mended] of Object.entries(repairs)) lines.push(...mended.map((repair) => `${input}: ${repair}`));
  const items = lines.map((line) => el("li", {}, /[.!?]$/.test(line) ? line : `${line}.`));
  return items.length ? el("div", { class: "warning" }, el("h3", {}, "Look at this"), el("ul", {}, items)) : null;
}

/** A reply of POST /v1/predict to one row as nodes, a sentence and a few words; `before` is the one to compare with. */
export function answer(reply, before, spec, form, ms) {
  const broken = reply.broken[0] ?? [];
  const reasons = Object.fromEntries(form.groups.map(({ name }) => [name, reason(name, broken, form)]));
  const said = [], short = [];
  const tasks = Object.entries(reply.predictions[0]).map(([task, prediction]) => {
    const [fitted, old] = [spec.spec?.outputs?.[task], before?.predictions[0][task]];
    const text = fitted?.input ? form.text(fitted.input) : "";
    const now = tell(prediction, old, fitted, text);
    said.push(`${task}: ${now.said}`);
    short.push(now.short);
    const why = Object.entries(reply.explanations?.[0] ?? {}).filter(([key]) => key === task || key.startsWith(`${task}/`));
    return el("article", {}, el("h2", {}, task), now.head,
      el("p", { class: "before" }, old ? `before: ${tell(old, null, fitted, text).short}` : ""), now.body,
      why.map(([key, x]) => contributions(`What each input contributed${key === task ? "" : ` to ${key.slice(task.length + 1)}`}`, x, reasons)));
  });
  const foot = `Answered in ${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms by ${reply.model} ${reply.version}.`;
  const nodes = [notes(broken, reply.repairs[0] ?? {}), ...tasks, el("p", { class: "aside foot" }, foot)].filter(Boolean);
  return { nodes, said: said.join(". "), short: short.join(" · ") };
}

/** What is shown before there is an answer. */
export function nothing(outputs) {
  const lines = outputs.map(({ task, kind, classes, labels, types, sides }) => {
    const names = classes ?? labels ?? types ?? sides ?? [];
    const more = names.length > 12 ? ` and ${names.length - 12} more` : "";
    return el("li", {}, el("b", {}, task), names.length ? `: ${names.slice(0, 12).join(", ")}${more}` : ` (${kind})`);
  });
  return el("div", { class: "empty" }, el("p", {}, "Give it something, and it answers here. Any input may be left out. It tells:"), el("ul", {}, lines));
}
