// Typed questions about a state

const CRITERIA = {
  noul: ["What counts as true or false, if it needs telling", "true: asks for money back\nfalse: anything else"],
  choice: ["Options, one a line, with a description if it needs telling", "calm\nangry: rude, or shouting"],
  score: ["Levels, one a line, the lowest first", "can wait\nthis week\ntoday"],
};
let added = 0;

const typeOf = (card) => card.querySelector("fieldset input:checked").value;

function addQuestion() {
  const card = $("question").content.firstElementChild.cloneNode(true);
  added += 1;
  card.setAttribute("aria-label", `Question ${added}`);
  card.querySelector(".name").value = `question_${added}`;
  card.querySelectorAll("fieldset input").forEach((input) => (input.name = `type-${added}`));
  card.querySelector(".away").setAttribute("aria-label", `Remove question ${added}`);
  card.querySelector(".away").addEventListener("click", () => {
    card.remove();
    arrangeQuestions();
    $("add").focus();
  });
  card.addEventListener("change", () => arrangeQuestion(card));
  arrangeQuestion(card);
  $("questions").append(card);
  arrangeQuestions();
  return card;
}

function arrangeQuestion(card) {
  const [kind, example] = CRITERIA[typeOf(card)];
  const criteria = card.querySelector(".criteria");
  card.querySelector(".kind").textContent = kind;
  criteria.placeholder = example;
  criteria.required = typeOf(card) !== "noul";
}

// One question stays.
function arrangeQuestions() {
  const cards = [...$("questions").children];
  cards.forEach((card) => (card.querySelector(".away").hidden = cards.length === 1));
}

// "calm: a polite message" is an option with its description.
function described(line) {
  const [, option, description] = /^(.*?):\s+(.*)$/.exec(line) ?? [null, line, null];
  return [option, description];
}

function questionOf(card) {
  const type = typeOf(card);
  const lines = card.querySelector(".criteria").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const criteria = type === "score" ? lines : lines.length ? Object.fromEntries(lines.map(described)) : null;
  return { type, instructions: card.querySelector(".instructions").value.trim(), criteria };
}

function questionsAsked() {
  const asked = new Map();
  for (const card of $("questions").children) {
    const name = card.querySelector(".name").value.trim();
    if (asked.has(name)) throw new Error(`Two questions have the name "${name}".`);
    asked.set(name, questionOf(card));
  }
  return Object.fromEntries(asked);
}

function stateOf(text) {
  if (!/^\s*[[{]/.test(text)) return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

async function decide() {
  const questions = questionsAsked();
  const { usage, answers } = await call("v1/systemone", { state: stateOf($("state").value), questions });
  return { usage, shown: Object.entries(answers).map(([name, answer]) => answered(name, questions[name], answer)) };
}

function answered(name, { instructions }, answer) {
  const probabilities = answer.probabilities ?? { true: answer.noul, false: 1 - answer.noul };
  const best = ranked(Object.values(probabilities))[0].index;
  const rows = Object.entries(probabilities).map(([option, value], i) => bar(answer.legend?.[option] ?? option, value, i === best));
  const facts = answer.type === "score" ? [`mean ${answer.score.toFixed(2)}, from 0 to ${rows.length - 1}`] : [];
  if ("confidence" in answer) facts.push(`confidence ${answer.confidence.toFixed(2)}`);
  return element("section", "answered", element("h2", "", name), element("p", "note", [instructions, ...facts].join(" · ")),
    element("ul", "bars", ...rows));
}

addQuestion();
$("add").addEventListener("click", () => addQuestion().querySelector(".instructions").focus());
$("decide").addEventListener("submit", (event) => submit(event, decide));
