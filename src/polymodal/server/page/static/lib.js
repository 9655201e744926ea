/** What every page needs: elements, requests, numbers, copying. */

/** An element. Strings become attributes, everything else (handlers, booleans) properties; null is nothing. */
export function el(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (typeof value === "string") node.setAttribute(key, value);
    else if (value !== null && value !== undefined) node[key] = value;
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** What a server did not do, and why. */
export class Problem extends Error {
  constructor(status, { type = "internal", message, where = null }, retry = 0) {
    super(message);
    Object.assign(this, { status, type, where, retry });
  }
}

/** The bearer token; nothing keeps it when the page is left. */
export const secret = { token: "" };

/** Headers with the token, if there is one. */
export function authorised(headers = {}) {
  return secret.token ? { ...headers, Authorization: `Bearer ${secret.token}` } : headers;
}

/** Ask the server; the reply if it is a good one, else a Problem. Paths are relative, so that a prefix does no harm. */
export async function ask(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: authorised(options.headers), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { type: "unreachable", message: "The server cannot be reached. Is it running?" });
  }
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => ({}));
  const error = said.error ?? { message: `The server answered ${reply.status} ${reply.statusText}.` };
  throw new Problem(reply.status, error, Number(reply.headers.get("Retry-After")) || 0);
}

/** A probability: three decimals, never 0 or 1 when it is not. */
export function share(p) {
  if (p > 0 && p < 0.0005) return "<0.001";
  return p < 1 && p >= 0.9995 ? ">0.999" : p.toFixed(3);
}

/** A number with as many decimals as show three digits of a number like `scale`. */
export function fixed(value, scale) {
  const size = Math.abs(scale) || 1;
  if (size < 1e-6 || size >= 1e12) return value.toExponential(2).replace("-", "−");
  const digits = Math.min(Math.max(2 - Math.floor(Math.log10(size)), 0), 9);
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}

/** Put text on the clipboard; also where the browser has no clipboard for pages on plain http. */
export async function copy(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(shown);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy");
  }
}
