/** Puts the page together: one recording at a time, what is done with it, and where it is kept. */

import * as api from "./api.js";
import { Conversation } from "./chat.js";
import { byId, clock, download, el } from "./dom.js";
import * as history from "./history.js";
import { Live } from "./live.js";
import { announce, askKey, clearNotice, showError } from "./notice.js";
import { picture } from "./paint.js";
import { Player } from "./player.js";
import { record } from "./recorder.js";
import { showHistory } from "./sessions.js";
import { optionsFor, TASKS } from "./tasks.js";
import { Timeline } from "./timeline.js";
import { segmentsOf, toSrt, toVtt, Transcript } from "./transcript.js";

const player = new Player((time, playing) => {
  transcript.follow(time, playing);
  timeline.follow(time);
});
const seek = (time) => player.seek(time);
const transcript = new Transcript(seek);
const timeline = new Timeline(seek);
const conversation = new Conversation(seek);
const live = new Live();

/** What is open: `{ id, name, created, duration, file, transcript, events, messages }`. */
let session = null;
/** What the server is doing for it. */
let transcribing = null;
let answering = null;

async function open(file, name, known = {}) {
  transcribing?.abort();
  answering?.abort();
  clearNotice();
  showView("recording");
  session = { id: String(Date.now()), created: Date.now(), transcript: null, events: [], messages: [], ...known, file, name };
  const opened = session;
  byId("welcome").hidden = true;
  byId("workspace").hidden = false;
  byId("name").textContent = byId("name").title = name;
  document.title = `${name} – MOSS-Audio`;
  conversation.show(session.messages);
  showTranscript();
  timeline.show([], 0);
  const note = await player.open(file);
  if (session !== opened) return;
  byId("stage-note").textContent = note;
  byId("stage-note").hidden = !note;
  byId("export-png").hidden = !player.samples;
  session.duration = player.duration;
  timeline.show(session.events, player.duration);
  announce(`${name} is open, ${clock(player.duration)} long.`);
  byId("stage").focus({ preventScroll: true });
  await keep();
}

async function keep() {
  if (!(await history.keep(session))) announce("This recording is too large for the history.");
}

function showTranscript() {
  const known = session.transcript;
  byId("no-transcript").hidden = Boolean(known);
  byId("exports").hidden = !known?.segments.length;
  byId("progress").hidden = true;
  if (known) transcript.show(known.segments);
  else transcript.clear();
}

async function transcribe() {
  const [mine, controller] = [session, new AbortController()];
  transcribing = controller;
  clearNotice();
  transcript.clear();
  byId("no-transcript").hidden = true;
  byId("progress").hidden = false;
  showProgress(null);
  byId("transcribe-stop").focus();
  const segments = [];
  let draft = "";
  try {
    for await (const event of api.transcribe(mine.file, mine.name, controller.signal)) {
      if (event.type === "transcript.progress") showProgress(event.seconds, event.duration);
      else if (event.type === "transcript.text.delta") transcript.draft((draft += event.delta));
      else if (event.type === "transcript.text.segment") {
        transcript.draft((draft = ""));
        const [segment] = segmentsOf({ segments: [event] });
        segments.push(segment);
        transcript.add(segment);
        showProgress(segment.end, player.duration);
      } else if (event.type === "transcript.text.done") {
        const whole = segments.length ? segments : segmentsOf({ duration: player.duration, ...event });
        mine.transcript = { text: event.text, language: event.language ?? null, segments: whole };
      }
    }
    announce("The transcript is complete.");
    if (mine === session) await keep();
  } catch (error) {
    if (mine === session) showError(error, transcribe);
  } finally {
    if (mine === session) {
      const lost = [document.body, byId("transcribe-stop")].includes(document.activeElement);
      showTranscript();
      if (lost) byId(mine.transcript ? "transcript" : "transcribe").focus();
    }
    if (transcribing === controller) transcribing = null;
  }
}

function showProgress(seconds, duration) {
  const bar = byId("progress-bar");
  const known = seconds !== null && duration > 0;
  if (known) bar.value = seconds / duration;
  else bar.removeAttribute("value");
  byId("progress-label").textContent = known ? `${clock(seconds)} of ${clock(duration)}` : "Sending the recording";
}

/** Runs one question or task; the send button stops it meanwhile. */
async function answer(work, again) {
  if (answering) return;
  const [mine, controller] = [session, new AbortController()];
  answering = controller;
  clearNotice();
  setAnswering(true);
  try {
    await work(controller.signal);
  } catch (error) {
    if (mine === session) showError(error, again);
  } finally {
    if (answering === controller) answering = null;
    setAnswering(Boolean(answering));
    if (mine === session) await keep();
  }
}

