// A request as a program that can be run elsewhere.  A key is never written out: both read RERANK_API_KEY.

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** A value as Python writes it; JSON's strings are Python's too. */
function python(value, indent = "") {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const [open, close, parts] = Array.isArray(value)
    ? ["[", "]", value.map((each) => python(each, inner))]
    : ["{", "}", Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each, inner)}`)];
  return parts.length ? `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${indent}${close}` : open + close;
}

/**
 * @param {{url: string, body: object, needsKey: boolean}} request
 */
function asCurl({ url, body, needsKey }) {
  const lines = [`curl -sS ${shell(url)}`, "-H 'Content-Type: application/json'"];
  if (needsKey) lines.push('-H "Authorization: Bearer $RERANK_API_KEY"');
  lines.push(`-d ${shell(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ");
}

/**
 * @param {{url: string, body: object, needsKey: boolean}} request
 */
function asPython({ url, body, needsKey }) {
  const key = needsKey ? ', "Authorization": f"Bearer {os.environ[\'RERANK_API_KEY\']}"' : "";
  return [
    "import json",
    ...(needsKey ? ["import os"] : []),
    "import urllib.request",
    "",
    `body = ${python(body)}`,
    "request = urllib.request.Request(",
    `    ${JSON.stringify(url)},`,
    "    json.dumps(body).encode(),",
    `    {"Content-Type": "application/json"${key}},`,
    ")",
    "with urllib.request.urlopen(request) as reply:",
    "    found = json.load(reply)",
    'for result in found["results"]:',
    url.endsWith("/search")
      ? '    print(result["score"], result["document"]["text"])'
      : '    print(result["relevance_score"], body["documents"][result["index"]])',
    "",
  ].join("\n");
}

/** By what the page calls them. */
export const LANGUAGES = { curl: asCurl, python: asPython };
