"use strict";
// Without this script the page shows the same figures, the first rows of the long table, and one player per clip.
(() => {
  const ROWS_A_PAGE = 50;
  const byId = (id) => document.getElementById(id);

  // --- players: one sound per clip, played wherever the clip is shown; the picture follows ---
  for (const link of document.querySelectorAll("a[data-sound]")) {
    const source = byId(link.dataset.sound);
    const audio = document.createElement("audio");
    audio.controls = true;
    audio.preload = "none";
    audio.src = source.src;
    link.parentElement.replaceWith(audio);
  }
  for (const panel of document.querySelectorAll(".clip")) {
    const audio = panel.querySelector("audio"), picture = panel.querySelector(".picture"), playhead = panel.querySelector(".playhead");
    if (!audio) continue;
    const seconds = Number(picture.dataset.seconds);
    const follow = () => {
      playhead.style.visibility = "visible";
      playhead.style.left = `${Math.min(100, 100 * audio.currentTime / seconds)}%`;
      if (!audio.paused) requestAnimationFrame(follow);
    };
    audio.addEventListener("play", () => {
      for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
      follow();
    });
    audio.addEventListener("seeked", follow);
    picture.classList.add("plays");
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      audio.currentTime = seconds * (event.clientX - box.left) / box.width;
      audio.play();
    });
  }

  // --- tables whose heads sort ---
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));

  function makeSortable(heads, sort) {
    const select = (head) => {
      const descending = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : head.classList.contains("number");
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(head, descending ? -1 : 1);
    };
    for (const head of heads) {
      head.classList.add("sorts");
      head.tabIndex = 0;
      head.addEventListener("click", () => select(head));
      head.addEventListener("keydown", (event) => { if (event.key === "Enter") select(head); });
    }
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    const value = (row, column) => {
      const text = row.cells[column].dataset.value;
      return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
    };
    makeSortable(heads, (head, sign) => {
      const column = heads.indexOf(head);
      body.append(...[...body.rows].sort((a, b) => sign * compare(value(a, column), value(b, column))));
    });
  }

  // --- all queries: sorted, filtered, by pages ---
  if (!byId("data")) return;
  const { names, rows } = JSON.parse(byId("data").textContent);
  const table = byId("query-table"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const filter = byId("filter"), kind = byId("kind");
  const text = (row, column) => column === 1 || column === 2 ? names[row[column]] : row[column];
  const kinds = { "": () => true, higher: (row) => row[5] > 0, lower: (row) => row[5] < 0, equal: (row) => row[5] === 0 };
  let order = rows, shown = rows, page = 0;

  function cell(row, column) {
    const element = document.createElement("td"), value = text(row, column);
    if (column >= 3) {
      element.className = "number";
      element.textContent = (column === 5 && value > 0 ? "+" : "") + value.toLocaleString("en").replace("-", "−");
    } else if (column === 0) {
      element.className = "text";
      element.dir = "auto";
      element.textContent = value;
    } else {
      element.append(Object.assign(document.createElement("bdi"), { textContent: value }));
    }
    if (column) element.dataset.label = heads[column].textContent;
    return element;
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / ROWS_A_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    body.replaceChildren(...shown.slice(page * ROWS_A_PAGE, (page + 1) * ROWS_A_PAGE).map((row) => {
      const line = document.createElement("tr");
      line.append(...heads.map((_, column) => cell(row, column)));
      return line;
    }));
    byId("place").textContent = shown.length ? `${(page * ROWS_A_PAGE + 1).toLocaleString("en")}–${Math.min(shown.length, (page + 1) * ROWS_A_PAGE).toLocaleString("en")} of ${shown.length.toLocaleString("en")}` : "none";
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
  }

  function choose() {
    const wanted = filter.value.trim().toLocaleLowerCase().split(/\s+/);
    const accepts = kinds[kind ? kind.value : ""];
    shown = order.filter((row) => {
      if (!accepts(row)) return false;
      const line = `${row[0]} ${names[row[1]]} ${names[row[2]]}`.toLocaleLowerCase();
      return wanted.every((word) => line.includes(word));
    });
    page = 0;
    draw();
  }

  makeSortable(heads, (head, sign) => {
    const column = Number(head.dataset.column);
    order = [...rows].sort((a, b) => sign * compare(text(a, column), text(b, column)));
    choose();
  });
  heads[heads.length - 1].setAttribute("aria-sort", "descending");
  byId("controls").hidden = false;
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("input", choose);
  if (kind) kind.addEventListener("change", choose);
  byId("previous").addEventListener("click", () => { page -= 1; draw(); });
  byId("next").addEventListener("click", () => { page += 1; draw(); });
  draw();
})();
