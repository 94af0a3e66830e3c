/* Shows one card at a time, keeps the decisions in localStorage, and saves them as a file. Texts of
   drafts are not trusted: they only ever become text nodes. */

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const { cards, reasons } = data;
const KEY = `blip3o-review-${data.key}`;
const NAME_KEY = "blip3o-reviewer";
const WORDS = { accept: "accepted", reject: "rejected" };
/* Control characters, invisible ones and marks of direction, which make a text look like another. */
const HIDDEN =
  /([\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\u{e0000}-\u{e007f}])/u;

/* ---- State ---- */

const decisions = cards.map(() => null);
const past = []; /* [number of the card, its decision before], for undo */
let current = 0;

const keep = () => store(KEY, JSON.stringify(decisions));

function restore() {
  byId("reviewer").value = stored(NAME_KEY) ?? "";
  const kept = JSON.parse(stored(KEY));
  const given = new Map(data.decisions.map((one) => [one.slot, one]));
  cards.forEach((card, number) => {
    /* What this browser keeps is newer than the file that the page was made from. */
    decisions[number] = (kept ? kept[number] : given.get(card.slot)) ?? null;
  });
}

/* Browsers may refuse to store: in a private window, if the disk is full, or by a policy. */
function store(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    warnOfLoss();
  }
}

function stored(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    warnOfLoss();
    return null;
  }
}

function warnOfLoss() {
  byId("trouble").textContent =
    "This browser keeps nothing: save the decisions before you close the page.";
  byId("trouble").hidden = false;
}

function decide(decision, reason = "") {
  const reviewer = byId("reviewer").value.trim();
  past.push([current, decisions[current]]);
  decisions[current] = { decision, reason, reviewer };
  keep();
  const order = cards.map((_, number) => (current + 1 + number) % cards.length);
  const next = order.find((number) => !decisions[number]);
  const end = next === undefined ? ". Save the decisions." : "";
  say(`${stateOf(decisions[current])}. ${count()}${end}`);
  go(next ?? current);
}

const stateOf = (made) =>
  made ? WORDS[made.decision] + (made.reason && `: ${made.reason}`) : "open";

const count = () => `${decisions.filter(Boolean).length} of ${cards.length} reviewed`;

function undo() {
  if (!past.length) return say("There is nothing to undo");
  const [number, before] = past.pop();
  decisions[number] = before;
  keep();
  say(`Undone. ${count()}`);
  go(number);
}

/* ---- Elements ---- */

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/* Returns the parts of a text, with hidden characters as visible codes. */
function visible(text) {
  return text.split(HIDDEN).map((part, place) => {
    if (place % 2 === 0) return part;
    const code = part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return make("span", { className: "mark", title: "a hidden character" }, `U+${code}`);
  });
}

const text = (tag, words, className = "") =>
  make(tag, { className: `text ${className}`, dir: "auto" }, ...visible(words));

const draftName = (card) => `Draft ${String(card.slot).padStart(8, "0")}`;

function imagesOf(card) {
  const name = draftName(card);
  const result = { label: "Result", url: data.images[card.image], alt: `Image of ${name}` };
  if (!card.source) return [result];
  const alt = `Source image of ${name}`;
  const note = card.source_prompt;
  return [{ label: "Source", url: data.images[card.source], alt, note }, result];
}

function scoreList(scores) {
  const items = Object.entries(scores).map(([name, value]) =>
    make("li", {}, make("bdi", {}, ...visible(name)), ` ${value}`),
  );
  return items.length ? [make("ul", { className: "scores", ariaLabel: "Scores" }, ...items)] : [];
}

function figureOf(image, isPair) {
  const zoom = make("button", { type: "button", className: "zoom", ariaLabel: "Enlarge" });
  zoom.append(make("img", { src: image.url, alt: image.alt }));
  zoom.addEventListener("click", enlarge);
  const figure = make("figure", {}, zoom);
  if (!isPair) return figure;
  figure.prepend(make("figcaption", {}, image.label));
  if (image.note) figure.append(text("figcaption", image.note));
  return figure;
}

