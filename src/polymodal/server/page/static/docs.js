/** The API as /openapi.json describes it, with examples that can be sent. */

import { quoted } from "./code.js";
import { ask, authorised, copy, el, Problem, secret } from "./lib.js";
import { fileOf } from "./media.js";

const $ = (id) => document.getElementById(id);
const VERBS = ["get", "post", "put", "patch", "delete"];
let api = {};

/** What a ``$ref`` stands for. */
function real(node) {
  for (let depth = 0; node?.$ref && depth < 20; depth++) {
    node = node.$ref.slice(2).split("/").reduce((at, key) => at?.[key.replaceAll("~1", "/").replaceAll("~0", "~")], api);
  }
  return node ?? {};
}

/** Paragraphs, lists, **bold** and `code` of a description. */
function prose(text) {
  const bold = (line) => line.split(/\*\*([^*]+)\*\*/).map((piece, i) => (i % 2 ? el("b", {}, piece) : piece));
  const words = (line) => line.split(/`+([^`]+)`+/).flatMap((piece, i) => (i % 2 ? el("code", {}, piece) : bold(piece)));
  return (text ?? "").split(/\n\s*\n/).filter((x) => x.trim()).map((block) => {
    const lines = block.trim().split("\n");
    const list = lines.every((line) => /^\s*[-*] /.test(line));
    return list ? el("ul", {}, lines.map((line) => el("li", {}, words(line.replace(/^\s*[-*] /, ""))))) : el("p", {}, words(block.trim()));
  });
}

/** A schema's kind in a few words. */
function kind(schema, depth = 0) {
  schema = real(schema);
  const either = schema.anyOf ?? schema.oneOf;
  if (either && depth < 3) return [...new Set(either.map((x) => kind(x, depth + 1)))].join(" or ");
  if (schema.enum) return schema.enum.map((x) => JSON.stringify(x)).join(", ").slice(0, 120);
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kind(schema.items ?? {}, depth + 1)}`;
  const type = Array.isArray(schema.type) ? schema.type.join(" or ") : schema.type ?? "any";
  return schema.contentEncoding ? `${type} (${schema.contentEncoding})` : schema.format ? `${type} (${schema.format})` : type;
}

/** A schema's fields, nested ones with dots; what was listed once is not listed again. */
function fields(schema, levels, prefix = "", seen = new Set()) {
  schema = real(schema);
  const key = JSON.stringify(schema);
  if (seen.has(key) || levels < 1) return [];
  seen.add(key);
  const found = Object.entries(schema.properties ?? {}).flatMap(([name, value]) => [
    { name: prefix + name, kind: kind(value), must: schema.required?.includes(name), text: real(value).description },
    ...fields(value, levels - 1, `${prefix}${name}.`, new Set(seen)),
  ]);
  if (schema.items) found.push(...fields(schema.items, levels, `${prefix.replace(/\.$/, "")}[].`, seen));
  for (const branch of [...(schema.allOf ?? []), ...(schema.anyOf ?? []), ...(schema.oneOf ?? [])]) found.push(...fields(branch, levels, prefix, seen));
  return found.filter((field, i) => found.findIndex((other) => other.name === field.name) === i);
}

function listing(caption, rows) {
  if (!rows.length) return [];
  const body = rows.map((row) => el("tr", {}, el("td", {}, el("code", {}, row.name)), el("td", {}, row.kind + (row.must ? ", required" : "")), el("td", {}, prose(row.text))));
  const names = ["name", "kind", "meaning"].map((x) => el("th", { scope: "col" }, x));
  const table = el("table", { "aria-label": caption }, el("thead", {}, el("tr", {}, names)), el("tbody", {}, body));
  return rows.length > 4 ? [el("details", {}, el("summary", {}, caption), table)] : [el("h3", {}, caption), table];
}

