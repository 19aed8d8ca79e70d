"use strict";
(() => {
  const panel = document.getElementById("review");
  if (!panel) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const other = byId("other"), options = byId("classnames"), zoom = byId("zoom");
  const picture = zoom.appendChild(document.createElement("img"));
  const places = "upl_ray corrections of " + data.corpus;
  const OFFERED = 50;  // class names under the input
  const GLYPHS = { right: "✓", wrong: "✗", none: "∅", other: "→" };

  // Each answer is [image id, class name or "", right | wrong | none | other]; the last one about an image counts.
  let answers = [];
  const recall = () => {  // another page of this corpus may have been answered meanwhile
    if (byId("bar").dataset.kept === "no") return;  // what is answered lasts as long as the page
    try {
      answers = JSON.parse(localStorage.getItem(places) || "[]");
    } catch (error) {
      // a browser that keeps nothing, or another page's text
    }
  };
  const isClass = new Set(data.names);
  const current = () =>
    new Map(answers.filter(([, name]) => !name || isClass.has(name)).map((answer) => [answer[0], answer]));
  const keep = () => {
    try {
      localStorage.setItem(places, JSON.stringify(answers));
    } catch (error) {
      byId("bar").dataset.kept = "no";
    }
  };

  // Lists of images: those to look at first, and the thumbnails of each card.
  const listOf = (box) => {
    const card = box.closest(".card");
    const rows = card ? (data.images[card.dataset.variant] || {})[card.dataset.label] || [] : data[box.dataset.list];
    return rows.map((row) => ({
      id: row[0], confidence: row[1], labelers: row[2], members: row[3], label: card ? Number(card.dataset.label) : row[5],
      known: card ? null : row[6],
    }));
  };
  const strips = new Map([...document.querySelectorAll(".looks, .card")].map((box) => [box, box.querySelector(".strip")]));
  const grid = (strip) => ["--columns", "--rows"].map((name) => Number(strip.style.getPropertyValue(name)));

  const draw = (box, found) => {
    const strip = strips.get(box);
    if (!strip) return;
    strip.querySelector(".marks")?.remove();
    const [columns, rows] = grid(strip);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    svg.setAttribute("class", "marks");
    svg.setAttribute("aria-hidden", "true");
    listOf(box).forEach((item, i) => {
      const mark = found.get(item.id);
      if (!mark) return;
      const text = document.createElementNS(svg.namespaceURI, "text");
      text.setAttribute("x", (i % columns) + 0.94);
      text.setAttribute("y", Math.floor(i / columns) + 0.34);
      text.setAttribute("class", mark[2]);
      text.textContent = GLYPHS[mark[2]];
      svg.append(text);
    });
    if (svg.childElementCount) strip.append(svg);
  };

  const tell = () => {
    const found = current(), kinds = { right: 0, wrong: 0, none: 0, other: 0 };
    for (const answer of found.values()) kinds[answer[2]] += 1;
    const words = { right: "right", wrong: "wrong", none: "none of the classes", other: "another class" };
    const parts = Object.keys(kinds).filter((kind) => kinds[kind]).map((kind) => `${kinds[kind]} ${words[kind]}`);
    const lost = byId("bar").dataset.kept === "no" ? " This browser keeps none of them: download them before you leave." : "";
    byId("corrected").textContent =
      (found.size ? `${found.size} correction${found.size > 1 ? "s" : ""}: ${parts.join(", ")}.` : "No correction yet.") + lost;
    byId("download").disabled = byId("undo-last").disabled = !found.size;
    return found;
  };
  const redraw = () => {
    const found = tell();
    for (const box of strips.keys()) draw(box, found);
  };

  // The panel shows one image of a list.
  let box = null, items = [], at = 0;
  const describe = (answer, item) => {
    if (answer) return { right: "Marked right.", wrong: "Marked wrong.", none: "Marked: none of the classes.", other: `Marked: ${answer[1]}.` }[answer[2]];
    const before = data.corrected[item.id];
    if (before === undefined) return "Not marked.";
    return before < 0 ? "Corrected before this run: none of the classes." : `Corrected before this run: ${data.names[before]}.`;
  };
  const show = () => {
    const item = items[at], strip = strips.get(box), [columns, rows] = grid(strip), side = zoom.clientWidth;
    picture.src = strip.querySelector("img").src;
    picture.alt = `Image ${at + 1}, labeled ${data.names[item.label]}`;
    picture.style.width = `${side * columns}px`;
    picture.style.height = `${side * rows}px`;
    picture.style.transform = `translate(${-side * (at % columns)}px, ${-side * Math.floor(at / columns)}px)`;
    byId("review-label").textContent = data.names[item.label];
    byId("review-place").textContent = `${at + 1} of ${items.length}`;
    byId("review-id").textContent = item.id;
    const percent = (value) => `${Math.round(100 * value)} %`;
    byId("review-facts").textContent =
      `confidence ${percent(item.confidence)}` + (item.labelers === null ? "" : `, backbones ${percent(item.labelers)}`) +
      `, members ${percent(item.members)}` + (item.known === null ? "" : `, known ${item.known.toPrecision(2)}`);
    byId("review-answer").textContent = describe(current().get(item.id), item);
  };
  const turn = (index) => {
    at = index;
    other.value = "";
    show();
  };
  const open = (where, index) => {
    box = where;
    items = listOf(box);
    if (!items.length) return;
    if (!panel.open) panel.show();
    turn(Math.min(index, items.length - 1));
    panel.querySelector("[data-answer=right]").focus();
  };
  const close = () => {
    panel.close();
    box?.querySelector(".check").focus();
  };
  const move = (step) => turn((at + step + items.length) % items.length);
  const answer = (label, kind) => {
    recall();
    answers.push([items[at].id, label, kind]);
    keep();
    redraw();
    turn(Math.min(at + 1, items.length - 1));
  };
  const undo = () => {
    recall();
    answers.pop();
    keep();
    redraw();
    if (panel.open) show();
  };
  const actions = {
    right: () => answer(data.names[items[at].label], "right"),
    wrong: () => answer("", "wrong"),
    none: () => answer("", "none"),
    back: () => move(-1),
    next: () => move(1),
    undo,
    close,
  };

  // Another class: the first name that is, or begins with, or holds what was typed.
  const matches = (text) => {
    const words = text.toLowerCase().trim(), names = data.names.map((name) => [name.toLowerCase(), name]);
    if (!words) return [];
    const rank = (name) => (name === words ? 0 : name.startsWith(words) ? 1 : name.includes(words) ? 2 : 3);
    return names.filter(([low]) => rank(low) < 3).sort((a, b) => rank(a[0]) - rank(b[0])).map(([, name]) => name);
  };
  other.addEventListener("input", () => {
    options.replaceChildren(...matches(other.value).slice(0, OFFERED).map((name) => {
      const option = document.createElement("option");
      option.value = name;
      return option;
    }));
  });
  other.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const [name] = matches(other.value);
    if (name === undefined) {
      byId("review-answer").textContent = `No class is called ${other.value}.`;
      return;
    }
    answer(name, name === data.names[items[at].label] ? "right" : "other");
    panel.querySelector("[data-answer=right]").focus();
  });

  const KEYS = { r: "right", w: "wrong", n: "none", u: "undo", arrowleft: "back", arrowright: "next", escape: "close" };
  panel.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase(), typing = event.target === other;
    if (typing && key !== "escape") return;
    if (key === "c") {
      event.preventDefault();
      other.focus();
    } else if (KEYS[key]) {
      event.preventDefault();
      actions[KEYS[key]]();
    }
  });
  panel.addEventListener("click", (event) => {
    const button = event.target.closest("[data-answer]");
    if (button) actions[button.dataset.answer]();
  });
  document.addEventListener("click", (event) => {
    const where = event.target.closest(".looks, .card");
    if (!where) return;
    if (event.target.closest(".check")) open(where, 0);
    const strip = event.target.closest(".strip");
    if (!strip) return;
    const area = strip.getBoundingClientRect(), [columns, rows] = grid(strip);
    const column = Math.floor(((event.clientX - area.left) / area.width) * columns);
    const index = columns * Math.floor(((event.clientY - area.top) / area.height) * rows) + column;
    if (index < listOf(where).length) open(where, index);
  });

  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  byId("download").addEventListener("click", () => {
    const found = current(), before = Object.entries(data.corrected).filter(([id]) => !found.has(id));
    const rows = [...before.map(([id, label]) => [id, data.names[label] ?? "", "before"]), ...found.values()];
    const lines = rows.map((row) => row.map(quoted).join(","));
    const file = new Blob([["image_id,label,mark", ...lines, ""].join("\r\n")], { type: "text/csv" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = "corrections.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  byId("undo-last").addEventListener("click", undo);
  addEventListener("resize", () => { if (panel.open) show(); });
  addEventListener("storage", () => {
    recall();
    redraw();
  });
  recall();
  redraw();
})();
