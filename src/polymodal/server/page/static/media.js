/** Controls for files: choose, drop, paste, photograph or record; preview; remove. */

import { el } from "./lib.js";

const WORDS = {
  image: { accept: "image/*", choose: "Choose an image", hint: "or drop it here, or paste it" },
  audio: { accept: "audio/*,video/webm,.wav,.mp3,.flac,.ogg,.opus,.m4a", choose: "Choose a sound", hint: "or drop it here" },
};

/** A data URL's content as a file. */
export function fileOf(url) {
  const [head, data] = url.split(",", 2);
  const type = head.slice(5).split(";")[0];
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  return new File([bytes], `example.${type.split("/")[1].replace(/^x-/, "").replace("jpeg", "jpg")}`, { type });
}

const size = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

/** A control for the file of a field of GET /v1/spec; `changed` is called after each change by a person. */
export function media(id, field, limits, changed) {
  const words = WORDS[field.kind];
  let file = null, url = null;
  const preview = el("div", { class: "preview", hidden: true });
  const note = el("p", { class: "note", role: "status", hidden: true });
  const picker = el("input", { type: "file", id, class: "quiet", accept: words.accept, "aria-describedby": `${id}-error` });
  const zone = el("div", { class: "zone" }, picker, el("label", { for: id }, el("b", {}, words.choose), el("span", { class: "hint" }, ` ${words.hint}`)));
  const extra = field.kind === "audio" ? recorder(id, limits, take, say) : camera(id);
  const node = el("div", { class: "media" }, zone, extra.node, preview, note);

  function say(text) {
    note.textContent = text;
    note.hidden = !text;
  }

  function show() {
    if (url) URL.revokeObjectURL(url);
    url = file && URL.createObjectURL(file);
    preview.hidden = !file;
    node.classList.toggle("full", Boolean(file));
    if (!file) return preview.replaceChildren();
    const remove = el("button", { type: "button", "aria-label": `Remove ${file.name}`, onclick: () => { clear(); picker.focus(); changed(); } }, "Remove");
    const seen = field.kind === "image"
      ? el("img", { src: url, alt: `preview of ${file.name}`, onerror: () => seen.replaceWith(el("p", { class: "blank" }, "no preview")) })
      : el("audio", { src: url, controls: true, "aria-label": `play ${file.name}` });
    preview.replaceChildren(seen, el("p", {}, el("span", {}, file.name), ` ${size(file.size)} `, remove));
  }

  function take(taken) {
    file = taken;
    say("");
    show();
    changed();
  }

  function clear() {
    extra.stop?.();
    file = null;
    say("");
    show();
  }

  for (const input of node.querySelectorAll("input")) {
    input.addEventListener("change", () => {
      if (input.files.length) take(input.files[0]);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  node.addEventListener("dragover", (event) => {
    event.preventDefault();
    node.classList.add("over");
  });
  node.addEventListener("dragleave", () => node.classList.remove("over"));
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    node.classList.remove("over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
  const set = (example) => { clear(); file = fileOf(example); show(); };
  return { node, value: () => file ?? undefined, set, clear, take, halt: () => extra.stop?.(), kind: field.kind };
}

/** A phone's camera; its label shows only where a finger points. */
function camera(id) {
  const input = el("input", { type: "file", id: `${id}-camera`, class: "quiet", accept: "image/*", capture: "environment" });
  return { node: el("div", { class: "camera" }, input, el("label", { for: `${id}-camera`, class: "button" }, "Take a photo")) };
}

/** A button that records from the microphone. The recording is sent as the browser makes it. */
function recorder(id, limits, take, say) {
  const button = el("button", { type: "button", id: `${id}-record` }, "Record");
  let running = null;

  function stop(keep) {
    if (!running) return;
    running.keep = keep;
    running.recorder.stop();
    running = null;
    button.textContent = "Record";
    button.classList.remove("live");
  }

  async function start() {
    if (!navigator.mediaDevices || !window.MediaRecorder) {
      return say("A browser records only on https or localhost. Choose a file instead.");
    }
    let stream;
    button.disabled = true; // until the browser's question is answered
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      const denied = error.name === "NotAllowedError";
      return say(denied ? "The microphone is not allowed for this page. Allow it, or choose a file." : "No microphone was found. Choose a file instead.");
    } finally {
      button.disabled = false;
    }
    say("");
    const run = (running = { recorder: new MediaRecorder(stream), keep: false, started: performance.now() });
    const pieces = [];
    const tick = setInterval(() => {
      const seconds = (performance.now() - run.started) / 1000;
      button.textContent = `Stop (${seconds.toFixed(0)} s)`;
      if (seconds >= (limits.max_seconds ?? Infinity)) stop(true);
    }, 250);
    run.recorder.ondataavailable = (event) => pieces.push(event.data);
    run.recorder.onstop = () => {
      clearInterval(tick);
      stream.getTracks().forEach((track) => track.stop());
      const type = run.recorder.mimeType.split(";")[0];
      if (run.keep) take(new File(pieces, `recording.${type.split("/")[1] || "webm"}`, { type }));
    };
    run.recorder.start();
    button.textContent = "Stop (0 s)";
    button.classList.add("live");
  }

  button.onclick = () => (running ? stop(true) : start());
  return { node: el("div", { class: "record" }, button), stop: () => stop(false) };
}
