// The page: what is chosen and typed, what the server is asked, and where its answers are shown.

import { ask, Refused } from "./api.js";
import { nameOf, readDocuments, textOf, told, Unreadable } from "./documents.js";
import { climbed, placesOf, sharedOf, tau } from "./moves.js";
import { drawColumns, duration, make } from "./results.js";
import { LANGUAGES } from "./snippets.js";

const QUERY = "how do I wait until several threads have finished";
const DOCUMENTS = [
  "A thread is started with start(); the function it was given then runs beside the rest of the program.",
  "os.wait() waits until a child process has ended, and gives its number and its exit status.",
  "time.sleep() halts the thread that calls it for so many seconds.",
  "A lock is held by one thread at a time; another one that asks for it waits until it is released.",
  "wait(futures) of concurrent.futures returns when all of them are done, or the first one, as return_when says.",
  "Daemon threads are ended with the program and are not waited for.",
  "Knitting wool is sold by weight; a thin thread needs a thin needle.",
  "Call join() on each thread in turn: it returns when that thread has ended, so after the last call all have.",
];
const LOOK_AGAIN_MS = 2000;

const $ = (id) => document.getElementById(id);
const fields = { query: $("query"), documents: $("documents"), k: $("k") };

/** What `/info` says of each model. */
let models = [];
/** Ends what is under way. */
let running = null;
/** The requests of the last run, as the snippets show them. */
let requests = [];

const key = () => $("key").value.trim();
const isSearching = () => $("form").elements.source.value === "search";
const named = (name) => models.find((model) => model.name === name);

// -- what is served -----------------------------------------------------------

async function readModels() {
  const { reply } = await ask("/info", null, { key: key() });
  models = reply.models;
  $("server").textContent = `serves ${listed(models.map((model) => model.name))} · version ${reply.version}`;
  offerModels();
}

async function lookAfter() {
  try {
    await ask("/health", null);
    await readModels();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) showKeyField();
    else {
      $("server").textContent = error.status === 503 ? "is loading its models …" : error.message;
      setTimeout(lookAfter, LOOK_AGAIN_MS);
    }
  }
}

function showKeyField() {
  $("key-field").hidden = false;
  if (!models.length) $("server").textContent = "asks for an API key";
}

const listed = (names) => (names.length > 4 ? `${names.length} models` : names.join(", "));

function offerModels() {
  const rerankers = models.filter((model) => model.can_rerank);
  const finders = models.filter((model) => model.can_search);
  $("sources").hidden = !rerankers.length || !finders.length;
  if (!rerankers.length) $("form").elements.source.value = "search";
  if (!finders.length) $("form").elements.source.value = "paste";
  $("models").hidden = false;
  $("explain-field").hidden = !models.some((model) => model.can_explain);
  fill($("finder"), [["", finders.map((model) => [model.name, model.name])]]);
  offerWays();
}

/** What a list can be made by: rerankers; and searches, where documents are searched. */
function offerWays() {
  const searching = isSearching();
  $("paste").hidden = searching;
  $("search").hidden = !searching;
  const rerankers = models.filter((model) => model.can_rerank).map((model) => [`rerank:${model.name}`, model.name]);
  const finders = models.filter((model) => model.can_search).map((model) => [`search:${model.name}`, model.name]);
  const groups = searching
    ? [["Rerank what was found", rerankers], ["Show what is found", finders]]
    : [["", rerankers]];
  // A pipeline that searches has reranked already what it found.
  const preferred = models.find((model) => model.can_rerank && (!searching || !model.can_search));
  const usual = preferred ? `rerank:${preferred.name}` : searching ? `search:${$("finder").value}` : "";
  fill($("first"), groups, usual);
  fill($("second"), [["", [["", "nothing"]]], ...groups]);
  $("second").closest(".field").hidden = rerankers.length + (searching ? finders.length : 0) < 2;
  $("go").textContent = searching ? "Search" : "Rerank";
}

/** Fills a list of choices; what was chosen stays so where it can. */
function fill(select, groups, usual) {
  const chosen = select.value;
  const elements = groups
    .filter(([, options]) => options.length)
    .map(([label, options]) => {
      const made = options.map(([value, text]) => make("option", { value }, text));
      return label ? [make("optgroup", { label }, ...made)] : made;
    });
  select.replaceChildren(...elements.flat());
  const values = [...select.options].map((option) => option.value);
  const wanted = [chosen, usual].find((value) => value !== undefined && values.includes(value));
  if (wanted !== undefined) select.value = wanted;
}

// -- asking -----------------------------------------------------------

