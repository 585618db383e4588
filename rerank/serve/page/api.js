// Requests to the server that the page came from, and what it answers.

/** What the server refused, or why it was not reached. */
export class Refused extends Error {
  /**
   * @param {string} message as the server said it
   * @param {{status?: number, kind?: string, param?: string | null, id?: string, wait?: string | null}} facts
   */
  constructor(message, { status = 0, kind = "unreachable", param = null, id = "", wait = null } = {}) {
    super(message);
    Object.assign(this, { status, kind, param, id, wait });
  }

  /** What can be done about it. */
  get advice() {
    const wait = this.wait ? `Run it again in ${this.wait} ${this.wait === "1" ? "second" : "seconds"}.` : "";
    const known = {
      unreachable: "See whether the server still runs, then run it again.",
      authentication_error: "Type a key that the server knows, then run it again.",
      model_not_found: "The list of models was read again: choose one, then run it again.",
      model_not_supported: "Choose another model.",
      payload_too_large: "Send fewer or shorter documents, or raise max_body_bytes in the server's settings.",
      overloaded: wait || "Run it again in a moment.",
      timeout: wait || "Run it again, with fewer documents.",
      not_ready: wait || "Run it again in a moment.",
      internal_error: `The server's log says more under the request ${this.id}.`,
      misdirected_request: "Open the page by the server's address, or add this name to its setting allowed_hosts.",
    };
    const fields = { query: "Change the query", documents: "Change the documents", k: "Change how many" };
    return known[this.kind] ?? (this.param in fields ? `${fields[this.param]}, then run it again.` : wait);
  }
}

/** Headers of a request: the key, where there is one, is never stored. */
const headersFor = (key) => ({
  "Content-Type": "application/json",
  ...(key ? { Authorization: `Bearer ${key}` } : {}),
});

/**
 * What the server answers, with the seconds from asking to having it.
 *
 * @param {string} path
 * @param {object | null} body of a POST; null asks with GET
 * @param {{key?: string, signal?: AbortSignal}} options
 */
export async function ask(path, body, { key = "", signal } = {}) {
  const started = performance.now();
  const options = { method: body ? "POST" : "GET", headers: headersFor(key), signal, cache: "no-store" };
  let response, text;
  try {
    response = await fetch(path, body ? { ...options, body: JSON.stringify(body) } : options);
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server did not answer.");
  }
  const seconds = (performance.now() - started) / 1000;
  let reply;
  try {
    reply = JSON.parse(text);
  } catch {
    throw new Refused(`Not JSON: ${text.slice(0, 200)}`, { status: response.status, kind: "unreadable" });
  }
  if (response.ok) return { reply, seconds };
  throw new Refused(reply.message ?? reply.error ?? response.statusText, {
    status: response.status,
    kind: reply.error?.type,
    param: reply.error?.param,
    id: response.headers.get("x-request-id") ?? "",
    wait: response.headers.get("retry-after"),
  });
}
