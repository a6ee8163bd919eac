"use strict";
// Sorts the overview and the clips below it by a column, and shows them a page at a time.
(() => {
  const table = document.querySelector(".report-overview");
  const body = table.tBodies[0];
  const perPage = Number(table.dataset.rows);
  const entries = [...body.rows].map((row) => {
    const card = document.querySelector(row.querySelector("a").getAttribute("href")).parentElement;
    return { row, card };
  });
  const main = document.querySelector("main");
  let page = 0;
  let pager = null;

  const show = (number) => {
    page = number;
    entries.forEach(({ row, card }, index) => {
      row.hidden = card.hidden = Math.floor(index / perPage) !== page;
    });
    if (!pager) return;
    const last = Math.min((page + 1) * perPage, entries.length);
    pager.status.textContent = `Clips ${page * perPage + 1} to ${last} of ${entries.length}`;
    pager.back.disabled = page === 0;
    pager.forward.disabled = last === entries.length;
  };

  const value = (row, column) => {
    const cell = row.cells[column];
    if (!cell) return null;
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (one, other) =>
    typeof one === "number" ? one - other : one.localeCompare(other, undefined, { numeric: true });

  [...table.tHead.rows[0].cells].forEach((header, column, headers) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "report-sort";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const numeric = entries.some(({ row }) => typeof value(row, column) === "number");
      const was = header.getAttribute("aria-sort");
      const down = was ? was === "ascending" : numeric;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      entries.sort((one, other) => {
        // Clips that failed have fewer cells and come last.
        const failed = one.row.classList.contains("report-failed") - other.row.classList.contains("report-failed");
        if (failed || one.row.classList.contains("report-failed")) return failed;
        return (down ? -1 : 1) * compare(value(one.row, column), value(other.row, column));
      });
      body.append(...entries.map(({ row }) => row));
      main.append(...entries.map(({ card }) => card));
      show(0);
    });
  });

  if (entries.length > perPage) {
    const bar = document.createElement("p");
    bar.className = "report-pager";
    const make = (kind, text, step) => {
      const made = document.createElement(kind);
      made.textContent = text;
      if (step) {
        made.type = "button";
        made.addEventListener("click", () => show(page + step));
      } else {
        made.setAttribute("role", "status");
      }
      bar.append(made);
      return made;
    };
    pager = { back: make("button", "Previous", -1), status: make("span", ""), forward: make("button", "Next", 1) };
    table.parentElement.after(bar);
    const visit = () => {
      const index = entries.findIndex(({ row }) => row.querySelector("a").hash === location.hash);
      if (index < 0) return;
      show(Math.floor(index / perPage));
      entries[index].card.scrollIntoView();
    };
    addEventListener("hashchange", visit);
    addEventListener("beforeprint", () => entries.forEach(({ row, card }) => (row.hidden = card.hidden = false)));
    addEventListener("afterprint", () => show(page));
    show(0);
    visit();
  }
})();
