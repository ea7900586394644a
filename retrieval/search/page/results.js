/* Results: a click or an arrow key on a picture moves its player there, a click on a stretch plays it
   to its end, one player sounds at a time, "more like this" asks the server. Runs once, with Gradio's `element` and `trigger`. Later results
   replace the content of `element`, so events are caught at `element` itself. */
const ARROW_SECONDS = 1;
let scrollToResults = false;
document.getElementById("status").setAttribute("role", "status"); // read aloud when it changes

// The server keeps uploads while a page is open. Only one tab holds this connection, because a
// browser has six; when that tab closes, another takes over.
const stay = () => new Promise(() => new EventSource("presence"));
if (navigator.locks) navigator.locks.request("presence", stay);
else stay();

const cardOf = (node) => node.closest(".hit");
const audioOf = (card) => card.querySelector("audio");
// Start and end of what a card, or a picture in it, shows: an excerpt or the whole file.
const spanOf = (node) => {
    const shown = node.closest("[data-start]");
    return [Number(shown.dataset.start), Number(shown.dataset.end)];
};

function moveTo(timeline, seconds) {
    const [start, end] = spanOf(timeline);
    audioOf(cardOf(timeline)).currentTime = Math.min(Math.max(seconds, start), end);
    showPlace(cardOf(timeline));
}

function play(card) {
    audioOf(card).play().catch((error) => {
        if (error.name !== "AbortError") showError(card);
    });
}

// The stretch that a player plays: { from, to }, in seconds. Playing stops at its end.
const stretches = new WeakMap();

function playStretch(card, from, to) {
    const audio = audioOf(card);
    audio.pause();
    const stretch = { from: from, to: to };
    stretches.set(audio, stretch);
    audio.currentTime = from;
    showStretch(card);
    play(card);
    // with every picture: "timeupdate" comes only four times a second
    const watch = () => {
        if (stretches.get(audio) !== stretch || !audio.isConnected) return;
        stopAtEnd(audio);
        requestAnimationFrame(watch);
    };
    watch();
}

function stopAtEnd(audio) {
    const stretch = stretches.get(audio);
    // A jump is not the end: its "seeking" event may come after this picture.
    if (!stretch || audio.seeking || audio.currentTime < stretch.to) return;
    audio.pause();
    audio.currentTime = stretch.to;
    leaveStretch(audio);
}

function leaveStretch(audio) {
    stretches.delete(audio);
    showStretch(cardOf(audio));
}

function showStretch(card) {
    const stretch = stretches.get(audioOf(card));
    for (const part of card.querySelectorAll(".band, .heard")) {
        const isPlayed = stretch && Number(part.dataset.from) === stretch.from;
        part.classList.toggle("playing", Boolean(isPlayed));
    }
}

function showPlace(card) {
    const now = audioOf(card).currentTime;
    for (const timeline of card.querySelectorAll(".timeline")) {
        const [start, end] = spanOf(timeline);
        const place = (now - start) / (end - start);
        const playhead = timeline.querySelector(".playhead");
        playhead.style.left = 100 * place + "%";
        playhead.hidden = place < 0 || place > 1;
        timeline.setAttribute("aria-valuenow", now.toFixed(1));
        timeline.setAttribute("aria-valuetext", now.toFixed(1) + " s");
    }
}

// The whole file is requested at the first click; later ones hide and show it.
async function showWhole(button) {
    const card = cardOf(button);
    let whole = card.querySelector(".whole");
    if (whole) whole.hidden = !whole.hidden;
    else if (button.disabled) return;
    else {
        button.disabled = true;
        const answer = await fetch(button.dataset.source).catch(() => null);
        button.disabled = false;
        if (!answer || !answer.ok) {
            const reason = answer ? (await answer.json().catch(() => ({}))).detail : "";
            return showError(card, reason || "The whole file cannot be shown now: try again.");
        }
        button.insertAdjacentHTML("afterend", await answer.text());
        whole = card.querySelector(".whole");
        showPlace(card);
        showStretch(card);
    }
    button.setAttribute("aria-expanded", String(!whole.hidden));
}

function showError(card, text) {
    if (card.querySelector(".message")) return;
    const line = document.createElement("p");
    line.className = "message error";
    line.setAttribute("role", "alert");
    line.textContent = text || "This recording cannot be played: it may have been changed or deleted since the index was made.";
    card.querySelector(".play").before(line);
}

