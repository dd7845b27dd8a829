"use strict";

// The page has no data of its own: what it shows comes from the API, with the key that was typed in.
// Nothing that comes from there is ever read as HTML: all text goes through textContent.

const KEY = "vllm-cls api key";
const base = location.pathname.replace(/\/?$/, "/");
const $ = (id) => document.getElementById(id);

let model = null;
let images = []; // addresses that hold the chosen images themselves
let key = stored();

function stored(value) {
  try {
    if (value !== undefined) sessionStorage.setItem(KEY, value);
    return sessionStorage.getItem(KEY) || "";
  } catch {
    return value || ""; // storage is switched off: the key lasts until the page is left
  }
}

async function call(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const request = body && { method: "POST", body: JSON.stringify(body) };
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(base + path, { ...request, headers });
  } catch {
    throw new Error("The server gave no answer. Is it still running?");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const told = answer?.error?.message || `The server answered ${response.status}.`;
  throw Object.assign(new Error(told), { status: response.status });
}

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// The model

async function open() {
  tell(null);
  try {
    model = await call("model");
  } catch (error) {
    if (error.status === 401) askForKey();
    else tell(error);
    return;
  }
  $("key-form").hidden = true;
  document.title = model.id;
  $("name").textContent = model.id;
  $("about").textContent = about();
  const tags = model.task === "token_classify";
  $("modes").hidden = tags;
  $("decide").hidden = !model.decides;
  $("ask").hidden = model.decides || !["classify", "token_classify"].includes(model.task);
  if (model.scores && model.problem_type !== "regression") choose("pair");
  arrange();
  if (model.card) {
    $("card-text").replaceChildren(...markdown(model.card));
    $("card").hidden = false;
  }
  $(model.decides ? "state" : "text").focus();
}

function askForKey() {
  $("ask").hidden = $("decide").hidden = $("answer").hidden = true;
  $("key-form").hidden = false;
  if (key) tell(new Error("The server does not know this key."));
  $("key").focus();
}

function about() {
  const count = model.labels.length;
  const kind = model.decides ? "Answers typed questions about a state"
    : model.task === "embed" ? "Gives embeddings, through /pooling"
    : model.scores && model.problem_type !== "regression" ? "Scores how well two texts fit"
    : model.task === "token_classify" ? "Labels the tokens of a text"
    : model.problem_type === "regression" ? "Gives a text a number"
    : model.problem_type === "multi_label_classification" ? "Gives a text any of its labels"
    : "Gives a text one of its labels";
  const labels = count > 1 && !model.decides ? ` · ${count} labels` : "";
  return `${kind}${labels} · up to ${model.max_model_len.toLocaleString("en")} tokens`;
}

// The question

const mode = () => document.querySelector("[name=mode]:checked").value;

function choose(value) {
  document.querySelector(`[name=mode][value=${value}]`).checked = true;
  arrange();
}

function arrange() {
  const pair = mode() === "pair";
  $("pictures").hidden = !takesImages();
  $("text").required = !takesImages() || !images.length;
  $("second").hidden = !pair;
  $("text-pair").required = pair;
  $("text-label").textContent = !pair ? (mode() === "lines" ? "Texts, one a line" : "Text")
    : model?.scores ? "Query" : "First text";
  $("pair-label").textContent = model?.scores ? "Document" : "Second text";
}

// Images

const takesImages = () => Boolean(model?.modalities.includes("image") && mode() === "text" && model.task === "classify");

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

async function add(files) {
  const found = Array.from(files).filter((file) => file.type.startsWith("image/"));
  if (!takesImages() || !found.length) return;
  tell(null);
  try {
    images.push(...await Promise.all(found.map(read)));
  } catch (error) {
    tell(error);
  }
  showImages();
}

function showImages() {
  $("chosen").replaceChildren(...images.map((address, i) => {
    const picture = element("img");
    picture.src = address;
    picture.alt = `Image ${i + 1}`;
    const away = element("button", "away", "×");
    away.type = "button";
    away.setAttribute("aria-label", `Remove image ${i + 1}`);
    away.addEventListener("click", () => {
      images.splice(i, 1);
      showImages();
    });
    return element("li", "", picture, away);
  }));
  arrange();
}

