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
const spanOf = (card) => [Number(card.dataset.start), Number(card.dataset.end)];

function moveTo(card, seconds) {
    const [start, end] = spanOf(card);
    audioOf(card).currentTime = Math.min(Math.max(seconds, start), end);
    showPlace(card);
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
    if (!stretch || audio.currentTime < stretch.to) return;
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
    const [start, end] = spanOf(card);
    const now = audioOf(card).currentTime;
    const place = (now - start) / (end - start);
    const timeline = card.querySelector(".timeline");
    const playhead = timeline.querySelector(".playhead");
    playhead.style.left = 100 * place + "%";
    playhead.hidden = place < 0 || place > 1;
    timeline.setAttribute("aria-valuenow", now.toFixed(1));
    timeline.setAttribute("aria-valuetext", now.toFixed(1) + " s");
}

function showError(card) {
    if (card.querySelector(".message")) return;
    const line = document.createElement("p");
    line.className = "message error";
    line.setAttribute("role", "alert");
    line.textContent = "This recording cannot be played: it may have been changed or deleted since the index was made.";
    card.querySelector(".play").before(line);
}

element.addEventListener("click", (event) => {
    const timeline = event.target.closest(".timeline");
    const heard = event.target.closest(".heard, .band");
    const like = event.target.closest(".like");
    if (heard) {
        playStretch(cardOf(heard), Number(heard.dataset.from), Number(heard.dataset.to));
    } else if (timeline) {
        const card = cardOf(timeline);
        const box = timeline.getBoundingClientRect();
        const [start, end] = spanOf(card);
        moveTo(card, start + ((event.clientX - box.left) / box.width) * (end - start));
        play(card);
    } else if (like) {
        const card = cardOf(like);
        const [start, end] = spanOf(card);
        scrollToResults = true;
        trigger("click", { file: card.dataset.file, start: start, end: end });
    }
});

element.addEventListener("keydown", (event) => {
    if (!event.target.matches(".timeline")) return;
    const card = cardOf(event.target);
    const audio = audioOf(card);
    const [start, end] = spanOf(card);
    const places = {
        ArrowLeft: audio.currentTime - ARROW_SECONDS, ArrowDown: audio.currentTime - ARROW_SECONDS,
        ArrowRight: audio.currentTime + ARROW_SECONDS, ArrowUp: audio.currentTime + ARROW_SECONDS,
        Home: start, End: end,
    };
    if (event.key in places) moveTo(card, places[event.key]);
    else if (event.key === " " || event.key === "Enter") audio.paused ? play(card) : audio.pause();
    else return;
    event.preventDefault();
});

// These events do not bubble: they are caught on their way down.
element.addEventListener("timeupdate", (event) => {
    showPlace(cardOf(event.target));
    stopAtEnd(event.target); // a tab that is not seen draws no pictures
}, true);
// Whoever goes elsewhere hears what is there.
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

watch("value", () => {
    if (scrollToResults) document.getElementById("status").scrollIntoView({ behavior: "smooth", block: "start" });
    scrollToResults = false;
});
