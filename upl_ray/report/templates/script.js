"use strict";
(() => {
  const holder = document.getElementById("data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const byId = (id) => document.getElementById(id);
  const box = byId("cards"), cards = [...box.children];
  const search = byId("search"), variant = byId("variant"), order = byId("order"), count = byId("count");
  for (const card of cards) card.search = card.dataset.name.toLowerCase();

  const show = () => {
    const words = search.value.toLowerCase().trim();
    const exact = cards.some((card) => card.search === words);
    let shown = 0, all = 0;
    for (const card of cards) {
      const mine = !variant || card.dataset.variant === variant.value;
      const found = exact ? card.search === words : card.search.includes(words);
      card.hidden = !(mine && found);
      all += mine;
      shown += mine && found;
    }
    count.textContent = shown === all ? `${all} classes` : `${shown} of ${all} classes`;
  };

  const sort = () => {
    const place = (a, b) => a.dataset.place - b.dataset.place;
    const rules = {
      look: place,
      name: (a, b) => a.search.localeCompare(b.search) || place(a, b),
      wrong: (a, b) => b.dataset.wrong - a.dataset.wrong || place(a, b),
    };
    box.append(...cards.sort(rules[order.value]));
  };

  const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);
  const list = (card, place) => {
    const rows = data.images[card.dataset.variant][card.dataset.label] || [];
    const table = document.createElement("table");
    const line = (section, tag, cells) => {
      const row = section.insertRow();
      for (const text of cells) {
        const cell = document.createElement(tag);
        if (tag === "th") cell.scope = "col";
        cell.textContent = text;
        row.append(cell);
      }
    };
    const truth = data.labeled ? ["true class"] : [];
    line(table.createTHead(), "th", ["#", "image", ...truth, "confidence", "backbones", "members"]);
    const body = table.createTBody();
    rows.forEach(([id, confidence, labelers, members, label], i) => {
      const name = label === null ? "–" : data.names[label] + (label === Number(card.dataset.label) ? "" : " ✗");
      const known = data.labeled ? [name] : [];
      line(body, "td", [i + 1, id, ...known, percent(confidence), percent(labelers), percent(members)]);
    });
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", `Images labeled ${card.dataset.name}`);
    scroll.append(table);
    place.replaceChildren(scroll);
  };

  box.addEventListener("toggle", (event) => {
    const details = event.target;
    if (details.open && details.classList.contains("rows")) list(details.closest(".card"), details.lastElementChild);
  }, true);
  search.addEventListener("input", show);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  for (const select of [variant, order]) {
    if (select) select.addEventListener("change", () => { sort(); show(); });
  }
  search.value = "";
  show();
})();