async function run() {
  if (running) return;
  running = new AbortController();
  const query = $("query").value;
  requests = [];
  showBusy(true);
  $("problem").hidden = true;
  for (const field of Object.values(fields)) field.removeAttribute("aria-invalid");
  const columns = [];
  let before = [];
  try {
    if (!models.length) await readModels();
    const list = isSearching() ? await found($("finder").value, query) : pasted();
    before = list.documents.map((document) => document.name);
    // One after the other, so that none waits for the other's sake.
    for (const way of waysChosen(list)) columns.push(await columnOf(way, list, query));
    $("said").textContent = summary(columns, list);
  } catch (error) {
    if (error.name === "AbortError") $("said").textContent = "Stopped.";
    else if (error instanceof Refused || error instanceof Unreadable) await showProblem(error);
    else throw error;
  } finally {
    running = null;
    showBusy(false);
    if (columns.length) {
      drawColumns($("columns"), columns, before);
      bringIntoView();
    } else $("columns").replaceChildren();
    showRequests();
  }
}

/** On a narrow screen the results are below the form, where nobody would see them come. */
function bringIntoView() {
  if ($("results").getBoundingClientRect().top < innerHeight * 0.6) return;
  const smooth = matchMedia("(prefers-reduced-motion: no-preference)").matches;
  $("results").scrollIntoView({ behavior: smooth ? "smooth" : "auto" });
}

/** What was chosen; where nothing was found there is nothing to rerank. */
function waysChosen({ documents, finder }) {
  if (finder && !documents.length) return [`search:${finder}`];
  return [$("first").value, $("second").value].filter(Boolean);
}

/** Documents as they were pasted: each named by its place, so that equal ones stay apart. */
function pasted() {
  const { documents } = readDocuments($("documents").value, $("format").value);
  return {
    documents: documents.map((given, index) => ({ name: String(index), label: nameOf(given), text: textOf(given), given })),
  };
}

/** What a pipeline finds, with what it took. */
async function found(model, query) {
  const body = { model, query, k: $("k").valueAsNumber };
  const { reply, seconds } = await asked("/search", body, `search with ${model}`);
  const documents = reply.results.map(({ id, score, document: { text } }) => ({
    name: id, label: id, text, given: text, score,
  }));
  return { documents, finder: model, reply, seconds };
}

async function asked(path, body, label) {
  $("said").textContent = `Asking ${body.model} …`;
  requests.push({ label, url: location.origin + path, body, needsKey: key() !== "" });
  return ask(path, body, { key: key(), signal: running.signal });
}

/** What one of the ways makes of the list. */
async function columnOf(way, list, query) {
  const [verb, ...rest] = way.split(":");
  const model = rest.join(":");
  if (verb === "search") return searchColumn(model, model === list.finder ? list : await found(model, query));
  const body = { model, query, documents: list.documents.map((document) => document.given) };
  if (named(model)?.can_explain && $("explain").checked) body.explain = true;
  const { reply, seconds } = await asked("/v1/rerank", body, `rerank with ${model}`);
  const { counts = {}, warnings = [], reasoning = [] } = reply.meta;
  const dropped = list.documents.length - reply.results.length;
  return {
    title: reply.model,
    note: noteOf(named(reply.model)),
    rows: reply.results.map(({ index, relevance_score: score }) => {
      const { name, label, text } = list.documents[index];
      const own = reasoning.filter(({ documents }) => documents.length === 1 && documents[0] === index);
      return { name, label, text, score, reasoning: own.map((answer) => answer.text) };
    }),
    facts: [
      ...factsOf(reply, seconds),
      ...Object.entries(counts).filter(([, n]) => n).map(([what, n]) => [capital(what), n.toLocaleString("en")]),
    ],
    warnings: [...warnings, ...(dropped ? [`${dropped} of ${list.documents.length} documents were left out`] : [])],
    reasoning: reasoning.filter(({ documents }) => documents.length > 1),
    seconds,
  };
}

function searchColumn(model, { documents, reply, seconds }) {
  return {
    title: model,
    note: "as found",
    rows: documents.map(({ name, label, text, score }) => ({ name, label, text, score, reasoning: [] })),
    facts: factsOf(reply, seconds),
    warnings: [],
    reasoning: [],
    seconds,
  };
}

const factsOf = ({ meta: { timing }, usage }, seconds) => [
  ["Latency", duration(seconds)],
  ["Model", duration(timing.inference_seconds)],
  ["In queue", duration(timing.queue_seconds)],
  ["Tokens", usage.total_tokens.toLocaleString("en")],
];

const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1).replaceAll("_", " ");