function failureOf(failure) {
  const image = failure.url
    ? make("img", { src: failure.url, alt: "Rejected image" })
    : make("div", { className: "none" }, "the file cannot be shown");
  const stage = make("p", { className: "soft" }, "rejected by ", ...visible(failure.stage));
  const words = make("div", {}, text("p", failure.reason), text("p", failure.prompt, "soft"));
  words.prepend(stage);
  words.append(...scoreList(failure.scores));
  return make("div", { className: "failure" }, image, words);
}

function stepOf(step) {
  const origin = step.model ? `${step.stage} (${step.model})` : step.stage;
  return make("li", {}, text("div", origin, "soft"), text("div", step.text));
}

function drawCard() {
  const card = cards[current];
  const made = decisions[current];
  const images = imagesOf(card);
  const head = make(
    "div",
    { className: "head" },
    make("h2", { id: "title" }, draftName(card)),
    make("span", { className: "tag" }, ...visible(card.category)),
    make("span", { className: `tag ${made?.decision ?? ""}`, id: "state" }, stateOf(made)),
    make("span", { className: "soft" }, `${current + 1} of ${cards.length}`),
  );
  const parts = [
    head,
    make("p", { className: "soft" }, card.source ? "Instruction" : "Prompt"),
    text("p", card.prompt, "prompt"),
    make("div", { className: "images" }, ...images.map((one) => figureOf(one, images.length > 1))),
    ...scoreList(card.scores),
  ];
  if (card.steps.length) {
    parts.push(make("h3", {}, "How it was made and judged"));
    parts.push(make("ul", { className: "steps" }, ...card.steps.map(stepOf)));
  }
  if (card.failures.length) {
    const summary = make("summary", {}, `Earlier failures (${card.failures.length})`);
    parts.push(make("details", {}, summary, ...card.failures.map(failureOf)));
  }
  byId("card").className = made?.decision ?? "";
  byId("card").replaceChildren(...parts);
  if (byId("large").open) drawLarge();
}

function drawLarge() {
  const card = cards[current];
  const images = imagesOf(card).map((one) => make("img", { src: one.url, alt: one.alt }));
  byId("large-images").replaceChildren(...images);
  byId("large-text").replaceChildren(...visible(card.prompt));
}

/* Returns a percentage; the element `data` holds the exact share beside it. */
const figure = (share, unit = " %") =>
  make("data", { value: String(share) }, `${(100 * share).toFixed(1)}${unit}`);

function rowOf(rate) {
  const name = make("th", { scope: "row" }, ...visible(rate.name));
  const [low, high] = rate.interval;
  return make(
    "tr",
    {},
    name,
    make("td", {}, rate.numDrafts.toLocaleString("en")),
    make("td", {}, String(rate.numReviewed)),
    make("td", {}, String(rate.numRejected)),
    make("td", {}, rate.numReviewed ? figure(rate.rate) : "\u2013"),
    make("td", {}, ...(rate.numReviewed ? [figure(low, ""), " \u2013 ", figure(high)] : ["\u2013"])),
  );
}

function drawResults() {
  byId("progress").max = cards.length;
  byId("progress").value = decisions.filter(Boolean).length;
  byId("count").textContent = count();
  const rates = ratesByCategory(data, decisions);
  byId("categories").replaceChildren(...rates.map(rowOf));
  byId("overall").replaceChildren(rowOf({ name: "All, weighted", ...overall(data, rates) }));
  byId("note").hidden = rates.every((one) => one.numReviewed);
  byId("undo").ariaDisabled = String(!past.length);
  [...byId("map").children].forEach((square, number) => {
    square.className = decisions[number]?.decision ?? "";
    square.classList.toggle("current", number === current);
  });
}

/* ---- Actions ---- */

function say(words) {
  byId("status").textContent = words;
}