/** The first example of a media type object, or of a parameter. */
function exampleOf(node) {
  const first = Object.values(node?.examples ?? {})[0];
  return node?.example ?? (first === undefined ? undefined : real(first).value ?? first) ?? real(node?.schema).example ?? real(node?.schema).examples?.[0];
}

/** A request that runs as it stands. */
function build(path, verb, operation, type) {
  const query = new URLSearchParams();
  for (const parameter of (operation.parameters ?? []).map(real)) {
    const value = exampleOf(parameter) ?? real(parameter.schema).default;
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(value ?? ""));
    else if (parameter.in === "query" && parameter.required) query.set(parameter.name, value ?? "");
  }
  const address = path.slice(1) + (query.size ? `?${query}` : "");
  const body = type ? exampleOf(real(operation.requestBody).content[type]) : undefined;
  const options = { method: verb.toUpperCase(), headers: {} };
  if (body !== undefined && type?.includes("json")) {
    Object.assign(options, { headers: { "Content-Type": type }, body: typeof body === "string" ? body : JSON.stringify(body) });
  } else if (body !== undefined && type === "multipart/form-data") {
    options.body = new FormData();
    for (const [name, value] of Object.entries(body)) options.body.append(name, part(value));
  } else if (typeof body === "string") {
    Object.assign(options, { headers: { "Content-Type": type }, body });
  }
  return { address, options, body };
}

const isData = (value) => typeof value === "string" && value.startsWith("data:") && value.includes(";base64,");
const part = (value) => (isData(value) ? fileOf(value) : typeof value === "string" ? value : JSON.stringify(value));

function curl({ address, options, body }, show = (text) => text) {
  const lines = [`curl ${options.method === "GET" || body !== undefined ? "" : `-X ${options.method} `}${quoted(new URL(address, document.baseURI).href)}`];
  if (secret.token) lines.push('-H "Authorization: Bearer $TOKEN"');
  for (const [name, value] of Object.entries(options.headers)) lines.push(`-H ${quoted(`${name}: ${value}`)}`);
  if (options.body instanceof FormData) {
    for (const [name, value] of options.body) {
      lines.push(value instanceof Blob ? `-F ${quoted(`${name}=@${value.name};type=${value.type}`)}` : `--form-string ${quoted(`${name}=${show(value)}`)}`);
    }
  } else if (body !== undefined) lines.push(`-d ${quoted(show(typeof body === "string" ? body : JSON.stringify(body)))}`);
  return lines.join(" \\\n  ");
}

/** Long strings (media) cut, to look at. */
const brief = (text) => text.replace(/[A-Za-z0-9+/=]{96,}/g, (long) => `${long.slice(0, 40)}…`);

/** JSON to look at: long strings (media) cut. */
function pretty(value) {
  const cut = (_, x) => (typeof x === "string" && x.length > 80 ? `${x.slice(0, 40)}… (${x.length} characters)` : x);
  return JSON.stringify(value, cut, 2);
}

/** Ask for the token. */
function wanted() {
  $("key").hidden = false;
  $("token").focus();
}

async function send(request, shown) {
  const started = performance.now();
  shown.setAttribute("aria-busy", "true");
  try {
    const reply = await fetch(request.address, { ...request.options, headers: authorised(request.options.headers), cache: "no-store" });
    const text = await reply.text();
    if (reply.status === 401) wanted();
    const json = reply.headers.get("Content-Type")?.includes("json");
    const status = el("span", { class: reply.ok ? "status" : "status bad" }, `${reply.status} ${reply.statusText}`);
    shown.replaceChildren(
      el("p", { role: "status" }, status, ` in ${Math.round(performance.now() - started)} ms, ${reply.headers.get("Content-Type") ?? "no content"}`),
      el("pre", { tabIndex: 0, "aria-label": "answer" }, json && text ? pretty(JSON.parse(text)) : text || "(empty)"));
  } catch (error) {
    shown.replaceChildren(el("p", { role: "alert", class: "error" }, `No answer: ${error.message}`));
  }
  shown.setAttribute("aria-busy", "false");
}

