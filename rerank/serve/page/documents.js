// From what was pasted to documents.

const NAMES = { lines: "one a line", paragraphs: "blank lines between", json: "JSON" };

/** What was pasted cannot be read. */
export class Unreadable extends Error {}

/**
 * The documents in a text, as they are sent: strings, or objects where JSON holds objects.
 *
 * @param {string} text
 * @param {"auto" | "lines" | "paragraphs" | "json"} format
 * @returns {{documents: (string | object)[], format: string}}
 * @throws {Unreadable} a line that is not JSON
 */
export function readDocuments(text, format = "auto") {
  const chosen = format === "auto" ? formatOf(text) : format;
  const split = { lines: byLine, paragraphs: byBlankLines, json: asJson }[chosen];
  return { documents: split(text), format: chosen };
}

/** How a text looks: JSON where every line is an object or a string of it, paragraphs where a blank line parts it. */
export function formatOf(text) {
  const lines = byLine(text);
  if (lines.length && (isJson(text, "[") || lines.every((line) => isJson(line, '{"')))) return "json";
  return byBlankLines(text).length > 1 ? "paragraphs" : "lines";
}

/** In words, for the line under the field. */
export function told({ documents, format }) {
  if (!documents.length) return "None yet: one a line, with blank lines between, or JSON lines.";
  return `${documents.length} ${documents.length === 1 ? "document" : "documents, " + NAMES[format]}`;
}

/** The text of a document for reading; the server decides what of an object it scores. */
export function textOf(document) {
  if (typeof document === "string") return document;
  if (typeof document?.text === "string") return document.text;
  return JSON.stringify(document);
}

/** What a document calls itself, or nothing. */
export function nameOf(document) {
  const name = document?._id ?? document?.id ?? document?.docno;
  return typeof name === "string" || typeof name === "number" ? String(name) : "";
}

const byLine = (text) => text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);

const byBlankLines = (text) => text.split(/\r?\n[^\S\n]*\r?\n/).map((part) => part.trim()).filter(Boolean);

function asJson(text) {
  if (isJson(text, "[")) return JSON.parse(text);
  const found = [];
  text.split(/\r?\n/).forEach((line, place) => {
    if (!line.trim()) return;
    try {
      found.push(JSON.parse(line));
    } catch (error) {
      throw new Unreadable(`Line ${place + 1} of the documents is not JSON: ${error.message}`);
    }
  });
  return found;
}

function isJson(text, starts) {
  if (!starts.includes(text.trim().charAt(0) || " ")) return false;
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