/* Shows a card; the focus goes to it, so a screen reader reads it and Space enlarges. */
function go(number) {
  if (number < 0 || number >= cards.length) return;
  current = number;
  askReason(false);
  drawCard();
  drawResults();
  byId("card").focus({ preventScroll: true });
  if (byId("card").getBoundingClientRect().top < 0) byId("card").scrollIntoView();
}

function askReason(isAsked) {
  byId("reasons").hidden = !isAsked;
  byId("decide").hidden = isAsked;
  if (!isAsked) return;
  byId("large").close();
  byId("reasons").querySelector("button").focus();
  say("Why is it rejected?");
}

function enlarge() {
  if (byId("large").open) return byId("large").close();
  drawLarge();
  byId("large").showModal();
}

function help() {
  if (byId("help-text").open) byId("help-text").close();
  else {
    byId("help-text").showModal();
    byId("close-help").focus();
  }
}

function save() {
  const lines = cards.flatMap(({ slot, image }, number) =>
    decisions[number] ? [`${JSON.stringify({ slot, image, ...decisions[number] })}\n`] : [],
  );
  const url = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  make("a", { href: url, download: "decisions.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  say(`Saved ${lines.length} decisions as decisions.jsonl`);
}

const KEYS = {
  a: () => decide("accept"),
  r: () => askReason(true),
  u: undo,
  s: save,
  " ": enlarge,
  "?": help,
  ArrowLeft: () => go(current - 1),
  ArrowRight: () => go(current + 1),
};
const REASON_KEYS = {
  r: () => decide("reject"),
  u: () => go(current),
  Escape: () => go(current),
};
reasons.forEach((reason, number) => {
  KEYS[number + 1] = REASON_KEYS[number + 1] = () => decide("reject", reason);
});

addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.altKey || event.metaKey || !byId("has-keys").checked) return;
  if (target.closest("input") && target.type === "text") return;
  /* These elements do something with Space themselves. */
  if (key === " " && target.closest("button, input, summary")) return;
  if (byId("help-text").open && key !== "?") return;
  const keys = byId("reasons").hidden ? KEYS : REASON_KEYS;
  const act = Object.hasOwn(keys, key) && keys[key];
  if (!act) return;
  event.preventDefault();
  /* A key that is held down must not decide about all the drafts that follow. */
  if (!event.repeat || key.startsWith("Arrow")) act();
});

/* ---- Start ---- */

for (const [id, act] of Object.entries({
  accept: KEYS.a,
  reject: KEYS.r,
  undo,
  save,
  help,
  previous: KEYS.ArrowLeft,
  next: KEYS.ArrowRight,
  "close-help": help,
  "close-large": enlarge,
  "large-images": enlarge,
})) {
  byId(id).addEventListener("click", act);
}
byId("large").addEventListener("close", () => {
  if (byId("reasons").hidden) byId("card").focus({ preventScroll: true });
});
byId("reviewer").addEventListener("change", () => store(NAME_KEY, byId("reviewer").value.trim()));
addEventListener("storage", (event) => {
  if (event.key !== KEY) return;
  restore(); /* the same page in another tab */
  go(current);
});
const choices = [...reasons.map((reason, number) => [number + 1, reason]), ["r", "no reason"]];
byId("reasons").append(
  make("span", { className: "ask" }, "Why?"),
  ...[...choices, ["u", "back"]].map(([key, words]) => {
    const button = make("button", { type: "button" }, words, make("kbd", {}, String(key)));
    button.addEventListener("click", () => REASON_KEYS[key]());
    return button;
  }),
);
byId("reason-list").textContent = reasons.join(", ");
byId("last-reason").textContent = String(reasons.length);
byId("map").append(
  ...cards.map((card, number) => {
    const square = make("i", { title: draftName(card) });
    square.addEventListener("click", () => go(number));
    return square;
  }),
);
restore();
go(Math.max(0, decisions.findIndex((one) => !one)));