function setAnswering(busy) {
  byId("send").setAttribute("aria-label", busy ? "Stop" : "Send");
  byId("send").querySelector("use").setAttribute("href", busy ? "#icon-stop" : "#icon-send");
  // Not `disabled`: that would take the focus from the button that was pressed.
  for (const button of [...byId("tasks").children, byId("find-events")]) button.setAttribute("aria-disabled", busy);
}

const ask = (question) =>
  answer(async (signal) => {
    byId("question").value = "";
    try {
      await conversation.ask(session.file, session.name, question, signal);
    } catch (error) {
      byId("question").value ||= conversation.messages.at(-2)?.content === question ? "" : question;
      throw error;
    }
  }, () => ask(question)); // prettier-ignore

async function run(task) {
  if (answering) return;
  const options = await optionsFor(task);
  if (!options) return;
  const work = async (signal) => {
    const mine = session;
    const result = await conversation.run(task, TASKS[task], options, mine.file, mine.name, signal);
    if (task !== "events" || mine !== session) return;
    mine.events = result.events ?? [];
    timeline.show(mine.events, player.duration);
    announce(`${mine.events.length} sound events found.`);
  };
  const attempt = () => answer(work, attempt);
  await attempt();
}

async function recordNew() {
  if (!byId("recorder").hidden) return;
  clearNotice();
  player.pause();
  try {
    const file = await record();
    const now = new Date().toLocaleString("sv").slice(0, 16).replace(":", "."); // 2025-01-31 14.05, sortable
    if (file) await open(file, `Recording ${now}.wav`);
    else byId(session ? "record-new" : "record").focus();
  } catch (error) {
    showError(error);
  }
}

function showView(name) {
  if (name === "live") player.pause();
  else live.stop();
  for (const view of ["recording", "live"]) {
    byId(`${view}-view`).hidden = view !== name;
    if (view === name) byId(`to-${view}`).setAttribute("aria-current", "page");
    else byId(`to-${view}`).removeAttribute("aria-current");
  }
}

async function save(kind) {
  const base = session.name.replace(/\.[^.]+$/, "");
  const { name, duration, transcript: said, events, messages } = session;
  const document = { name, duration, ...said, events, messages };
  if (kind === "srt") download(`${base}.srt`, toSrt(said.segments), "application/x-subrip");
  else if (kind === "vtt") download(`${base}.vtt`, toVtt(said.segments), "text/vtt");
  else if (kind === "json") download(`${base}.json`, JSON.stringify(document, null, 2), "application/json");
  else download(`${base}.png`, await picture(name, player.samples, duration, events));
}

function wire() {
  const file = byId("file");
  file.onchange = () => file.files[0] && open(file.files[0], file.files[0].name).then(() => (file.value = ""));
  for (const id of ["choose", "choose-new"]) byId(id).onclick = () => file.click();
  for (const id of ["record", "record-new"]) byId(id).onclick = recordNew;
  for (const button of document.querySelectorAll("[data-export]")) button.onclick = () => save(button.dataset.export);
  byId("export-png").onclick = () => save("png");
  byId("transcribe").onclick = transcribe;
  byId("transcribe-stop").onclick = () => transcribing?.abort();
  byId("find-events").onclick = () => run("events");
  byId("to-recording").onclick = () => showView("recording");
  byId("to-live").onclick = () => showView("live");
  byId("open-history").onclick = () => showHistory((kept) => open(kept.file, kept.name, kept));
  byId("open-key").onclick = () => askKey();
  const chip = (task) => el("button", { type: "button", className: "chip", textContent: TASKS[task], onclick: () => run(task) });
  byId("tasks").append(...Object.keys(TASKS).filter((task) => task !== "events").map(chip));
  wireComposer();
  wireDrop();
  wireTheme();
}

function wireComposer() {
  const question = byId("question");
  byId("composer").onsubmit = (event) => {
    event.preventDefault();
    if (answering) answering.abort();
    else if (question.value.trim()) ask(question.value.trim());
  };
  question.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!answering) byId("composer").requestSubmit();
  };
}

function wireDrop() {
  const over = (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", event.type === "dragover");
    if (event.type === "drop") open(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  };
  for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, over);
}

function wireTheme() {
  const [root, button] = [document.documentElement, byId("theme")];
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => (button.setAttribute("aria-pressed", String(dark())), player.draw());
  button.onclick = () => {
    root.dataset.theme = dark() ? "light" : "dark";
    localStorage.setItem("moss-audio-theme", root.dataset.theme);
    show();
  };
  system.addEventListener("change", show);
  show();
}

const greet = () => api.modelNames().then(([name]) => (byId("model").textContent = name), (error) => showError(error, greet));

wire();
greet();