const noteOf = (model) =>
  ({
    pointwise: "scores each document by itself",
    groupwise: "scores documents in groups",
    listwise: "compares documents; scores tell the order",
  })[model?.scoring] ?? "";

// -- showing -----------------------------------------------------------

function summary(columns, { documents, finder, seconds: searched }) {
  if (!documents.length) return "No document was found.";
  const source = finder ? `${finder} found ${counted(documents)} in ${duration(searched)}. ` : "";
  return source + (columns.length === 2 ? agreement(columns) : movement(columns[0], documents));
}

const counted = ({ length }) => `${length} ${length === 1 ? "document" : "documents"}`;

function agreement(columns) {
  const orders = columns.map(({ rows }) => rows.map((row) => row.name));
  const k = Math.min(3, orders[0].length, orders[1].length);
  const agreed = tau(...orders);
  const told = agreed === null ? "" : `, Kendall's τ ${agreed.toFixed(2).replace("-", "\u2212")}`;
  const shared = `${sharedOf(...orders, k)} of their first ${k} are the same`;
  return `${columns[0].title} and ${columns[1].title}: ${shared}${told}.`;
}

function movement({ title, rows, seconds }, documents) {
  const was = placesOf(documents.map((document) => document.name));
  const went = rows.map((row, index) => climbed(was.get(row.name), index + 1));
  const n = { up: went.filter((by) => by > 0).length, down: went.filter((by) => by < 0).length };
  const moved = n.up + n.down ? `${n.up} moved up, ${n.down} down` : "none moved";
  return `${title} ordered ${counted(rows)} in ${duration(seconds)}: ${moved}.`;
}

async function showProblem(error) {
  $("said").textContent = "No answer.";
  const known = error instanceof Refused ? [requests.at(-1)?.label, error.status, error.kind, error.id] : [];
  const status = known.filter(Boolean).join(" · ");
  $("problem").replaceChildren(
    make("p", { class: "message" }, error.message),
    error.advice ? make("p", {}, error.advice) : "",
    status ? make("p", { class: "hint" }, status) : "",
  );
  $("problem").hidden = false;
  if (error.status === 401) {
    showKeyField();
    $("key").focus();
  }
  if (error.kind === "model_not_found") await readModels();
  const field = error instanceof Unreadable ? fields.documents : fields[error.param];
  field?.setAttribute("aria-invalid", "true");
  field?.focus();
}

function showBusy(isBusy) {
  // Not `disabled`, which would take the focus away.
  $("go").setAttribute("aria-disabled", String(isBusy));
  if (document.activeElement === $("stop")) $("go").focus();
  $("stop").hidden = !isBusy;
  $("columns").setAttribute("aria-busy", String(isBusy));
}

function showCount() {
  try {
    $("count").textContent = told(readDocuments($("documents").value, $("format").value));
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    $("count").textContent = error.message;
  }
}

function showRequests() {
  $("request").hidden = !requests.length;
  const chosen = Math.min($("which").selectedIndex, requests.length - 1);
  $("which").replaceChildren(...requests.map(({ label }, index) => make("option", { value: String(index) }, label)));
  $("which").selectedIndex = Math.max(chosen, 0);
  $("which-field").hidden = requests.length < 2;
  showCode();
}

function showCode() {
  const request = requests[$("which").selectedIndex];
  $("code").textContent = request ? LANGUAGES[$("language").value](request) : "";
  $("copied").textContent = "";
}

async function copy() {
  const text = $("code").textContent;
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copySelected($("code")); // pages that came over plain HTTP from another machine have no clipboard of their own
  $("copied").textContent = "Copied.";
}

function copySelected(element) {
  getSelection().selectAllChildren(element);
  document.execCommand("copy");
}

function showExample() {
  $("query").value = QUERY;
  $("documents").value = DOCUMENTS.join("\n");
  $("format").value = "auto";
  showCount();
}

// -- events -----------------------------------------------------------

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("form").addEventListener("keydown", (event) => {
  const sends = event.key === "Enter" && (event.ctrlKey || event.metaKey || (event.target === $("query") && !event.shiftKey));
  if (!sends || event.isComposing) return;
  event.preventDefault();
  run();
});
$("stop").addEventListener("click", () => running?.abort());
$("example").addEventListener("click", showExample);
$("documents").addEventListener("input", showCount);
$("format").addEventListener("change", showCount);
$("sources").addEventListener("change", offerWays);
$("key").addEventListener("change", lookAfter);
$("which").addEventListener("change", showCode);
$("language").addEventListener("change", showCode);
$("copy").addEventListener("click", copy);

showExample();
lookAfter();