function runnable(path, verb, operation, type, name) {
  const request = build(path, verb, operation, type);
  const shown = el("div", { class: "reply" });
  const note = el("small", { role: "status" });
  const code = el("pre", { tabIndex: 0, "aria-label": "request" }, brief(curl(request)));
  const whole = async () => {
    code.textContent = curl(request); // what is copied is what is seen
    note.textContent = (await copy(code.textContent, code)) ? "Copied." : "Select it and copy.";
  };
  return [
    el("h3", {}, type ? `Example, ${type}` : "Example"), code,
    el("p", { class: "actions" }, el("button", { type: "button", class: "first", "aria-label": `Send ${name}`, onclick: () => send(request, shown) }, "Send"),
      el("button", { type: "button", "aria-label": `Copy ${name} as curl`, onclick: whole }, "Copy as curl"), note),
    shown,
  ];
}

function answers(operation) {
  const rows = Object.entries(operation.responses ?? {}).map(([status, node]) => ({ name: status, kind: Object.keys(real(node).content ?? {}).join(", "), text: real(node).description }));
  const good = Object.values(real(operation.responses?.["200"]).content ?? {})[0];
  const example = exampleOf(good);
  const seen = example === undefined ? [] : [el("h3", {}, "Example answer"), el("pre", { tabIndex: 0, "aria-label": "example answer" }, typeof example === "string" ? example : pretty(example))];
  return [...seen, ...listing("Answers", rows), ...listing("Fields of the answer", good?.schema ? fields(good.schema, 3) : [])];
}

function route(path, verb, operation, id) {
  const name = `${verb.toUpperCase()} ${path}`;
  const body = real(operation.requestBody);
  const parameters = (operation.parameters ?? []).map(real).map((p) => ({ name: p.name, kind: `${kind(p.schema)} (${p.in})`, must: p.required, text: p.description }));
  const types = Object.keys(body.content ?? {});
  const first = real(body.content?.[types[0]]).schema;
  return el("section", { id }, el("h2", {}, el("span", { class: `verb ${verb}` }, verb.toUpperCase()), ` ${path}`),
    operation.summary ? el("p", {}, el("b", {}, operation.summary)) : null, prose(operation.description),
    listing("Parameters", parameters), first ? listing("Fields of the request", fields(first, 2)) : null,
    (types.length ? types : [null]).flatMap((type) => runnable(path, verb, operation, type, name)), answers(operation));
}

async function start() {
  $("problem").replaceChildren();
  try {
    api = await (await ask("openapi.json")).json();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status !== 401) return $("problem").replaceChildren(el("p", {}, error.message));
    return wanted();
  }
  $("name").textContent = api.info?.title ?? "API";
  $("version").textContent = api.info?.version ?? "";
  $("about").replaceChildren(...prose(api.info?.description));
  const groups = {};
  const all = Object.entries(api.paths ?? {}).flatMap(([path, item]) => VERBS.filter((verb) => item[verb]).map((verb) => [path, verb, item[verb]]));
  const sections = all.map(([path, verb, operation]) => {
    const id = `${verb}-${path.replace(/[^\w]+/g, "-")}`;
    (groups[operation.tags?.[0] ?? ""] ??= []).push(el("li", {}, el("a", { href: `#${id}` }, el("span", { class: `verb ${verb}` }, verb.toUpperCase()), ` ${path}`)));
    return route(path, verb, operation, id);
  });
  $("index").replaceChildren(...Object.entries(groups).flatMap(([tag, items]) => [...(tag ? [el("h2", {}, tag)] : []), el("ul", {}, items)]));
  $("routes").replaceChildren(...sections);
}

$("key").onsubmit = (event) => {
  event.preventDefault();
  secret.token = $("token").value;
  $("token").value = "";
  $("key").hidden = true;
  start();
};
start();
