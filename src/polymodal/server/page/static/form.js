/** The form that a model's inputs ask for. */

import { el } from "./lib.js";
import { media } from "./media.js";

const TYPING = 350; // ms without a key before the answer is asked for

/** A control whose value is one element's text. */
function plain(node, read = (text) => text) {
  return {
    node,
    value: () => (node.value.trim() === "" ? undefined : read(node.value)),
    fault: () => (node.validity.valid ? "" : node.validationMessage),
    set: (value) => { node.value = typeof value === "string" ? value : JSON.stringify(value); },
    clear: () => { node.value = ""; },
  };
}

const input = (id, type, more = {}) => el("input", { id, type, "aria-describedby": `${id}-error`, autocomplete: "off", ...more });

/** Yes, no, or not given. */
function choice(id, changed) {
  const options = [["yes", true], ["no", false], ["not given", undefined]].map(([word, value], i) => {
    const radio = el("input", { type: "radio", name: id, id: i ? `${id}-${i}` : id, checked: i === 2, onchange: changed });
    return { radio, value, node: el("label", {}, radio, el("span", {}, word)) };
  });
  const set = (value) => { for (const option of options) option.radio.checked = option.value === value; };
  return {
    node: el("div", { class: "choice", role: "radiogroup", "aria-labelledby": `${id}-label` }, options.map((o) => o.node)),
    value: () => options.find((o) => o.radio.checked)?.value,
    set,
    clear: () => set(undefined),
  };
}

/** Any other kind: its cells are JSON. */
function json(id) {
  const node = el("textarea", { id, rows: "3", class: "mono", placeholder: "JSON", spellcheck: "false", "aria-describedby": `${id}-error` });
  const fault = () => {
    try { if (node.value.trim()) JSON.parse(node.value); } catch (error) { return `must be JSON: ${error.message}`; }
    return "";
  };
  return { ...plain(node, (text) => JSON.parse(text)), fault, set: (value) => { node.value = JSON.stringify(value); } };
}

const KINDS = {
  words: (id) => plain(el("textarea", { id, rows: "3", "aria-describedby": `${id}-error` })),
  text: (id) => plain(el("textarea", { id, rows: "3", "aria-describedby": `${id}-error` })),
  number: (id) => plain(input(id, "number", { step: "any", inputmode: "decimal" }), Number),
  date: (id, field) => plain(input(id, /\d[T ]\d/.test(field.example ?? "") ? "datetime-local" : "date")),
  category: (id, field) => {
    const control = plain(input(id, "text", { list: `${id}-levels` }));
    const levels = el("datalist", { id: `${id}-levels` }, (field.levels ?? []).map((level) => el("option", { value: level })));
    return { ...control, node: el("div", {}, control.node, levels) };
  },
  boolean: (id, field, limits, changed) => choice(id, changed),
  image: media,
  audio: media,
};

/** The form for what GET /v1/spec answers; `changed` is told what was changed, and for how many ms more may follow. */
export class Form {
  constructor(root, spec, changed) {
    this.changed = changed;
    this.groups = [];
    for (const field of spec.inputs) {
      let group = this.groups.find((g) => g.name === field.input);
      if (!group) this.groups.push((group = { name: field.input, modality: field.modality, fields: [] }));
      group.fields.push(field);
    }
    this.controls = [];
    root.replaceChildren(...this.groups.map((group) => this.fieldset(group, spec.limits ?? {})));
  }

  fieldset(group, limits) {
    group.use = el("input", { type: "checkbox", checked: true, role: "switch" });
    const what = group.modality === group.name ? null : el("small", {}, group.modality);
    const legend = el("legend", {}, el("label", { class: "use" }, group.use, el("span", { class: "quiet" }, "use "), el("b", {}, group.name)), what);
    const alone = group.fields.length === 1 && group.fields[0].column === group.name;
    const fields = group.fields.map((field) => this.field(group, field, alone, limits));
    const node = el("fieldset", {}, legend, el("div", { class: group.fields.length > 1 ? "fields many" : "fields" }, fields));
    group.use.onchange = () => {
      node.classList.toggle("off", !group.use.checked);
      for (const field of fields) field.inert = !group.use.checked;
      if (!group.use.checked) this.halt();
      this.changed(`${group.name} switched ${group.use.checked ? "on" : "off"} ${performance.now()}`, 0);
    };
    return node;
  }

  field(group, field, alone, limits) {
    const id = `c${this.controls.length}`;
    const now = () => this.changed(field.column, 0);
    const build = KINDS[field.kind] ?? json;
    const control = Object.assign(build(id, field, limits, now), { id, field, group: group.name });
    control.error = el("p", { class: "error", id: `${id}-error`, role: "alert" });
    this.controls.push(control);
    if (build !== media && field.kind !== "boolean") {
      control.node.addEventListener("input", () => { this.say(control, ""); this.changed(field.column, TYPING); });
    }
    const name = { class: alone ? "quiet" : "name", id: `${id}-label` };
    const label = field.kind === "boolean" ? el("span", name, field.column) : el("label", { ...name, for: id }, field.column);
    return el("div", { class: `field ${build === json ? "json" : field.kind}` }, label, control.node, control.error);
  }

  say(control, message) {
    control.error.textContent = message;
    (document.getElementById(control.id) ?? control.node).setAttribute("aria-invalid", String(Boolean(message)));
  }

  /** What is filled in and switched on: column -> cell, in order. What cannot be sent is told beside its field. */
  cells() {
    const cells = {};
    for (const control of this.controls) {
      const used = this.used(control.group);
      const fault = (used && control.fault?.()) || "";
      this.say(control, fault && `${fault} It was left out.`);
      const value = used && !fault ? control.value() : undefined;
      if (value !== undefined) cells[control.field.column] = value;
    }
    return cells;
  }

  used(name) {
    return this.groups.find((group) => group.name === name).use.checked;
  }

  /** Whether an input is filled in, switched on or not. */
  given(name) {
    return this.controls.some((control) => control.group === name && (control.fault?.() || control.value() !== undefined));
  }

  /** What an input's first field holds as text; a JSON list of words with a space between each two. */
  text(name) {
    const cell = this.controls.find((control) => control.group === name)?.value() ?? "";
    try {
      const words = JSON.parse(cell);
      return Array.isArray(words) ? words.join(" ") : cell;
    } catch { return cell; }
  }

  /** Show a message beside the field that a server's ``where`` or a broken cell names. */
  tell(where, message) {
    const path = where.replace(/^inputs(\[\d+\])?\.?/, "");
    const named = (c) => [c.field.column, c.group, `${c.group}.${c.field.column}`].includes(path);
    const control = this.controls.find((c) => c.field.column === path) ?? this.controls.find(named);
    if (control) this.say(control, message);
    return Boolean(control);
  }

  /** End what is being recorded. */
  halt() {
    for (const control of this.controls) control.halt?.();
  }

  /** Fill every field that knows an example. */
  example() {
    for (const control of this.controls) {
      if (control.field.example === null || control.field.example === undefined) control.clear();
      else control.set(control.field.example);
    }
  }

  clear() {
    for (const control of this.controls) {
      control.clear();
      this.say(control, "");
    }
    for (const group of this.groups) if (!group.use.checked) group.use.click();
  }

  /** Give a pasted or dropped file to the first control of its kind, an empty one if there is any. */
  take(file) {
    const fit = this.controls.filter((c) => c.take && file.type.startsWith(`${c.kind}/`) && this.used(c.group));
    const control = fit.find((c) => c.value() === undefined) ?? fit[0];
    control?.take(file);
    return Boolean(control);
  }
}