function conversation(text) {
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return [{ role: "user", content: text.trim() ? [...parts, { type: "text", text }] : parts }];
}

async function ask() {
  const text = $("text").value;
  if (!text.trim() && !(takesImages() && images.length)) throw new Error("There is no text to classify yet.");
  const pair = $("text-pair").value;
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  const cut = { truncate_prompt_tokens: -1 };
  if (model.task === "token_classify") {
    const { usage, data } = await call("pooling", { input: text, task: "token_classify", offsets: true, ...cut });
    return { usage, shown: [labelled(pieces(text, data[0].offsets, data[0].data))] };
  }
  if (mode() === "pair" && model.scores) {
    const { usage, data } = await call("score", { text_1: text, text_2: pair, ...cut });
    return { usage, shown: [bars([data[0].score])] };
  }
  if (takesImages() && images.length) {
    const { usage, data } = await call("classify", { messages: conversation(text), truncated: true, ...cut });
    return { usage, shown: [bars(data[0].probs)], truncated: data.filter((each) => each.truncated).length };
  }
  const input = mode() === "lines" ? lines : mode() === "pair" ? { text, text_pair: pair } : text;
  const { usage, data } = await call("classify", { input, truncated: true, ...cut });
  const shown = mode() === "lines" ? data.map((each, i) => line(lines[i], each)) : [bars(data[0].probs)];
  return { usage, shown, truncated: data.filter((each) => each.truncated).length };
}

// Shows what a form's request is answered; `ask` gives elements to show and the usage.
async function submit(event, ask) {
  event.preventDefault();
  if (!model) return open();
  const button = event.target.querySelector("[type=submit]");
  button.disabled = true;
  tell(null);
  const began = performance.now();
  try {
    const { usage, shown, truncated } = await ask();
    const took = performance.now() - began;
    $("results").replaceChildren(...shown);
    $("cost").textContent = cost(took, usage.prompt_tokens ?? usage.input_tokens, truncated);
    $("answer").hidden = false;
  } catch (error) {
    $("answer").hidden = true;
    if (error.status === 401) askForKey();
    else tell(error);
  } finally {
    button.disabled = false;
  }
}

