/** The page to try a model on. */

import { answer, nothing } from "./answer.js";
import { curl, python, request } from "./code.js";
import { Form } from "./form.js";
import { ask, copy, el, Problem, secret } from "./lib.js";

const $ = (id) => document.getElementById(id);
const PATIENCE = 3; // times that a busy server is asked again
const page = { models: [], spec: null, form: null, shown: null, before: null, key: null, controller: null, timer: 0 };

const query = () => (page.models.length > 1 ? `?model=${encodeURIComponent($("model").value)}` : "");

function problem(message, again) {
  const retry = again && el("button", { type: "button", onclick: again }, "Try again");
  $("problem").replaceChildren(...(message ? [el("p", {}, message, " ", retry || null)] : []));
}

/** Tell what went wrong: beside the field that it names, else above the answer; ask for the token where one is wanted. */
function fail(error, again) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401) {
    const wrong = Boolean(secret.token);
    $("key").hidden = false;
    $("key").onsubmit = (event) => {
      event.preventDefault();
      secret.token = $("token").value;
      $("token").value = "";
      $("key").hidden = true;
      problem("");
      again();
    };
    problem(wrong ? "The server does not take this token." : "");
    return $("token").focus();
  }
  if (error.where && page.form?.tell(error.where, error.message)) {
    return problem("There is no answer: see the message beside the field.");
  }
  problem(error.message, again);
}

function busy(on) {
  $("answer").setAttribute("aria-busy", String(on));
}

/** Show nothing but what the model tells. */
function empty() {
  page.controller?.abort();
  clearTimeout(page.timer);
  busy(false);
  Object.assign(page, { shown: null, before: null, key: null });
  problem("");
  $("result").replaceChildren(nothing(page.spec.outputs));
  $("said").textContent = "";
  $("answer").classList.remove("stale");
  for (const id of ["code", "peek", "shown"]) $(id).hidden = true;
}

/** Ask for the answer to what the form holds; `key` says what was changed: while it is the same, so is the comparison. */
async function predict(key = null, tries = 0) {
  clearTimeout(page.timer);
  page.controller?.abort();
  const cells = page.form.cells();
  if (!Object.keys(cells).length) return empty();
  const controller = (page.controller = new AbortController());
  const started = performance.now();
  busy(true);
  try {
    const reply = await (await ask(`v1/predict${query()}`, { ...request(cells), signal: controller.signal })).json();
    if (controller !== page.controller) return;
    show(reply, key, performance.now() - started);
  } catch (error) {
    if (controller !== page.controller || error.name === "AbortError") return;
    $("answer").classList.toggle("stale", Boolean(page.shown));
    if ([429, 503].includes(error.status) && tries < PATIENCE) {
      problem("The server is busy. It will be asked again.");
      page.timer = setTimeout(() => predict(key, tries + 1), 1000 * Math.min(Math.max(error.retry, 1), 10));
    } else fail(error, () => predict(key));
  }
  if (controller === page.controller) busy(false);
}

function show(reply, key, ms) {
  if (key !== null && key !== page.key) Object.assign(page, { before: page.shown, key });
  page.shown = reply;
  problem("");
  const seen = answer(reply, page.before, page.spec, page.form, ms);
  $("result").replaceChildren(...seen.nodes);
  $("said").textContent = seen.said;
  $("answer").classList.remove("stale");
  $("version").textContent = reply.version;
  for (const cell of reply.broken[0] ?? []) page.form.tell(cell.column, cell.reason);
  $("peek").textContent = seen.short;
  for (const id of ["code", "peek"]) $(id).hidden = false;
  $("shown").hidden = true;
  $("copied").textContent = "";
}

function changed(key, wait) {
  clearTimeout(page.timer);
  page.timer = setTimeout(() => predict(key), wait);
}

async function load() {
  try {
    page.controller?.abort();
    page.spec = await (await ask(`v1/spec${query()}`)).json();
  } catch (error) {
    return fail(error, load);
  }
  $("name").textContent = page.spec.model;
  $("version").textContent = page.spec.version;
  document.title = `Polymodal: ${page.spec.model}`;
  page.form?.halt();
  page.form = new Form($("inputs"), page.spec, changed);
  $("card").open = false;
  empty();
}

async function start() {
  problem("");
  try {
    page.models = (await (await ask("v1/models")).json()).models;
  } catch (error) {
    return fail(error, start);
  }
  $("model").replaceChildren(...page.models.map(({ name }) => el("option", { value: name }, name)));
  $("choice").hidden = page.models.length < 2;
  $("name").hidden = !$("choice").hidden;
  await load();
}

async function copyAs(write) {
  const url = new URL(`v1/predict${query()}`, document.baseURI).href;
  const text = write(url, page.form.cells(), Boolean(secret.token));
  $("shown").textContent = text;
  $("shown").hidden = false;
  $("copied").textContent = (await copy(text, $("shown"))) ? "Copied." : "Select it and copy.";
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (page.form) predict();
});
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && page.form) predict();
});
$("example").onclick = () => {
  page.form?.example();
  changed(`example ${performance.now()}`, 0);
};
$("clear").onclick = () => {
  page.form?.clear();
  if (page.form) empty();
};
$("model").onchange = load;
$("curl").onclick = () => copyAs(curl);
$("python").onclick = () => copyAs(python);
$("card").ontoggle = async () => {
  if (!$("card").open) return;
  const text = await ask(`v1/card${query()}`).then((reply) => reply.text(), (error) => error.message);
  $("card").querySelector("pre").textContent = text;
};
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData?.files ?? [];
  if (file && page.form?.take(file)) event.preventDefault();
});
document.addEventListener("dragover", (event) => event.preventDefault()); // a file beside a zone must not replace the page
document.addEventListener("drop", (event) => {
  if (event.defaultPrevented) return;
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) page.form?.take(file);
});
new IntersectionObserver(([seen]) => $("peek").classList.toggle("seen", seen.isIntersecting)).observe($("result"));
start();
