"use strict";

const SETTLE_MS = 250; // a second click of a double click is not a vote on the next pair
const RETRY_MS = [500, 1000, 2000, 4000];

const element = (id) => document.getElementById(id);
const sides = ["left", "right"];
const loading = new Map(); // address -> promise of a decoded image

let voter = "";
let ballot = null; // the last answer of the server
let shownAt = 0; // when both pictures were there; 0 while they are not
let busy = false;

function view(name) {
  for (const id of ["welcome", "ballot", "finish"]) element(id).hidden = id !== name;
}

function problem(text) {
  element("problem").hidden = !text;
  element("problem").textContent = text || "";
}

async function ask(address, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(address, options);
  const value = await answer.json().catch(() => ({}));
  if (answer.ok) return value;
  const error = new Error(value.error || `the server answered ${answer.status}`);
  error.final = answer.status < 500; // asking again would not help
  throw error;
}

/** Asks until there is an answer. Every request may arrive twice: the server keeps each vote once. */
async function askUntilAnswered(address, body) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      const value = await ask(address, body);
      problem("");
      return value;
    } catch (error) {
      if (error.final) throw error;
      problem("No connection. Your vote is not lost; trying again …");
      await new Promise((done) => setTimeout(done, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]));
    }
  }
}

function picture(address) {
  if (!loading.has(address)) {
    const image = new Image();
    image.src = address;
    loading.set(address, image.decode().then(() => image));
    loading.get(address).catch(() => loading.delete(address));
  }
  return loading.get(address);
}

async function show(value) {
  ballot = value;
  shownAt = 0;
  if (!value.next.length) {
    element("total").textContent = `All ${value.total.toLocaleString()} pairs are voted on.`;
    element("undo-last").hidden = !value.last;
    view("finish");
    element("finished").focus();
    return;
  }
  const pair = value.next[0];
  const ahead = value.next.flatMap((next) => sides.map((side) => next[side]));
  element("question").textContent = value.question;
  element("prompt").textContent = pair.prompt;
  element("prompt").classList.toggle("long", pair.prompt.length > 140);
  element("progress").max = value.total;
  element("progress").value = value.done;
  element("count").textContent = `${value.done.toLocaleString()} / ${value.total.toLocaleString()}`;
  element("undo").disabled = !value.last;
  element("pair").classList.add("waiting");
  view("ballot");
  let images;
  try {
    images = await Promise.all(sides.map((side) => picture(pair[side]))); // both appear at once, or neither
  } catch {
    problem("An image could not be loaded. Reload the page to try again.");
    return;
  }
  if (ballot !== value) return;
  sides.forEach((side, index) => {
    const shown = element(side).querySelector("img");
    shown.src = pair[side];
    shown.alt = `Image ${index + 1} of: ${pair.prompt}`;
    shown.parentElement.style.setProperty("--ratio", images[index].naturalWidth / images[index].naturalHeight);
    shown.classList.toggle("pixels", images[index].naturalWidth <= 128);
  });
  element("pair").classList.remove("waiting");
  shownAt = performance.now();
  for (const address of ahead) picture(address).catch(() => {});
  for (const address of loading.keys()) if (!ahead.includes(address)) loading.delete(address);
}

async function change(address, body, words) {
  busy = true;
  try {
    const value = await askUntilAnswered(address, { voter, ...body });
    element("told").textContent = words(value);
    await show(value);
  } catch (error) {
    await show(await askUntilAnswered(`/api/ballot?voter=${encodeURIComponent(voter)}`));
    problem(`${error.message}. Going on from what was kept.`); // until the next answer
  } finally {
    busy = false;
    for (const side of sides) element(side).classList.remove("chosen");
  }
}

function choose(side) {
  const spent = performance.now() - shownAt;
  if (busy || !shownAt || spent < SETTLE_MS || element("ballot").hidden) return;
  element(side).classList.add("chosen");
  const body = { vote: identifier(), pair: ballot.next[0].pair, choice: side, milliseconds: Math.min(Math.round(spent), 86400000) };
  change("/api/votes", body, (value) => `Vote ${value.done} of ${value.total} is kept.`);
}

function undo() {
  if (busy || !ballot || !ballot.last) return;
  change("/api/undo", { vote: ballot.last }, () => "The last vote was taken back.");
}

/** Random, also where the page comes from another computer and crypto.randomUUID is not offered. */
function identifier() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function enter(name) {
  try {
    const value = await ask(`/api/ballot?voter=${encodeURIComponent(name)}`);
    voter = value.voter;
    history.replaceState(null, "", `/?voter=${encodeURIComponent(voter)}`);
    await show(value);
  } catch (error) {
    view("welcome");
    element("name-problem").textContent = error.message;
    element("name").value = name;
    element("name").focus();
  }
}

for (const side of sides) element(side).addEventListener("click", () => choose(side));
element("undo").addEventListener("click", undo);
element("undo-last").addEventListener("click", undo);
element("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  enter(element("name").value.trim());
});
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  const action = {
    1: () => choose("left"), ArrowLeft: () => choose("left"),
    2: () => choose("right"), ArrowRight: () => choose("right"),
    Backspace: undo, u: undo, U: undo,
  }[event.key];
  if (!action || !element("welcome").hidden) return;
  event.preventDefault();
  action();
});

const given = new URLSearchParams(location.search).get("voter");
if (given) enter(given);
else {
  view("welcome");
  element("name").focus();
}