function cost(milliseconds, tokens, truncated) {
  const time = milliseconds < 1000 ? `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
  const cut = truncated ? ` · ${truncated > 1 ? `${truncated} texts were` : "the text was"} cut to ${model.max_model_len} tokens` : "";
  return `${time} · ${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}${cut}`;
}

function tell(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
}

// The answer

const nameOf = (index) => (model.scores && model.labels[0] === "LABEL_0" ? "score" : model.labels[index] ?? `LABEL_${index}`);
const isShare = (value) => (model.decides || (model.use_activation && model.gives_probabilities)) && value >= 0 && value <= 1;
const shown = (value) => (value === null ? "not a number" : isShare(value) ? `${(100 * value).toFixed(1)} %` : value.toFixed(4));

function ranked(values) {
  return values.map((value, index) => ({ value, index })).sort((a, b) => b.value - a.value);
}

function bars(values) {
  const several = model.problem_type === "multi_label_classification" || values.length === 1;
  return element("ul", "bars", ...ranked(values).map(({ value, index }, rank) => (
    bar(nameOf(index), value, several ? isShare(value) && value >= 0.5 : rank === 0)
  )));
}

function bar(name, value, best) {
  const track = element("span", isShare(value) ? "track" : "");
  if (isShare(value)) {
    const fill = element("span", "fill");
    fill.style.setProperty("--share", value);
    track.append(fill);
  }
  return element("li", best ? "best" : "", element("span", "label", name), track, element("span", "value", shown(value)));
}

function line(text, { probs }) {
  const [best] = ranked(probs);
  const head = element("summary", "", element("span", "said", text), element("span", "label", nameOf(best.index)),
    element("span", "value", shown(best.value)));
  return element("details", "line", head, bars(probs));
}

// The text, cut where its tokens begin and end: what is no token has no row, and of several tokens in one character the first
// has it. Where the server does not know where tokens stand, they have numbers.
function pieces(text, offsets, rows) {
  if (!offsets) return rows.flatMap((row, i) => [{ text: `${i + 1}`, row }, { text: " " }]);
  const characters = Array.from(text); // as the server counts them
  const found = [];
  let done = 0;
  const take = (end, row) => {
    if (end > done) found.push({ text: characters.slice(done, end).join(""), row });
    done = Math.max(done, end);
  };
  offsets.forEach((offset, i) => {
    if (!offset) return; // a token that is not of the text
    take(offset[0]);
    take(offset[1], rows[i]);
  });
  take(characters.length);
  return found;
}

function labelled(parts) {
  return element("p", "tokens", ...parts.map(({ text, row }) => {
    const best = row && ranked(row)[0];
    if (!best) return text;
    const named = nameOf(best.index) !== "O";
    const made = element(named ? "mark" : "span", "", text);
    if (named) made.append(element("small", "", `${nameOf(best.index)} ${shown(best.value)}`));
    return made;
  }));
}

// The model card: the little of Markdown that cards are made of, each piece put in as text

function markdown(source) {
  const lines = source.replace(/\r/g, "").replace(/^---\n[\s\S]*?\n---\n/, "").split("\n");
  const blocks = [];
  while (lines.length) {
    const line = lines.shift();
    const heading = /^(#{1,6})\s+(.*)/.exec(line);
    const item = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)/.exec(line);
    if (!line.trim()) continue;
    if (/^\s*```/.test(line)) {
      blocks.push(element("pre", "", element("code", "", taken(lines, (next) => !/^\s*```/.test(next)).join("\n"))));
      lines.shift();
    } else if (heading) {
      blocks.push(element(`h${Math.min(heading[1].length + 1, 4)}`, "", ...inline(heading[2])));
    } else if (item) {
      const list = blocks.at(-1)?.matches(item[1] ? "ol" : "ul") ? blocks.pop() : element(item[1] ? "ol" : "ul");
      const more = taken(lines, (next) => /^\s{2,}\S/.test(next) && !/^\s*(?:[-*+]|\d+[.)])\s/.test(next));
      list.append(element("li", "", ...inline([item[2], ...more.map((each) => each.trim())].join(" "))));
      blocks.push(list);
    } else if (/^\s*\|/.test(line)) {
      blocks.push(table([line, ...taken(lines, (next) => /^\s*\|/.test(next))]));
    } else {
      const more = taken(lines, (next) => next.trim() && !/^\s*(#{1,6}\s|```|[-*+]\s|\d+[.)]\s|\|)/.test(next));
      blocks.push(element("p", "", ...inline([line, ...more].join(" "))));
    }
  }
  return blocks;
}

function taken(lines, wanted) {
  const end = lines.findIndex((next) => !wanted(next));
  return lines.splice(0, end < 0 ? lines.length : end);
}

function table(lines) {
  const rows = lines.filter((row) => !/^[\s|:-]+$/.test(row)).map((row, i) => {
    const cells = row.trim().replace(/^\||\|$/g, "").split("|");
    return element("tr", "", ...cells.map((cell) => element(i ? "td" : "th", "", ...inline(cell.trim()))));
  });
  return element("table", "", ...rows);
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*)/).filter(Boolean).map((piece) => {
    if (piece.length > 2 && piece.startsWith("`")) return element("code", "", piece.slice(1, -1));
    if (piece.length > 4 && piece.startsWith("**")) return element("strong", "", piece.slice(2, -2));
    if (piece.length > 2 && /^\*.*\*$/.test(piece)) return element("em", "", piece.slice(1, -1));
    return piece.replace(/!?\[([^\]]*)\]\(([^)\s]*)\)/g, "$1 ($2)");
  });
}

$("ask").addEventListener("submit", (event) => submit(event, ask));
$("modes").addEventListener("change", arrange);
$("image").addEventListener("change", () => {
  add($("image").files).finally(() => ($("image").value = ""));
});
document.addEventListener("paste", (event) => {
  if (!takesImages() || !event.clipboardData.files.length) return;
  event.preventDefault();
  add(event.clipboardData.files);
});
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!takesImages() || !event.dataTransfer.types.includes("Files")) return;
    event.preventDefault(); // the browser would open the file in place of the page
    if (kind === "drop") add(event.dataTransfer.files);
  });
}
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = stored($("key").value.trim());
  $("key").value = "";
  open();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $(model?.decides ? "decide" : "ask").requestSubmit();
});
open();