element.addEventListener("click", (event) => {
    const timeline = event.target.closest(".timeline");
    const heard = event.target.closest(".heard, .band");
    const like = event.target.closest(".like");
    const whole = event.target.closest(".show-whole");
    const mark = event.target.closest(".mark");
    if (mark) {
        markAnswer(mark);
    } else if (event.target.closest(".keep")) {
        const name = element.querySelector("#detector-name");
        if (name.value.trim()) judge(marksOf(), name.value.trim());
        else name.focus();
    } else if (event.target.closest(".forget")) {
        judge([]);
    } else if (whole) {
        showWhole(whole);
    } else if (heard) {
        playStretch(cardOf(heard), Number(heard.dataset.from), Number(heard.dataset.to));
    } else if (timeline) {
        const card = cardOf(timeline);
        const box = timeline.getBoundingClientRect();
        const [start, end] = spanOf(timeline);
        moveTo(timeline, start + ((event.clientX - box.left) / box.width) * (end - start));
        play(card);
    } else if (like) {
        const card = cardOf(like);
        const [start, end] = spanOf(card);
        scrollToResults = true;
        trigger("click", { file: card.dataset.file, start: start, end: end });
    }
});

// The answers hold their sentence and all marks, so the server keeps none.
const answersOf = () => element.querySelector(".answers").dataset;
const marksOf = () => JSON.parse(answersOf().marks);

function judge(marks, name = "") {
    trigger("submit", { query: answersOf().query, marks: marks, name: name, detector: "" });
}

// The same mark again takes it back.
function markAnswer(button) {
    const { file, start, end } = cardOf(button).dataset;
    const mark = { file: file, start: Number(start), end: Number(end), right: button.dataset.right === "true" };
    const others = marksOf().filter((own) => own.file !== file || own.start !== mark.start || own.end !== mark.end);
    const isTaken = button.getAttribute("aria-pressed") === "true";
    for (const own of cardOf(button).querySelectorAll(".mark")) own.setAttribute("aria-pressed", String(own === button && !isTaken));
    judge(isTaken ? others : [...others, mark]);
}

// Names of the saved detectors, as buttons below the question.
async function showDetectors() {
    const list = document.getElementById("detectors");
    if (!list) return setTimeout(showDetectors, 200); // Gradio has not drawn it yet
    const answer = await fetch("api/detectors").catch(() => null);
    if (!answer || !answer.ok) return;
    const { detectors } = await answer.json();
    list.replaceChildren(...detectors.map((name) => {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "detector";
        button.textContent = name;
        button.addEventListener("click", () => trigger("submit", { query: "", marks: [], name: "", detector: name }));
        return button;
    }));
    if (detectors.length) list.prepend("Detectors: ");
}
showDetectors();

element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.id === "detector-name") element.querySelector(".keep").click();
    if (!event.target.matches(".timeline")) return;
    const card = cardOf(event.target);
    const audio = audioOf(card);
    const [start, end] = spanOf(event.target);
    const step = Math.max(ARROW_SECONDS, (end - start) / 200); // of hours, more than a second
    const places = {
        ArrowLeft: audio.currentTime - step, ArrowDown: audio.currentTime - step,
        ArrowRight: audio.currentTime + step, ArrowUp: audio.currentTime + step,
        Home: start, End: end,
    };
    if (event.key in places) moveTo(event.target, places[event.key]);
    else if (event.key === " " || event.key === "Enter") audio.paused ? play(card) : audio.pause();
    else return;
    event.preventDefault();
});

// These events do not bubble: they are caught on their way down.
element.addEventListener("timeupdate", (event) => {
    showPlace(cardOf(event.target));
    stopAtEnd(event.target); // a tab that is not seen draws no pictures
}, true);
// After a jump out of the stretch, the player does not stop at its end.
element.addEventListener("seeking", (event) => {
    const stretch = stretches.get(event.target), now = event.target.currentTime;
    if (stretch && (now < stretch.from - 0.05 || now > stretch.to)) leaveStretch(event.target);
}, true);
element.addEventListener("error", (event) => {
    if (event.target.matches("audio, img")) showError(cardOf(event.target));
}, true);
element.addEventListener("play", (event) => {
    for (const audio of element.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
}, true);

// The address is a link to the query of the answers; answers to a sound have none.
function showLink() {
    const link = element.querySelector(".query-link");
    history.replaceState(history.state, "", link ? link.getAttribute("href") : location.pathname);
}

watch("value", () => {
    showLink();
    if (element.querySelector(".learned")) showDetectors();
    if (scrollToResults) document.getElementById("status").scrollIntoView({ behavior: "smooth", block: "start" });
    scrollToResults = false;
});
