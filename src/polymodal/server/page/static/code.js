/** The request that the page sends, and the same as text to run elsewhere. */

const PLAIN = /^(?!(inputs|explain|strict)$)[A-Za-z][\w.-]*$/; // names that a part of a form may have
const OPTIONS = { explain: true, strict: false }; // a broken cell is told beside its field, and the rest is answered
const JSON_TYPE = "Content-Type: application/json";

/** Take cells apart: JSON that names files, and the files by the name of their part. */
function split(cells) {
  const files = {};
  const inputs = Object.fromEntries(Object.entries(cells).map(([column, cell], i) => {
    if (!(cell instanceof Blob)) return [column, cell];
    const part = PLAIN.test(column) ? column : `file${i}`;
    files[part] = cell;
    return [column, { file: part }];
  }));
  return { inputs, files: Object.entries(files) };
}

/** Options of `fetch`: JSON, or multipart where there are files. */
export function request(cells) {
  const { inputs, files } = split(cells);
  if (!files.length) {
    return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ inputs, ...OPTIONS }) };
  }
  const body = new FormData();
  body.append("inputs", JSON.stringify(inputs));
  for (const [name, value] of Object.entries(OPTIONS)) body.append(name, String(value));
  for (const [part, file] of files) body.append(part, file, file.name);
  return { method: "POST", body };
}

/** Text as one word of a shell. */
export const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A curl command line; files are named, not included. */
export function curl(url, cells, secret) {
  const { inputs, files } = split(cells);
  const lines = [`curl ${quoted(url)}`, ...(secret ? ['-H "Authorization: Bearer $TOKEN"'] : [])];
  if (files.length) {
    lines.push(`--form-string ${quoted(`inputs=${JSON.stringify(inputs)}`)}`);
    lines.push(...Object.entries(OPTIONS).map(([name, value]) => `-F ${name}=${value}`));
    lines.push(...files.map(([part, file]) => `-F ${quoted(`${part}=@"${file.name.replace(/["\\]/g, "\\$&")}"`)}`));
  } else lines.push(`-H '${JSON_TYPE}'`, `-d ${quoted(JSON.stringify({ inputs, ...OPTIONS }))}`);
  return lines.join(" \\\n  ");
}

const WORDS = new Map([[true, "True"], [false, "False"], [null, "None"]]);

/** A cell as Python writes it. */
function literal(cell) {
  if (cell instanceof Blob) return `media(${JSON.stringify(cell.name)})`;
  if (Array.isArray(cell)) return `[${cell.map(literal).join(", ")}]`;
  if (cell === null || typeof cell !== "object") return WORDS.get(cell) ?? JSON.stringify(cell);
  return `{${Object.entries(cell).map(([key, x]) => `${JSON.stringify(key)}: ${literal(x)}`).join(", ")}}`;
}

/** A Python script that needs nothing but Python; files are named, not included. */
export function python(url, cells, secret) {
  const items = Object.entries(cells).map(([column, cell]) => `    ${JSON.stringify(column)}: ${literal(cell)},`);
  const media = Object.values(cells).some((cell) => cell instanceof Blob);
  return `${media ? "import base64\n" : ""}import json
${secret ? "import os\n" : ""}import urllib.request

${media ? `
def media(path):
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()


` : ""}inputs = {
${items.join("\n")}
}
headers = {"Content-Type": "application/json"${secret ? ', "Authorization": "Bearer " + os.environ["TOKEN"]' : ""}}
body = json.dumps({"inputs": inputs, "explain": True, "strict": False}).encode()
request = urllib.request.Request(${JSON.stringify(url)}, body, headers)
with urllib.request.urlopen(request) as answer:
    print(json.dumps(json.load(answer), indent=2))
`;
}
